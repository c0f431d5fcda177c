"""What a model can do, and what data can give, asked of their methods and never of their class.

A batch is ``(x, c)``: images ``x`` float32 ``(B, C, H, W)`` in [0, 1] and ``c``, class labels ``(B,)`` int64 or a
source image. A model of p(x) ignores ``c``. Callbacks check one of these protocols in ``setup``.
"""

from typing import Literal, Protocol, runtime_checkable

from torch import Tensor
from torch.distributions import Normal

from lit_generative.errors import UserTypeError


@runtime_checkable
class Samples(Protocol):
    def sample(self, n: int, c: Tensor | None = None) -> Tensor:
        """Draw ``n`` images, float32 ``(n, C, H, W)`` in [0, 1]."""
        ...


@runtime_checkable
class HasLogProb(Protocol):
    def log_prob(self, x: Tensor, c: Tensor | None = None) -> Tensor:
        """Natural-log probability mass of each discrete image, or a lower bound on it, nats ``(B,)``."""
        ...


@runtime_checkable
class HasOODScores(Protocol):
    def ood_scores(self, x: Tensor) -> dict[str, Tensor]:
        """The model's own scores of each image, higher the more it looks out of distribution, ``(B,)`` by name.

        One of several numbers, ``(B, K)``, is standardised by training images and averaged.
        An attribute ``ood_headline`` names the one that stands for the model where it has no likelihood.
        """
        ...


@runtime_checkable
class Reconstructs(Protocol):
    def reconstruct(self, x: Tensor, c: Tensor | None = None) -> Tensor:
        """Encode and decode images; ``(B, C, H, W)`` in [0, 1] to the same."""
        ...


@runtime_checkable
class HasLatent(Protocol):
    def encode(self, x: Tensor) -> Tensor:
        """Map images to points of the latent space, ``(B, C, H, W)`` to ``(B, ...)``."""
        ...

    def decode(self, z: Tensor) -> Tensor:
        """Map latent points ``(B, ...)`` to images ``(B, C, H, W)`` in [0, 1]."""
        ...


@runtime_checkable
class HasComponents(Protocol):
    def component_of(self, z: Tensor) -> Tensor:
        """The component of the prior that latents ``(B, latent)`` are most likely of, int64 ``(B,)``."""
        ...


@runtime_checkable
class HasPosterior(Protocol):
    def q(self, x: Tensor) -> Normal:
        """The posterior q(z|x) of images, a diagonal Gaussian of batch shape ``(B, latent)``."""
        ...


@runtime_checkable
class Interpolates(Protocol):
    def interpolate(self, n: int, steps: int, c: Tensor | None = None) -> Tensor:
        """``n`` ways of ``steps`` images from one sample to another, ``(n * steps, C, H, W)`` in [0, 1], way by way.

        ``c`` holds a label for each way, ``(n,)``.
        """
        ...


@runtime_checkable
class Diffuses(Protocol):
    steps: int  # T

    def noised(self, x: Tensor, t: Tensor) -> Tensor:
        """What images ``(B, C, H, W)`` look like at times ``(B,)``, 0 to T, of the diffusion, ``(B, C, H, W)``."""
        ...

    def denoising_trajectory(self, n: int, every: int, c: Tensor | None = None) -> Tensor:
        """``n`` samples on their way from noise, a frame every ``every`` times, ``(frames, n, C, H, W)``."""
        ...

    def losses_at(self, x: Tensor, t: Tensor, c: Tensor | None = None) -> Tensor:
        """The training loss of images at times ``(B,)``, 1 to T, with labels if any, ``(B,)``."""
        ...


@runtime_checkable
class Translates(Protocol):
    def translate(self, c: Tensor) -> Tensor:
        """Map source images ``(B, C', H, W)`` to target images ``(B, C, H, W)``, both in [0, 1]."""
        ...


# -- of data ---------------------------------------------------------------------------------------


@runtime_checkable
class HasLabels(Protocol):
    """Data whose images have classes."""

    def labels_of(self, split: Literal["train", "test"]) -> Tensor:
        """The class of every image of a whole split, int64 ``(N,)``."""
        ...


@runtime_checkable
class HasImages(Protocol):
    """Data that give all images of a split at once."""

    name: str
    image_shape: tuple[int, int, int]
    resize: str  # how `convert` changes the size of images

    def stored(self, split: Literal["train", "test"]) -> tuple[Tensor, Tensor]:
        """Images of a whole split in their own size, uint8 ``(N, C, H, W)``, and their classes, int64 ``(N,)``."""
        ...

    def convert(self, images: Tensor) -> Tensor:
        """Stored images, of this set or another, with the channels and the size of this one, uint8."""
        ...

    def as_test(self, images: Tensor) -> Tensor:
        """Stored images, of this set or another, as a model meets this set's in test, uint8."""
        ...


@runtime_checkable
class ComparesImages(HasImages, Protocol):
    """Data that can be compared with another set, whose images are brought to the same form."""

    num_levels: int  # of a pixel: 256, or 2 where images are binarised
    stored_depends_on: tuple[str, ...]  # names of the arguments that change which images are stored
    among_others: bool  # whether its folder may hold other sets, too

    def held_out(self) -> Tensor:
        """Training images that no model is trained on, as a model sees them, uint8 ``(N, C, H, W)``; none: empty."""
        ...

    def describe_conversion(self, images: Tensor) -> str:
        """What `convert` does to stored images of another set, in words; empty if nothing."""
        ...


@runtime_checkable
class HasSizes(Protocol):
    """Data that a report can describe."""

    image_shape: tuple[int, int, int]
    batch_size: int  # of one process
    binarize: str  # "none", or how images are binarised

    def sizes(self) -> dict[str, int]:
        """The number of images of every split that is set up."""
        ...


@runtime_checkable
class HasFactors(Protocol):
    """Data whose images were made from known factors."""

    @property
    def factors(self) -> Tensor:
        """The factors of every test image, int64 ``(N, K)``."""
        ...


@runtime_checkable
class HasLabelMaps(Protocol):
    """Data of pairs, one side of which are label maps in colour."""

    label_side: Literal["source", "target"]
    palette: Tensor  # the colour of every class in [0, 1], (K, 3)

    def truth(self, split: Literal["val", "test"], numbers: Tensor) -> Tensor:
        """The class of every pixel of the pairs of these indices ``(B,)``, int64 ``(B, H, W)``; others do not count."""
        ...


def missing_members(obj: object, protocol: type) -> list[str]:
    """The methods and attributes of a protocol that an object lacks."""
    parts = [cls for cls in protocol.__mro__ if getattr(cls, "_is_protocol", False) and cls is not Protocol]
    members = [name for cls in parts for name in (*vars(cls), *vars(cls).get("__annotations__", {}))]
    return [name for name in dict.fromkeys(members) if not name.startswith("_") and not hasattr(obj, name)]


def require_data(data: object, protocol: type, user: object, remedy: str = "choose other data") -> None:
    """Raise a TypeError that names what ``data`` lack if they do not follow ``protocol``."""
    if not isinstance(data, protocol):
        missing = missing_members(data, protocol)
        what = "the run has no datamodule" if data is None else f"{type(data).__name__} has no `{'`, `'.join(missing)}`"
        raise UserTypeError(f"{type(user).__name__} needs data that follow `{protocol.__name__}`, but {what}: {remedy}")


def require(model: object, protocol: type, user: object) -> None:
    """Raise a TypeError that names the method ``model`` lacks if it does not follow ``protocol``."""
    if protocol is Samples and isinstance(model, Translates):
        raise UserTypeError(
            f"{type(user).__name__} draws samples of nothing but noise, and {type(model).__name__} translates images: "
            "choose TranslationGrid, TranslationScores or TranslationFID"
        )
    if not isinstance(model, protocol):
        missing = missing_members(model, protocol)
        raise UserTypeError(
            f"{type(user).__name__} needs a model that follows `{protocol.__name__}`, but {type(model).__name__} "
            f"has no `{'`, `'.join(missing)}`: remove the callback or choose another model"
        )
