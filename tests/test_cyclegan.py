"""CycleGAN: its losses, the pools of earlier images, the authors' weights, both directions."""

import pytest
import torch
from lightning.pytorch.callbacks import LambdaCallback
from stubs import trainer
from torch import nn
from torch.testing import assert_close
from torch.utils.data import DataLoader, TensorDataset

from lit_generative.checkpoints import init_from, load_model
from lit_generative.models.cyclegan import CycleGAN, Pool
from lit_generative.nn.cyclegan import ResNetGenerator
from lit_generative.nn.pix2pix import PatchDiscriminator

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step`")

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step`")

TINY = {"image_shape": (3, 16, 16), "width": 4, "blocks": 1, "patch": 16}


def batch(n=2, size=16):
    """Targets and sources."""
    torch.manual_seed(0)
    return torch.rand(n, 3, size, size), torch.rand(n, 3, size, size)


class Scaled(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return self.factor * x


class Level(nn.Module):
    """A discriminator that gives the mean level of an image, at every one of 2x2 patches."""

    def forward(self, x):
        return x.mean((1, 2, 3), keepdim=True).expand(-1, -1, 2, 2)


def made_of(g, f, **options):
    model = CycleGAN(**TINY, **options)
    model.generator["G"], model.generator["F"] = g, f
    model.discriminator["target"], model.discriminator["source"] = Level(), Level()
    return model


# -- losses ----------------------------------------------------------------------------------------


def test_the_cycle_of_two_inverses_costs_nothing():
    x, c = batch()
    model = made_of(Scaled(-0.5), Scaled(-2.0))
    losses = model.generator_loss((x, c), model.generate((x, c)))
    assert losses["loss_cycle"] < 1e-6 and losses["loss_identity"] > 0.1
    model = made_of(Scaled(1.0), Scaled(1.0))
    losses = model.generator_loss((x, c), model.generate((x, c)))
    assert losses["loss_cycle"] == losses["loss_identity"] == 0


def test_losses_are_those_of_the_paper():
    """Of translators that halve and take away the sign, whose losses are plain."""
    x, c = batch(3)
    model = made_of(Scaled(0.5), Scaled(-1.0), lambda_cycle=4.0, lambda_identity=0.25)
    fake = model.generate((x, c))
    x, c = 2 * x - 1, 2 * c - 1
    assert_close(fake, torch.cat([0.5 * c, -x]), atol=1e-6, rtol=0)
    level_x, level_c = x.mean((1, 2, 3)), c.mean((1, 2, 3))
    losses = model.generator_loss(((x + 1) / 2, (c + 1) / 2), fake)
    gan = ((0.5 * level_c - 1) ** 2).mean() + ((-level_x - 1) ** 2).mean()
    cycle = 1.5 * c.abs().mean() + 1.5 * x.abs().mean()  # -0.5 c and -0.5 x come back
    identity = 0.5 * x.abs().mean() + 2 * c.abs().mean()
    expected = {"loss_generator": gan + 4 * cycle + identity, "loss_gan": gan, "loss_cycle": cycle}
    assert_close({key: losses[key] for key in expected}, expected, atol=1e-5, rtol=0)
    losses = model.discriminator_loss(((x + 1) / 2, (c + 1) / 2), fake)
    target = (((level_x - 1) ** 2).mean() + (0.5 * level_c).square().mean()) / 2
    source = (((level_c - 1) ** 2).mean() + level_x.square().mean()) / 2
    assert_close(losses["loss_discriminator"], target + source, atol=1e-5, rtol=0)
    assert list(losses) == ["loss_discriminator", "loss_target", "loss_source"]


def test_without_its_weight_no_identity_is_computed():
    model = CycleGAN(**TINY, lambda_identity=0.0)
    assert "loss_identity" not in model.generator_loss(batch(), model.generate(batch()))


def test_each_optimizer_has_both_networks_of_its_kind():
    model = CycleGAN(**TINY)
    sizes = [sum(p.numel() for group in o.param_groups for p in group["params"]) for o in model.default_optimizers()]
    translators = 2 * sum(p.numel() for p in ResNetGenerator(3, 3, 4, 1).parameters())
    judges = 2 * sum(p.numel() for p in PatchDiscriminator(3, 4, 16, "instance").parameters())
    assert sizes == [translators, judges] and sum(sizes) == sum(p.numel() for p in model.parameters())


def test_training_moves_every_network_and_lowers_the_cycle(tmp_path):
    torch.manual_seed(0)
    x, c = batch(8)
    x = x * torch.tensor([1.0, 0.2, 0.2]).view(3, 1, 1)  # red targets
    model = CycleGAN(**TINY, lr=2e-3, lr_decay_start=1.0)
    before = {name: v.clone() for name, v in model.state_dict().items()}

    def cycle():
        with torch.no_grad():
            return model.generator_loss((x, c), model.generate((x, c)))["loss_cycle"]

    first = cycle()
    trainer(tmp_path, max_epochs=25).fit(model, DataLoader(TensorDataset(x, c), 4))
    moved = [name for name, v in model.state_dict().items() if not torch.equal(v, before[name])]
    assert len(moved) == len(before) and cycle() < 0.7 * first
    red, green, _ = model.translate(c).mean((0, 2, 3))
    assert red > 2 * green


# -- pools -----------------------------------------------------------------------------------------


def test_a_pool_gives_new_and_earlier_images_half_and_half():
    torch.manual_seed(0)
    pool, given = Pool(50), []
    for step in range(2000):
        new = torch.full((2, 1, 1, 1), float(2 * step))
        new[1] += 1
        given.append(pool.exchange(new).flatten())
    given = torch.cat(given)
    assert torch.equal(given[:50], torch.arange(50.0)) and len(pool.images) == 50
    now = given[50:] == torch.arange(50.0, 4000)
    assert abs(now.float().mean() - 0.5) < 4 * 0.5 / 3950**0.5
    old = given[50:][~now]
    assert len(old.unique()) == len(old)  # what leaves the pool leaves it once
    # an image waits 50 exchanges on average, so 100 new images: geometric
    age = torch.arange(50.0, 4000)[~now] - old
    assert abs(age[500:].mean() - 100) < 4 * 100 / (len(age) - 500) ** 0.5
    assert torch.equal(Pool(0).exchange(new), new)


def test_discriminators_are_shown_the_pools_and_translators_never(tmp_path):
    shown, taught = [], []

    class Watched(CycleGAN):
        def discriminator_loss(self, batch, fake):
            shown.append(fake.detach().clone())
            return super().discriminator_loss(batch, fake)

        def generator_loss(self, batch, fake):
            taught.append(fake.detach().clone())
            return super().generator_loss(batch, fake)

    torch.manual_seed(0)
    model = Watched(**TINY, pool=4)
    trainer(tmp_path, max_epochs=10).fit(model, DataLoader(TensorDataset(*batch(4)), 2))
    same = [torch.equal(a, b) for a, b in zip(shown, taught, strict=True)]
    assert same[:2] == [True, True] and not all(same[2:])  # two pools of four images fill in two steps
    targets, sources = (torch.cat([fake.chunk(2)[i] for fake in taught]) for i in range(2))
    for fake in shown:
        for image, side in zip(fake, [targets] * 2 + [sources] * 2, strict=True):
            assert (side == image).flatten(1).all(1).any()


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_a_resumed_training_has_the_pools(tmp_path):
    """As in the contract test, which kills one; here the checkpoint is looked at."""
    torch.manual_seed(0)
    model = CycleGAN(**TINY, pool=3)
    fit = trainer(tmp_path, max_epochs=2)
    fit.fit(model, DataLoader(TensorDataset(*batch(4)), 2))
    fit.save_checkpoint(tmp_path / "a.ckpt")
    pools, found = [pool.images for pool in model.pools], []
    again = CycleGAN(**TINY, pool=3)
    look = LambdaCallback(on_train_batch_start=lambda *_: found.append([pool.images.clone() for pool in again.pools]))
    trainer(tmp_path / "again", max_epochs=3, callbacks=[look]).fit(
        again, DataLoader(TensorDataset(*batch(4)), 2), ckpt_path=tmp_path / "a.ckpt", weights_only=True
    )
    assert len(found) == 2 and all(torch.equal(a, b) for a, b in zip(found[0], pools, strict=True))
    fresh = load_model(tmp_path / "a.ckpt").train()
    trainer(tmp_path / "fresh", max_steps=1).fit(fresh, DataLoader(TensorDataset(*batch(1)), 1))
    assert len(fresh.pools[0].images) == 1  # another training, with pools of its own


# -- the authors' weights --------------------------------------------------------------------------


class AuthorsBlock(nn.Module):
    def __init__(self, channels):
        super().__init__()
        layers = []
        for last in (False, True):
            layers += [nn.ReflectionPad2d(1), nn.Conv2d(channels, channels, 3, bias=True), nn.InstanceNorm2d(channels)]
            layers += [] if last else [nn.ReLU(True)]
        self.conv_block = nn.Sequential(*layers)

    def forward(self, x):
        return x + self.conv_block(x)


class AuthorsResNet(nn.Module):
    """resnet_9blocks of pytorch-CycleGAN-and-pix2pix, as its source describes it."""

    def __init__(self, width, blocks):
        super().__init__()
        model = [nn.ReflectionPad2d(3), nn.Conv2d(3, width, 7), nn.InstanceNorm2d(width), nn.ReLU(True)]
        for i in range(2):
            inner = width * 2**i
            model += [nn.Conv2d(inner, inner * 2, 3, stride=2, padding=1), nn.InstanceNorm2d(inner * 2), nn.ReLU(True)]
        model += [AuthorsBlock(width * 4) for _ in range(blocks)]
        for i in range(2):
            inner = width * 2 ** (2 - i)
            model += [nn.ConvTranspose2d(inner, inner // 2, 3, stride=2, padding=1, output_padding=1)]
            model += [nn.InstanceNorm2d(inner // 2), nn.ReLU(True)]
        self.model = nn.Sequential(*model, nn.ReflectionPad2d(3), nn.Conv2d(width, 3, 7), nn.Tanh())

    def forward(self, x):
        return self.model(x)


def test_names_and_shapes_are_those_of_the_published_checkpoints():
    with torch.device("meta"):
        ours, theirs = ResNetGenerator(3, 3, 64, 9).state_dict(), AuthorsResNet(64, 9).state_dict()
    assert {name: v.shape for name, v in ours.items()} == {name: v.shape for name, v in theirs.items()}
    published = {
        "model.1.weight": (64, 3, 7, 7), "model.4.weight": (128, 64, 3, 3), "model.7.bias": (256,),
        "model.10.conv_block.1.weight": (256, 256, 3, 3), "model.18.conv_block.5.bias": (256,),
        "model.19.weight": (256, 128, 3, 3), "model.22.weight": (128, 64, 3, 3), "model.26.weight": (3, 64, 7, 7),
    }  # fmt: skip
    assert all(tuple(ours[name].shape) == shape for name, shape in published.items())
    assert sum(v.numel() for v in ours.values()) == 11_378_179  # as their program prints it: 11.378 M


@pytest.mark.parametrize("old", [False, True])
def test_the_authors_networks_load_and_give_the_same(old, tmp_path):
    """By the names of their files; those of before PyTorch 0.4 have statistics of instance norm."""
    torch.manual_seed(0)
    theirs = {f"G_{side}": AuthorsResNet(4, 2) for side in "AB"}
    theirs |= {f"D_{side}": PatchDiscriminator(3, 4, 16, "instance") for side in "AB"}
    for name, network in theirs.items():
        state = dict(network.state_dict())
        if old:
            state |= {"model.2.running_mean": torch.rand(4), "model.2.running_var": torch.rand(4)}
            state["model.2.num_batches_tracked"] = torch.tensor(3)
        torch.save(state, tmp_path / f"latest_net_{name}.pth")
    model = CycleGAN(**TINY | {"blocks": 2}).eval()
    init_from(model, ",".join(str(tmp_path / f"latest_net_{name}.pth") for name in theirs))
    _, c = batch()
    signed = 2 * c - 1
    assert_close(model.translate(c), (theirs["G_A"](signed) + 1) / 2, atol=1e-5, rtol=0)
    model.translates = "to_sources"
    assert_close(model.translate(c), (theirs["G_B"](signed) + 1) / 2, atol=1e-5, rtol=0)
    for found, name in zip(model.judge(signed, signed), ("D_A", "D_B"), strict=True):
        assert_close(found, theirs[name](signed), atol=1e-5, rtol=0)


def test_one_published_translator_is_the_forward_one(tmp_path):
    torch.manual_seed(0)
    theirs = AuthorsResNet(4, 1)
    torch.save(theirs.state_dict(), tmp_path / "latest_net_G.pth")
    model = init_from(CycleGAN(**TINY).eval(), str(tmp_path / "latest_net_G.pth"), partly=True)
    assert_close(model.translate(batch()[1]), (theirs(2 * batch()[1] - 1) + 1) / 2, atol=1e-5, rtol=0)


# -- translation -----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [16, 18, 13])
def test_sources_of_any_size_are_translated_both_ways(size):
    model = CycleGAN(**TINY).eval()
    c = batch(2, size)[1][..., : size - 1]
    forward = model.translate(c)
    model.translates = "to_sources"
    assert forward.shape == model.translate(c).shape == c.shape and not torch.equal(forward, model.translate(c))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"image_shape": (3, 18, 16)}, "multiples of 4, and at least 8, got 18x16"),
        ({"blocks": 0}, "blocks must be >= 1"),
        ({"pool": -1}, "pool, lambda_cycle and lambda_identity >= 0; got 4, 1, -1"),
        ({"patch": 70}, "patches of 70 pixels do not fit images of 16x16"),
        ({"lr_decay_start": 2.0}, r"lr_decay_start must be in \[0, 1\]"),
    ],
)
def test_wrong_options_are_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        CycleGAN(**TINY | wrong)
