"""What is written for W&B, read from the files of a run that is recorded offline."""

import json
import struct
from pathlib import Path

import pytest
import torch
from test_cli import ROOT, quick_evaluation

import train

pytestmark = pytest.mark.slow

wandb = pytest.importorskip("wandb")


def records(folder):
    """The records of a run's file: blocks of 32 kB, records in pieces, each behind seven bytes."""
    from wandb.proto import wandb_internal_pb2 as protocol

    (path,) = folder.glob("run-*.wandb")
    content, at, piece, found = path.read_bytes(), 7, b"", []
    while at + 7 <= len(content):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        _, length, kind = struct.unpack_from("<IHB", content, at)
        piece += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last piece
            record = protocol.Record()
            record.ParseFromString(piece)
            found.append(record)
            piece = b""
    return found


@pytest.fixture
def offline(monkeypatch, tmp_path, data_dir):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LIT_GENERATIVE_DATA", str(data_dir))
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    wandb.teardown()  # its service stays in the folder that it was started in
    yield
    wandb.teardown()


def run(subcommand, *args):
    train.main([subcommand, f"--config={ROOT}/configs/logger/wandb.yaml", "--trainer.accelerator=cpu",
                "--trainer.enable_progress_bar=false", *args])  # fmt: skip
    wandb.finish()


FIT = ["--model=VAE", "--data=FashionMNIST", "--data.batch_size=16", "--data.val_size=16", "--model.hidden=[8]",
       "--model.latent=2", "--trainer.log_every_n_steps=2", "--name=noted"]  # fmt: skip


def values(items):
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}


def test_a_run_says_what_its_dashboard_needs(offline, tmp_path):
    run("fit", *FIT, "--trainer.max_epochs=1", "--resume")
    run("fit", *FIT, "--trainer.max_epochs=2", "--resume")
    folders = sorted(p for p in (tmp_path / "runs" / "wandb").glob("offline-run-*") if not p.is_symlink())
    assert len({p.name.split("-")[3] for p in folders}) == 1  # the same run, twice
    checkpoints = tmp_path / "runs" / "noted" / "version_0" / "checkpoints"
    saved = torch.load(checkpoints / "last.ckpt", weights_only=True)["lit_generative"]
    assert saved["wandb_id"] == folders[0].name.split("-")[3]
    found = records(folders[0])

    config = {}
    for record in found:
        config |= values(record.config.update) | values(record.run.config.update)
    assert config["model"] == "VAE" and config["data"] == "FashionMNIST" and config["latent"] == 2
    metrics = {r.metric.name or r.metric.glob_name: r.metric for r in found if r.HasField("metric")}
    assert metrics["*"].step_metric == "trainer/global_step" and metrics["val/loss"].summary.min
    rows = [values(r.history.item) for r in found if r.HasField("history")]
    curves = [row for row in rows if "train/loss" in row]
    assert [row["trainer/global_step"] for row in curves] == [1, 3]
    (weights,) = [row for row in rows if "weights/encoder/_type" in row]
    assert weights["weights/encoder/_type"] == "histogram" and weights["trainer/global_step"] == 5
    assert [row["samples/captions"] for row in rows if "samples/captions" in row] == [["epoch 0, step 5"]]
    artifacts = [r.request.log_artifact.artifact for r in found if r.request.HasField("log_artifact")]
    artifacts += [r.artifact for r in found if r.HasField("artifact")]
    aliases = {tuple(a.aliases) for a in artifacts if a.type == "model"}
    assert {alias for group in aliases for alias in group} >= {"best", "last"}


def test_a_test_leaves_its_protocol_its_row_and_its_scores(offline, tmp_path):
    run("fit", *FIT, "--trainer.max_epochs=1")
    best = Path("runs", "noted", "version_0", "checkpoints", "best.ckpt")
    run("test", f"--ckpt_path={best}", f"--config={quick_evaluation(tmp_path)}")
    folders = sorted((p for p in (tmp_path / "runs" / "wandb").glob("offline-run-*") if not p.is_symlink()),
                     key=lambda p: p.stat().st_mtime_ns)  # fmt: skip
    found = records(folders[-1])
    config, summary = {}, {}
    for record in found:
        config |= values(record.config.update)
        summary |= values(record.summary.update)
    assert "40 images" in config["protocol"]["VAE"] and "FID" in config["protocol"]
    assert summary["row/model"] == "VAE"
    rows = [values(r.history.item) for r in found if r.HasField("history")]
    (table,) = [row for row in rows if "ood/scores/_type" in row]
    assert table["ood/scores/_type"] == "table-file" and table["ood/scores/nrows"] > 40


def test_a_run_of_somebody_without_an_account_is_recorded_offline(offline, monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))  # which may have a key
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with pytest.warns(UserWarning, match=r"W&B cannot be reached \(No API key configured.*the run is recorded offline"):
        run("fit", *FIT, "--trainer.max_epochs=1")
    assert list((tmp_path / "runs" / "wandb").glob("offline-run-*"))


def test_a_server_that_cannot_be_reached_does_not_stop_a_run(offline, monkeypatch, tmp_path):
    begin = wandb.init

    def unreachable(*args, **kwargs):
        if train.os.environ["WANDB_MODE"] == "online":
            raise wandb.errors.CommError("no route to host")
        return begin(*args, **kwargs)

    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setattr(wandb, "init", unreachable)
    with pytest.warns(UserWarning, match=r"W&B cannot be reached \(no route to host\): the run is recorded offline"):
        run("fit", *FIT, "--trainer.max_epochs=1")
    assert (tmp_path / "runs" / "noted" / "version_0" / "checkpoints" / "last.ckpt").is_file()
