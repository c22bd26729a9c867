"""Refinement of q(z | x) of each image at test time, by a few natural-gradient steps on its own bound.

An encoder answers for all images at once, and loses by it: the amortisation gap [Cremer, Li & Duvenaud 2018]. The steps
start where the encoder ends [Kim et al. 2018]. The model is left as it is, and refined bounds are bounds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from sparseggm.torch import GaussianGraphicalModel, elbo_gradient, natural_step
from sparseggm.vae.model import VAE, ImageModel, Inference, OneLayer
from sparseggm.vae.randomness import generator

# Chosen on validation images of MNIST. Pairs ±ε make the gradient of loc better but that of L worse: 0.05 nats less.
SAMPLES = 8
RATE = 0.25
SETTINGS = {"samples": SAMPLES, "rate": RATE}

LogJoint = Callable[[Tensor], Tensor]


def refined(vae: ImageModel, x: Tensor, steps: int, purpose: tuple[int, int]) -> Inference:
    """q(z | x) of images (B, 784) after so many steps, whose noise is that of a purpose; after none the encoder's.

    Raises:
        ValueError: steps are asked for of several layers.
    """
    if not steps:
        with torch.no_grad():
            return vae.infer(x)
    if not isinstance(vae, VAE):
        raise ValueError("refined: needs one layer.")
    with torch.no_grad():
        q, p = vae.posterior(x), vae.prior()
    seed, start = purpose

    def log_joint(z: Tensor) -> Tensor:
        rng = generator(seed, "refine pixels", start)
        return vae.log_likelihood(z, x, rng) + (log_standard_normal(z) if p is None else p.log_prob(z))

    def noise(step: int) -> Tensor:
        rng = generator(seed, "refine", start, step)
        return torch.randn(SAMPLES, *q.loc.shape, generator=rng, device="cpu").to(q.loc)

    return OneLayer(refine(q, log_joint, map(noise, range(steps)), RATE), p)


def refine(
    q: GaussianGraphicalModel, log_joint: LogJoint, noise: Iterable[Tensor], rate: float = 1.0
) -> GaussianGraphicalModel:
    """Posteriors with higher bounds E_q[log p(x, z) − log q(z)], after one natural-gradient step for each noise.

    A step is kept where it raised the bound of the first quarter of the samples, at the same noise. Where it did not,
    the image stays, and halves its rate.

    Args:
        q: where to start, (B, n), on a factor-free topology.
        log_joint: z (K, B, n) → log p(x, z) (K, B), differentiable.
        noise: ε (K, B, n) of each step, K ≥ 4.
        rate: ρ of `natural_step` at first; 1 is exact on a quadratic log p(x, z), if the gradient is.
    Cost: a step takes 5/4 K values and K gradients of log p(x, z).
    """
    rates = torch.full_like(q.loc[..., 0], rate)
    for eps in noise:
        before, loc_gradient, factor_gradient = elbo_gradient(q, log_joint, eps)
        trial, _ = natural_step(q, loc_gradient, factor_gradient, rates)
        judges = len(eps) // 4
        with torch.no_grad():
            z, log_q = trial.rsample_and_log_prob(noise=eps[:judges])
            gains = log_joint(z) - log_q - before[:judges]
        is_better = gains.mean(0) > 0.0
        rates = torch.where(is_better, rates, 0.5 * rates)
        loc, factor = (
            torch.where(is_better.unsqueeze(-1), new, old)
            for new, old in ((trial.loc, q.loc), (trial.factor, q.factor))
        )
        q = GaussianGraphicalModel(loc, factor=factor, topology=q.topology, validate_args=False)
    return q


def log_standard_normal(z: Tensor) -> Tensor:
    """log N(z; 0, I)."""
    return -0.5 * (z.square().sum(-1) + z.shape[-1] * math.log(2.0 * math.pi))
