"""Counter-based randomness: a generator is a function of its purpose.

No generator outlives one use. So a checkpoint stores no random state, a resumed run repeats an uninterrupted one, and
models of different topologies get the same digits, bits and noise.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

CPU = torch.device("cpu")


def generator(*purpose: int | str, device: torch.device = CPU) -> torch.Generator:
    """A fresh generator seeded by a hash of `purpose`, such as (seed, "noise", epoch, step)."""
    seed = hashlib.blake2b(repr(purpose).encode(), digest_size=8).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(seed, "little"))


def binarize(intensities: Tensor, rng: torch.Generator) -> Tensor:
    """Bernoulli pixels, P(1) = intensity / 255 exactly (up to float32), as float32 zeros and ones.

    Args:
        intensities: uint8, any shape.
    """
    uniform = torch.rand(intensities.shape, generator=rng, device=intensities.device)
    return torch.lt(uniform.mul_(255.0), intensities).float()
