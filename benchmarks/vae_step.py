"""Milliseconds of one training step: our VAE and IWAE against pythae's, same network, same weights, same batches.

pythae is given our own encoder and decoder layers through its API, so that only the models differ; its decoder ends
in the sigmoid that its binary cross entropy needs. A step is forward, backward and update, without loaders, loggers
or trainers on either side. pythae's trainer builds ``torch.optim.Adam``; a second row gives it the fused kernel that
our models use. The last row is ours as `--trainer.precision bf16-mixed --compile` has it against pythae with the fused
kernel, its best: its trainer's autocast is that of CUDA, and off for this likelihood. Before the clock starts, the same
noise must give the same losses and gradients in float64.

    pip install pythae
    python benchmarks/vae_step.py [--rounds 9] [--steps 30] [--threads 1]
"""

import argparse
import copy
import statistics
import time
from unittest import mock

import torch

from lit_generative.models.iwae import IWAE
from lit_generative.models.vae import VAE

BATCH, LATENT, HIDDEN, SAMPLES, LR = 128, 20, (500, 500), 10, 1e-3
SHAPE = (1, 28, 28)


def theirs_of(ours):
    """pythae's model with a copy of our model's layers."""
    from pythae import models
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder

    class Encoder(BaseEncoder):
        def __init__(self, layers):
            super().__init__()
            self.layers = layers

        def forward(self, x):
            mu, log_var = self.layers(x).chunk(2, -1)
            return ModelOutput(embedding=mu, log_covariance=log_var)

    class Decoder(BaseDecoder):
        def __init__(self, layers):
            super().__init__()
            self.layers = layers

        def forward(self, z):
            return ModelOutput(reconstruction=self.layers(z).sigmoid())

    encoder, decoder = copy.deepcopy(Encoder(ours.encoder)), copy.deepcopy(Decoder(ours.decoder))
    options = {"input_dim": SHAPE, "latent_dim": LATENT, "reconstruction_loss": "bce"}
    if isinstance(ours, IWAE):
        return models.IWAE(models.IWAEConfig(**options, number_samples=SAMPLES), encoder, decoder)
    return models.VAE(models.VAEConfig(**options), encoder, decoder)


def require_same_model(ours, theirs, x):
    """The same noise must give the same loss (for the IWAE up to its constant weights) and the same gradients."""
    ours, theirs, x = copy.deepcopy(ours).double(), copy.deepcopy(theirs).double(), x.double()
    eps = torch.randn(SAMPLES, len(x), LATENT, dtype=x.dtype)
    if not isinstance(ours, IWAE):
        eps = eps[0]
    theirs_eps = eps.transpose(0, 1) if isinstance(ours, IWAE) else eps  # (B, k, latent) there, (k, B, latent) here
    theirs._sample_gauss = lambda mu, std: (mu + theirs_eps * std, theirs_eps)
    with mock.patch("torch.distributions.normal._standard_normal", lambda *_, **__: eps):
        terms = ours.objective(x)
    output = theirs({"data": x})
    # pythae's IWAE loss is a surrogate with the gradient of the bound; the mean log-weight is in its other two terms
    if isinstance(ours, IWAE):
        torch.testing.assert_close(-terms["elbo"].mean(), output.recon_loss + output.reg_loss)
    else:
        torch.testing.assert_close(terms["loss"].mean(), output.loss)
    terms["loss"].mean().backward()
    output.loss.backward()
    for part in ("encoder", "decoder"):
        pairs = zip(getattr(ours, part).parameters(), getattr(theirs, part).parameters(), strict=True)
        for mine, other in pairs:
            torch.testing.assert_close(mine.grad, other.grad)
    return -terms["elbo"].mean().item()


def our_step(model, fast=False):
    optimizer = torch.optim.Adam(model.parameters(), LR, fused=True)  # as `configure_optimizers` builds it
    if fast:
        vars(model)["objective"] = torch.compile(model.objective, options=model.compile_options())

    def step(x, c, i):
        with torch.autocast("cpu", torch.bfloat16, enabled=fast):
            loss = model.training_step((x, c), i)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def their_step(model, **options):
    optimizer = torch.optim.Adam(model.parameters(), LR, **options)

    def step(x, c, i):  # the body of BaseTrainer.train_step, `_optimizers_step` included
        output = model({"data": x, "labels": c}, epoch=1, dataset_size=len(x), uses_ddp=False)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        output.loss.item()

    return step


def milliseconds(step, batches):
    start = time.perf_counter()
    for i, (x, c) in enumerate(batches):
        step(x, c, i)
    return (time.perf_counter() - start) / len(batches) * 1000


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=30, help="steps of each model and round")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    try:
        import pythae  # noqa: F401
    except ImportError as error:
        print(f"skipped: this compares with pythae, which cannot be imported ({error}): pip install pythae")
        return
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)

    images = (torch.rand(arguments.steps, BATCH, *SHAPE) < 0.13).float()  # as many ones as binarised MNIST has
    batches = [(x, torch.zeros(BATCH, dtype=torch.long)) for x in images]
    print(f"{'ms per training step':48} {'pythae':>9} {'ours':>9} {'ratio':>7}", end="   ")
    print(f"{'parameters, of each':>21} {'-ELBO, same noise':>18}")
    options = {
        "image_shape": SHAPE,
        "latent": LATENT,
        "hidden": HIDDEN,
        "activation": "ReLU",
        "likelihood": "bernoulli",
    }
    for name, ours in (("VAE", VAE(**options)), (f"IWAE, k = {SAMPLES}", IWAE(**options, k=SAMPLES))):
        theirs = theirs_of(ours)
        counts = [sum(p.numel() for p in model.parameters()) for model in (theirs, ours)]
        assert counts[0] == counts[1], counts
        elbo = require_same_model(ours, theirs, images[0])
        steps = [their_step(copy.deepcopy(theirs)), their_step(theirs, fused=True)]
        steps += [our_step(copy.deepcopy(ours)), our_step(ours, fast=True)]
        for step in steps:
            milliseconds(step, batches[:10])
        rounds = [[milliseconds(step, batches) for step in steps] for _ in range(arguments.rounds)]
        medians = [statistics.median(times) for times in zip(*rounds, strict=True)]
        pairs = {"as it comes": (0, 2), "fused Adam": (1, 2), "fused Adam, ours at its best": (1, 3)}
        for row, (i, j) in pairs.items():
            ratio = statistics.median(times[i] / times[j] for times in rounds)
            facts = f"{counts[0]:>10,} {counts[1]:>10,} {elbo:18.6f}"
            print(f"{f'{name}: pythae {row}':48} {medians[i]:9.2f} {medians[j]:9.2f} {ratio:6.2f}x   {facts}")
    print(
        f"protocol: 784-{HIDDEN[0]}-{HIDDEN[1]}-{LATENT}, batches of {BATCH} binary images, float32 (best: bf16), CPU, "
        f"{arguments.threads} thread(s), torch {torch.__version__}; {arguments.rounds} rounds in turns of "
        f"{arguments.steps} steps, medians; losses and gradients equal in float64 before the first step"
    )


if __name__ == "__main__":
    main()
