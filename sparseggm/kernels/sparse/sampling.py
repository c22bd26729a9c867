"""Many samples of each of several Gaussians with their log-densities, in one pass over the noise.

Row r of the noise belongs to Gaussian r mod m. So blocks of `lanes` successive rows belong to the same Gaussians again
after m / gcd(m, lanes) blocks, the number of *phases*. The factors of a phase are gathered once and kept in cache,
while noise and samples are walked in the order of memory; phases whose factors do not fit wait for a further walk.
Conventions are those of `products`, but vectors are in the caller's numbering of nodes.
"""

from __future__ import annotations

import math

import numpy as np

from sparseggm.kernels import INNER, KERNEL, njit
from sparseggm.kernels.lanes.blocks import bad_lanes, gather_rows, gather_runs, is_in_lines, new_block, scatter_runs
from sparseggm.kernels.lanes.tiles import block_of, streamed
from sparseggm.kernels.lanes.vector import as_float64, full_like, lanes_of, load, not_finite, store, store_run

KEPT_ROWS = 1 << 12
"""Rows that the kept blocks of factors and means may have: a quarter of a megabyte."""

AHEAD = 128
"""Noise is prefetched so many nodes ahead: a block of few nodes is done before its memory has been read."""


@njit(**KERNEL)
def sample_and_log_prob(indptr, rows, nodes, owner, factor, loc_owner, loc, at_mean, noise, z, log_prob, first, last):
    """z = loc + L⁻ᵀ ε and log q(z) = at_mean − ½ ‖ε‖², both overwritten. Nonzero status: something is not finite.

    rows[p] and nodes[j] are the caller's nodes of the row of entry p and of column j. Gaussian g has row owner[g] of
    factor, row loc_owner[g] of loc, and log q(loc) = at_mean[g, 0].
    """
    n, nnz, lanes, count, bad = nodes.shape[0], rows.shape[0], lanes_of(noise), owner.shape[0], 0
    blocks, past_caches = (last - first + lanes - 1) // lanes, is_in_lines(z)
    phases = min(blocks, count // math.gcd(count, lanes))
    kept = max(1, min(phases, KEPT_ROWS // (nnz + n)))
    L, mean, at_means = new_block(kept * nnz, z), new_block(kept * n, z), np.empty(kept * lanes)
    eps, samples = noise.reshape(noise.size), z.reshape(z.size)
    y, out, square = new_block(n, z), new_block(n, z), np.empty(kept * lanes)
    for begin in range(0, phases, kept):
        end = min(begin + kept, phases)
        for k in range(end - begin):
            chosen = (first + (begin + k) * lanes + np.arange(lanes)) % count
            gather_rows(factor, owner[chosen], L[k * nnz : (k + 1) * nnz])
            gather_rows(loc, loc_owner[chosen], mean[k * n : (k + 1) * n])
            at_means[k * lanes : (k + 1) * lanes] = at_mean[chosen, 0]
        bad += bad_lanes(L, 0, (end - begin) * nnz)
        for turn in range(first + begin * lanes, last, phases * lanes):
            stop = min(turn + (end - begin) * lanes, last)
            for k in range((stop - turn + lanes - 1) // lanes):
                start = turn + k * lanes
                rest = min(lanes, last - start)
                gather_runs(eps, start * n, n, rest, y, n)
                next_eps = streamed(y, eps, (start + max(1, AHEAD // n) * lanes) * n, n)
                total, worse = _sample(indptr, rows, nodes, L, k * nnz, mean, k * n, next_eps, out)
                store_run(square, k * lanes, total)
                scatter_runs(out, n, samples, start * n, n, rest, past_caches)
                bad += worse
            _finish(at_means, square, log_prob[turn:stop])
    return bad


@njit(**INNER)
def _sample(indptr, rows, nodes, L, first_entry, mean, first_node, eps, out):
    """out = mean + L⁻ᵀ ε, where L and the mean begin at `first_entry` and `first_node` of their blocks; overwrites ε.

    Returns ‖ε‖², and the number of tainted lanes.
    """
    y = block_of(eps)
    zero = full_like(y, 0.0)
    taint, total = zero, as_float64(zero)
    for j in range(nodes.shape[0] - 1, -1, -1):
        node, begin = nodes[j], indptr[j]
        y_j = load(eps, node)
        total = total + as_float64(y_j) * as_float64(y_j)
        for p in range(begin + 1, indptr[j + 1]):  # L_jj y_j = ε_j − Σ_{i>j} L_ij y_i
            y_j = y_j - load(L, first_entry + p) * load(y, rows[p])
        y_j = y_j / load(L, first_entry + begin)
        store(y, node, y_j)
        z_j = load(mean, first_node + node) + y_j
        store(out, node, z_j)
        taint = taint + zero * z_j
    return total, not_finite(taint)


@njit(**INNER)
def _finish(at_mean, square, log_prob):
    """log q(z) of successive rows, once a turn: the sixteen rows of one block would be too few for a vector loop."""
    for r in range(log_prob.shape[0]):
        log_prob[r] = at_mean[r] - 0.5 * square[r]
