"""The natural gradient on a batch of chains, whose rows are lanes; one long chain: `strips`."""

from __future__ import annotations

import numpy as np

from sparseggm.kernels import KERNEL, njit
from sparseggm.kernels.chain.chunks import BackwardTask, backward_blocks, backward_chunk, whole_chains
from sparseggm.kernels.lanes.vector import full_like, lanes_of, not_finite


@njit(**KERNEL)
def natural_gradient(indptr, factor, half, gradient, by_regression, x, natural, first, last):
    """x = L⁻ᵀ half and the natural gradient by entries of L, both overwritten; x without entries is not wanted.

    Nonzero status: something is not finite, or a pivot not positive.
    """
    n, no_sums = (factor.shape[1] + 1) // 2, np.empty(0)
    L, eps, u = factor.reshape(factor.size), half.reshape(half.size), gradient.reshape(gradient.size)
    z, out = x.reshape(x.size), natural.reshape(natural.size)
    task = BackwardTask(True, indptr, eps, eps[:0], z, z[:0], False, u, out, by_regression)
    blocks, lanes, bad = backward_blocks(L, n), lanes_of(L), 0
    zero = full_like(blocks.L, 0.0)
    for start in range(first, last, lanes):
        where = whole_chains(start, last, n, lanes)
        y_j, v_j, worse = backward_chunk(task, L, where, blocks, zero, zero, no_sums)
        bad += worse + not_finite(y_j) + not_finite(v_j)  # of the last nodes, which all others reach
    return bad
