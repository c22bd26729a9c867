"""Work on many samples a block at a time, so that scratch does not grow with their number.

Arrays are (..., k): batch axes that broadcast, and one axis of their own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from sparseggm.graph.pattern import FloatArray, Pattern
from sparseggm.linalg.checks import Shape

BLOCK = 1 << 20
"""Numbers in a block: 4 MB in float32."""

Index = tuple[slice, ...]


def blocks(batch_shape: Shape, size: int) -> Iterator[Index]:
    """Indexes that cut the batch axes into parts of about BLOCK numbers, `size` a batch element."""
    if not batch_shape:
        yield ()
        return
    inner = size * math.prod(batch_shape[1:])
    step = max(1, BLOCK // max(1, inner))
    for first in range(0, batch_shape[0], step):
        part = slice(first, min(first + step, batch_shape[0]))
        if inner <= BLOCK:
            yield (part,)
        else:
            yield from ((part, *rest) for rest in blocks(batch_shape[1:], size))


def aligned(array: FloatArray, block: Index, ndim: int) -> FloatArray:
    """A view of what meets the block of an array of `ndim` axes: axes that broadcast are left whole."""
    lacking = ndim - array.ndim
    picks = (slice(None) if size == 1 else pick for size, pick in zip(array.shape[:-1], block[lacking:], strict=False))
    return array[tuple(picks)]


def accumulator(like: FloatArray, batch_shape: Shape) -> FloatArray:
    """Zeros of the shape of `like`; in float64 where several batch elements will be summed into one."""
    return np.zeros(like.shape, like.dtype if like.shape[:-1] == batch_shape else np.float64)


def sum_in_float64(array: FloatArray, shape: Shape) -> FloatArray:
    """The array summed over the axes that broadcasting `shape` to the array's would add."""
    extra = array.ndim - len(shape)
    kept = tuple(axis + extra for axis, size in enumerate(shape) if size == 1 and array.shape[axis + extra] != 1)
    if not extra and not kept:
        return array
    return np.asarray(array.sum(axis=(*range(extra), *kept), dtype=np.float64)).reshape(shape)


def add_logdet_vjp(factor_bar: FloatArray, pattern: Pattern, factor: FloatArray, bar: FloatArray) -> None:
    """Add L̄ = Σ bar diag(1/L_jj), for the cotangents bar (...) of ½ log det P; Σ over elements that share a factor."""
    diagonal = pattern.diagonal
    factor_bar[..., diagonal] += sum_in_float64(bar[..., None], (*factor.shape[:-1], 1)) / factor[..., diagonal]


def to_tensor(total: FloatArray, like: Tensor) -> Tensor:
    """A sum as a tensor in the dtype of another."""
    return torch.from_numpy(total).to(like.dtype)
