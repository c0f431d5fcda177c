"""What the dimensions of a latent space encode: parts of the KL term, and scores for images of known factors."""

import math

import torch
from torch import Generator, Tensor
from torch.distributions import Normal
from torch.nn.functional import one_hot

from lit_generative.errors import UserError
from lit_generative.utils.precision import exact

PAIRS = 2**21  # numbers in memory at a time in `kl_decomposition`: 8 MB


def kl_decomposition(q: Normal, z: Tensor, count: int) -> dict[str, Tensor]:
    """The mean KL(q(z|x) || p(z)) in three parts, nats (Hoffman & Johnson, 2016; Chen et al., 2018, Eq. 2).

    ``mutual_information`` = KL(q(z, n) || q(z) p(n)) of z and the number n of its image; ``total_correlation`` =
    KL(q(z) || prod_j q(z_j)); ``dimension_wise_kl`` = sum_j KL(q(z_j) || p(z_j)). The aggregate q(z) of ``count``
    images is estimated from the M given as in Chen et al., Appendix C, but with the image's own posterior weighted
    1 / count and the others sharing the rest, so that the estimate of q(z) is unbiased; with M = count it is exact.
    Terms with a closed form use it, so that the three sum to the mean KL of the M images.

    The log of the estimate is biased downwards if M is small for the number of dimensions. The mutual information is at
    most log(count), up to the noise of the draws; if posteriors are narrow enough to reach it, total correlation has
    the rest of the KL, whatever the dependence of the latents.

    Args:
        q: Posteriors of M images, batch shape ``(M, latent)``.
        z: One draw of each, ``(M, latent)``.
        count: Images of the set that the M were drawn from.
    """
    m, latent = z.shape
    if not 2 <= m <= count:
        raise UserError(f"the number of posteriors must be in 2..{count} (count), got {m}")
    others = math.log((count - 1) / (m - 1) / count)
    log_joint, log_product = [], []
    for rows in torch.arange(m, device=z.device).split(max(1, PAIRS // (m * latent))):
        log_q = q.log_prob(z[rows, None])  # (rows, M, latent)
        weight = torch.full((len(rows), m, 1), others, device=z.device, dtype=z.dtype)
        weight[torch.arange(len(rows)), rows] = -math.log(count)
        log_joint.append((log_q.sum(-1, keepdim=True) + weight).logsumexp(1).squeeze(-1))
        log_product.append((log_q + weight).logsumexp(1).sum(-1))
    log_qz, log_qzj = torch.cat(log_joint).mean(), torch.cat(log_product).mean()
    cross_entropy = 0.5 * (q.loc.square() + q.scale.square() + math.log(2 * math.pi)).sum(-1).mean()
    return {
        "mutual_information": -q.entropy().sum(-1).mean() - log_qz,
        "total_correlation": log_qz - log_qzj,
        "dimension_wise_kl": log_qzj + cross_entropy,
    }


def total_correlation_bound(z: Tensor, bins: int = 8) -> Tensor:
    """A lower bound on the total correlation of q(z), from draws ``(N, latent)``, in nats: that between pairs.

    The total correlation is at least the sum of I(z_i; z_j) over the edges of any tree of dimensions, here of the
    maximum spanning tree (Chow & Liu, 1968). Mutual information is that of ``bins`` of equal counts, which is less than
    that of the numbers; its bias, estimated from as many independent draws, is subtracted. Unlike `kl_decomposition` it
    holds however narrow the posteriors are. It misses dependence that only three or more dimensions have together.
    """
    independent = torch.rand(z.shape, device=z.device)  # only ranks matter
    return heaviest_tree(pairwise_information(z, bins)) - heaviest_tree(pairwise_information(independent, bins))


def pairwise_information(z: Tensor, bins: int) -> Tensor:
    """I(z_i; z_j) of draws ``(N, d)``, each dimension in ``bins`` of equal counts, nats ``(d, d)``."""
    cells = z.argsort(0).argsort(0) * bins // len(z)
    member = one_hot(cells, bins).flatten(1).float()
    joint = exact(member.T @ member) / len(z)  # counts up to 2^24 are exact
    entropies = torch.special.entr(joint).unflatten(0, (-1, bins)).unflatten(2, (-1, bins)).sum((1, 3))  # (d, d)
    own = entropies.diagonal()
    return own[:, None] + own - entropies


def heaviest_tree(weights: Tensor) -> Tensor:
    """The sum of the edges of a maximum spanning tree (Prim, 1957) of symmetric weights ``(d, d)``."""
    total = weights.new_zeros(())
    outside, reach = torch.ones(len(weights), dtype=torch.bool), weights[0]
    outside[0] = False
    while outside.any():
        best = reach.masked_fill(~outside.to(reach.device), -math.inf).argmax()
        total, outside[best] = total + reach[best], False
        reach = torch.maximum(reach, weights[best])
    return total


def mutual_information_gap(codes: Tensor, factors: Tensor, bins: int = 20) -> float:
    """MIG (Chen et al., 2018, Eq. 6): the gap in information on a factor between its best two dimensions, averaged.

    Codes ``(N, latent)`` are put into ``bins`` of equal width (as in Locatello et al., 2019); factors ``(N, F)`` are
    int64, and those of one value are left out. In [0, 1].
    """
    low, high = codes.amin(0), codes.amax(0)
    width = (high - low).clamp(min=torch.finfo(codes.dtype).tiny)
    binned = ((codes - low) / width * bins).long().clamp(0, bins - 1)
    gaps = []
    for factor in factors.T:
        if (factor == factor[0]).all():  # it has no entropy
            continue
        values = int(factor.max()) + 1
        of_factor = _entropy(torch.bincount(factor).double())
        information = []
        for code in binned.T:
            joint = torch.bincount(code * values + factor, minlength=bins * values).view(bins, values).double()
            information.append(_entropy(joint.sum(0)) + _entropy(joint.sum(1)) - _entropy(joint.flatten()))
        best = torch.tensor([*information, 0.0]).topk(2).values  # with one dimension, the second has no information
        gaps.append(float(best[0] - best[1]) / of_factor)
    return sum(gaps) / len(gaps) if gaps else math.nan


def _entropy(counts: Tensor) -> float:
    p = counts[counts > 0] / counts.sum()
    return float(-(p * p.log()).sum())


def factor_vae_score(
    codes: Tensor, factors: Tensor, votes: int = 800, images: int = 100, active: Tensor | None = None, seed: int = 0
) -> float:
    """The metric of Kim & Mnih (2018, Section 4): whether the least varying dimension predicts which factor is fixed.

    A vote fixes one value of one factor, draws ``images`` codes of it, and chooses the dimension of the least variance
    relative to that over all codes. The score is the accuracy of a majority-vote classifier of ``votes`` such pairs on
    as many new ones, in [0, 1].

    Args:
        codes: ``(N, latent)``; the images of one factor value must be among the N.
        factors: int64 ``(N, F)``.
        active: Dimensions that may be chosen, bool ``(latent,)``; None: those that vary. Without any, the score is 0.
    """
    variance = codes.double().var(0)
    # a constant code varies by rounding
    varying = variance > 1e-10 * codes.double().square().mean(0).clamp(min=1e-30)
    usable = (varying if active is None else active & varying).nonzero().squeeze(1)
    if not len(usable):
        return 0.0
    generator = Generator().manual_seed(seed)
    scaled = codes.double()[:, usable] / variance[usable].sqrt()
    dims, count = len(usable), factors.shape[1]

    def table() -> Tensor:
        """How often each dimension was chosen for each factor, ``(dims, F)``."""
        named = torch.zeros(dims, count)
        for _ in range(votes):
            factor = int(torch.randint(count, (), generator=generator))
            value = factors[int(torch.randint(len(factors), (), generator=generator)), factor]
            (same,) = (factors[:, factor] == value).nonzero(as_tuple=True)
            chosen = same[torch.randint(len(same), (images,), generator=generator)]
            named[scaled[chosen].var(0).argmin(), factor] += 1
        return named

    majority = table().argmax(1)
    checked = table()
    return float(checked[torch.arange(dims), majority].sum() / votes)
