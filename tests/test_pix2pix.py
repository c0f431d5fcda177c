"""pix2pix: its networks, the authors' weights, the game and the noise."""

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.plugins.layer_sync import TorchSyncBatchNorm
from stubs import trainer
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close
from torch.utils.data import DataLoader, Dataset

from benchmarks.pix2pix_step import AuthorsGenerator, authors_discriminator
from lit_generative.checkpoints import init_from
from lit_generative.families.adversarial import frozen
from lit_generative.models.pix2pix import Pix2Pix
from lit_generative.nn.pix2pix import PATCHES, PatchDiscriminator, UNetGenerator

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step`")

TINY = {"image_shape": (3, 16, 16), "num_downs": 3, "width": 4, "patch": 16}


def pair(n=2, size=16):
    return torch.rand(n, 3, size, size), torch.rand(n, 3, size, size)


@pytest.mark.parametrize("num_downs", [6, 7, 8])
def test_the_authors_generator_loads_and_gives_the_same(num_downs, tmp_path):
    theirs = AuthorsGenerator(num_downs, 4)
    for p in theirs.parameters():
        nn.init.normal_(p, 0, 0.3)
    size = 2**num_downs
    c = torch.rand(2, 3, size, size)
    theirs.train()
    theirs(c)  # gives the norms running statistics
    theirs.eval()
    torch.save(theirs.state_dict(), tmp_path / "latest_net_G.pth")
    sizes = TINY | {"image_shape": (3, size, size), "num_downs": num_downs}
    model = Pix2Pix(**sizes, test_norm="running", test_dropout=False)
    init_from(model, str(tmp_path / "latest_net_G.pth")).eval()
    with torch.no_grad():
        assert_close(model.translate(c), (theirs(c * 2 - 1) + 1) / 2, atol=1e-5, rtol=1e-5)


def test_names_and_shapes_are_those_of_the_published_checkpoints():
    """Of unet_256 and the 70x70 discriminator, layer by layer."""
    with torch.device("meta"):
        model, generator, discriminator = Pix2Pix(), AuthorsGenerator(8, 64), authors_discriminator(64)
    theirs = model.convert_state_dict(generator.state_dict())
    theirs |= model.convert_state_dict({f"model.{name}": v for name, v in discriminator.state_dict().items()})
    ours = model.state_dict()
    assert {name: v.shape for name, v in theirs.items()} == {name: v.shape for name, v in ours.items()}
    assert len(generator.state_dict()) == 82 and len(discriminator.state_dict()) == 22
    assert sum(p.numel() for p in model.generator.parameters()) == 54_413_955
    published = {"model.model.1.model.3.model.5.weight": (512, 128, 4, 4), "model.model.3.bias": (3,)}
    assert all(generator.state_dict()[name].shape == shape for name, shape in published.items())


@pytest.mark.parametrize("patch", [1, *PATCHES])
def test_a_logit_sees_a_patch_of_the_size_it_is_named_after(patch):
    size = 300 if patch == 286 else 160
    net = PatchDiscriminator(1, 2, patch, "instance").eval()
    for module in net.modules():  # every path counts, and norms would look at the whole image
        if isinstance(module, nn.Conv2d):
            nn.init.ones_(module.weight)
    layers = [m for m in net.model if not isinstance(m, nn.InstanceNorm2d)]
    x = torch.zeros(1, 1, size, size, requires_grad=True)
    out = nn.Sequential(*layers)(x)
    middle = out.shape[-1] // 2
    out[0, 0, middle, middle].backward()
    seen = x.grad[0, 0].nonzero()
    assert (seen.amax(0) - seen.amin(0) + 1).tolist() == [patch, patch]


@pytest.mark.parametrize("num_downs", [2, 3, 5, 7, 8])
@pytest.mark.parametrize("norm", ["batch", "instance"])
def test_every_depth_keeps_the_size(num_downs, norm):
    net = UNetGenerator(2, 3, num_downs, 2, norm, 0.5, True).eval()
    size = 2 ** max(num_downs, 4)
    with torch.no_grad():
        assert net(torch.rand(2, 2, size, 2 * size)).shape == (2, 3, size, 2 * size)
    assert list(net.dropped) == {2: [], 3: [1], 5: [1, 2, 3], 7: [4, 5], 8: [4, 5, 6]}[num_downs]


def test_noise_changes_translations_and_the_seed_fixes_it():
    model, (_, c) = Pix2Pix(**TINY).eval(), pair()

    def draw(seed):
        torch.manual_seed(seed)
        return model.translate(c)

    assert torch.equal(draw(0), draw(0)) and not torch.equal(draw(0), draw(1))
    still = Pix2Pix(**TINY, test_dropout=False).eval()
    assert torch.equal(still.translate(c), still.translate(c))
    still.train()
    assert not torch.equal(still.generator(c), still.generator(c))


def test_in_training_batch_norm_is_over_all_images_as_the_authors():
    """Of a batch of three: both networks, their gradients and the statistics that are kept."""
    torch.manual_seed(0)
    theirs = AuthorsGenerator(3, 4, dropout=0.0), authors_discriminator(4)
    model, (x, c) = Pix2Pix(**TINY | {"image_shape": (3, 32, 32), "patch": 70}, dropout=0.0).train(), pair(3, 32)
    for network in theirs:
        for p in network.parameters():
            nn.init.normal_(p, 0, 0.3)
    state = theirs[0].state_dict(), {f"model.{name}": v for name, v in theirs[1].state_dict().items()}
    model.load_state_dict({name: v.clone() for s in state for name, v in model.convert_state_dict(s).items()})
    expected, fake = theirs[0](c * 2 - 1), model.generate((x, c))
    assert_close(fake, expected, atol=1e-4, rtol=1e-4)
    assert_close(model.judge(c, fake), theirs[1](torch.cat([c * 2 - 1, expected], 1)), atol=1e-3, rtol=1e-3)
    state = theirs[0].state_dict(), {f"model.{name}": v for name, v in theirs[1].state_dict().items()}
    kept = {name: v for s in state for name, v in model.convert_state_dict(s).items()}
    assert sum(name.endswith("running_mean") for name in kept) == 3 + 3 and kept.keys() == model.state_dict().keys()
    assert_close(model.state_dict(), model.state_dict() | kept, atol=1e-4, rtol=1e-4)
    for network in (theirs[0], model.generator):
        network.zero_grad()
    expected.square().sum().backward()
    fake.square().sum().backward()
    assert_close(model.generator.downs[0].weight.grad, theirs[0].model.model[0].weight.grad, atol=1e-3, rtol=1e-3)


def test_a_translation_does_not_depend_on_its_batch_and_equals_a_batch_of_one():
    model, (_, c) = Pix2Pix(**TINY, dropout=0.0), pair(4)
    with torch.no_grad():
        one = torch.cat([model.generator(image[None] * 2 - 1) for image in c])  # training mode: statistics of the batch
    model.eval()
    assert_close(model.translate(c), (one + 1) / 2, atol=1e-5, rtol=1e-4)
    running = Pix2Pix(**TINY, dropout=0.0, test_norm="running").eval()
    assert not torch.allclose(running.translate(c[:1]), model.translate(c[:1]), atol=1e-3)


def test_losses_are_the_papers():
    torch.manual_seed(0)
    model, batch = Pix2Pix(**TINY, lambda_l1=10.0, lambda_gan=2.0), pair()
    fake = model.generate(batch)
    x, c = (image * 2 - 1 for image in batch)
    p_real = model.discriminator(torch.cat([c, x], 1)).sigmoid()
    p_fake = model.discriminator(torch.cat([c, fake], 1)).sigmoid()
    d, g = model.discriminator_loss(batch, fake), model.generator_loss(batch, fake)
    assert_close(d["loss_discriminator"], -(p_real.log().mean() + (1 - p_fake).log().mean()) / 2)
    l1 = F.l1_loss(fake, x)
    assert_close(g["loss_generator"], -2 * p_fake.log().mean() + 10 * l1)
    unconditional = Pix2Pix(**TINY, conditional=False)
    assert unconditional.judge(batch[1], x).shape == p_real.shape


class Pairs(Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, i):
        noise = torch.Generator().manual_seed(i)
        return torch.rand(3, 16, 16, generator=noise), torch.rand(3, 16, 16, generator=noise)


def test_each_network_learns_from_its_own_loss_only(tmp_path):
    """With a generator that has no loss the discriminator learns alone, and the generator's loss leaves it alone."""
    model = Pix2Pix(**TINY, lambda_gan=0.0, lambda_l1=0.0)
    before = {name: p.clone() for name, p in model.named_parameters()}
    trainer(tmp_path, max_steps=2, limit_val_batches=0).fit(model, DataLoader(Pairs(), 2))
    moved = {name.split(".")[0] for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {"discriminator"}
    alone = Pix2Pix(**TINY)
    x, c = pair()
    fake = alone.generate((x, c))
    with frozen(alone.discriminator):
        alone.generator_loss((x, c), fake)["loss_generator"].backward()
    assert all(p.grad is None for p in alone.discriminator.parameters())
    assert all(p.grad is not None for p in alone.generator.parameters())


def test_defaults_are_the_papers_and_both_rates_fall_to_nothing(tmp_path):
    h = Pix2Pix(**TINY).hparams
    paper = {"lr": 2e-4, "beta1": 0.5, "lambda_l1": 100.0, "lambda_gan": 1.0, "dropout": 0.5, "norm": "batch"}
    paper |= {"test_norm": "image", "test_dropout": True, "conditional": True, "lr_decay_start": 0.5}
    assert {name: h[name] for name in paper} == paper
    rates = []

    class Rates(Callback):
        def on_train_batch_start(self, trainer, *_):
            assert all(optimizer.defaults["betas"] == (0.5, 0.999) for optimizer in trainer.optimizers)
            rates.append([optimizer.param_groups[0]["lr"] for optimizer in trainer.optimizers])

    fit = trainer(tmp_path, max_steps=8, limit_val_batches=0, callbacks=[Rates()])
    fit.fit(Pix2Pix(**TINY), DataLoader(Pairs(), 2))
    share = torch.tensor([1, 1, 1, 1, 1, 0.75, 0.5, 0.25])
    assert_close(torch.tensor(rates), 2e-4 * share[:, None].expand(-1, 2), atol=1e-9, rtol=1e-5)


def test_statistics_of_every_image_outlast_synchronised_batch_norm():
    model, (_, c) = Pix2Pix(**TINY, test_dropout=False).eval(), pair()
    before, sync = model.translate(c), TorchSyncBatchNorm()
    again = sync.revert(sync.apply(model)).eval()
    assert torch.equal(again.translate(c), before)
    assert sum(isinstance(m, nn.SyncBatchNorm) for m in sync.apply(model).modules()) > 3


def test_weights_start_as_in_the_paper():
    torch.manual_seed(0)
    model = Pix2Pix(**TINY | {"width": 32})
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d) and module.weight.numel() > 5000:
            assert_close(float(module.weight.detach().std()), 0.02, rtol=0.05, atol=0)
        elif isinstance(module, nn.BatchNorm2d):
            assert abs(float(module.weight.detach().mean()) - 1) < 0.02 and not module.bias.any()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"num_downs": 5}, "images of 16x16 pixels can be halved 4 times, not num_downs=5"),
        ({"num_downs": 1}, "num_downs must be >= 2"),
        ({"patch": 70}, r"patches of 70 pixels do not fit images of 16x16: choose from \[1, 16, 34\]"),
        ({"patch": 50}, "patch must be one of 1, 16, 34, 70, 142, 286 pixels, got 50"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\)"),
    ],
)
def test_what_cannot_be_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        Pix2Pix(**TINY | wrong)
    with pytest.raises(ValueError, match="makes images of source images: give 2 of them as c"):
        Pix2Pix(**TINY).sample(2)
