"""What every model does with the batches that people bring: it trains as on (x, c), or says what is wrong."""

import copy

import pytest
import torch
from small_models import SMALL, slow
from stubs import trainer
from test_contract import MODELS, build, images, sources

from callbacks import LatentScatter, PredictionWriter, ReconstructionGrid
from datamodules import FashionMNIST
from lit_generative.models.cyclegan import CycleGAN
from lit_generative.models.ddpm import DDPM
from lit_generative.models.factor_vae import FactorVAE
from lit_generative.models.latent_flow import LatentFlow
from lit_generative.models.pix2pix import Pix2Pix
from lit_generative.models.vae import VAE
from lit_generative.training.batches import describe

# parts that are borrowed do not learn
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:Found .* in eval mode at the start of training"),
]


class Classes(DDPM):
    """Of three classes; its module is not among those of the models."""

    def __init__(self):
        super().__init__(**SMALL["DDPM"], classes=3)


TRANSLATORS = (Pix2Pix, CycleGAN)
ALL = [pytest.param(cls, id=cls.__name__, marks=slow(cls.__name__)) for cls in (*MODELS, Classes)]
UNCONDITIONAL = [pytest.param(c, id=c.__name__, marks=slow(c.__name__)) for c in MODELS if c not in TRANSLATORS]


def make(cls):
    torch.manual_seed(0)
    return cls() if cls is Classes else build(cls)


def batch_for(model, n=4):
    """A right batch ``(x, c)``."""
    torch.manual_seed(1)
    x = images(model, n)
    return x, torch.arange(n) % 3 if (c := sources(model, n)) is None else c


class Batches:
    """A loader of these; Lightning takes a list for several loaders."""

    def __init__(self, batches):
        self.batches = batches

    def __iter__(self):
        return iter(self.batches)

    def __len__(self):
        return len(self.batches)


def run(model, batches, folder, what="fit", *callbacks, **kwargs):
    # two epochs: a LatentFlow has two stages
    options = {"max_epochs": 2, "logger": False, "limit_val_batches": 0, "callbacks": list(callbacks)}
    loaders = [Batches(batches)] * (2 if what == "fit" else 1)
    return getattr(trainer(folder, **(options | kwargs)), what)(model, *loaders)


def pixels(change):
    """A batch whose images are changed."""
    return lambda x, c: (change(x), c)


def with_(value):
    def change(x):
        x = x.clone()
        x[-1, -1, -1, -1] = value
        return x

    return change


# what people bring: the batch made of (x, c); the error; what its message must name
WRONG = {
    "uint8": (pixels(lambda x: (x * 255).byte()), TypeError, r"got uint8 \(4, .*divide by 255.*`datamodule=`"),
    "int64": (pixels(lambda x: (x * 255).long()), TypeError, r"float images .* got int64 \(4, .*x\.float\(\)"),
    "bool": (pixels(lambda x: x > 0.5), TypeError, r"float images .* got bool .*x\.float\(\)"),
    "levels as floats": (
        pixels(lambda x: x * 255),
        ValueError,
        r"in \[0, 1\], got values from 0 to 255: divide by 255",
    ),
    "16 bits as floats": (pixels(lambda x: x * 65535), ValueError, "got values from 0 to 6.*: divide by .*65535"),
    "symmetric": (pixels(lambda x: x * 2 - 1), ValueError, r"got values from -1 to 1: take \(x \+ 1\) / 2"),
    "standardised": (pixels(lambda x: (x - 0.3) / 0.3), ValueError, "got values from -1 to 2.333: leave out"),
    "overshooting": (pixels(with_(1.1)), ValueError, r"got values from 0 to 1.1: clamp them with x\.clamp\(0, 1\)"),
    "undershooting": (pixels(with_(-0.05)), ValueError, r"got values from -0.05 to 1: "),
    "NaN": (pixels(with_(float("nan"))), ValueError, "the images hold NaN or infinite values"),
    "infinite": (pixels(with_(float("inf"))), ValueError, "the images hold NaN or infinite values"),
    "larger": (
        pixels(lambda x: torch.nn.functional.pad(x, (2, 2, 2, 2))),
        ValueError,
        r"takes float images \(B, .*got float32 \(4, .*: build the model with image_shape=",
    ),
    "other channels": (
        pixels(lambda x: torch.cat([x, x], 1)),
        ValueError,
        r"got float32 \(4, [26], .*: build the model with image_shape=\([26], ",
    ),
    "channels last": (pixels(lambda x: x.permute(0, 2, 3, 1)), ValueError, r"got .*x\.permute\(0, 3, 1, 2\)"),
    "no channel": (pixels(lambda x: x[:, 0]), ValueError, r"takes float images .* got float32 \(4, (28, 28|16, 16)\)"),
    "one image without a batch": (pixels(lambda x: x[0]), ValueError, r"got .*x\.unsqueeze\(0\), .* batch_size"),
    "vectors": (pixels(lambda x: x.flatten(1)), ValueError, r"got .*: x\.unflatten\(1, "),
    "nothing in it": (lambda x, c: (x[:0], c[:0]), ValueError, "the batch is empty"),
    "three parts": (lambda x, c: (x, c, c), TypeError, r"a batch is .* got \[float32 .*, .*, .*\]: .*return \(x, c\)"),
    "no part": (lambda x, c: (), TypeError, r"a batch is images x.* got \[\]"),
    "a dict of unknown names": (
        lambda x, c: {"foo": x, "label": c},
        TypeError,
        r"one entry among .*got \{foo: float32",
    ),
    "a dict of two images": (lambda x, c: {"image": x, "x": x}, TypeError, r"one entry among .*got \{image: float32"),
    "a string": (lambda x, c: "images", TypeError, "a batch is images x.* got str"),
    "arrays": (lambda x, c: (x.numpy(), c), TypeError, r"takes float images .* got ndarray: .*torch\.as_tensor"),
    "a list of images": (lambda x, c: (list(x), c), TypeError, r"takes float images .* got \[float32 "),
    "fewer c than images": (lambda x, c: (x, c[:3]), ValueError, "c|source images"),
    "labels first": (lambda x, c: (torch.arange(4), x), TypeError, r"takes float images .* got int64 \(4,\)"),
}


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("cls", ALL)
def test_every_model_refuses_every_wrong_batch_before_the_first_step(cls, name, tmp_path):
    spoil, error, message = WRONG[name]
    model = make(cls)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(error, match=message) as raised:
        run(model, [spoil(*batch_for(model))], tmp_path)
    assert "a batch is" in str(raised.value) or str(raised.value).startswith(f"{cls.__name__} (train batch)")
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("stage", ["fit", "validate", "test", "predict"])
@pytest.mark.parametrize("cls", ALL)
def test_the_first_batch_of_every_stage_is_looked_at(cls, stage, tmp_path):
    """In predictions translators have sources only."""
    model = make(cls)
    x, c = batch_for(model)
    wrong = (x, c * 255) if cls in TRANSLATORS else (x * 255, c)
    what = "source images" if cls in TRANSLATORS else "images"
    options = {"limit_val_batches": 1} if stage == "validate" else {}
    with pytest.raises(ValueError, match=rf"takes {what} in \[0, 1\], got values from 0.* divide by 255"):
        run(model, [wrong], tmp_path, stage, **options)
    if stage == "fit":  # its validation, when training data are right
        fit = trainer(tmp_path, max_epochs=2, logger=False, num_sanity_val_steps=0)
        with pytest.raises(ValueError, match=rf"\(validate batch\) takes {what} in \[0, 1\]"):
            fit.fit(model, Batches([(x, c)]), Batches([wrong]))


ACCEPTED = {
    "x": lambda x, c: x,
    "(x,)": lambda x, c: (x,),
    "[x]": lambda x, c: [x],
    "[x, c]": lambda x, c: [x, c],
    "a dict": lambda x, c: {"image": x},
    "a dict with labels": lambda x, c: {"pixel_values": x, "labels": c, "caption": ["a"] * len(x)},
    "captions": lambda x, c: (x, ["a caption"] * len(x)),
    "channels last in memory": lambda x, c: (x.contiguous(memory_format=torch.channels_last), c),
    "float64": lambda x, c: (x.double(), c),
}


@pytest.mark.parametrize("cls", UNCONDITIONAL)
def test_models_of_images_alone_train_as_on_images_with_labels(cls, tmp_path):
    """The same weights, bit for bit, whatever form the batch has."""

    def trained(form):
        model = make(cls)
        torch.manual_seed(2)
        run(model, [form(*batch_for(model))], tmp_path)
        return model.state_dict()

    expected = trained(lambda x, c: (x, c))
    for name, form in ACCEPTED.items():
        # convolutions may add in another order where channels are last
        tolerance = {"atol": 1e-4, "rtol": 1e-4} if "memory" in name else {"atol": 0, "rtol": 0}
        torch.testing.assert_close(trained(form), expected, **tolerance, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("cls", UNCONDITIONAL)
def test_every_stage_takes_images_alone(cls, tmp_path):
    model = make(cls)
    x, _ = batch_for(model)
    fit = trainer(tmp_path, max_epochs=1, logger=False)
    fit.fit(model, Batches([x, x[:3]]), Batches([x]))
    for what in ("validate", "test"):
        getattr(fit, what)(model, Batches([x]), verbose=False)
    if hasattr(model, "predict_step"):
        (predicted,) = fit.predict(model, Batches([x]))
        assert predicted["c"].tolist() == [-1] * 4


def test_callbacks_show_images_that_have_no_labels(tmp_path):
    model = make(VAE)
    x, _ = batch_for(model)
    shown = [ReconstructionGrid(n=2), LatentScatter()]
    trainer(tmp_path, max_epochs=1, callbacks=shown).fit(model, Batches([x]), Batches([x]))
    run(model, [{"img": x}], tmp_path, "predict", PredictionWriter())
    assert len(list(tmp_path.rglob("*.png"))) == 2


@pytest.mark.parametrize("cls", ALL)
def test_unusual_images_are_none_the_less_images(cls, tmp_path):
    """One image, black, white, and a rounding beyond 1."""
    model = make(cls)
    x, c = batch_for(model)
    rounded = torch.where(x == 1, 1 + 2e-7, x)
    assert rounded.max() > 1
    for batch in ((x[:1], c[:1]), (torch.zeros_like(x), c), (torch.ones_like(x), c), (rounded, c)):
        if cls in (FactorVAE, LatentFlow) and len(batch[0]) == 1:
            with pytest.raises(ValueError, match=r"\(train batch\) needs 2 images or more in a batch, got 1"):
                run(model, [batch], tmp_path)
        else:
            run(model, [batch], tmp_path)
    run(model, [(x, c), (x[:1], c[:1])], tmp_path)  # an epoch's last batch may be small


def test_half_precision_is_no_error_of_rounding(tmp_path):
    """1 - 2^-11 and k/255 in float16 are those of float32 as nearly as they can be."""
    levels = torch.arange(256).repeat(4, 4)[:, :784].view(4, 1, 28, 28) / 255
    model = make(VAE)
    for dtype in (torch.float16, torch.bfloat16):
        model.require_range(levels.to(dtype))
        model.require_levels(levels.to(dtype))
    with pytest.raises(ValueError, match="got values from 0 to 255"):
        model.require_range((levels * 255).half())
    with pytest.warns(UserWarning, match="pixels k/255"):
        model.require_levels((levels - 0.5 / 255).clamp(0).half())


@pytest.mark.parametrize("cls", [c for c in MODELS if hasattr(c, "log_prob")])
def test_levels_are_those_of_the_likelihood(cls, tmp_path):
    """Grey levels stop a model of binary pixels; values between levels are told to one of 8-bit pixels."""
    model = make(cls)
    x, c = batch_for(model)
    grey = (x.shape[0], *x.shape[1:])
    between = torch.rand(grey, generator=torch.Generator().manual_seed(3))
    if model.num_levels == 2:
        with pytest.raises(ValueError, match=r"takes binary pixels, 0 or 1, got grey levels: .*binarize="):
            run(model, [(between, c)], tmp_path)
    else:
        with pytest.warns(
            UserWarning, match=r"likelihood is of pixels k/255, got others.*\(x \* 255\)\.round\(\) / 255"
        ):
            run(model, [(between, c)], tmp_path)


def test_models_without_a_likelihood_take_values_between_levels(tmp_path):
    for cls in MODELS:
        if not hasattr(cls, "log_prob"):
            model = make(cls)
            x, c = batch_for(model)
            run(model, [(torch.rand_like(x), c)], tmp_path)


LABELS = {
    "none": (lambda x, c: x, TypeError, r"a label from 0 to 2 for each of 4 images, got NoneType: give \(x, c\)"),
    "captions": (lambda x, c: (x, ["a"] * 4), TypeError, r"a label .* got \[str"),
    "floats": (lambda x, c: (x, c.float()), TypeError, r"a label .* got float32 \(4,\): give c\.long\(\)"),
    "from 1": (lambda x, c: (x, c + 1), ValueError, "a label from 0 to 2 .* got 1 to 3: count from 0"),
    "too many": (lambda x, c: (x, c * 4), ValueError, "got 0 to 8: set classes to 9 or more"),
    "negative": (lambda x, c: (x, c - 1), ValueError, "got -1 to 1: remove those below 0"),
    "a column": (lambda x, c: (x, c[:, None]), ValueError, r"got int64 \(4, 1\): give c\.squeeze\(1\)"),
    "one-hot": (lambda x, c: (x, torch.eye(3)[c]), ValueError, r"got float32 \(4, 3\): give c\.argmax\(1\)"),
}


@pytest.mark.parametrize("name", LABELS)
def test_a_model_of_classes_needs_their_labels(name, tmp_path):
    spoil, error, message = LABELS[name]
    model = make(Classes)
    for what in ("fit", "test", "predict"):
        with pytest.raises(error, match=message):
            run(model, [spoil(*batch_for(model))], tmp_path, what)
    spoilt = spoil(*batch_for(model))
    if isinstance(spoilt, tuple):  # without labels the bound is that of the unlabelled model
        with pytest.raises(error, match=message):
            model.log_prob(*spoilt)


def test_a_wrong_label_of_a_later_batch_is_found_on_a_cpu(tmp_path):
    """The label after the last is the network's own, for none: it would train without a word."""
    model = make(Classes)
    x, c = batch_for(model)
    with pytest.raises(ValueError, match="got 1 to 3: count from 0"):
        run(model, [(x, c), (x, c + 1)], tmp_path)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_labels_may_be_any_integers(dtype, tmp_path):
    model = make(Classes)
    x, c = batch_for(model)
    run(model, [{"x": x, "y": c.to(dtype)}], tmp_path)


SOURCES = {
    "none": (lambda x, c: x, ValueError, r"learns from pairs \(x, c\) of target and source images, got targets only"),
    "labels": (lambda x, c: (x, torch.arange(4)), TypeError, r"float source images \(B, 3, 16, 16\).* got int64"),
    "smaller": (lambda x, c: (x, c[..., :8, :8]), ValueError, r"source images \(B, 3, 16, 16\).* got .*\(4, 3, 8, 8\)"),
    "grey": (lambda x, c: (x, c[:, :1]), ValueError, r"source images \(B, 3, 16, 16\).* got float32 \(4, 1, 16, 16\)"),
    "uint8": (lambda x, c: (x, (c * 255).byte()), TypeError, "source images .* got uint8 .*divide by 255"),
    "symmetric": (lambda x, c: (x, c * 2 - 1), ValueError, r"source images in \[0, 1\], got values from -"),
}


@pytest.mark.parametrize("cls", TRANSLATORS)
@pytest.mark.parametrize("name", SOURCES)
def test_translators_need_source_images(name, cls, tmp_path):
    spoil, error, message = SOURCES[name]
    model = make(cls)
    with pytest.raises(error, match=message):
        run(model, [spoil(*batch_for(model))], tmp_path)


def test_pix2pix_translates_pairs_sources_and_named_sources(tmp_path):
    """Of any size; the targets of pairs are not looked at."""
    model = Pix2Pix(**SMALL["Pix2Pix"], test_dropout=False).eval()
    x, c = batch_for(model)
    c, names = c[..., :12], list("abcd")
    expected = model.translate(c) * 255
    named = (c, names)
    for batch in ((x, c), c, (c,), {"image": c}, (c, torch.arange(4)), named):
        (predicted,) = run(model, [batch], tmp_path, "predict")
        assert (predicted["translation"] - expected).abs().max() <= 0.51
        assert predicted.get("name") == (names if batch is named else None)


METHODS = (
    "log_prob",
    "log_density",
    "objective",
    "q",
    "encode",
    "reconstruct",
    "ood_scores",
    "look",
    "bound",
    "translate",
)
AT_TIMES = ("noised", "losses_at")


@pytest.mark.parametrize("cls", ALL)
def test_methods_that_take_images_refuse_others(cls):
    """Without a Trainer; shape and dtype only, since looking at values takes time."""
    model = make(cls).eval()
    x, c = batch_for(model)
    x, t = c if cls in TRANSLATORS else x, torch.ones(4, dtype=torch.long)
    calls = [(name, ()) for name in METHODS] + [(name, (t,)) for name in AT_TIMES]
    calls = [(getattr(model, name), rest) for name, rest in calls if hasattr(model, name)]
    assert calls
    for method, rest in calls:
        method(x, *rest)
        message = r"takes float (source )?images \(B, [13], .*, got "
        with pytest.raises(ValueError, match=message + r"float32 \(4, [26], "):
            method(torch.cat([x, x], 1), *rest)
        with pytest.raises(TypeError, match=message + "uint8 "):
            method((x * 255).byte(), *rest)
        with pytest.raises(TypeError, match=message + "ndarray"):
            method(x.numpy(), *rest)


def test_values_are_looked_at_once_a_stage_and_loader(tmp_path, monkeypatch):
    """Three epochs of training and validation with two loaders: once in each, and in the check before training."""
    looked = []
    for name in ("require_range", "require_levels"):
        monkeypatch.setattr(VAE, name, lambda self, x, name=name: looked.append((name, self.trainer.state.stage.value)))
    model = make(VAE)
    batches = Batches([batch_for(model)] * 3)

    class TwoLoaders(VAE):
        def validation_step(self, batch, batch_idx, dataloader_idx=0):
            super().validation_step(batch, batch_idx)

    model = TwoLoaders(hidden=(8,), latent=2)
    fit = trainer(tmp_path, max_epochs=3, logger=False)
    fit.fit(model, batches, [batches, batches])
    once = ["sanity_check", "sanity_check", "train", "validate", "validate"]
    assert sorted(looked) == sorted((name, stage) for name in ("require_range", "require_levels") for stage in once)
    looked.clear()
    fit.test(model, batches, verbose=False)
    fit.test(model, batches, verbose=False)  # other data may have come
    assert len(looked) == 4


def test_loaders_of_a_datamodule_without_it_name_the_remedy(data_dir, tmp_path):
    data = FashionMNIST(data_dir=str(data_dir), batch_size=16, val_size=16)
    data.prepare_data()
    data.setup("fit")
    with pytest.raises(TypeError, match="pass `datamodule=` to the Trainer instead"):
        run(make(VAE), data.train_dataloader(), tmp_path)


def test_batches_are_described_in_words():
    x = torch.zeros(2, 1, 4, 4)
    assert (
        describe({"image": x, "boxes": [x, x]})
        == "{image: float32 (2, 1, 4, 4), boxes: [float32 (2, 1, 4, 4), float32 (2, 1, 4, 4)]}"
    )
    assert describe([x.byte()] * 9).endswith("... 9 entries]")
