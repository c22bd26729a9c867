"""Refinement of q(z | x) of each image at test time, by a few natural-gradient steps on its own bound.

An encoder answers for all images at once, and loses by it: the amortisation gap [Cremer, Li & Duvenaud 2018]. The steps
start where the encoder ends [Kim et al. 2018]. The model is left as it is, and refined bounds are bounds.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sparseggm.kernels.sparse.density import LOG_2PI
from sparseggm.torch import refine
from sparseggm.torch.refinement import RATE, SAMPLES
from sparseggm.vae.model import VAE, ImageModel, Inference, OneLayer
from sparseggm.vae.randomness import generator

SETTINGS = {"samples": SAMPLES, "rate": RATE}


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

    return OneLayer(refine(q, log_joint, steps, noise=noise).gaussian, p)


def log_standard_normal(z: Tensor) -> Tensor:
    """log N(z; 0, I)."""
    return -0.5 * (z.square().sum(-1) + z.shape[-1] * LOG_2PI)
