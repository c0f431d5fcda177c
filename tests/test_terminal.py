"""What a run shows: in a terminal, in a file, and of others' messages."""

import io
import itertools
import logging
import re
import sys
import warnings
from contextlib import redirect_stderr, redirect_stdout
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import seed_everything
from lightning.pytorch.callbacks import Timer
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.rank_zero import WarningCache
from stubs import Stub, trainer

import train
from callbacks import Progress, Report
from callbacks.reporting import _screen
from callbacks.reporting._lines import duration, number, numbers, position, total_steps, wrapped
from datamodules import FashionMNIST
from lit_generative.cli.messages import IGNORED, concise_output
from lit_generative.errors import UserError
from lit_generative.models.vae import VAE
from lit_generative.training import precision
from lit_generative.utils.tasks import show_tasks, tracked

pytestmark = pytest.mark.slow

# five batches an epoch
FIT = ["fit", "--data=FashionMNIST", "--data.batch_size=16", "--data.val_size=16", "--trainer.max_epochs=2",
       "--trainer.accelerator=cpu"]  # fmt: skip
TINY = ["--model=VAE", "--model.hidden=[8]", "--model.latent=2", "--trainer.callbacks=[]"]
LAST = "runs/vae_fashionmnist/version_0/checkpoints/last.ckpt"


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self):
        return True

    def rows(self):
        """What is left on the screen: the sequences that a bar uses, obeyed, and others passed by."""
        rows, y, x = [""], 0, 0
        for part in re.findall(r"\x1b\[[?\d;]*[A-Za-z]|\r|\n|[^\x1b\r\n]+", self.getvalue()):
            if part == "\n":
                y, x = y + 1, 0
                rows += [""] * (y == len(rows))
            elif part == "\r":
                x = 0
            elif part == "\x1b[2K":
                rows[y] = ""
            elif part.endswith("A") and part.startswith("\x1b"):
                y -= int(part[2:-1] or 1)
            elif not part.startswith("\x1b"):
                rows[y] = rows[y][:x].ljust(x) + part + rows[y][x + len(part) :]
                x += len(part)
        return rows

    def frames(self):
        """The bar, every time that it was drawn."""
        plain = re.sub(r"\x1b\[[?\d;]*[A-Za-z]", "", self.getvalue())
        return [line for line in re.split(r"[\r\n]", plain) if "━" in line]


@pytest.fixture
def run(data_dir, tmp_path, monkeypatch, capsys):
    """Call the command line in an empty folder; its lines on both streams."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LIT_GENERATIVE_DATA", str(data_dir))
    monkeypatch.setattr(precision, "computes_in_bfloat16", lambda: None)  # a line of its own on some processors

    def call(*args):
        capsys.readouterr()
        train.main(list(args))
        out, err = capsys.readouterr()
        return out.splitlines(), err.splitlines()

    return call


@pytest.fixture
def data(data_dir):
    return FashionMNIST(str(data_dir), batch_size=16, val_size=16)


@pytest.fixture
def terminal(monkeypatch):
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    return Terminal()


def shares(lines):
    return [int(found[1]) for line in lines if (found := re.search(r" (\d+)%  ", line))]


# -- a file ----------------------------------------------------------------------------------------


def test_a_fit_into_a_file_says_what_when_and_where(run):
    out, err = run(*FIT, *TINY)
    assert err == [] and len(out) <= 24
    head, tail = out[: out.index("")], out[-out[::-1].index("") :]
    parameters = sum(p.numel() for p in VAE(hidden=(8,), latent=2).parameters())
    assert re.fullmatch(rf"model +VAE, {parameters:,} parameters: encoder [\d,]+, decoder [\d,]+", head[0])
    assert re.fullmatch(r"data +FashionMNIST, 1x28x28: train 80, val 16", head[1])
    assert re.fullmatch(r"training +2 epochs, batches of 16", head[2])
    assert re.fullmatch(r"device +CPU, \d+ threads?, precision 32-true, seed 0", head[3])
    assert re.fullmatch(r"run folder +runs/vae_fashionmnist/version_0", head[4])
    assert re.fullmatch(r"trained +10 steps in 0:\d\d, best val/loss [\d.]+", tail[0])
    assert [line.split() for line in tail[1:]] == [
        ["best", "checkpoint", LAST.replace("last", "best")],
        ["last", "checkpoint", LAST],
        ["run", "folder", "runs/vae_fashionmnist/version_0"],
        ["report", "python", "train.py", "report", "runs/vae_fashionmnist/version_0"],
    ]
    steps = [line for line in out if "%" in line]
    assert shares(steps) == [*range(10, 101, 10)]
    form = r"epoch [12]/2 +\d+%  loss +[\d.]+ +[\d.,e+]+ images/s +\d:\d\d left"
    assert all(re.fullmatch(form, line) for line in steps), steps
    validations = [line for line in out if "  val  " in line]
    assert [line.split("   ")[0] for line in validations] == ["epoch 1/2", "epoch 2/2"]  # none of the check before
    assert all(re.search(r"loss +[\d.]+  reconstruction +[\d.]+  kl +[\d.]+  bpd +[\d.]+$", v) for v in validations)
    assert out.index(steps[4]) < out.index(validations[0]) < out.index(steps[5])


def test_the_speed_and_the_losses_are_those_of_the_curves(run, tmp_path):
    out, _ = run(*FIT, *TINY, "--trainer.log_every_n_steps=5")
    rows = (tmp_path / "runs/vae_fashionmnist/version_0/metrics.csv").read_text().splitlines()
    column = rows[0].split(",").index("train/loss")
    (first, _) = [float(value) for row in rows[1:] if (value := row.split(",")[column])]
    shown = [float(re.search(r"loss +(\S+)", line)[1]) for line in out if "%" in line]
    assert shown[5:9] == [pytest.approx(first, rel=1e-4)] * 4  # until the next line is written
    assert len(set(shown[:5])) == 5


def test_others_messages_are_for_debug(run):
    once = [*FIT, *TINY, "--trainer.max_epochs=1", "--trainer.log_every_n_steps=5"]
    noise = r"GPU available|Seed set|Tip|litlogger|FLOPs|max_epochs=1|terms|LeafSpec"
    out, err = run(*once)
    assert not [line for line in out + err if re.search(noise, line)]
    out, err = run(*once, "--debug")
    assert {"Seed set to 0", "GPU available: False, used: False"} <= set(err)
    assert [line for line in out if re.search(r"encoder.*MLPEncoder", line)]


def test_a_run_that_goes_on_within_an_epoch_begins_there(run, monkeypatch):
    class Recorded(_screen.Pace):
        def __init__(self, total, done):
            begun.append((total, done))
            super().__init__(total, done)

    begun = []
    monkeypatch.setattr("callbacks.reporting.progress.Pace", Recorded)
    run(*FIT, *TINY, "--trainer.max_steps=3", "--trainer.val_check_interval=3")
    out, err = run(*FIT, *TINY, "--resume")
    assert err == [f"continuing from {LAST}, step 3"]
    assert [line.split() for line in out if line.startswith("checkpoint")] == [["checkpoint", LAST]]
    assert begun == [(1, 0), (1, pytest.approx(0.3))]
    assert shares(out) == [*range(40, 101, 10)] and len([line for line in out if "  val  " in line]) == 2


def test_a_run_that_goes_on_with_larger_batches_is_as_far_as_its_epochs(run):
    run(*FIT, *TINY)
    out, _ = run(*FIT, *TINY, "--data.batch_size=40", "--trainer.max_epochs=4", "--resume")
    assert shares(out) == [62, 75, 88, 100]  # its 10 steps until then are more than four epochs now have


def test_short_runs_and_runs_from_a_checkpoint_have_nothing_to_warn_of(run, monkeypatch):
    monkeypatch.setattr("lightning.pytorch.callbacks.model_checkpoint.warning_cache", WarningCache())
    out, err = run(*FIT, *TINY, "--trainer.max_steps=2")
    assert err == [] and out[-3] == f"last checkpoint  {LAST}" and "best" not in out[-4]
    out, err = run(*FIT, *TINY, f"--ckpt_path={LAST}")
    assert err == [] and out[-4] == f"best checkpoint  {LAST.replace('last', 'best').replace('_0', '_1')}"


def test_without_a_bar_the_other_lines_stay(run):
    quiet = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
    out, err = run(*FIT, *TINY, *quiet)
    assert shares(out) == err == [] and len([line for line in out if "  val  " in line]) == 2
    assert re.fullmatch(r"model +VAE, [\d,]+ parameters", out[0])
    assert any(line.startswith("best checkpoint") for line in out)


def test_validations_within_an_epoch_name_their_step(run):
    out, _ = run(*FIT, *TINY, "--trainer.val_check_interval=2", "--trainer.max_epochs=1")
    assert [line.split("   ")[0] for line in out if "  val  " in line] == ["epoch 1/1, step 2", "epoch 1/1, step 4"]
    out, _ = run(*FIT, *TINY, "--trainer.val_check_interval=2", "--trainer.max_steps=2")
    assert [line.split("   ")[0] for line in out if "  val  " in line] == ["step 2/2"]


def test_a_number_that_was_not_measured_again_is_not_shown_again(tmp_path, capsys, data):
    class Rare(Stub):
        def on_validation_epoch_end(self):
            self.log("val/loss", 0.5)
            if self.current_epoch == 0:
                self.log("val/fid", 7.0)

    fit = trainer(tmp_path, callbacks=[Report()], num_sanity_val_steps=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit.fit(Rare(), data)
    lines = [line.split()[3:] for line in capsys.readouterr().out.splitlines() if "  val  " in line]
    assert lines == [["loss", "0.5000", "fid", "7.0000"], ["loss", "0.5000"]]


def test_both_networks_of_a_game_show_their_losses(run):
    out, err = run(*FIT, "--model=DCGAN", "--model.width=4", "--model.latent=4", "--trainer.max_steps=2",
                   "--trainer.callbacks=[]")  # fmt: skip
    assert err == [] and re.search(r"step 2/2  100%  D +[\d.]+  G +[\d.]+ ", "\n".join(out))
    assert re.search(r"generator [\d,]+, discriminator [\d,]+$", out[0])


def test_nothing_is_written_and_this_is_said(run, tmp_path):
    out, err = run(*FIT, *TINY, "--trainer.fast_dev_run=2")
    assert err == [] and "run folder       none: nothing is written" in out
    assert out[-1].startswith("trained          2 steps")
    out, err = run(*FIT, *TINY, "--trainer.logger=false", "--trainer.enable_checkpointing=false")
    assert err == [] and out[-1].startswith("run folder")


def test_a_test_a_validation_and_a_prediction(run, monkeypatch):
    run(*FIT, *TINY, "--trainer.max_epochs=1")
    device = r"device +CPU, \d+ threads?, precision 32-true, seed 0"
    for name, split, size in (("test", "test", 40), ("validate", "val", 16), ("predict", "test", 40)):
        out, err = run(name, f"--ckpt_path={LAST}", "--model.test_k=[2]", "--trainer.accelerator=cpu")
        fewer = ["ReconstructionGrid shows 16 images, not 32: the data have no more"] if split == "val" else []
        assert err == fewer and out[1].endswith(f"FashionMNIST, 1x28x28: {split} {size}"), out
        assert re.fullmatch(device, out[2]) and out[3].split() == ["checkpoint", LAST]
        assert out[4].split()[-1].endswith(f"version_0/{name}/version_0") and out[5] == ""
        batches = -(-size // 16)
        counts = [re.search(r"%  (\S+)  +[\d.,e+]+ images/s", line)[1] for line in out if "%  " in line]
        assert counts == [f"{i}/{batches}" for i in range(1, batches + 1)]
        assert not any("─" in line or "━" in line for line in out)  # a box of Lightning's
        if name == "validate":
            assert out[-1].split()[0] in ("loss", "elbo", "kl", "reconstruction", "bpd")


# -- a terminal ------------------------------------------------------------------------------------


def test_a_terminal_has_one_bar_and_no_line_of_it_stays(run, terminal, monkeypatch):
    ticks = itertools.count()
    monkeypatch.setattr(_screen, "time", SimpleNamespace(monotonic=lambda: next(ticks) / 1000))
    with redirect_stdout(terminal):
        run(*FIT, *TINY)
        assert sys.stdout is terminal
    assert next(ticks) < 300  # so that the run takes less than half a second
    frames, rows = list(dict.fromkeys(terminal.frames())), terminal.rows()
    assert len(frames) == 2  # one at once, one after the first batch
    assert all(len(frame) <= 80 for frame in frames)
    assert re.fullmatch(r"epoch 1/2 [━╸╺]+ +loss +[\d.]+ +[\d.,]+ images/s +[-\d]+:[-\d]+ left", frames[1].strip())
    assert [row[:17] for row in rows if "  val  " in row] == ["epoch 1/2   val  ", "epoch 2/2   val  "]
    assert not any("━" in row or "%" in row for row in rows)
    assert all(len(row) <= 80 or "/" in row for row in rows)  # paths are never broken
    folder = "runs/vae_fashionmnist/version_0"
    ends = [
        f"last checkpoint  {LAST}",
        f"run folder       {folder}",
        f"report           python train.py report {folder}",
    ]
    assert rows[-4:-1] == ends
    assert terminal.getvalue().rindex("\x1b[?25h") > terminal.getvalue().rindex("\x1b[?25l")  # the cursor is back


def test_messages_stand_above_the_bar_and_nothing_of_it_stays_after_an_error(run, terminal, monkeypatch):
    def training_step(self, batch, batch_idx):
        if self.trainer.global_step == 1:
            rank_zero_info("a message")
        if self.trainer.global_step == 3:
            raise UserError("no more")
        return step(self, batch, batch_idx)

    step = VAE.training_step
    monkeypatch.setattr(VAE, "training_step", training_step)
    with redirect_stdout(terminal), redirect_stderr(terminal), pytest.raises(SystemExit, match="error: no more"):
        run(*FIT, *TINY)
    rows = terminal.rows()
    assert "a message" in rows and not any("━" in row for row in rows)
    assert terminal.getvalue().rindex("\x1b[?25h") > terminal.getvalue().rindex("\x1b[?25l")


def test_a_terminal_that_cannot_move_its_cursor_gets_lines(run, terminal, monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    with redirect_stdout(terminal):
        run(*FIT, *TINY, "--trainer.max_epochs=1")
    assert "\x1b" not in terminal.getvalue() and shares(terminal.getvalue().splitlines()) == [20, 40, 60, 80, 100]


def test_a_long_line_breaks_between_numbers(terminal):
    values = {f"metric_{i}": 1.0 + i for i in range(8)}
    with redirect_stdout(terminal):
        lines = wrapped("epoch 1/2   val  ", numbers(values), "  ").split("\n")
    assert len(lines) > 1 and all(len(line) <= 80 for line in lines)
    assert all(re.fullmatch(r"( {17}|epoch 1/2   val  )(metric_\d  \d\.0000( {2}|$))+", line) for line in lines)


# -- the pieces ------------------------------------------------------------------------------------


def test_numbers_have_five_digits():
    values = (192.60043, 0.35441, 20517.4, 3.00000, -98.5, 0.0, 3.21e-5, 4.2e6, float("inf"), float("nan"))
    assert [number(value) for value in values] == [
        "192.60", "0.3544", "20517", "3.0000", "-98.500", "0", "3.21e-05", "4.20e+06", "inf", "nan"
    ]  # fmt: skip
    assert [duration(s) for s in (0.4, 754, 3723.2, 200_000, float("inf"))] == [
        "0:00", "12:34", "1:02:03", "55:33:20", "--:--"
    ]  # fmt: skip


@pytest.mark.parametrize(
    "limits, batches, total, where",
    [
        ({"max_epochs": 20}, 10, 200, "epoch  3/20"),
        ({"max_epochs": 20, "accumulate_grad_batches": 4}, 10, 60, "epoch  3/20"),
        ({"max_epochs": 20, "max_steps": 1500}, 10, 200, "epoch  3/20"),
        ({"max_epochs": -1, "max_steps": 1500}, 10, 1500, "step    25/1,500"),
        ({"max_epochs": 200, "max_steps": 1500}, float("inf"), 1500, "step    25/1,500"),
        ({"max_epochs": -1}, 10, float("inf"), "epoch 3"),
    ],
)
def test_a_run_ends_by_epochs_or_by_steps_or_not_at_all(limits, batches, total, where):
    options = {"max_steps": -1, "accumulate_grad_batches": 1} | limits
    run = SimpleNamespace(num_training_batches=batches, global_step=25, current_epoch=2, **options)
    assert total_steps(run) == total and position(run) == where


@pytest.fixture
def clock(monkeypatch):
    now = SimpleNamespace(time=100.0)
    monkeypatch.setattr(_screen, "time", SimpleNamespace(monotonic=lambda: now.time))
    return now


def test_the_pace_counts_images_and_what_is_left(clock):
    pace = _screen.Pace(total=100, done=20)  # of a run that goes on
    assert pace.describe(20, 0).split() == ["--:--", "left"]
    for step in range(21, 41):
        clock.time += 0.5
        pace.batches += 1
        words = pace.describe(step, 64)
    assert words.split() == ["128", "images/s", "0:30", "left"]
    clock.time += 10  # a validation: the run takes longer, its batches do not
    pace.pause()
    clock.time += 0.5
    pace.batches += 1
    assert pace.describe(41, 7).split() == [
        "128",
        "images/s",
        "0:58",
        "left",
    ]  # 59 steps of 20.5 s / 21; 7: the last batch
    assert pace.describe(41, 64, at_most=5).split()[-2] == "0:05"
    for _ in range(200):  # faster now: the speed follows within seconds
        clock.time += 0.1
        pace.batches += 1
        words = pace.describe(50, 64)
    assert 635 < int(words.split()[0]) <= 640
    endless = _screen.Pace(total=float("inf"))
    clock.time += 1
    assert endless.describe(7, 0) == "" and endless.describe(7, 0, at_most=65) == "   1:05 left"


def test_a_line_comes_every_tenth_and_every_thirty_seconds(clock):
    lines = _screen.Lines("epoch 1/1", 0.25)
    assert not lines.is_due(0.29) and lines.is_due(0.3)
    lines.show("epoch 1/1", 0.3, "")
    assert not lines.is_due(0.39)
    clock.time += 30
    assert lines.is_due(0.31)
    lines.show("epoch 1/1", 0.31, "")
    assert not lines.is_due(0.31) and lines.is_due(0.4)


@pytest.fixture
def seconds(monkeypatch):
    ticks = itertools.count()  # every look at the clock takes a second
    monkeypatch.setattr(_screen, "time", SimpleNamespace(monotonic=lambda: float(next(ticks))))


def test_only_what_lasts_is_shown_with_the_time_left(seconds, capsys):
    show_tasks(_screen.TaskScreen())
    list(tracked(range(3), "short"))
    assert capsys.readouterr().out == ""
    list(tracked(range(20), "1,000 samples"))
    show_tasks(None)
    lines = capsys.readouterr().out.splitlines()
    found = shares(lines)  # a line every tenth after the first seconds, and after 30 without one
    assert found[0] >= 15 and found[-1] >= 90 and 8 <= len(found) <= 10 and found == sorted(set(found))
    assert all(re.fullmatch(r"1,000 samples +\d+%  \d+/20 +\d:\d\d left", line) for line in lines), lines


def test_a_bar_makes_room_and_comes_back(terminal, seconds):
    with redirect_stdout(terminal):
        outer = _screen.screen("epoch 1/1", 0.5)
        outer.show("epoch 1/1", 0.5, "loss 1")
        show_tasks(_screen.TaskScreen(make_room=outer.close))
        for _ in tracked(range(9), "fid: samples"):
            list(tracked(range(2), "sampling"))
        show_tasks(None)
        outer.show("epoch 1/1", 0.6, "loss 2")
        outer.close()
    frames = "\n".join(terminal.frames())
    assert "fid: samples" in frames and "sampling 2/2" in frames and frames.rindex("loss 2") > frames.rindex("sampling")
    assert not [row for row in terminal.rows() if row.strip()]  # nothing of them stays


def test_other_processes_and_foreign_models(tmp_path, capsys, data_dir):
    class Second(Progress):
        def setup(self, trainer, pl_module, stage):
            super().setup(trainer, pl_module, stage)
            self.disable()  # as for a rank other than 0

    class Foreign(Stub):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            self.log("cost", loss, prog_bar=True)
            return loss

        def train_dataloader(self):
            return torch.utils.data.DataLoader(torch.rand(8, 1), batch_size=4)

    for bar, count in ((Second(), 0), (Progress(), 2)):
        timer = Timer("00:01:00:00")
        fit = trainer(tmp_path, callbacks=[bar, Report(), timer], max_epochs=1, enable_progress_bar=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            fit.fit(Foreign())
        out = capsys.readouterr().out.splitlines()
        assert len(shares(out)) == count and out[0].startswith("model            Foreign, 2 parameters")
    assert re.search(r"cost +[\d.e-]+ +[\d.,]+ images/s", out[-5]), out


# -- messages --------------------------------------------------------------------------------------


def test_lightnings_messages_are_left_out_and_ours_are_not(capsys):
    loggers = [logging.getLogger(name) for name in ("lightning", "lightning.pytorch", "lightning.fabric")]
    before = [(logger.handlers, logger.propagate) for logger in loggers]
    for debug in (False, True):
        with concise_output(debug):
            seed_everything(3)
            rank_zero_info("ours")
            Timer("00:00:00:00", verbose=True)._check_time_remaining(
                SimpleNamespace(strategy=SimpleNamespace(broadcast=bool), should_stop=False)
            )
            logging.getLogger("lightning.pytorch.trainer").warning("something is wrong")
        lines = capsys.readouterr().err.splitlines()
        assert ("Seed set to 3" in lines) == debug
        assert "ours" in lines and "something is wrong" in lines
        assert any(line.startswith("Time limit reached") for line in lines)  # a callback of the user's choice
    assert [(logger.handlers, logger.propagate) for logger in loggers] == before


def test_warnings_take_one_line_and_some_none():
    form = warnings.formatwarning
    with concise_output(debug=False):
        assert warnings.formatwarning("two\n  lines", UserWarning, "a.py", 3) == "warning: two lines\n"
        warnings.warn("the 'predict_dataloader' does not have many workers which", UserWarning, stacklevel=1)
        with pytest.raises(UserWarning, match="of ours"):
            warnings.warn("one of ours", UserWarning, stacklevel=1)
    with concise_output(debug=True), pytest.raises(UserWarning, match="many workers"):
        warnings.warn("the 'predict_dataloader' does not have many workers which", UserWarning, stacklevel=1)
    assert warnings.formatwarning is form and len(set(IGNORED)) == len(IGNORED)
