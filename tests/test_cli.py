"""The command line as its users meet it, in this process."""

import copy
import csv
import json
import runpy
import shutil
import sys
from pathlib import Path

import numpy as np
import processes
import pytest
import torch
import yaml
from PIL import Image
from stubs import Quarters

import datamodules
import lit_generative.models
import train
from benchmarks.scenes.streets import write

ROOT = Path(__file__).parents[1]
RECIPES = {p: yaml.safe_load(p.read_text()) for p in sorted((ROOT / "configs").glob("*.yaml"))}
RECIPES = {path: recipe for path, recipe in RECIPES.items() if "model" in recipe}
FAST = ("vae_mnist", "realnvp_mnist", "dcgan_fashion_mnist_28", "ddpm_fashion_mnist", "pix2pix_folder")
QUICK = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]


@pytest.fixture
def run(data_dir, tmp_path, monkeypatch):
    """Call a subcommand in an empty folder, on the made data."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LIT_GENERATIVE_DATA", str(data_dir))

    def call(subcommand, *args):
        train.main([subcommand, *([] if subcommand == "sample" else QUICK), *map(str, args)])

    return call


def picture(path):
    with Image.open(path) as image:
        return np.array(image)


def arrays(path):
    with np.load(path) as file:
        return dict(file)


@pytest.fixture(scope="session")
def fitted_once(data_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fitted")
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        patched.setenv("LIT_GENERATIVE_DATA", str(data_dir))
        train.main(["fit", *QUICK, "--model=VAE", "--data=FashionMNIST", "--data.batch_size=16", "--model.hidden=[8]",
                    "--model.latent=2", "--model.test_k=[2,3]", "--trainer.max_epochs=1",
                    "--trainer.log_every_n_steps=2"])  # fmt: skip
    return folder / "runs"


@pytest.fixture
def fitted(run, fitted_once, tmp_path):
    """The folder of a run, the test's own copy."""
    shutil.copytree(fitted_once, tmp_path / "runs")
    return tmp_path / "runs" / "vae_fashionmnist" / "version_0"


def quick_evaluation(folder):
    """The recipe of evaluations as it is, but for the numbers of samples and images."""
    recipe = yaml.safe_load((ROOT / "configs" / "evaluate.yaml").read_text())
    fid, ood = recipe["trainer"]["callbacks"]
    fid["init_args"]["num_samples"], ood["init_args"]["num_images"] = 130, 40
    (folder / "evaluate.yaml").write_text(yaml.safe_dump(recipe))
    return folder / "evaluate.yaml"


@pytest.mark.slow
def test_one_command_evaluates_a_checkpoint(fitted, run, tmp_path, capsys):
    run("test", f"--ckpt_path={fitted}/checkpoints/best.ckpt", f"--config={quick_evaluation(tmp_path)}")
    out, folder = capsys.readouterr().out, fitted / "test" / "version_0"
    row = json.loads((folder / "results.json").read_text())["row"]
    unknown = [name for name, cell in row.items() if cell == "-"]
    assert not unknown and "fid_lenet_fashion_mnist" in row and row["likelihood"] == "bound, IWAE-3"
    assert (folder / "results.md").read_text().splitlines()[2] in out
    assert (folder / "ood" / "scores.csv").is_file() and (folder / "images" / "ood-complexity_test.png").is_file()


def test_a_run_leaves_its_folder(fitted, capsys):
    assert {p.name for p in (fitted / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    assert (fitted / "config.yaml").is_file()
    rows = list(csv.DictReader((fitted / "metrics.csv").read_text().splitlines()))
    assert {"train/loss", "train/elbo", "train/kl", "train/images_per_second", "val/elbo", "val/bpd"} <= rows[0].keys()
    for name in ("samples", "reconstructions"):
        assert picture(fitted / "images" / f"{name}_epoch0000_step0000005.png").shape[1] == 8 * 30 + 2


def test_the_last_checkpoint_is_the_last_and_the_best_the_best(run, tmp_path):
    run("fit", "--model=VAE", "--data=FashionMNIST", "--data.batch_size=16", "--model.hidden=[8]", "--model.latent=2",
        "--trainer.max_epochs=3", "--trainer.log_every_n_steps=2", "--checkpoint.mode=max")  # fmt: skip
    folder = tmp_path / "runs" / "vae_fashionmnist" / "version_0" / "checkpoints"
    best, last = (torch.load(folder / f"{name}.ckpt", weights_only=True)["epoch"] for name in ("best", "last"))
    assert best == 0 and last == 2  # the highest loss is the first, and the two others are none better
    assert len(list(folder.iterdir())) == 2


def test_the_checkpoint_alone_is_enough_to_test(fitted, run, capsys):
    run("test", f"--ckpt_path={fitted}/checkpoints/best.ckpt")
    out = capsys.readouterr().out
    folder = fitted / "test" / "version_0"
    results = json.loads((folder / "results.json").read_text())
    metrics = results["metrics"]
    assert {"elbo", "kl", "reconstruction", "iwae_2", "iwae_3", "nll", "bpd", "active_units", "elbo_stderr"} <= set(
        metrics
    )
    assert metrics["elbo"] == pytest.approx(-metrics["kl"] - metrics["reconstruction"], rel=1e-4)
    assert metrics["bpd"] == pytest.approx(metrics["nll"] / (784 * np.log(2)), rel=1e-5)
    assert "bpd" in out and str(folder) in out and "* FashionMNIST: test images of FashionMNIST, 28x28, 8-bit\n" in out
    assert (folder / "images" / "samples_test.png").is_file()


def test_sampling_needs_nothing_but_the_checkpoint(fitted, run, tmp_path, capsys):
    checkpoint = fitted / "checkpoints" / "best.ckpt"
    for seed, output in ((0, "a.npz"), (0, "b.npz"), (1, "c.npz")):
        run("sample", "--ckpt_path", checkpoint, "--n", 5, "--output", output, "--seed", seed)
    a, b, c = (arrays(tmp_path / f"{name}.npz")["images"] for name in "abc")
    assert a.shape == (5, 28, 28, 1) and a.dtype == np.uint8
    assert (a == b).all() and (a != c).any()
    run("sample", "--ckpt_path", checkpoint, "--n", 5, "--output", "folder/inside")
    pictures = sorted((tmp_path / "folder" / "inside").iterdir())
    assert [p.name for p in pictures] == [f"{i:06d}.png" for i in range(5)]
    assert (picture(pictures[3]) == a[3, :, :, 0]).all()
    run("sample", "--ckpt_path", checkpoint, "--output", "grid.png")
    assert picture(tmp_path / "grid.png").shape == (8 * 30 + 2, 8 * 30 + 2, 3)
    with pytest.raises(SystemExit, match=r"error: grid.png exists already"):
        run("sample", "--ckpt_path", checkpoint, "--output", "grid.png")


def test_predictions_are_kept(fitted, run):
    run("predict", f"--ckpt_path={fitted}/checkpoints/last.ckpt")
    predictions = arrays(fitted / "predict" / "version_0" / "predictions.npz")
    assert predictions["z"].shape == (40, 2)
    assert predictions["log_prob"].shape == (40,) and (predictions["log_prob"] < 0).all()


def test_a_saved_config_reruns_as_it_is_and_overwrites_nothing(fitted, run):
    before = (fitted / "metrics.csv").read_bytes()
    run("fit", f"--config={fitted}/config.yaml")
    again = fitted.parent / "version_1"
    assert (fitted / "metrics.csv").read_bytes() == before
    a, b = (torch.load(f / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"] for f in (fitted, again))
    torch.testing.assert_close(a, b, atol=0, rtol=0)


def test_the_command_line_wins_over_the_checkpoint(fitted, run, capsys):
    run("test", f"--ckpt_path={fitted}/checkpoints/best.ckpt", "--data=KMNIST", "--model.test_k=[4]", "--model.lr=0.5")
    config = yaml.safe_load((fitted / "test" / "version_0" / "config.yaml").read_text())
    assert config["model"]["init_args"]["lr"] == 0.5 and config["model"]["init_args"]["hidden"] == [8]
    assert "iwae_4" in capsys.readouterr().out
    assert config["data"]["class_path"] == "datamodules.KMNIST"


def test_the_order_of_arguments_does_not_matter(run, tmp_path):
    few = ["--data.batch_size=8", "--trainer.max_epochs=1", "--trainer.limit_train_batches=2"]
    run("fit", "--model.latent", 3, *few, "--trainer.log_every_n_steps=1", "--data", "MNIST", "-c",
        ROOT / "configs" / "demo.yaml")  # fmt: skip
    config = yaml.safe_load((tmp_path / "runs" / "demo" / "version_0" / "config.yaml").read_text())
    assert config["model"]["init_args"]["latent"] == 3 and config["data"]["class_path"] == "datamodules.MNIST"


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_resuming_keeps_a_changed_learning_rate_out_of_the_checkpoints_hands(fitted, run):
    """Lightning's CLI silently puts the checkpoint's hyper-parameters over the command line's."""
    run("fit", f"--config={fitted}/config.yaml", f"--ckpt_path={fitted}/checkpoints/last.ckpt", "--model.lr=0.25",
        "--trainer.max_epochs=2")  # fmt: skip
    config = yaml.safe_load((fitted.parent / "version_1" / "config.yaml").read_text())
    assert config["model"]["init_args"]["lr"] == 0.25
    last = torch.load(fitted.parent / "version_1" / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["optimizer_states"][0]["param_groups"][0]["lr"] == pytest.approx(0.25)


def shrunk(arguments):
    """Those of a model's arguments that say how large it is, as those of a small one."""
    sizes = {name: min(arguments[name], 8) for name in ("width", "units") if name in arguments}
    sizes |= {name: min(arguments[name], 1) for name in ("depth", "layers") if name in arguments}
    if "hidden" in arguments:
        sizes["hidden"] = [min(units, 8) for units in arguments["hidden"]]
    if "channels" in arguments:
        sizes |= {"channels": [8, 8], "groups": 4, "blocks": 1}
    return sizes


@pytest.mark.parametrize(
    "path", [pytest.param(p, id=p.stem, marks=() if p.stem in FAST else pytest.mark.slow) for p in RECIPES]
)
@pytest.mark.filterwarnings("ignore:Found .* in eval mode at the start of training")  # what is borrowed
def test_every_recipe_trains_and_tests(path, run, tmp_path, monkeypatch):
    """As it is, but for numbers of batches, samples and layers; colour images and Inception's weights are made up."""
    colour = torch.randint(0, 256, (96, 3, 32, 32), dtype=torch.uint8), torch.arange(96) % 10
    monkeypatch.setattr(datamodules.CIFAR10, "stored", lambda self, split: colour)
    monkeypatch.setattr(datamodules.CIFAR10, "prepare_data", lambda self: None)
    made_up = Quarters()
    made_up.name = "inception"
    monkeypatch.setattr("lit_generative.metrics.feature_extractors.Inception", lambda weights_path: made_up)
    recipe = copy.deepcopy(RECIPES[path])
    recipe["data"]["init_args"] |= {"batch_size": 8, "val_size": 16}
    if recipe["data"]["class_path"] == "ImageFolder":  # the user's own: of two classes
        recipe["data"]["init_args"] |= {"data_dir": str(tmp_path / "pictures"), "test_size": 8}
        for i in range(40):
            (tmp_path / "pictures" / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (9, 8), (6 * i, 100, 0)).save(tmp_path / "pictures" / "ab"[i % 2] / f"{i}.png")
        recipe["data"]["init_args"]["image_size"] = 32
        recipe["model"]["init_args"]["image_shape"] = [3, 32, 32]
    for callback in recipe["trainer"].get("callbacks", []):
        if callback["class_path"] == "FID":
            callback["init_args"] |= {"num_samples": 130, "every_n_epochs": 1}
    recipe.get("checkpoint", {}).pop("every_n_epochs", None)
    recipe["model"]["init_args"] |= shrunk(recipe["model"]["init_args"])
    if (model := recipe["model"]["class_path"]) in ("Pix2Pix", "CycleGAN"):
        layout = "sides" if recipe["data"]["class_path"] == "UnpairedFolders" else "pairs"
        write(tmp_path / "streets", layout, {"train": 40, "val": 12}, size=32, seed=0)
        recipe["data"]["init_args"] |= {"data_dir": str(tmp_path / "streets"), "image_size": 16}
        recipe["model"]["init_args"] |= {"image_shape": [3, 16, 16], "width": 4, "patch": 16}
        recipe["model"]["init_args"] |= {"num_downs": 3} if model == "Pix2Pix" else {"blocks": 1}
        recipe["trainer"].pop("check_val_every_n_epoch")
    if recipe["model"]["class_path"] == "LatentDiffusion":
        vae = {"class_path": "lit_generative.models.vae.VAE", "init_args": {"hidden": [8], "latent": 3}}
        recipe["model"]["init_args"]["autoencoder"] = vae
    path = tmp_path / path.name
    path.write_text(yaml.safe_dump(recipe))
    few = ["--trainer.max_epochs=1", "--trainer.limit_train_batches=2", "--trainer.limit_val_batches=1"]
    few += ["--trainer.log_every_n_steps=1"]
    run("fit", f"--config={path}", *few)
    checkpoint = tmp_path / "runs" / path.stem / "version_0" / "checkpoints" / "best.ckpt"
    run("test", f"--ckpt_path={checkpoint}", "--trainer.limit_test_batches=2")


@pytest.mark.parametrize("fragment", sorted((ROOT / "configs" / "trainer").glob("*.yaml")), ids=lambda path: path.stem)
def test_fragments_go_with_any_recipe(fragment, run, capsys):
    with pytest.raises(SystemExit, match=r"^0$"):
        run("fit", f"--config={ROOT}/configs/vae_mnist.yaml", f"--config={fragment}", "--print_config")
    printed, wanted = (
        yaml.safe_load(capsys.readouterr().out)["trainer"],
        yaml.safe_load(fragment.read_text())["trainer"],
    )
    wanted.pop("accelerator", None)  # of the tests
    plugins = wanted.pop("plugins", [])
    assert [plugin["class_path"] for plugin in printed["plugins"] or []] == [plugin["class_path"] for plugin in plugins]
    assert all(printed[key] == value or value["class_path"] in str(printed[key]) for key, value in wanted.items())


@pytest.mark.slow
@pytest.mark.parametrize("fragment", ["wandb", "tensorboard"])
def test_loggers_are_added_and_two_runs_do_not_collide(fragment, run, tmp_path, monkeypatch):
    pytest.importorskip(fragment)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    for version in range(2):
        run("fit", f"--config={ROOT}/configs/vae_mnist.yaml", f"--config={ROOT}/configs/logger/{fragment}.yaml",
            "--data.batch_size=8", "--trainer.max_epochs=1", "--trainer.limit_train_batches=2",
            "--trainer.log_every_n_steps=1")  # fmt: skip
        folder = tmp_path / "runs" / "vae_mnist" / f"version_{version}"
        assert (folder / "config.yaml").is_file() and list((folder / "images").iterdir())
        if fragment == "wandb":
            import wandb

            wandb.finish()
            media = next((tmp_path / "runs" / "wandb").glob("offline-run-*/files/media/images/samples_*.png"))
            drawn = next((folder / "images").glob("samples_*.png"))
            assert (picture(media) == picture(drawn)).all() and picture(media).max() > 100
    written = list((tmp_path / "runs" / fragment).iterdir())
    assert len([p for p in written if p.is_dir() and not p.is_symlink()]) == 2


MISTAKES = {
    "unknown key": (["--model.latnt=3"], "Option 'latnt' is not accepted"),
    "unknown option": (["--what=3"], "unrecognized arguments"),
    "wrong type": (["--model.latent=many"], "\"latent\": Expected a <class 'int'>"),
    "no such choice": (["--model.likelihood=poisson"], "likelihood"),
    "no such model": (["--model=VEA"], "there is no model called VEA: choose from .*IWAE, .*VAE"),
    "no such data": (["--data=MINST"], "there is no data called MINST: choose from CIFAR10, Cityscapes, FashionMNIST"),
    "num_levels": (["--data.binarize=dynamic"], "is built for pixels with 256 levels, but FashionMNIST has 2"),
    "shape": (["--data.image_size=32"], r"images of shape \(1, 28, 28\), but FashionMNIST gives \(1, 32, 32\)"),
    "no data": (["--data.data_dir=nowhere", "--data.download=false"], "FashionMNIST was not found.*Put train-images"),
    "no checkpoint": (["--ckpt_path=nowhere.ckpt"], "no checkpoint at nowhere.ckpt"),
    "endless decay": (["--model.lr_decay_start=0.5", "--trainer.max_epochs=-1"], "needs to know the length of the run"),
}


@pytest.mark.parametrize("args, message", MISTAKES.values(), ids=MISTAKES)
def test_mistakes_get_one_line_before_any_work(args, message, run, tmp_path):
    with pytest.raises(SystemExit, match=f"^error: .*{message}") as exit:
        run("fit", "--model=VAE", "--data=FashionMNIST", "--data.batch_size=16", "--trainer.max_epochs=1", *args)
    assert "\n" not in exit.value.code
    assert not list(tmp_path.rglob("*.ckpt"))


def test_a_damaged_checkpoint_and_one_that_would_execute_are_refused(run, fitted, tmp_path):
    whole = (fitted / "checkpoints" / "best.ckpt").read_bytes()
    (tmp_path / "torn.ckpt").write_bytes(whole[: len(whole) // 2])

    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "executed",))

    torch.save({"class_path": Evil(), "state_dict": {}}, tmp_path / "evil.ckpt")
    torch.save({"class_path": "subprocess.Popen", "state_dict": {}}, tmp_path / "class.ckpt")
    torch.save([1, 2], tmp_path / "list.ckpt")
    for name, message in {
        "torn": "torn.ckpt is damaged",
        "evil": r"evil\.ckpt holds objects .*other than tensors and plain types, which may execute code",
        "class": "class subprocess.Popen, which is not known",
        "list": "list.ckpt is not a checkpoint written by",
    }.items():
        for subcommand in ("sample", "test"):
            with pytest.raises(SystemExit, match=message):
                run(subcommand, "--ckpt_path", tmp_path / f"{name}.ckpt")
    assert not (tmp_path / "executed").exists()


def test_weights_of_another_size_are_named(fitted, run):
    with pytest.raises(SystemExit, match=r"holds a VAE of another size .*leave out the --model arguments"):
        run("test", f"--ckpt_path={fitted}/checkpoints/best.ckpt", "--model.latent=3")


def test_callbacks_given_replace_the_default_pictures(run, tmp_path):
    run("fit", "--model=VAE", "--data=FashionMNIST", "--data.batch_size=16", "--trainer.max_epochs=1",
        "--trainer.log_every_n_steps=5",
        "--trainer.callbacks=[{class_path: callbacks.SampleGrid, init_args: {n: 4}}]")  # fmt: skip
    names = [p.name for p in (tmp_path / "runs" / "vae_fashionmnist" / "version_0" / "images").iterdir()]
    assert names == ["samples_epoch0000_step0000005.png"]


@pytest.mark.filterwarnings("ignore:Total length of `list` across ranks is zero")
def test_without_validation_the_last_epoch_is_kept(run, tmp_path):
    run("fit", "--model=VAE", "--data=FashionMNIST", "--data.batch_size=16", "--data.val_size=0",
        "--trainer.max_epochs=1", "--trainer.log_every_n_steps=2")  # fmt: skip
    folder = tmp_path / "runs" / "vae_fashionmnist" / "version_0" / "checkpoints"
    assert {path.name for path in folder.iterdir()} == {"best.ckpt", "last.ckpt"}


def test_fast_dev_run_writes_nothing(run, tmp_path):
    run("fit", "--model=VAE", "--data=FashionMNIST", "--data.batch_size=16", "--trainer.fast_dev_run=true")
    assert not list(tmp_path.rglob("*.png")) and not list(tmp_path.rglob("*.ckpt"))


def script(*args):
    """What ``python train.py`` does."""
    sys.argv = ["train.py", *args]
    runpy.run_path(str(ROOT / "train.py"), run_name="__main__")


@pytest.mark.slow
def test_help_and_exit_codes(tmp_path):
    help = processes.run(script, "--help", folder=tmp_path)
    assert help.returncode == 0 and "sample" in help.stdout
    wrong = processes.run(script, "fit", "--model=X", folder=tmp_path)
    assert wrong.returncode == 1 and "Traceback" not in wrong.stderr and wrong.stderr.startswith("error: ")


@pytest.mark.slow
def test_two_processes_train_and_see_every_test_image_once(fitted, data_dir, tmp_path):
    """DDP over gloo."""
    args = ["--trainer.accelerator=cpu", "--trainer.devices=2", "--trainer.strategy=ddp", "--data.batch_size=8"]
    args += ["--trainer.enable_progress_bar=false", "--trainer.max_epochs=1", f"--config={fitted}/config.yaml"]

    def call(*args):
        done = processes.run_together(2, train.main, args, folder=tmp_path, LIT_GENERATIVE_DATA=data_dir)
        assert [one.returncode for one in done] == [0, 0], done[0].stderr[-3000:]
        return done[0].stdout

    call("fit", *args, "--name=two")
    checkpoint = tmp_path / "runs" / "two" / "version_0" / "checkpoints" / "best.ckpt"
    out = call("test", f"--ckpt_path={checkpoint}", *args[:5])
    assert "* VAE: 40 images," in out  # counted over both processes


def test_samples_of_a_class_by_a_named_sampler(run, tmp_path):
    run("fit", "--model=DDPM", "--data=FashionMNIST", "--data.batch_size=16", "--model.channels=[8,8]",
        "--model.groups=4", "--model.steps=20", "--model.sampling_steps=3", "--model.classes=10", "--model.lr=0.01",
        "--trainer.max_epochs=1", "--trainer.log_every_n_steps=1")  # fmt: skip
    ckpt = tmp_path / "runs" / "ddpm_fashionmnist" / "version_0" / "checkpoints" / "best.ckpt"
    sample = ["sample", f"--ckpt_path={ckpt}", "--n=3", "--options.sampler=ddim", "--options.steps=2"]
    for i, more in enumerate(([], ["--label=3"], ["--label=3", "--options.guidance=5"])):
        run(*sample, f"--output={i}.npz", *more)
    drawn = [arrays(tmp_path / f"{i}.npz")["images"] for i in range(3)]
    assert all(images.shape == (3, 28, 28, 1) for images in drawn)
    assert (drawn[0] != drawn[1]).any() and (drawn[1] != drawn[2]).any()
    with pytest.raises(SystemExit, match=r"trained with steps=20, and mean nothing with 10: leave out --model\.steps"):
        run("test", f"--ckpt_path={ckpt}", "--model.steps=10", "--trainer.limit_test_batches=1")
    run(*sample, "--output=each.png", "--label=each", "--n=20")
    assert picture("each.png").shape == (10 * 30 + 2, 2 * 30 + 2, 3)  # a row of two for each class
    with pytest.raises(SystemExit, match="label each: --n must be a multiple of 10, the number of classes, got 12"):
        run(*sample, "--output=b.npz", "--label=each", "--n=12")
    with pytest.raises(SystemExit, match="label 10: DDPM has 10 classes"):
        run(*sample, "--output=b.npz", "--label=10")
    with pytest.raises(SystemExit, match="there is no sampler euler: choose from ancestral, ddim, dpm_solver"):
        run(*sample, "--output=b.npz", "--options.sampler=euler")


def test_samples_take_the_models_own_options(run, tmp_path, capsys):
    run("fit", "--model=RealNVP", "--data=FashionMNIST", "--data.batch_size=16", "--model.stack=fully_connected",
        "--model.width=8", "--model.couplings=2", "--trainer.max_epochs=1",
        "--trainer.log_every_n_steps=1")  # fmt: skip
    ckpt = tmp_path / "runs" / "realnvp_fashionmnist" / "version_0" / "checkpoints" / "best.ckpt"
    run("sample", f"--ckpt_path={ckpt}", "--n=3", "--output=a.npz", "--options.temperature=0")
    images = arrays(tmp_path / "a.npz")["images"]
    assert (images == images[:1]).all()
    with pytest.raises(SystemExit, match=r"RealNVP has no sampling option steps: it has \['temperature'\]"):
        run("sample", f"--ckpt_path={ckpt}", "--output=b.npz", "--options.steps=5")


@pytest.mark.parametrize("model", ["Pix2Pix", "CycleGAN"])
def test_a_folder_of_pictures_of_any_size_is_translated_under_their_names(model, run, tmp_path):
    unpaired = model == "CycleGAN"
    data, own = "UnpairedFolders" if unpaired else "PairedFolder", ["--model.blocks=1", "--model.patch=34"]
    write(tmp_path / "streets", "sides" if unpaired else "pairs", {"train": 8, "val": 4}, size=32, seed=0)
    run("fit", f"--model={model}", f"--data={data}", f"--data.data_dir={tmp_path}/streets", "--data.image_size=32",
        "--data.val_size=3", "--model.image_shape=[3,32,32]", "--model.width=4",
        *(own if unpaired else ["--model.num_downs=4"]),
        "--trainer.max_epochs=1", "--trainer.limit_train_batches=2", "--trainer.log_every_n_steps=1")  # fmt: skip
    (ckpt,) = (tmp_path / "runs").glob("*/version_0/checkpoints/best.ckpt")
    sizes = {"one.png": (37, 20), "two.jpg": (16, 50), "two.png": (18, 18)}
    (tmp_path / "photos").mkdir()
    for name, size in sizes.items():
        Image.new("RGB", size, (90, 20, 200)).save(tmp_path / "photos" / name)
    run("predict", f"--ckpt_path={ckpt}", "--data=Pictures", f"--data.data_dir={tmp_path}/photos")
    (folder,) = (tmp_path / "runs").glob("**/translation")
    found = {path.name: picture(path).shape for path in folder.iterdir()}
    assert found == {"one.png": (20, 37, 3), "two.png": (50, 16, 3), "two.png.png": (18, 18, 3)}
    if unpaired:
        run("predict", f"--ckpt_path={ckpt}", "--data=Pictures", f"--data.data_dir={tmp_path}/photos",
            "--model.translates=to_sources")  # fmt: skip
        forward, back = (picture(path / "one.png") for path in sorted((tmp_path / "runs").glob("**/translation")))
        assert forward.shape == back.shape and (forward != back).any()
    with pytest.raises(SystemExit, match="Pictures are for predict only"):
        run("test", f"--ckpt_path={ckpt}", "--data=Pictures", f"--data.data_dir={tmp_path}/photos")


@pytest.mark.filterwarnings("ignore:Found .* in eval mode at the start of training")  # what is borrowed
@pytest.mark.slow
@pytest.mark.parametrize("model", sorted(lit_generative.models.__all__))
def test_every_model_trains_by_its_name_alone(model, run, tmp_path):
    """With nothing listed to choose a checkpoint by, there is one all the same."""
    levels = "dynamic" if model == "IWAE" else "none"
    data = ["--data=FashionMNIST", "--data.batch_size=16", f"--data.binarize={levels}"]
    if model == "LatentDiffusion":
        data.append('--model.autoencoder={"class_path": "lit_generative.models.vae.VAE", "init_args": {}}')
    if model in ("Pix2Pix", "CycleGAN"):
        write(tmp_path / "streets", "pairs", {"train": 8, "val": 4}, size=32, seed=0)
        data = ["--data=PairedFolder", f"--data.data_dir={tmp_path}/streets", "--data.image_size=32",
                "--data.val_size=3", "--model.image_shape=[3,32,32]"]  # fmt: skip
        data += ["--model.num_downs=4"] if model == "Pix2Pix" else ["--model.patch=34", "--model.blocks=1"]
    run("fit", f"--model={model}", *data, "--trainer.max_epochs=1", "--trainer.limit_train_batches=2",
        "--trainer.limit_val_batches=2", "--trainer.num_sanity_val_steps=0", "--trainer.callbacks=[]",
        "--trainer.log_every_n_steps=1")  # fmt: skip
    (best,) = (tmp_path / "runs").glob("*/version_0/checkpoints/best.ckpt")
    run("predict", f"--ckpt_path={best}", "--trainer.limit_predict_batches=2")


@pytest.mark.parametrize(
    ("given", "mode"), [([], None), (["--compile"], "default"), (["--compile=reduce-overhead"], "reduce-overhead")]
)
def test_the_compile_flag_may_name_a_mode(given, mode, monkeypatch, tmp_path, data_dir):
    seen = []
    monkeypatch.setattr(lit_generative.models.VAE, "compile", lambda self, mode: seen.append(mode))
    monkeypatch.chdir(tmp_path)
    train.main(["fit", "--model=VAE", "--model.hidden=[4]", "--model.latent=2", "--data=FashionMNIST",
                f"--data.data_dir={data_dir}", "--data.val_size=16", "--data.batch_size=16", "--trainer.fast_dev_run=1",
                "--trainer.accelerator=cpu", *given])  # fmt: skip
    assert seen == ([mode] if mode else [])


def test_an_unknown_mode_of_compile_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="reduce-overhead"):
        train.main(["fit", "--model=VAE", "--data=FashionMNIST", "--compile=fastest"])
