"""The bounds on log p(x), for training and for reports, in nats an image.

The generative model is a prior p(z), None for N(0, I), and a likelihood p(x | z), given as the function
z → log p(x | z) of an image; q(z | x) is a Gaussian graphical model. Samples and KL come from `sparseggm.torch`;
nothing here knows a topology.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sparseggm.torch import GaussianGraphicalModel, sample_and_kl

LogLikelihood = Callable[[Tensor], Tensor]


def elbo_terms(
    q: GaussianGraphicalModel,
    log_likelihood: LogLikelihood,
    noise: Tensor,
    kl: str = "exact",
    p: GaussianGraphicalModel | None = None,
) -> tuple[Tensor, Tensor]:
    """Reconstruction log p(x | z) and KL(q ‖ p) of one reparametrised sample; their difference is the ELBO.

    Args:
        q: posterior of the batch, (B, n).
        log_likelihood: z (B, n) → (B,); of an estimate of p(x | z) the bound is looser, and still one.
        noise: (B, n) white noise ε, z = loc + L⁻ᵀ ε.
        kl: "exact"; or the unbiased log q(z) − log p(z), "sampled" or "path": see `sample_and_kl`.
        p: the prior; None: N(0, I).
    Returns:
        (B,) and (B,), nats.
    """
    z, divergence = sample_and_kl(q, p, noise, kl)
    return log_likelihood(z), divergence


def log_importance_weights(
    q: GaussianGraphicalModel,
    log_likelihood: LogLikelihood,
    noise: Tensor,
    p: GaussianGraphicalModel | None = None,
) -> tuple[Tensor, Tensor]:
    """log p(x | z) and log w = log p(x | z) + log p(z) − log q(z) of K samples an image; E[w] = p(x).

    Args:
        log_likelihood: z (K, B, n) → (K, B).
        noise: (K, B, n).
        p: the prior; None: N(0, I).
    Returns:
        (K, B) and (K, B), nats.
    """
    z, log_ratio = sample_and_kl(q, p, noise, "sampled")
    reconstruction = log_likelihood(z)
    return reconstruction, reconstruction - log_ratio


def importance_weighted_bound(log_weights: Tensor) -> Tensor:
    """log (1/K) Σ_k w_k over the first axis, in float64: between the ELBO (K = 1, in expectation) and log p(x)."""
    return torch.logsumexp(log_weights.double(), dim=0) - math.log(log_weights.shape[0])


def importance_weighted_terms(
    q: GaussianGraphicalModel,
    log_likelihood: LogLikelihood,
    noise: Tensor,
    p: GaussianGraphicalModel | None = None,
    *,
    groups: int = 1,
    kl_weight: float = 1.0,
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
    """A loss for the bound of K samples, log (1/K) Σ_k w_k [Burda, Grosse & Salakhutdinov 2016], and its terms.

    Decoder and prior get minus the gradient of the bound. The encoder gets an unbiased estimate of it through the
    samples alone, doubly reparametrised, which does not drown in noise as K grows [Tucker et al. 2019]. With M > 1
    groups it is that of the mean of the groups' bounds, looser but with more signal [PIWAE: Rainforth et al. 2018].
    With a weight β, log w = log p(x | z) − β (log q(z) − log p(z)). The derivation is in docs/math.md, section 9.

    Args:
        q: posterior of the batch, (B, n).
        log_likelihood: z (K, B, n) → (K, B).
        noise: (K, B, n), groups one after another.
        p: the prior; None: N(0, I).
        groups: M, a divisor of K.
        kl_weight: β.
    Returns:
        Loss (B,), whose value means nothing; and, without gradients and with β = 1, (B,) nats each: the means over the
        samples of log p(x | z) and of log q(z) − log p(z), and the bound log (1/K) Σ_k w_k.
    """
    z, log_ratio = sample_and_kl(q, p, noise, "path")
    return importance_weighted_loss(log_likelihood(z), log_ratio, [z], groups=groups, kl_weight=kl_weight)


def importance_weighted_loss(
    reconstruction: Tensor,
    log_ratio: Tensor,
    samples: Sequence[Tensor],
    *,
    groups: int = 1,
    kl_weight: float | Tensor = 1.0,
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
    """`importance_weighted_terms` of samples that were drawn.

    Args:
        reconstruction: (K, B) log p(x | z).
        log_ratio: (K, B) log q(z) − log p(z), in which no gradient reaches q but through the samples.
        samples: all tensors (K, B, n) by which the encoder is reached from these two: the scale of the gradient is set
            there, so none of them may be made from another.
    """
    log_weights = reconstruction - kl_weight * log_ratio
    with torch.no_grad():
        # A normalised weight that underflows would take the gradient of its whole group along. Raised to u², it adds
        # less than rounding to the gradient of the decoder, and divides out of that of the encoder.
        share = log_weights.softmax(0).clamp(min=torch.finfo(log_weights.dtype).eps ** 2)
        in_group = log_weights.reshape(groups, -1, log_weights.shape[-1]).softmax(1).reshape(log_weights.shape)
        scale = (in_group * (1.0 - kl_weight * (1.0 - in_group)) / (groups * share)).unsqueeze(-1)
        bound = importance_weighted_bound(reconstruction - log_ratio).to(reconstruction.dtype)
        terms = reconstruction.mean(0), log_ratio.mean(0), bound
    for z in samples:
        if z.requires_grad:
            z.register_hook(lambda bar: bar * scale.to(bar.dtype))  # type: ignore[no-untyped-call]
    return -(share * log_weights).sum(0), terms
