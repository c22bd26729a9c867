"""Products with the Fisher matrix by the columns of L on a chain, of arrays; blocks go through the cache once.

Packed values of a chain alternate: L_jj, L_j+1,j, L_j+1,j+1, …
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from sparseggm.graph.pattern import FloatArray
from sparseggm.linalg import memory

BLOCK = 1 << 15
"""Columns: a quarter of a megabyte in each of a few arrays."""


def factor_matmul(factor: FloatArray, v: FloatArray, variances: FloatArray) -> FloatArray:
    """Σ_SS v_S + e₁ v_jj / L_jj² for every column j, where Σ_j+1,j = −L_j+1,j Σ_j+1,j+1 / L_jj."""
    result = _empty(factor, v)
    for block, below, next_node in _blocks(result.shape[-1]):
        first, count = next_node.start - 1, _length(below)
        pivots, along = factor[..., block], v[..., block]
        own = variances[..., first : first + pivots.shape[-1]] + 1.0 / pivots**2
        result[..., block] = own * along
        across = factor[..., below] / pivots[..., :count]
        across *= -variances[..., next_node]
        result[..., block][..., :count] += across * v[..., below]
        result[..., below] = across * along[..., :count] + variances[..., next_node] * v[..., below]
    return result


def regression_matmul(factor: FloatArray, v: FloatArray, variances: FloatArray) -> FloatArray:
    """2 v for log σ_j, L_jj² Σ_RR v for β_j; (..., 2n − 1)."""
    result = _empty(factor, v)
    for block, below, next_node in _blocks(result.shape[-1]):
        np.multiply(v[..., block], 2.0, out=result[..., block])
        square = factor[..., block][..., : _length(below)] ** 2
        square *= variances[..., next_node]
        np.multiply(v[..., below], square, out=result[..., below])
    return result


def _empty(factor: FloatArray, u: FloatArray) -> FloatArray:
    return memory.empty((*np.broadcast_shapes(factor.shape[:-1], u.shape[:-1]), u.shape[-1]), u.dtype)


def _blocks(nnz: int) -> Iterator[tuple[slice, slice, slice]]:
    """Of some columns, the places of their diagonal, of the entries below it, and the nodes of these."""
    n = (nnz + 1) // 2
    for first in range(0, n, BLOCK):
        last, last_below = min(first + BLOCK, n), min(first + BLOCK, n - 1)
        yield (
            slice(2 * first, 2 * last - 1, 2),
            slice(2 * first + 1, 2 * last_below, 2),
            slice(first + 1, last_below + 1),
        )


def _length(places: slice) -> int:
    return len(range(places.start, places.stop, places.step))
