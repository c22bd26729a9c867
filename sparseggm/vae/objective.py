"""The bounds on log p(x), for training and for reports, in nats an image.

The generative model is p(z) = N(0, I) and a likelihood p(x | z), given as the function z → log p(x | z) of an image;
q(z | x) is a Gaussian graphical model. Samples and KL come from `sparseggm.torch`; nothing here knows a topology.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from sparseggm.torch import GaussianGraphicalModel, sample_and_kl

LogLikelihood = Callable[[Tensor], Tensor]


def elbo_terms(
    q: GaussianGraphicalModel, log_likelihood: LogLikelihood, noise: Tensor, kl: str = "exact"
) -> tuple[Tensor, Tensor]:
    """Reconstruction log p(x | z) and KL(q ‖ N(0, I)) of one reparametrised sample; their difference is the ELBO.

    Args:
        q: posterior of the batch, (B, n).
        log_likelihood: z (B, n) → (B,); of an estimate of p(x | z) the bound is looser, and still one.
        noise: (B, n) white noise ε, z = loc + L⁻ᵀ ε.
        kl: "exact", or "sampled" for the unbiased log q(z) − log p(z).
    Returns:
        (B,) and (B,), nats.
    """
    z, divergence = sample_and_kl(q, noise=noise, kl=kl)
    return log_likelihood(z), divergence


def log_importance_weights(
    q: GaussianGraphicalModel, log_likelihood: LogLikelihood, noise: Tensor
) -> tuple[Tensor, Tensor]:
    """log p(x | z) and log w = log p(x | z) + log p(z) − log q(z) of K samples an image; E[w] = p(x).

    Args:
        log_likelihood: z (K, B, n) → (K, B).
        noise: (K, B, n).
    Returns:
        (K, B) and (K, B), nats.
    """
    z, log_ratio = sample_and_kl(q, noise=noise, kl="sampled")
    reconstruction = log_likelihood(z)
    return reconstruction, reconstruction - log_ratio


def importance_weighted_bound(log_weights: Tensor) -> Tensor:
    """log (1/K) Σ_k w_k over the first axis, in float64: between the ELBO (K = 1, in expectation) and log p(x)."""
    return torch.logsumexp(log_weights.double(), dim=0) - math.log(log_weights.shape[0])
