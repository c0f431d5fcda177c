r"""Auto-encoding variational Bayes (Kingma & Welling, 2014), arXiv:1312.6114.

    p(z)   = N(0, I)
    q(z|x) = N(mu(x), diag sigma(x)^2)                                      Eq. 9
    ELBO   = E_q[log p(x|z)] - KL(q(z|x) || p(z))  <=  log p(x)             Eq. 3
    KL     = -1/2 sum_j (1 + log sigma_j^2 - mu_j^2 - sigma_j^2)            Appendix B

The importance-weighted bound on log p(x), for evaluation, is Eq. 8 of Burda et al. (2016).
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributions import Normal
from torch.optim import Optimizer

from lit_generative.errors import UserError
from lit_generative.families.class_conditional import ClassConditional
from lit_generative.likelihoods import LIKELIHOODS, Likelihood, log_mean_exp
from lit_generative.metrics.aggregation import Moments, Stats
from lit_generative.nn.autoencoders import NETWORKS, Network
from lit_generative.utils.interpolation import spherical_interpolation
from lit_generative.utils.precision import at_least_float32, for_weights


class VAE(ClassConditional):
    """Variational auto-encoder with a diagonal Gaussian posterior and a factorised likelihood of discrete pixels.

    With classes, the networks of q(z|x, c) and p(x|z, c) see the label and the prior does not (Sohn et al., 2015): the
    encoder as a further channel, an image that is learned for every class, the decoder as a one-hot vector after z.

    Args:
        image_shape: (C, H, W) of the images.
        latent: Dimensions of z.
        network: Encoder and decoder: fully connected, or one 3x3 convolution of stride 2 per entry of ``hidden``; or
            ``conv3``, ``conv4``: convolutions of that kernel with batch norm, and a dense layer, the last entry.
        hidden: Widths of the encoder's layers (channels for ``conv``); the decoder mirrors them.
        activation: Nonlinearity between layers, a class of ``torch.nn``.
        likelihood: ``bernoulli`` for binarised pixels, ``logistic`` or ``gaussian`` (discretised) for 8-bit ones.
        lr: Learning rate of Adam.
        lr_decay_start: Fraction of the run after which the learning rate falls linearly to 0; 1 keeps it constant.
        kl_warmup: Steps over which the KL term's weight rises linearly to 1 in training.
        free_bits: Nats per latent dimension below which its mean KL is not penalised (Kingma et al., 2016, Eq. 15): the
            mean over a batch on all devices; of batches that are accumulated, each has its own.
        test_k: Numbers of importance samples at which ``test`` reports the bound.
        labels: Arguments of `ClassConditional`.
    """

    needs_float32 = "images and their likelihoods would be rounded"
    compiled_functions: tuple[str, ...] = ("objective",)
    compiled_evaluations = ("log_likelihood",)
    pixels_at_once = 2**18  # of many importance samples: about 1 MB a tensor of images, which a cache holds

    def __init__(
        self,
        image_shape: tuple[int, int, int] = (1, 28, 28),
        latent: int = 10,
        network: Network = "mlp",
        hidden: Sequence[int] = (300, 300),
        activation: Literal["ReLU", "Tanh", "SiLU"] = "ReLU",
        likelihood: Literal["bernoulli", "logistic", "gaussian"] = "logistic",
        lr: float = 1e-3,
        lr_decay_start: float = 1.0,
        kl_warmup: int = 0,
        free_bits: float = 0.0,
        test_k: Sequence[int] = (5, 50, 150),
        **labels: Any,
    ) -> None:
        super().__init__(**labels)
        if not hidden or not test_k or min(latent, *hidden, *test_k) < 1:
            raise UserError(f"latent, hidden and test_k must be >= 1, got {latent}, {hidden}, {test_k}")
        if min(kl_warmup, free_bits, lr_decay_start) < 0 or lr_decay_start > 1:
            given = f"{kl_warmup}, {free_bits}, {lr_decay_start}"
            raise UserError(f"kl_warmup, free_bits must be >= 0 and lr_decay_start in [0, 1], got {given}")
        self.save_hyperparameters()
        self.image_shape, self.latent = image_shape, latent
        self.lr, self.lr_decay_start, self.kl_warmup, self.free_bits = lr, lr_decay_start, kl_warmup, free_bits
        self.waits = kl_warmup > 0  # for the KL term's full weight; until then steps are not compiled
        self.test_k, self.likelihood = sorted(test_k), LIKELIHOODS[likelihood]
        self.likelihood_kind, self.log_prob_kind = f"bound, IWAE-{self.test_k[-1]}", "bound, IWAE-50"
        self.num_levels = self.likelihood.num_levels
        c, h, w = image_shape
        encoder, decoder = NETWORKS[network]
        seen = (c + 1, h, w) if self.classes else image_shape
        self.encoder = encoder(seen, hidden, 2 * latent, getattr(nn, activation))
        self.class_image = nn.Linear(self.classes, h * w) if self.classes else None
        self.decoder = decoder(
            latent + self.classes, hidden, (self.likelihood.parameters * c, h, w), getattr(nn, activation)
        )
        self.codes = Moments(latent)  # posterior means of the images of a test

    def programs(self) -> dict[str, tuple[nn.Module, tuple[Tensor, ...]]]:
        """The decoder: z ``(B, latent)``, and labels as one-hot vectors, to the parameters of the likelihood."""
        return {"decoder": (self.decoder, (torch.zeros(2, self.latent + self.classes),))}

    # -- distributions -----------------------------------------------------------------------------

    def q(self, x: Tensor, c: Tensor | None = None) -> Normal:
        """The posterior q(z|x), or with labels q(z|x, c), batch shape ``(B, latent)`` (Eq. 9)."""
        self.require_images(x)
        if self.class_image is not None:
            x = torch.cat([x, self.class_image(self.one_hot(c, x)).view(-1, 1, *x.shape[2:]).to(x)], 1)
        mu, log_var = at_least_float32(self.encoder(x)).chunk(2, dim=-1)
        # the cap keeps the KL of a first wild step finite; a trained posterior has log_var < 0
        return Normal(mu, torch.exp(0.5 * log_var.clamp(max=20)), validate_args=False)

    def p(self, z: Tensor, c: Tensor | None = None) -> Likelihood:
        """The likelihood p(x|z) of images ``(..., C, H, W)`` for latents ``(..., latent)``, with labels p(x|z, c)."""
        z = self.with_labels(z, c)
        return self.likelihood(self.decoder(for_weights(z, self.decoder).flatten(0, -2)).unflatten(0, z.shape[:-1]))

    # -- objective ---------------------------------------------------------------------------------

    def kl(self, q: Normal) -> Tensor:
        """KL(q(z|x) || p(z)) per dimension, nats ``(B, latent)`` (Appendix B)."""
        return 0.5 * (q.loc.square() + q.scale.square() - 1) - q.scale.log()

    def objective(self, x: Tensor, c: Tensor | None = None) -> dict[str, Tensor]:
        """What one training step minimises (``loss``) and its parts, nats per image ``(B,)``.

        ``elbo`` = -(``reconstruction`` + ``kl``) is the bound itself, without warm-up or free bits.
        """
        q = self.q(x, c)
        reconstruction, kl = self.reconstruction(x, q, c), self.kl(q)
        loss = reconstruction + self.kl_weight * self.penalised(kl)
        kl = kl.sum(-1)
        return {"loss": loss, "elbo": -(reconstruction + kl), "reconstruction": reconstruction, "kl": kl}

    def bound(self, x: Tensor, c: Tensor | None = None) -> dict[str, Tensor]:
        """``elbo`` and its parts as in `objective`, also of a model that minimises something else."""
        return VAE.objective(self, x, c)

    def reconstruction(self, x: Tensor, q: Normal, c: Tensor | None = None) -> Tensor:
        """-log p(x|z) at one draw of z ~ q(z|x), nats ``(B,)``."""
        return -self.p(q.rsample(), c).log_prob(x)

    @property
    def kl_weight(self) -> float:
        """Rises linearly to 1 in ``kl_warmup`` steps (Sønderby et al., 2016)."""
        return min(1.0, (self.global_step + 1) / (self.kl_warmup + 1)) if self.waits else 1.0

    def penalised(self, kl: Tensor) -> Tensor:
        """The KL term of the loss from ``(B, latent)``: its sum, where a dimension's mean is above its free bits."""
        if self.free_bits == 0:
            return kl.sum(-1)
        free = self.over_processes(kl.mean(0)) <= self.free_bits  # alike everywhere, as for the whole batch
        return kl.mean(0).masked_fill(free, self.free_bits).sum().expand(len(kl))

    # -- likelihood --------------------------------------------------------------------------------

    def log_weights(self, x: Tensor, q: Normal, k: int, c: Tensor | None = None) -> Tensor:
        """log p(x, z) - log q(z|x) for ``k`` draws z ~ q(z|x), nats ``(k, B)``."""
        z = q.rsample((k,))
        return self.log_likelihood(x, z, c) + self.log_prior(z) - q.log_prob(z).sum(-1)

    def log_prior(self, z: Tensor) -> Tensor:
        """log p(z) of latents ``(..., latent)``, nats ``(...)``."""
        return Normal(z.new_zeros(()), z.new_ones(()), validate_args=False).log_prob(z).sum(-1)

    def log_likelihood(self, x: Tensor, z: Tensor, c: Tensor | None = None) -> Tensor:
        """log p(x|z) of images ``(B, C, H, W)`` for latents ``(k, B, latent)``, nats ``(k, B)``."""
        return self.p(z, c).log_prob(x)

    def chunked_log_weights(self, x: Tensor, k: int, c: Tensor | None = None) -> Tensor:
        """As :meth:`log_weights`, exactly ``k`` draws, at most ``pixels_at_once`` pixels at a time."""
        q = self.q(x, c)
        chunk = max(1, self.pixels_at_once // x.numel())
        log_w = q.loc.new_empty(k, len(x))  # not a list, whose small tensors would leave holes in the memory
        for i in range(0, k, chunk):
            log_w[i : i + chunk] = self.log_weights(x, q, min(chunk, k - i), c)
        return log_w

    def log_prob(self, x: Tensor, c: Tensor | None = None, k: int = 50) -> Tensor:
        """Lower bound on log p(x) from ``k`` importance samples, nats ``(B,)`` (Burda et al., 2016, Eq. 8).

        A bound in expectation, tighter as ``k`` grows; with ``k=1`` a one-draw estimate of the ELBO. Memory does not
        grow with ``k`` under ``torch.no_grad()``; with gradients the graph of every draw is kept.
        """
        self.require_labels(len(x), c)
        return log_mean_exp(self.chunked_log_weights(x, k, c), 0)

    def ood_scores(self, x: Tensor) -> dict[str, Tensor]:
        """The two costs whose sum is the negative ELBO, nats ``(B,)``."""
        terms = self.bound(x)
        return {"reconstruction": terms["reconstruction"], "kl": terms["kl"]}

    # -- latent space and sampling -----------------------------------------------------------------

    def encode(self, x: Tensor, c: Tensor | None = None) -> Tensor:
        """The posterior's mean, ``(B, latent)``."""
        return self.q(x, c).mean

    def decode(self, z: Tensor, c: Tensor | None = None) -> Tensor:
        """The image at the centre of p(x|z) (its likelihood's ``mean``), ``(B, C, H, W)`` in [0, 1]."""
        return self.p(z, c).mean

    def reconstruct(self, x: Tensor, c: Tensor | None = None) -> Tensor:
        """Decode the posterior's mean, ``(B, C, H, W)`` in [0, 1] to the same."""
        return self.decode(self.encode(x, c), c)

    @torch.no_grad()
    def sample(self, n: int, c: Tensor | None = None) -> Tensor:
        """Decode z ~ p(z), without pixel noise, as is usual; ``(n, C, H, W)`` in [0, 1]; ``c``: labels ``(n,)``."""
        self.require_labels(n, c)
        return self.decode(self.sample_prior(n), c)

    @torch.no_grad()
    def interpolate(self, n: int, steps: int, c: Tensor | None = None) -> Tensor:
        """Images along ``n`` arcs between two draws of z, each with its label if any, ``(n * steps, C, H, W)``."""
        c = None if c is None else c.repeat_interleave(steps)
        return self.decode(spherical_interpolation(self.sample_prior(2 * n).unflatten(0, (2, n)), steps), c)

    def sample_prior(self, n: int) -> Tensor:
        """Draws z ~ p(z), ``(n, latent)``."""
        return self.noise(n, self.latent)

    # -- Lightning ---------------------------------------------------------------------------------

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_start(batch, batch_idx)
        self.waits = self.global_step < self.kl_warmup

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, c = batch[0], self.hide_labels(batch[1])
        terms = {name: value.mean() for name, value in self.objective(x, c).items()}
        self.log_terms(terms, len(batch[0]))
        return terms["loss"]

    def evaluate(self, x: Tensor, c: Tensor, stage: str) -> dict[str, Tensor]:
        """The ELBO and its parts, from one draw of z; in test also the importance-weighted bounds."""
        terms = self.bound(x, c)  # also where a subclass trains on another objective
        values = {name: terms[name] for name in ("elbo", "reconstruction", "kl")}
        if stage == "val":
            return {"loss": -terms["elbo"], "nll": -terms["elbo"], **values}
        log_w = self.chunked_log_weights(x, self.test_k[-1], c)
        self.codes.update(self.encode(x, c))
        bounds = {f"iwae_{k}": log_mean_exp(log_w[:k], 0) for k in self.test_k}
        return values | bounds | {"nll": -bounds[f"iwae_{self.test_k[-1]}"]}

    def summarize(self, stage: str, stats: dict[str, Stats]) -> dict[str, Tensor]:
        if stage == "val":
            return {}
        # a dimension is active if its posterior mean varies over the data (Burda et al., 2016, Section 5)
        active = (self.codes.compute()[1] > 0.01).sum()
        self.codes.reset()
        return {"active_units": active}

    def describe_evaluation(self) -> str:
        return (
            "elbo, kl, reconstruction: one draw of z; iwae_k: importance-weighted bound with k draws; "
            f"nll: upper bound from k = {self.test_k[-1]}; samples are means of p(x|z), without pixel noise"
        )

    def default_optimizers(self) -> list[Optimizer]:
        return [torch.optim.Adam(self.parameters(), self.lr, fused=self.fused)]
