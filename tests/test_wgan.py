"""The losses of Wasserstein GANs: signs, bounds, the penalty, and the distance that the critic finds."""

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from stubs import trainer
from torch import nn
from torch.testing import assert_close
from torch.utils.data import DataLoader, TensorDataset

import lit_generative.models.wgan as wgan
from lit_generative.images import to_symmetric
from lit_generative.models.dcgan import DCGAN
from lit_generative.models.wgan import WGAN, WGANGP, distance, gradient_penalty


class Line(nn.Module):
    """Scores 2 x + 1 of images of one value x in [-1, 1]; the slope of a sum of 784 pixels is 2 / 784 in each."""

    def __init__(self):
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(2.0))

    def forward(self, x):
        return self.slope * x.mean((1, 2, 3)) + 1


def test_losses_by_hand():
    """Real images are 0.5 (0 in [-1, 1]: score 1), fakes 1 (score 3)."""
    batch, fake = (torch.full((3, 1, 28, 28), 0.5), None), torch.ones(3, 1, 28, 28)
    penalty = (2 / 28 - 1) ** 2  # |grad| = 784 pixels of 2 / 784: 2 / sqrt(784)
    for model, loss in ((WGAN(width=4, latent=4), 2.0), (WGANGP(width=4, latent=4, penalty=7.0), 2.0 + 7 * penalty)):
        model.discriminator = Line()
        losses = model.discriminator_loss(batch, fake)
        assert next(iter(losses)) == "loss_critic"
        assert_close(losses["loss_critic"].detach(), torch.tensor(loss))
        assert_close(losses["wasserstein"].detach(), torch.tensor(-2.0))
        assert_close(model.generator_loss(batch, fake)["loss_generator"].detach(), torch.tensor(-3.0))
        # what looks real scores low out of distribution
        assert_close(model.ood_scores(batch[0])["discriminator"].detach(), torch.full((3,), -1.0))


def test_optimisers_are_the_papers():
    for optimizer in WGAN(width=4).default_optimizers():
        assert isinstance(optimizer, torch.optim.RMSprop) and optimizer.defaults["lr"] == 5e-5
    for optimizer in WGANGP(width=4).default_optimizers():
        assert isinstance(optimizer, torch.optim.Adam)
        assert optimizer.defaults["lr"] == 1e-4 and optimizer.defaults["betas"] == (0.0, 0.9)


def test_clipped_weights_stay_within_the_bound(tmp_path):
    largest = []

    class Largest(Callback):
        def on_train_batch_end(self, trainer, model, *_):
            largest.append(max(float(p.detach().abs().max()) for p in model.discriminator.parameters()))

    x = torch.rand(24, 1, 28, 28)
    model = WGAN(width=4, latent=4, lr=0.1)
    run = trainer(tmp_path, callbacks=[Largest()], max_epochs=1, limit_val_batches=0, logger=False)
    run.fit(model, *2 * [DataLoader(TensorDataset(x, torch.zeros(24)), 4)])
    assert len(largest) == 6 and max(largest) <= 0.01


@pytest.mark.parametrize("half", [False, True])
def test_gradient_penalty_of_a_linear_critic(half):
    x, fake = torch.rand(5, 1, 4, 4), torch.randn(5, 1, 4, 4)
    w = torch.randn(16)

    class Slope(nn.Module):
        def __init__(self, slope):
            super().__init__()
            self.w = nn.Parameter(slope * w / w.norm())

        def forward(self, x):
            return x.flatten(1) @ self.w

    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        assert gradient_penalty(Slope(1.0), x, fake).abs() < 1e-10
        assert_close(gradient_penalty(Slope(3.0), x, fake), torch.tensor(4.0))
        critic = Slope(0.0)
        penalty = gradient_penalty(critic, x, fake)
        penalty.backward()
    assert_close(penalty, torch.tensor(1.0), atol=1e-5, rtol=0)
    assert critic.w.grad.isfinite().all()


def test_the_penalty_is_taken_between_the_images(monkeypatch):
    """Of f = |x|^2 / 2 the gradient is x_hat itself: one number eps for each image, its share of the real one."""
    x, fake = torch.rand(5, 2, 4, 4), torch.randn(5, 2, 4, 4)
    eps = torch.linspace(0, 1, 5)
    shapes = []
    monkeypatch.setattr(wgan.torch, "rand", lambda *shape, **_: shapes.append(shape) or eps.view(shape))

    class Bowl(nn.Linear):
        def forward(self, x):
            return x.flatten(1).square().sum(1) / 2

    between = eps.view(5, 1, 1, 1) * x + (1 - eps).view(5, 1, 1, 1) * fake
    assert_close(gradient_penalty(Bowl(1, 1), x, fake), (between.flatten(1).norm(dim=1) - 1).square().mean())
    assert shapes == [(5, 1, 1, 1)]


def test_the_critic_of_the_penalty_mixes_no_images():
    """A score must not depend on the rest of the batch, as it would with batch norm; also where width is a colour's."""
    for critic in (WGANGP(width=4).discriminator, WGANGP(image_shape=(3, 32, 32), width=3).discriminator):
        x = torch.rand(6, *((1, 28, 28) if critic.net[0].in_channels == 1 else (3, 32, 32)))
        assert_close(critic(x)[:2], critic(x[:2]))
    norms = [
        m for m in DCGAN(image_shape=(3, 32, 32), width=3).discriminator.modules() if isinstance(m, nn.BatchNorm2d)
    ]
    assert len(norms) == 2  # behind all strided convolutions but the first


@pytest.mark.slow
def test_the_critic_recovers_the_distance_of_two_gaussians():
    """W_1(N(0, 1), N(2, 1)) = 2."""
    critic = nn.Sequential(nn.Flatten(), nn.Linear(1, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1))
    optimizer = torch.optim.Adam(critic.parameters(), 5e-3, (0.0, 0.9))

    def draw(n):
        x = torch.randn(n, 1, 1, 1) + 2
        return x, torch.randn(n, 1, 1, 1)

    for _ in range(600):
        x, fake = draw(256)
        # the best slope is 1 + W_1 / (2 lambda): a large weight keeps it near 1
        loss = 100 * gradient_penalty(critic, x, fake) - distance(lambda x, c: critic(x), ((x + 1) / 2, None), fake)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    x, fake = draw(20_000)
    critic.requires_grad_(False)
    assert float(distance(lambda x, c: critic(x), ((x + 1) / 2, None), fake)) == pytest.approx(2, rel=0.05)


@pytest.mark.slow
def test_the_distance_found_by_a_model_grows_from_nothing(tmp_path):
    """WGANGP through the Trainer, a generator that stands still: real images are 0.8, fakes 0.2 of white."""
    found = []

    class Still(WGANGP):
        def generate(self, batch):
            return torch.full_like(batch[0], -0.6) + 0 * self.generator(torch.randn(len(batch[0]), self.latent)).mean()

    class Watch(Callback):
        def on_train_batch_end(self, trainer, model, *_):
            x, fake = torch.full((2, 1, 28, 28), 0.8), torch.full((2, 1, 28, 28), -0.6)
            with torch.no_grad():
                found.append(float(distance(model.critic, (x, None), fake)))

    model = Still(width=4, latent=4, lr=2e-3)
    data = DataLoader(TensorDataset(torch.full((640, 1, 28, 28), 0.8), torch.zeros(640)), 4)
    trainer(tmp_path, callbacks=[Watch()], max_epochs=1, limit_val_batches=0, logger=False).fit(model, data, data)
    true = float((to_symmetric(torch.tensor(0.8)) + 0.6) * 28)  # |x - y| over 784 pixels
    assert found[-1] == pytest.approx(true * (1 + true / 20), rel=0.1)  # best slope: 1 + W_1 / (2 lambda)
    assert found[0] < 0.1 * found[-1]
