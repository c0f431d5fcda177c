"""Order, coverage, ranks, resume, flips and binarisation of the in-memory loader."""

import math
from itertools import chain

import pytest
import torch
from lightning.pytorch import Callback, Trainer

from datamodules.loader import TensorLoader, bernoulli
from lit_generative.generative_model import GenerativeModel

# Lightning 2.6 asks torch 2.9 and later in a way that they deprecate.


def make(count=50, batch_size=8, seed=3, **options):
    """A loader whose image i has level i everywhere and label i."""
    labels = torch.arange(count)
    images = labels.to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 2, 3).contiguous()
    options = {"shuffle": True, "drop_last": True} | options
    return TensorLoader(images, labels, batch_size, seed=seed, **options)


def seen(loader, epoch=0):
    """The labels of an epoch, batch by batch."""
    loader.set_epoch(epoch)
    return [c.tolist() for _, c in loader]


def flat(batches):
    return list(chain.from_iterable(batches))


def test_batches_pair_images_with_their_labels():
    for x, c in make():
        assert x.dtype == torch.uint8 and x.shape == (8, 1, 2, 3)
        assert c.dtype == torch.int64 and c.shape == (8,)
        assert torch.equal(x[:, 0, 1, 2].long(), c)


def test_an_epoch_is_a_permutation():
    loader = make(drop_last=False)
    epoch = flat(seen(loader))
    assert epoch != sorted(epoch) and sorted(epoch) == list(range(50))
    assert len(loader) == 7 and len(make()) == 6
    whole = flat(seen(make()))
    assert whole == epoch[:48]


def test_the_order_depends_on_seed_and_epoch_only():
    loader = make()
    first, second = seen(loader, 0), seen(loader, 1)
    torch.manual_seed(5)
    assert first != second
    assert seen(loader, 0) == first and seen(make(), 1) == second
    assert seen(make(seed=4), 0) != first


def test_ranks_together_see_the_batches_of_one_process():
    ranks = [seen(make(batch_size=4, rank=rank, world_size=2), 2) for rank in range(2)]
    assert [a + b for a, b in zip(*ranks, strict=True)] == seen(make(batch_size=8), 2)


@pytest.mark.parametrize("shuffle", [False, True])
def test_evaluation_shares_every_image_once(shuffle):
    loaders = [make(batch_size=8, shuffle=shuffle, drop_last=False, rank=rank, world_size=3) for rank in range(3)]
    batches = [seen(loader) for loader in loaders]
    assert sorted(flat(flat(batches))) == list(range(50))
    assert [len(b) for b in batches] == [len(loader) for loader in loaders] == [3, 3, 2]


def test_resume_in_mid_epoch():
    whole = seen(make(), 1)
    loader = make()
    loader.set_epoch(1)
    batches = iter(loader)
    for _ in range(2):
        next(batches)
    state = loader.state_dict()
    assert state == {"epoch": 1, "position": 2, "step": 8}

    resumed = make()
    resumed.load_state_dict(state)
    assert resumed.state_dict() == state
    assert seen(resumed, 1) == whole[2:]
    assert seen(resumed, 1) == whole, "only the first iteration goes on from the state"
    resumed.load_state_dict(state)
    assert seen(resumed, 2) == seen(make(), 2), "a new epoch starts at its start"


def test_the_position_is_right_without_asking_for_more_than_the_last_batch():
    loader = make()
    batches = iter(loader)
    for _ in range(len(loader)):
        next(batches)
    assert loader.state_dict() == {"epoch": 0, "position": 6, "step": 8}
    resumed = make()
    resumed.load_state_dict(loader.state_dict())
    assert seen(resumed) == seen(make())


def test_steps_may_change_in_size_between_epochs_only():
    with pytest.raises(ValueError, match=r"within an epoch, batch_size \* processes must be as before, 8, got 16"):
        (larger := make(batch_size=16)).load_state_dict({"epoch": 0, "position": 2, "step": 8})
        seen(larger)
    (halves := make(batch_size=4, world_size=2)).load_state_dict({"epoch": 0, "position": 2, "step": 8})
    assert seen(halves) == seen(make(batch_size=4, world_size=2))[2:]
    for position, epoch in ((6, 0), (2, 1)):  # behind the last batch, or the last that the Trainer asked for
        (larger := make(batch_size=16)).load_state_dict({"epoch": 0, "position": position, "step": 8})
        assert seen(larger, epoch) == seen(make(batch_size=16), epoch)


def test_iter_is_lazy():
    loader = make()
    loader.load_state_dict({"epoch": 0, "position": 2, "step": 8})
    iter(loader)
    stale = iter(loader)
    loader.set_epoch(1)
    assert [c.tolist() for _, c in stale] == seen(make(), 1)


class Recorder(GenerativeModel):
    image_shape = (1, 2, 3)

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.labels = []

    def take_batch(self, batch, first):
        return batch  # as the loader gives it, which is what the tests are about

    def training_step(self, batch):
        x, c = batch
        self.labels.append((self.current_epoch, c.tolist()))
        return self.weight * x.float().mean()

    def validation_step(self, batch):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Saver(Callback):
    """Saves in one hook only; unlike ModelCheckpoint it has no state of its own to restore."""

    def __init__(self, hook, path):
        setattr(self, hook, lambda trainer, *_: trainer.save_checkpoint(path))


def fit(model, callbacks=(), ckpt_path=None, **until):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = Trainer(callbacks=list(callbacks), enable_checkpointing=False, **quiet, **until)
    trainer.fit(model, make(random_flip=True), make(shuffle=False, drop_last=False), ckpt_path=ckpt_path)


# an epoch has 6 batches
@pytest.mark.parametrize(
    ("hook", "stop", "end"),
    [
        ("on_train_batch_end", {"max_steps": 4}, {"max_steps": 24}),
        ("on_train_batch_end", {"max_steps": 9}, {"max_steps": 24}),
        ("on_train_batch_end", {"max_steps": 12}, {"max_steps": 24}),
        ("on_validation_end", {"max_steps": 12}, {"max_steps": 24}),
        ("on_train_epoch_end", {"max_epochs": 2}, {"max_epochs": 4}),
        ("on_train_epoch_end", {"max_steps": 12}, {"max_steps": 24}),
        ("on_train_epoch_end", {"max_steps": 9}, {"max_steps": 24}),
        ("on_train_end", {"max_steps": 9}, {"max_epochs": 4}),
        ("on_train_end", {"max_epochs": 2}, {"max_epochs": 4}),
    ],
)
def test_resume_under_lightning(tmp_path, hook, stop, end):
    whole, before, after = Recorder(), Recorder(), Recorder()
    fit(whole, **end)
    assert [c for _, c in whole.labels[6:12]] == seen(make(random_flip=True), 1)
    fit(before, [Saver(hook, tmp_path / "last.ckpt")], **stop)
    fit(after, ckpt_path=tmp_path / "last.ckpt", **end)
    assert before.labels + after.labels == whole.labels
    assert after.weight == whole.weight


def test_flips_mirror_half_of_the_images_and_keep_labels():
    count = 2000
    images = torch.arange(6, dtype=torch.uint8).view(1, 1, 2, 3).repeat(count, 1, 1, 1)
    images[:, 0, 0, 1] = 100
    labels = torch.arange(count)
    loader = TensorLoader(images, labels, 100, shuffle=True, drop_last=True, seed=0, random_flip=True)
    flipped = {}
    for epoch in range(2):
        loader.set_epoch(epoch)
        x, c = (torch.cat(part) for part in zip(*loader, strict=True))
        assert torch.equal(c.sort().values, labels)
        mirrored = x[:, 0, 0, 0] == 2
        assert torch.equal(x[mirrored], images[:1].flip(-1).expand_as(x[mirrored]))
        assert torch.equal(x[~mirrored], images[:1].expand_as(x[~mirrored]))
        assert abs(mirrored.float().mean() - 0.5) < 4 * 0.5 / math.sqrt(count)
        flipped[epoch] = mirrored[c.argsort()]
    assert not torch.equal(flipped[0], flipped[1])


def test_dynamic_binarisation_has_the_exact_mean_of_every_level():
    n = 1000
    levels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).repeat(n, 1, 1, 1)
    loader = TensorLoader(levels, torch.arange(n), 100, shuffle=True, drop_last=True, seed=0, binarize=True)
    x = torch.cat([x for x, _ in loader])
    assert x.dtype == torch.uint8 and set(x.unique().tolist()) == {0, 255}
    mean = (x.double() / 255).mean(0).flatten()
    p = torch.arange(256).double() / 255
    assert mean[0] == 0 and mean[255] == 1
    assert ((mean - p).abs() <= 4 * (p * (1 - p) / n).sqrt()).all()
    # 254/255 against 254/256 and 255/256, which a byte's 256 values would give
    many = torch.full((512, 2000), 254, dtype=torch.uint8)
    zeros = (bernoulli(many, torch.Generator().manual_seed(0)) == 0).double().mean()
    assert abs(zeros - 1 / 255) < 4 * math.sqrt(1 / 255 / many.numel())


def drawn(epoch=0, **options):
    """The binary images of an epoch by label."""
    loader = make(binarize=True, **options)
    loader.set_epoch(epoch)
    return {int(label): image.tolist() for x, c in loader for image, label in zip(x, c, strict=True)}


def test_binary_draws_differ_between_epochs_but_not_between_ranks_or_batch_sizes():
    whole = drawn(drop_last=False)
    assert whole == drawn(drop_last=False, batch_size=7)
    assert whole != drawn(epoch=1, drop_last=False)
    for rank in range(2):
        part = drawn(batch_size=4, rank=rank, world_size=2)
        assert part and part.items() <= whole.items()


def test_arguments_that_do_not_fit():
    with pytest.raises(ValueError, match="batch_size 0"):
        make(batch_size=0)
    with pytest.raises(ValueError, match="rank 2 of 2"):
        make(rank=2, world_size=2)
