"""A run that was stopped or killed at any moment, and goes on, is the run in one piece: checkpoints, curves, epochs."""

import csv

import pytest
import torch
from comparison import differing
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback, Checkpoint, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

import train
from callbacks import EMA, Finetuning, SampleGrid
from datamodules import FashionMNIST
from lit_generative.checkpoints.last import AtomicCheckpointIO, LastCheckpoint, newest_checkpoint
from lit_generative.checkpoints.load import read_checkpoint
from lit_generative.models.ddpm import DDPM
from lit_generative.models.factor_vae import FactorVAE
from lit_generative.models.latent_flow import LatentFlow
from lit_generative.models.vae import VAE
from lit_generative.models.wgan import WGANGP
from lit_generative.training.run_logger import RunLogger

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
]

BATCHES = 5  # of an epoch
ARGS = ["fit", "--model=VAE", "--model.hidden=[8]", "--model.latent=2", "--data=FashionMNIST", "--data.batch_size=16",
        "--data.val_size=16", "--name=run", "--resume", "--trainer.callbacks=[]", "--trainer.log_every_n_steps=2",
        "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false",
        "--trainer.enable_model_summary=false"]  # fmt: skip
SMALL = {"hidden": (8,), "latent": 2}
MODELS = {  # with a network to average
    "VAE": (lambda: VAE(**SMALL, lr_decay_start=0.5), "decoder"),
    "FactorVAE": (lambda: FactorVAE(**SMALL, units=8, layers=1, lr_decay_start=0.5), "encoder"),
    "WGANGP": (lambda: WGANGP(width=4, latent=4, n_critic=2, accumulate_grad_batches=2), "generator"),
    "constant VAE": (lambda: VAE(**SMALL), "decoder"),
    "LatentFlow": (lambda: LatentFlow(hidden=(8,), latent=4, couplings=2, width=8, autoencoder_fraction=0.75), "flow"),
    "DDPM": (lambda: DDPM(channels=(8, 8), groups=4, steps=4, sampling_steps=4, lr_warmup_steps=4), "denoiser"),
}


class Killed(Exception):
    pass


class Kill(Checkpoint):  # which Lightning calls last
    """Ends the process's part of the run in a hook, the n-th time that it is called."""

    def __init__(self, hook, n):
        self.left = n
        setattr(self, hook, self._called)

    def _called(self, trainer, *_):
        self.left -= not trainer.sanity_checking
        if self.left == 0:
            raise Killed


class SaveAndKill(Callback):
    """The same at the n-th end of an epoch, of which the last batch is saved."""

    def __init__(self, n):
        self.left = n

    def on_train_batch_end(self, trainer, *_):
        if trainer.is_last_batch:
            trainer.save_checkpoint(trainer.checkpoint_callback.dirpath + "/last.ckpt")

    def on_train_epoch_end(self, trainer, pl_module):
        self.left -= 1
        if self.left == 0:
            raise Killed


class Hooks(Callback):
    """Which epoch hooks were told that they are in, and the images and the learning rate of every step."""

    def __init__(self):
        self.seen = {}

    def _epoch(self, trainer, *_):
        self.seen[trainer.global_step, "epoch"] = trainer.current_epoch

    on_train_epoch_start = on_validation_epoch_end = _epoch

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        rates = [group["lr"] for optimizer in trainer.optimizers for group in optimizer.param_groups]
        if hasattr(pl_module, "flow"):
            self.flow = torch.cat([p.detach().flatten().clone() for p in pl_module.flow.parameters()])
        self.seen[trainer.global_step, "batch"] = trainer.current_epoch, batch_idx, float(batch[0].sum()), rates

    def on_train_batch_end(self, trainer, pl_module, *_):
        if hasattr(pl_module, "flow"):
            now = torch.cat([p.detach().flatten() for p in pl_module.flow.parameters()])
            self.seen[trainer.global_step - 1, "flow"] = not torch.equal(self.flow, now)


class Run:
    """One run in a folder, in as many parts as it takes."""

    def __init__(self, data_dir, folder, model, monitor=None):
        self.data_dir, self.folder, self.model, self.monitor = data_dir, folder, model, monitor
        self.hooks, self.more = Hooks(), []

    def part(self, *, kill=None, before_last=None, save_every=None, seed=0, batch_size=16, **until):
        """Go on from the newest checkpoint as ``--resume`` does; ``before_last`` acts before last.ckpt is written."""
        torch.manual_seed(seed)
        make, network = MODELS[self.model]
        path = newest_checkpoint(self.folder / "run")
        steps = 0 if path is None else read_checkpoint(path)["global_step"]
        best = ModelCheckpoint(self.folder / "run" / "version_0" / "checkpoints", filename="best",
                               monitor=self.monitor, enable_version_counter=False)  # fmt: skip
        trainer = Trainer(
            logger=RunLogger(self.folder, "run", 0, steps), plugins=[AtomicCheckpointIO()], accelerator="cpu",
            callbacks=[EMA([network]), SampleGrid(n=1, columns=1, every_n_epochs=2), self.hooks, best, *self.more],
            log_every_n_steps=2, enable_progress_bar=False,
            enable_model_summary=False, **until,
        )  # fmt: skip
        trainer.callbacks += [c for c in (before_last, LastCheckpoint(save_every), kill) if c is not None]
        data = FashionMNIST(data_dir=str(self.data_dir), batch_size=batch_size, val_size=16)
        try:
            trainer.fit(make(), datamodule=data, ckpt_path=path, weights_only=None if path is None else True)
        except Killed:
            return None
        assert kill is None and before_last is None, "it was not killed"
        return trainer

    @property
    def rows(self):
        with (self.folder / "run" / "version_0" / "metrics.csv").open(newline="") as file:
            lines = [{k: v for k, v in row.items() if v and "per_second" not in k} for row in csv.DictReader(file)]
        return sorted(lines, key=lambda row: (int(row["step"]), sorted(row)))

    @property
    def pictures(self):
        return sorted(path.name for path in (self.folder / "run" / "version_0" / "images").glob("*"))

    def checkpoint(self, name):
        """Without the clock and the paths."""
        checkpoint = torch.load(self.folder / "run" / "version_0" / "checkpoints" / name, weights_only=True)
        del checkpoint["lit_generative"]["training_seconds"]
        for state in checkpoint["callbacks"].values():
            for key in [key for key in state if "path" in key or key == "best_k_models"]:
                del state[key]
        return checkpoint


def require_same(run, whole):
    assert run.hooks.seen == whole.hooks.seen
    assert len(whole.rows) > 4 and run.rows == whole.rows
    assert run.pictures == whole.pictures
    for name in ("last.ckpt", "best.ckpt"):
        assert differing(run.checkpoint(name), whole.checkpoint(name)) == []


BOUNDS = {
    "epochs": {"max_epochs": 4},
    "steps": {"max_steps": 20},
    "both": {"max_epochs": 4, "max_steps": 18},
    "validations": {"max_steps": 20, "val_check_interval": 2},
    "unaligned": {"max_steps": 18, "val_check_interval": 3, "check_val_every_n_epoch": None},
    "rare": {"max_steps": 20, "check_val_every_n_epoch": 2},
    "none": {"max_steps": 20, "limit_val_batches": 0},
    "short epochs": {"max_steps": 14, "limit_train_batches": 4},
}


@pytest.fixture(scope="module")
def whole(data_dir, tmp_path_factory):
    """The run in one piece, by model and bounds."""
    runs = {}

    def get(model, monitor=None, **until):
        key = model, monitor, *sorted((k, str(v)) for k, v in until.items())
        if key not in runs:
            runs[key] = Run(data_dir, tmp_path_factory.mktemp("whole"), model, monitor)
            runs[key].part(**until)
        return runs[key]

    return get


@pytest.mark.parametrize(
    ("model", "bounds"), [*(("VAE", bounds) for bounds in BOUNDS), ("FactorVAE", "steps"), ("WGANGP", "steps")]
)
def test_a_run_killed_around_the_ends_of_epochs_is_the_whole_one(model, bounds, whole, data_dir, tmp_path):
    """In the first batch after one; right after the checkpoint of one; within one, without and with a checkpoint."""
    until = BOUNDS[bounds]
    run = Run(data_dir, tmp_path, model)
    run.part(kill=Kill("on_train_batch_start", until.get("limit_train_batches", BATCHES) + 1), **until)
    run.part(kill=Kill("on_train_epoch_end", 1), seed=6, **until)
    run.part(kill=Kill("on_train_batch_start", 2), seed=7, **until)
    run.part(kill=Kill("on_train_batch_start", 4), save_every=1, seed=8, **until)
    run.part(seed=9, **until)
    require_same(run, whole(model, **until))


@pytest.mark.parametrize("until", [{"max_epochs": 4}, {"max_steps": 20}], ids=str)
def test_a_run_killed_between_its_best_checkpoint_and_its_last_is_the_whole_one(until, whole, data_dir, tmp_path):
    """The best is written in the epoch's last validation, before the hooks of its end."""
    until = until | {"val_check_interval": 5}
    run = Run(data_dir, tmp_path, "VAE", monitor="val/loss")
    run.part(before_last=Kill("on_validation_end", 2), **until)
    assert run.checkpoint("best.ckpt")["global_step"] == 10 and run.checkpoint("last.ckpt")["global_step"] == 5
    run.part(before_last=Kill("on_train_epoch_end", 2), seed=6, **until)
    run.part(seed=7, **until)
    require_same(run, whole("VAE", "val/loss", **until))


@pytest.mark.parametrize(
    ("model", "ends", "options"),
    [
        ("constant VAE", (3, 8, 10, 15, 17), {}),
        ("constant VAE", (3, 8, 10, 15, 17), {"limit_val_batches": 0}),
        ("constant VAE", (2, 5, 6, 9, 11), {"accumulate_grad_batches": 2}),
        ("DDPM", (3, 8, 10, 15, 17), {"val_check_interval": 3}),
        ("WGANGP", (3, 8, 10, 15, 17), {"val_check_interval": 3}),
    ],
)
def test_a_run_that_ended_goes_on_with_more_steps(model, ends, options, whole, data_dir, tmp_path):
    """Within an epoch, where a validation came or not, and twice at the end of one; at last with epochs instead."""
    run = Run(data_dir, tmp_path, model)
    for seed, steps in enumerate(ends):
        run.part(max_steps=steps, seed=seed, **options)
    run.part(max_epochs=5, seed=9, **options)
    require_same(run, whole(model, max_epochs=5, **options))


@pytest.mark.parametrize("until", [{"max_epochs": 4}, {"max_steps": 20}], ids=str)
@pytest.mark.parametrize("steps", [4, 5, 7])
def test_a_checkpoint_made_by_hand_is_gone_on_from_too(steps, until, whole, data_dir, tmp_path):
    """After training, when Lightning's counters say something else than in its hooks."""
    run = Run(data_dir, tmp_path, "constant VAE")
    trainer = run.part(max_steps=steps)
    trainer.save_checkpoint(tmp_path / "run" / "version_0" / "checkpoints" / "last.ckpt")
    run.part(seed=5, **until)
    require_same(run, whole("constant VAE", **until))


def test_a_checkpoint_of_an_epochs_last_batch_keeps_the_count_of_epochs(whole, data_dir, tmp_path):
    """`ModelCheckpoint` may write there; the epoch's own end is then left out, and nothing else."""
    until = {"max_steps": 20, "limit_val_batches": 0}
    run = Run(data_dir, tmp_path, "VAE")
    for seed, n in enumerate((1, 1, 2)):
        run.part(before_last=SaveAndKill(n), seed=seed, **until)
    run.part(seed=7, **until)
    other = whole("VAE", **until)
    assert run.hooks.seen == other.hooks.seen and run.rows == other.rows
    assert differing(run.checkpoint("last.ckpt")["state_dict"], other.checkpoint("last.ckpt")["state_dict"]) == []


@pytest.mark.filterwarnings("ignore:.ModelCheckpoint.* could not find the monitored key")  # there was no validation yet
def test_a_run_that_ended_goes_on_from_the_command_line(data_dir, tmp_path, monkeypatch):
    monkeypatch.setenv("LIT_GENERATIVE_DATA", str(data_dir))
    found = []
    for name, ends in (("whole", (13,)), ("parts", (5, 8, 13))):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        for steps in ends:
            train.main([*ARGS, f"--trainer.max_steps={steps}"])
        run = Run(data_dir, tmp_path / name / "runs", "VAE")
        found.append((run.rows, run.checkpoint("last.ckpt"), run.checkpoint("best.ckpt")))
    (rows, *_), (whole, *_) = found
    assert rows == whole and len(rows) > 5
    assert differing(found[1], found[0]) == []


# -- schedules and stages --------------------------------------------------------------------------


def rates(run):
    """The learning rates of all groups, by step."""
    return [seen[3] for (_, hook), seen in sorted(run.hooks.seen.items()) if hook == "batch"]


@pytest.mark.parametrize("model", ["VAE", "FactorVAE"])
@pytest.mark.parametrize(
    ("before", "after"),
    [({"batch_size": 8}, {"batch_size": 40}), ({"batch_size": 40}, {"batch_size": 8})]
    + [({"accumulate_grad_batches": n}, {"accumulate_grad_batches": m}) for n, m in ((1, 4), (4, 1))],
)  # fmt: skip
def test_a_schedule_goes_on_by_epochs_whatever_a_step_is(before, after, model, data_dir, tmp_path):
    """From half the run on the rate falls linearly to 0; the resumed run is of another length, and of other steps."""
    if model == "FactorVAE" and "batch_size" not in before:
        before, after = ({"batch_size": 8 * o["accumulate_grad_batches"]} for o in (before, after))
    run = Run(data_dir, tmp_path, model)
    run.part(max_epochs=3, **before)
    steps = len(rates(run))
    trainer = run.part(max_epochs=4, **after)
    first, second = rates(run)[:steps], rates(run)[steps:]
    assert len(second) == trainer.global_step - steps >= 1
    lr = max(first[0]), min(first[0])
    for part, start, epochs in ((first, 0, 3), (second, 3, 4)):
        n = len(part) / (epochs - start)  # steps an epoch
        for i, groups in enumerate(part):
            done = (start + i / n) / epochs
            autoencoder_fraction = min(1.0, (1 - done) / 0.5)
            if all("accumulate_grad_batches" not in options for options in (before, after)):
                assert groups == pytest.approx([rate * autoencoder_fraction for rate in first[0]], rel=1e-9)
            assert all(0 < rate <= max(lr) for rate in groups)
    assert second[0] == pytest.approx([rate * 0.5 for rate in first[0]], rel=1e-9)
    assert all(group["lr"] == 0 for optimizer in trainer.optimizers for group in optimizer.param_groups)


def test_of_epochs_and_steps_the_schedule_follows_what_ends_first(data_dir, tmp_path):
    for folder, until in (("a", {"max_epochs": 4, "max_steps": 8}), ("b", {"max_epochs": 2, "max_steps": 18})):
        run = Run(data_dir, tmp_path / folder, "VAE")
        trainer = run.part(**until)
        n = trainer.global_step
        assert n == min(until["max_steps"], until["max_epochs"] * BATCHES)
        expected = [1e-3 * min(1.0, 2 * (1 - step / n)) for step in range(n)]
        assert [rate for (rate,) in rates(run)] == pytest.approx(expected, rel=1e-9)
        assert trainer.optimizers[0].param_groups[0]["lr"] == 0


def test_a_run_of_steps_goes_on_by_steps(data_dir, tmp_path):
    run = Run(data_dir, tmp_path, "VAE")
    run.part(max_steps=10)
    trainer = run.part(max_steps=14, batch_size=8)
    expected = [1e-3 * min(1.0, 2 * (1 - step / 14)) for step in range(10, 14)]
    assert [rate for (rate,) in rates(run)[10:]] == pytest.approx(expected, rel=1e-9)
    assert trainer.optimizers[0].param_groups[0]["lr"] == 0


def test_a_stage_begins_at_its_share_of_the_epochs_whatever_a_step_is(data_dir, tmp_path):
    """Three quarters of four epochs: the third is trained with other steps; the fourth is the flow's."""
    run = Run(data_dir, tmp_path, "LatentFlow")
    run.part(kill=Kill("on_train_epoch_end", 2), max_epochs=4)
    trainer = run.part(max_epochs=4, batch_size=40)  # two steps an epoch
    moved = [step for (step, hook), value in run.hooks.seen.items() if hook == "flow" and value]
    assert trainer.global_step == 14 and moved == [12, 13]


# -- what a checkpoint hands to the training that goes on from it, and to no other -----------------


def begun(data_dir, folder):
    """A checkpoint within an accumulated step (batch 3 of 2 + 2 + 1), with counters, averages and unwritten sums."""
    run = Run(data_dir, folder, "WGANGP")
    run.part(max_steps=3)
    path = folder / "run" / "version_0" / "checkpoints" / "last.ckpt"
    saved = torch.load(path, weights_only=True)
    state = saved["lit_generative"]["run"]
    assert state["step_begun"]["batches"] and state["steps"] == [1, 0, 48] and state["log"]["sums"]
    return path


def trained(model, trainer, data_dir):
    """What a new training makes of a model: weights, averages, and every line of the curves."""
    lines, network = [], "generator"
    ema = next(callback for callback in trainer.callbacks if isinstance(callback, EMA))
    trainer.logger.log_metrics = lambda metrics, step=None: lines.append(
        (step, {name: value for name, value in metrics.items() if "per_second" not in name})
    )
    torch.manual_seed(3)
    trainer.fit(model.train(), datamodule=FashionMNIST(data_dir=str(data_dir), batch_size=16, val_size=16))
    trainer.save_checkpoint(f"{trainer.default_root_dir}/after.ckpt")
    saved = torch.load(f"{trainer.default_root_dir}/after.ckpt", weights_only=True)
    assert ema._averages and network in ema._averages
    saved |= saved["lit_generative"]
    return lines, {key: saved[key] for key in ("state_dict", "training_weights", "ema", "optimizer_states", "run")}


def new_trainer(folder):
    quiet = {"enable_progress_bar": False, "enable_checkpointing": False, "enable_model_summary": False}
    return Trainer(max_steps=4, callbacks=[EMA()], default_root_dir=folder, logger=CSVLogger(folder), accelerator="cpu",
                   log_every_n_steps=2, **quiet)  # fmt: skip


@pytest.mark.filterwarnings("ignore:Found .* in eval mode at the start of training")
@pytest.mark.parametrize("look", ["load_from_checkpoint", "test", "validate", "failed fit"])
def test_a_training_that_resumes_nothing_begins(look, data_dir, tmp_path, monkeypatch):
    """Whatever was loaded, tested or validated before: as with those weights in a model that was just built."""
    path = begun(data_dir, tmp_path / "begun")
    fresh = MODELS["WGANGP"][0]()
    fresh.load_state_dict(torch.load(path, weights_only=True)["state_dict"])
    expected = trained(fresh, new_trainer(tmp_path / "fresh"), data_dir)
    again = new_trainer(tmp_path / "again")
    if look == "load_from_checkpoint":
        model = WGANGP.load_from_checkpoint(path, weights_only=True)
    else:
        model, data = MODELS["WGANGP"][0](), FashionMNIST(data_dir=str(data_dir), batch_size=16, val_size=16)
        if look == "failed fit":  # the checkpoint was read, and the training never began
            with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
                patch.setattr(WGANGP, "on_fit_start", lambda self: 1 / 0)
                new_trainer(tmp_path / "failed").fit(model, datamodule=data, ckpt_path=path, weights_only=True)
            model.load_state_dict(torch.load(path, weights_only=True)["state_dict"])
        else:
            getattr(again, look)(model, datamodule=data, ckpt_path=path, weights_only=True)
    assert differing(trained(model, again, data_dir), expected) == []


def test_parts_that_were_freed_stay_free_within_an_epoch(data_dir, tmp_path):
    """A run that goes on within an epoch does not start it, where the callback frees them."""
    weights = []
    for name, ends in (("whole", (15,)), ("parts", (7, 15))):
        run = Run(data_dir, tmp_path / name, "constant VAE")
        for seed, steps in enumerate(ends):
            run.more = [Finetuning(["encoder"], unfreeze={"encoder": 1})]
            run.part(max_steps=steps, seed=seed)
        weights.append(run.checkpoint("last.ckpt")["state_dict"])
    assert differing(*weights) == []
