import torch
from torch.testing import assert_close

from lit_generative.metrics import Moments


def test_moments_do_not_depend_on_the_batches():
    x = 90 + torch.randn(1000, 3, generator=torch.Generator().manual_seed(0)).double()
    moments = Moments(3)
    for part in x.split([1, 400, 599]):
        moments.update(part)
    mean, variance, error, count = moments.compute()
    assert_close(mean, x.mean(0))
    assert_close(variance, x.var(0))
    assert_close(error, x.std(0) / 1000**0.5)
    assert count.tolist() == [1000] * 3


def test_moments_are_float64_for_float32_values_and_not_in_checkpoints():
    moments = Moments(1)
    moments.update(torch.full((3, 1), 16777217.0))
    assert moments.compute().shape == (4, 1)  # torchmetrics would squeeze a single number
    assert moments.compute().dtype == torch.float64
    assert not moments.state_dict()
