"""How well a class-conditional density tells the classes apart, by Bayes' rule."""

from typing import Any, ClassVar

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from callbacks.base import PerImageCallback, datamodule_of
from lit_generative.errors import UserError, require_at_least
from lit_generative.protocols import HasLogProb
from lit_generative.sampling import Conditions
from lit_generative.utils.rng import forked_rng


class BayesClassifier(PerImageCallback):
    """Log how often the class with the largest log p(x|c) + log p(c) is the right one, and the cross-entropy, nats.

    ``bayes_accuracy`` and ``bayes_cross_entropy`` of the first test images. Bounds on log p(x|c) stand for it, with
    the same noise for all classes of an image; p(c) are the frequencies of the training images.

    Args:
        num_images: Images, each of which is scored once for every class.
        every_n_epochs: Epochs from one validation that does this to the next; 0: in test only.
        seed: Seed of the noise.

    Raises:
        TypeError: The model has no `log_prob`, or the data have no labels.
        ValueError: The model has no classes.
    """

    protocol = HasLogProb
    reported: ClassVar = {"bayes_accuracy": ".3f"}
    logged = ("bayes_accuracy", "bayes_cross_entropy")

    def __init__(self, num_images: int = 500, every_n_epochs: int = 0, seed: int = 0) -> None:
        super().__init__(every_n_epochs, seed)
        require_at_least(self, 1, num_images=num_images)
        self.num_images = num_images

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage == "predict":
            return
        classes: Any = getattr(pl_module, "classes", 0)
        if not classes:
            raise UserError(
                f"BayesClassifier compares classes, of which {type(pl_module).__name__} has none: train it with "
                "--model.classes, or remove the callback"
            )
        frequencies = Conditions(self, pl_module, datamodule_of(trainer)).frequencies
        assert frequencies is not None
        self._log_prior = torch.full((classes,), -torch.inf)
        self._log_prior[: len(frequencies)] = frequencies.log()

    def measure(self, model: Any, x: Tensor, c: Tensor) -> Tensor:
        """Whether the right class is found, and -log p(c|x), ``(B, 2)``; fewer rows where there were images enough."""
        wanted = self.indices < self.num_images
        x, c, self.indices = x[wanted], c[wanted], self.indices[wanted]
        if not len(x):
            return x.new_zeros(0, 2)
        seed, joint = int(torch.randint(2**31, ())), []
        for label, log_prior in enumerate(self._log_prior.tolist()):
            with forked_rng(seed, model.device):  # what is drawn differs in nothing but the class
                joint.append(model.log_prob(x, torch.full_like(c, label)) + log_prior)
        log_joint = torch.stack(joint)
        right = log_joint.argmax(0) == c
        return torch.stack([right.to(x), -log_joint.log_softmax(0).gather(0, c[None])[0]], 1)

    def summarize(self, trainer: Trainer, pl_module: Any, stage: str, rows: Tensor) -> None:
        accuracy, cross_entropy = rows.mean(0).tolist()
        self._images = len(rows)
        self.log_numbers(pl_module, stage, {"bayes_accuracy": accuracy, "bayes_cross_entropy": cross_entropy})

    def describe_test(self) -> str:
        """The protocol of the numbers."""
        return (
            f"first {self._images:,} test images; class of the largest log p(x|c) + log p(c), p(c): frequencies of the "
            f"training images; noise: seed {self.seed}, alike for all classes"
        )
