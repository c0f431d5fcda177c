"""What every model promises, asked of every model that the package holds."""

import functools
import inspect
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from small_models import SMALL, slow

import lit_generative.models
from benchmarks.scenes.streets import write
from datamodules import FashionMNIST, PairedFolder
from lit_generative.checkpoints import init_from, load_model
from lit_generative.checkpoints.pretrained import export_programs
from lit_generative.generative_model import GenerativeModel
from lit_generative.models.cyclegan import CycleGAN
from lit_generative.protocols import HasLatent, HasLogProb, Reconstructs, Samples, Translates


def subclasses(cls):
    # once, whatever the number of ways that lead to one
    return list(dict.fromkeys(c for child in cls.__subclasses__() for c in (child, *subclasses(child))))


MODELS = [
    cls
    for cls in subclasses(GenerativeModel)
    if cls.__module__.startswith(lit_generative.models.__name__) and not inspect.isabstract(cls)
]


def test_every_file_holds_a_model():
    files = {path.stem for path in Path(lit_generative.models.__path__[0]).glob("*.py")} - {"__init__"}
    assert files == {cls.__module__.split(".")[-1] for cls in MODELS}


REQUIRED = {  # what a model cannot be without, or is too large without
    "LatentDiffusion": {"autoencoder": SMALL["LatentDiffusion"]["autoencoder"]},
    "Pix2Pix": SMALL["Pix2Pix"],
    "CycleGAN": SMALL["CycleGAN"],
}
ARGUMENTS = SMALL | {"IWAE": {"hidden": [8], "latent": 2, "k": 3}}  # of binary pixels

# parts that are borrowed do not learn
pytestmark = pytest.mark.filterwarnings("ignore:Found .* in eval mode at the start of training")


PARAMS = [
    # one worker has all tests of a model, and trains it once
    pytest.param(cls, id=cls.__name__, marks=[pytest.mark.xdist_group(cls.__name__), *slow(cls.__name__)])
    for cls in MODELS
]


def build(cls):
    return cls(**ARGUMENTS[cls.__name__])


@pytest.fixture(params=PARAMS)
def model(request):
    return build(request.param)


def sources(model, n):
    """Images to translate, for a model that does."""
    if not isinstance(model, Translates):
        return None
    torch.manual_seed(3)
    return torch.rand(n, model.source_channels, *model.image_shape[1:])


def images(model, n):
    k = torch.randint(model.num_levels, (n, *model.image_shape))
    return k.float() / (model.num_levels - 1)


@pytest.mark.parametrize("cls", PARAMS)
def test_it_can_do_something_and_samples_are_images(cls):
    """With the arguments that it has by default."""
    model = cls(**REQUIRED.get(cls.__name__, {}))
    assert isinstance(model, Samples)
    x = model.eval().sample(5, sources(model, 5))
    assert x.shape == (5, *model.image_shape) and x.dtype == torch.float32
    assert x.min() >= 0 and x.max() <= 1 and not x.requires_grad


def test_hyper_parameters_rebuild_it(model):
    again = type(model)(**model.hparams)
    assert again.hparams == model.hparams and {**ARGUMENTS[type(model).__name__]}.keys() <= model.hparams.keys()
    shapes = [{name: v.shape for name, v in m.state_dict().items()} for m in (model, again)]
    assert shapes[0] == shapes[1]


def test_sampling_follows_the_seed(model):
    model.eval()
    c = sources(model, 3)
    draws = [(torch.manual_seed(seed), model.sample(3, c))[1] for seed in (1, 1, 2)]
    drawn = not isinstance(model, CycleGAN)  # which adds no noise to its sources
    assert torch.equal(draws[0], draws[1]) and torch.equal(draws[0], draws[2]) != drawn


def test_log_prob_is_a_log_mass_per_image(model):
    if isinstance(model, HasLogProb):
        log_prob = model.eval().log_prob(images(model, 4))
        assert log_prob.shape == (4,) and log_prob.isfinite().all() and (log_prob < 0).all()


def test_reconstructions_and_latents_have_the_shapes_they_promise(model):
    x = images(model.eval(), 4)
    if isinstance(model, Reconstructs):
        assert model.reconstruct(x).shape == x.shape
    if isinstance(model, HasLatent):
        z = model.encode(x)
        assert len(z) == 4 and model.decode(z).shape == x.shape


def test_class_labels_are_ignored_or_used_but_accepted(model):
    x, c = images(model.eval(), 2), torch.tensor([0, 1])
    if isinstance(model, Translates):
        c = sources(model, 2)
    assert model.sample(2, c).shape == x.shape
    if isinstance(model, HasLogProb):
        assert model.log_prob(x, c).shape == (2,)


def test_a_folder_of_safetensors_gives_the_model_back(model, tmp_path):
    model.eval().save_pretrained(tmp_path / "a")
    again, c = type(model).from_pretrained(tmp_path / "a"), sources(model, 2)
    draws = [(torch.manual_seed(1), m.sample(2, c))[1] for m in (model, again)]
    assert torch.equal(*draws)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_networks_become_programs_that_give_the_same(model, tmp_path):
    written = export_programs(model.eval(), tmp_path)
    assert {path.stem for path in written} == model.programs().keys()
    for path in written:
        network, example = model.programs()[path.stem]
        inputs = [torch.cat([x, x, x])[:5] for x in example]  # a batch of another size
        inputs = [torch.rand_like(x) if x.is_floating_point() else x for x in inputs]
        program = torch.export.load(path).module()
        draws = [(torch.manual_seed(1), net(*inputs))[1] for net in (network, program)]
        torch.testing.assert_close(draws[1], draws[0], atol=1e-5, rtol=1e-5)


def test_a_model_starts_from_a_checkpoint_of_its_own(trained, caplog):
    model, path = trained
    started = init_from(type(model)(**ARGUMENTS[type(model).__name__]), str(path))
    assert "left fresh" not in caplog.text
    for name, value in model.state_dict().items():
        assert torch.equal(started.state_dict()[name], value)


def data(model, data_dir):
    if isinstance(model, Translates):
        if not (streets := data_dir / "streets").exists():
            write(streets, "pairs", {"train": 96, "val": 16}, size=20, seed=0)
        return PairedFolder(str(streets), 16, batch_size=16, val_size=16, cache_dir=str(data_dir / "cache"))
    binarize = "dynamic" if model.num_levels == 2 else "none"
    return FashionMNIST(data_dir=str(data_dir), batch_size=16, val_size=16, binarize=binarize)


def trainer(folder, **kwargs):
    return Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **kwargs,
    )


@pytest.fixture(scope="session")
def train(data_dir, tmp_path_factory):
    """A function that gives a trained model of a class, and its checkpoint; each is trained once."""

    @functools.cache
    def trained(cls):
        folder, model = tmp_path_factory.mktemp(cls.__name__), build(cls)
        fit = trainer(folder, max_steps=3, limit_val_batches=1, enable_checkpointing=False)
        fit.fit(model, datamodule=data(model, data_dir))
        fit.save_checkpoint(folder / "a.ckpt")
        return model, folder / "a.ckpt"

    return trained


@pytest.fixture(params=PARAMS)
def trained(request, train):
    return train(request.param)


def test_every_parameter_learns(model, data_dir, tmp_path):
    before = {name: p.clone() for name, p in model.named_parameters() if p.requires_grad}
    trainer(tmp_path, max_steps=6, enable_checkpointing=False, limit_val_batches=0).fit(
        model, datamodule=data(model, data_dir)
    )
    now = dict(model.named_parameters())
    assert before and not [name for name, p in before.items() if torch.equal(p, now[name])]


def test_a_test_leaves_a_model_that_can_train(model, data_dir, tmp_path):
    quick = {"limit_test_batches": 1, "limit_val_batches": 1, "max_steps": 3, "enable_checkpointing": False}
    trainer(tmp_path, **quick).test(model, datamodule=data(model, data_dir), verbose=False)
    trainer(tmp_path, **quick).fit(model, datamodule=data(model, data_dir))


def test_checkpoint_holds_plain_types_and_gives_the_model_back(trained):
    model, path = trained
    torch.load(path, weights_only=True)
    for again in (load_model(path), type(model).load_from_checkpoint(path, weights_only=True)):
        for name, value in model.state_dict().items():
            assert torch.equal(again.state_dict()[name], value)


@pytest.mark.slow
def test_checkpoints_load_in_a_fresh_process(train, tmp_path):
    """Which has imported nothing but what loads them."""
    code = """if True:
        import sys, torch
        from lit_generative.checkpoints import load_model
        for path in sys.argv[1:]:
            model, c = load_model(path), torch.load(f"{path}.sources")
            torch.manual_seed(0)
            print(model.sample(2, c).double().sum().item())
    """
    paths, sums = [], []
    for model, path in map(train, MODELS):
        c = sources(model, 2)
        torch.save(c, f"{path}.sources")
        paths.append(path)
        torch.manual_seed(0)
        sums.append(model.eval().sample(2, c).double().sum().item())
    root = Path(__file__).parents[1]
    out = subprocess.run([sys.executable, "-c", code, *paths], cwd=root, capture_output=True, text=True, check=True)
    assert [float(line) for line in out.stdout.splitlines()] == sums


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_resuming_in_the_middle_of_an_epoch_changes_nothing(model, data_dir, tmp_path):
    """Five steps an epoch: seven steps equal those resumed from the third, bit for bit, optimiser included."""

    def run(model, folder, ckpt_path=None):
        every_step = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)
        fit = trainer(tmp_path, max_steps=7, callbacks=[every_step], log_every_n_steps=1)
        fit.fit(model, datamodule=data(model, data_dir), ckpt_path=ckpt_path, weights_only=True)
        return torch.load(folder / "step=7.ckpt", weights_only=True)

    a = run(model, tmp_path / "at once")
    torch.manual_seed(123)
    b = run(build(type(model)), tmp_path / "resumed", tmp_path / "at once" / "step=3.ckpt")
    assert a["global_step"] == b["global_step"] == 7
    states = [checkpoint["lit_generative"]["run"]["rng"]["cpu"] for checkpoint in (a, b)]
    assert torch.equal(*states)
    torch.testing.assert_close(a["state_dict"], b["state_dict"], atol=0, rtol=0)
    torch.testing.assert_close(a["optimizer_states"], b["optimizer_states"], atol=0, rtol=0)


def test_data_that_do_not_fit_are_refused_before_the_first_step(model, data_dir, tmp_path):
    if isinstance(model, Translates):
        with pytest.raises(ValueError, match="built for images of shape"):
            trainer(tmp_path, max_steps=1).fit(model, datamodule=FashionMNIST(data_dir=str(data_dir), val_size=16))
        return
    wrong = FashionMNIST(data_dir=str(data_dir), batch_size=16, val_size=16, image_size=32)
    with pytest.raises(ValueError, match=r"built for images of shape .* but FashionMNIST gives \(1, 32, 32\)"):
        trainer(tmp_path, max_steps=1).fit(model, datamodule=wrong)
    binarize = "none" if model.num_levels == 2 else "dynamic"
    wrong = FashionMNIST(data_dir=str(data_dir), batch_size=16, val_size=16, binarize=binarize)
    with pytest.raises(ValueError, match="levels, but FashionMNIST has"):
        trainer(tmp_path, max_steps=1).fit(model, datamodule=wrong)
