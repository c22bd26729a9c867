"""Counter-based randomness: a generator is a function of its purpose.

No generator outlives one use. So a checkpoint stores no random state, a resumed run repeats an uninterrupted one, and
models of different topologies get the same images, bits and noise.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


def generator(*purpose: int | str) -> torch.Generator:
    """A fresh generator seeded by a hash of `purpose`, such as (seed, "noise", epoch, step)."""
    seed = hashlib.blake2b(repr(purpose).encode(), digest_size=8).digest()
    return torch.Generator("cpu").manual_seed(int.from_bytes(seed, "little"))


def binarize(intensities: Tensor, rng: torch.Generator) -> Tensor:
    """Bernoulli pixels, P(1) = intensity / 255 exactly (up to float32), as float32 zeros and ones.

    Args:
        intensities: uint8, any shape.
    """
    uniform = torch.rand(intensities.shape, generator=rng, device=intensities.device)
    return torch.lt(uniform.mul_(255.0), intensities).float()


def dequantized(images: Tensor, rng: torch.Generator, alpha: float, dtype: torch.dtype = torch.float32) -> Tensor:
    """Numbers in (0, 1) in the place of grey levels k: α + (1 − 2α) (k + u) / 256, u uniform in [0, 1).

    Args:
        images: uint8, any shape.
        alpha: in (0, ½); it keeps logits below log (1 − α)/α.
    """
    uniform = torch.rand(images.shape, generator=rng, device=images.device, dtype=dtype)
    return uniform.add_(images).mul_((1.0 - 2.0 * alpha) / 256.0).add_(alpha)
