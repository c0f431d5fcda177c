"""Weights from elsewhere: averaged or raw, in part, of other sizes, downloaded; and folders of our own."""

import json
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
import wandb
from stubs import trainer

import train
from callbacks import EMA
from datamodules import FashionMNIST
from lit_generative.checkpoints import init_from
from lit_generative.checkpoints.load import CheckpointError
from lit_generative.checkpoints.pretrained import fetch, from_pretrained
from lit_generative.models.dcgan import DCGAN
from lit_generative.models.vae import VAE

pytestmark = pytest.mark.slow

SMALL = {"hidden": (8,), "latent": 2}


@pytest.fixture
def checkpoint(data_dir, tmp_path):
    model, ema = VAE(**SMALL, lr=0.01), EMA(["decoder"], decay=0.5)
    fit = trainer(tmp_path / "run", callbacks=[ema], max_steps=3, limit_val_batches=0, logger=False)
    fit.fit(model, datamodule=FashionMNIST(str(data_dir), batch_size=16, val_size=16))
    fit.save_checkpoint(tmp_path / "a.ckpt")
    return tmp_path / "a.ckpt"


def equal(a, b, part):
    a, b = (getattr(model, part).state_dict() for model in (a, b))
    return all(torch.equal(a[name], b[name]) for name in a)


def test_averaged_weights_are_taken_unless_the_raw_ones_are_asked_for(checkpoint):
    averaged, raw = init_from(VAE(**SMALL), str(checkpoint)), init_from(VAE(**SMALL), str(checkpoint), raw=True)
    assert equal(averaged, raw, "encoder") and not equal(averaged, raw, "decoder")
    state = torch.load(checkpoint, weights_only=True)
    name = "decoder.net.0.weight"
    assert torch.equal(averaged.state_dict()[name], state["state_dict"][name])
    assert torch.equal(raw.state_dict()[name], state["lit_generative"]["training_weights"][name])
    averaged.save_pretrained(folder := checkpoint.parent / "out")
    with pytest.raises(CheckpointError, match="holds no averaged weights, and so no raw ones"):
        init_from(VAE(**SMALL), str(folder), raw=True)


def test_what_changed_size_is_left_fresh_and_said(checkpoint, capsys, caplog):
    other = init_from(VAE(**SMALL | {"image_shape": (1, 32, 32)}), str(checkpoint), partly=True)
    assert equal(other, init_from(VAE(**SMALL), str(checkpoint)), "encoder") is False
    for said in ("weights loaded; 3 skipped (", "(8, 784), not (8, 1024)", "; 3 left fresh ("):
        assert said in caplog.text
    with pytest.raises(
        CheckpointError, match=r"a checkpoint of another model\? If this is meant, set init_from_partly"
    ):
        init_from(VAE(**SMALL | {"image_shape": (1, 32, 32)}), str(checkpoint))
    with pytest.raises(CheckpointError, match="0 weights loaded"):
        init_from(DCGAN(width=4), str(checkpoint), partly=True)


def test_several_files_fill_one_model(tmp_path):
    a, b = DCGAN(width=4, latent=4), DCGAN(width=4, latent=4)
    for model, part in ((a, "generator"), (b, "discriminator")):
        state = {f"{part}.{k}": v for k, v in getattr(model, part).state_dict().items()}
        torch.save(state, tmp_path / f"{part}.pth")
    both = init_from(DCGAN(width=4, latent=4), f"{tmp_path}/generator.pth,{tmp_path}/discriminator.pth")
    assert equal(both, a, "generator") and equal(both, b, "discriminator")


def test_artifacts_and_repositories_are_downloaded(checkpoint, tmp_path, monkeypatch):
    places = tmp_path / "artifact", tmp_path / "repository"
    for place in places:
        VAE(**SMALL).save_pretrained(place)
    asked = []

    def artifact(name):
        asked.append(name)
        return SimpleNamespace(download=lambda: str(places[0]))

    monkeypatch.setattr(wandb, "Api", lambda: SimpleNamespace(artifact=artifact))
    assert fetch("wandb://me/vaes/vae:v3") == places[0] / "model.safetensors" and asked == ["me/vaes/vae:v3"]
    monkeypatch.setattr(huggingface_hub, "list_repo_files", lambda repo: [p.name for p in places[1].iterdir()])
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda repo, name: str(places[1] / name))
    assert fetch("hf://me/vae") == places[1] / "model.safetensors"
    assert equal(init_from(VAE(**SMALL), "hf://me/vae:model.safetensors"), from_pretrained("hf://me/vae"), "decoder")

    def unreachable(*args):
        raise ConnectionError("no network")

    monkeypatch.setattr(huggingface_hub, "list_repo_files", unreachable)
    monkeypatch.setattr(wandb, "Api", lambda: SimpleNamespace(artifact=unreachable))
    for source in ("hf://me/vae", "wandb://me/vaes/vae:v3"):
        with pytest.raises(CheckpointError, match=f"{source} cannot be downloaded: no network"):
            init_from(VAE(**SMALL), source)


def test_a_folder_with_several_unknown_files_is_not_guessed_at(tmp_path):
    for name in ("x.pth", "y.pth"):
        torch.save({}, tmp_path / name)
    with pytest.raises(CheckpointError, match=r"holds x\.pth, y\.pth: name one file"):
        fetch(str(tmp_path))


def test_a_folder_gives_the_model_back_or_says_why_not(tmp_path):
    model = VAE(**SMALL).eval()
    model.save_pretrained(tmp_path / "a")
    again = VAE.from_pretrained(tmp_path / "a")
    assert not again.training and again.latent == 2 and equal(again, model, "decoder")
    with pytest.raises(TypeError, match="holds a VAE, not a DCGAN"):
        DCGAN.from_pretrained(tmp_path / "a")
    with pytest.raises(FileExistsError, match="choose another folder"):
        model.save_pretrained(tmp_path / "a")
    weights, config = tmp_path / "a" / "model.safetensors", tmp_path / "a" / "config.json"
    levels = bytearray(weights.read_bytes())
    levels[-3] ^= 1
    weights.write_bytes(levels)
    with pytest.raises(CheckpointError, match=r"is damaged: its checksum is not that of .*config\.json"):
        from_pretrained(tmp_path / "a")
    config.write_text(json.dumps(json.loads(config.read_text()) | {"class_path": "os.system"}))
    with pytest.raises(CheckpointError, match=r"asks for the class os\.system, which is not known"):
        from_pretrained(tmp_path / "a")
    config.unlink()
    with pytest.raises(CheckpointError, match="does not say what model this is"):
        from_pretrained(tmp_path / "a")


def test_a_checkpoint_is_exported_from_the_command_line(checkpoint, tmp_path, capsys):
    train.main(["export", f"--ckpt_path={checkpoint}", f"--output={tmp_path}/out"])
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"model.safetensors", "config.json", "decoder.pt2"}
    model, z = VAE.from_pretrained(tmp_path / "out"), torch.randn(5, 2)
    program = torch.export.load(tmp_path / "out" / "decoder.pt2").module()
    torch.testing.assert_close(program(z), model.decoder(z), atol=1e-5, rtol=1e-5)
    with pytest.raises(SystemExit, match="exists already: choose another folder"):
        train.main(["export", f"--ckpt_path={checkpoint}", f"--output={tmp_path}/out"])


def test_a_run_that_goes_on_does_not_ask_for_its_first_weights(checkpoint, data_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LIT_GENERATIVE_DATA", str(data_dir))
    args = ["fit", "--model=VAE", "--data=FashionMNIST", "--data.batch_size=16", "--model.hidden=[8]",
            "--model.latent=2", f"--init_from={checkpoint}", "--trainer.accelerator=cpu",
            "--trainer.enable_progress_bar=false", "--trainer.log_every_n_steps=2"]  # fmt: skip
    train.main([*args, "--trainer.max_epochs=1"])
    checkpoint.unlink()
    train.main([*args, "--trainer.max_epochs=2", "--resume"])
    last = tmp_path / "runs" / "vae_fashionmnist" / "version_0" / "checkpoints" / "last.ckpt"
    assert torch.load(last, weights_only=True)["epoch"] == 1
