"""The bounds on log p(x), for training and for reports, in nats an image.

The generative model is p(z) = N(0, I), p(x | z) = Bernoulli(sigmoid(decoder(z))); q(z | x) is a Gaussian graphical
model. Samples and KL come from `sparseggm.torch`; nothing here knows a topology.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from sparseggm.torch import GaussianGraphicalModel, sample_and_kl


def bernoulli_log_likelihood(logits: Tensor, x: Tensor) -> Tensor:
    """log p(x | z) = −Σ_i softplus((1 − 2 x_i) a_i) over the last axis; `x` in {0, 1} broadcasts against the logits a.

    It equals Σ x a − softplus(a), but its gradient takes half the passes.
    """
    return -F.softplus(torch.rsub(x, 1.0, alpha=2.0) * logits).sum(-1)


def elbo_terms(
    q: GaussianGraphicalModel,
    decoder: Callable[[Tensor], Tensor],
    x: Tensor,
    noise: Tensor,
    kl: str = "exact",
) -> tuple[Tensor, Tensor]:
    """Reconstruction log p(x | z) and KL(q ‖ N(0, I)) of one reparametrised sample; their difference is the ELBO.

    Args:
        q: posterior of the batch, (B, n).
        x: (B, pixels), zeros and ones.
        noise: (B, n) white noise ε, z = loc + L⁻ᵀ ε.
        kl: "exact", or "sampled" for the unbiased log q(z) − log p(z).
    Returns:
        (B,) and (B,), nats.
    """
    z, divergence = sample_and_kl(q, noise=noise, kl=kl)
    return bernoulli_log_likelihood(decoder(z), x), divergence


def log_importance_weights(
    q: GaussianGraphicalModel, decoder: Callable[[Tensor], Tensor], x: Tensor, noise: Tensor
) -> tuple[Tensor, Tensor]:
    """log p(x | z) and log w = log p(x | z) + log p(z) − log q(z) of K samples an image; E[w] = p(x).

    Args:
        noise: (K, B, n).
    Returns:
        (K, B) and (K, B), nats.
    """
    z, log_ratio = sample_and_kl(q, noise=noise, kl="sampled")
    log_likelihood = bernoulli_log_likelihood(decoder(z), x)
    return log_likelihood, log_likelihood - log_ratio


def importance_weighted_bound(log_weights: Tensor) -> Tensor:
    """log (1/K) Σ_k w_k over the first axis, in float64: between the ELBO (K = 1, in expectation) and log p(x)."""
    return torch.logsumexp(log_weights.double(), dim=0) - math.log(log_weights.shape[0])
