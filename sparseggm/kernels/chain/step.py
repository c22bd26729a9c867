"""The training step for chains, which need no index arrays. All other patterns: `kernels.sparse.step`.

Arguments are addresses, see `addresses`, of arrays with one row a batch element; `like` is any number of their dtype.
"""

from __future__ import annotations

import numpy as np

from sparseggm.kernels import KERNEL, njit
from sparseggm.kernels.chain.chunks import (
    BackwardTask,
    ForwardTask,
    backward_blocks,
    backward_chunk,
    forward_blocks,
    forward_chunk,
    whole_chains,
)
from sparseggm.kernels.lanes.addresses import read_at, write_at
from sparseggm.kernels.lanes.blocks import add_means, bad_lanes, gather_runs, is_in_lines, new_block
from sparseggm.kernels.lanes.vector import full_like, lanes_of, load, store


@njit(**KERNEL)
def sample_and_kl(like, count, n, indptr, loc, factor, noise, z, kl, first, last):
    """z and kl, both overwritten. Nonzero status: something is not finite, or a pivot not positive."""
    mean, eps = read_at(loc, count * n, like), read_at(noise, count * n, like)
    L = read_at(factor, count * (2 * n - 1), like)
    samples, divergence = write_at(z, count * n, like), write_at(kl, count, like)
    blocks, lanes, bad = backward_blocks(L, n), lanes_of(L), 0
    in_lines, no_result = is_in_lines(samples.reshape(count, n)), samples[:0]
    task = BackwardTask(True, indptr, eps, mean, samples, no_result, in_lines, eps[:0], no_result, False)
    zero, sums = full_like(blocks.L, 0.0), np.empty(lanes)
    for start in range(first, last, lanes):
        where = whole_chains(start, last, n, lanes)
        _, _, worse = backward_chunk(task, L, where, blocks, zero, zero, sums)
        stop = min(start + lanes, last)
        for lane in range(stop - start):
            divergence[start + lane] = 0.5 * (sums[lane] - n)
        bad += worse + bad_lanes(divergence, start, stop)
    return bad


@njit(**KERNEL)
def sample_and_kl_vjp(like, count, n, loc, factor, noise, z_bar, kl_bar, loc_bar, factor_bar, noise_bar, first, last):
    """The cotangents of loc, factor and noise, all overwritten; no `noise_bar` if its address is 0. Status likewise."""
    mean, eps = read_at(loc, count * n, like), read_at(noise, count * n, like)
    L = read_at(factor, count * (2 * n - 1), like)
    out, bars = read_at(z_bar, count * n, like), read_at(kl_bar, count, like)
    mean_bar = write_at(loc_bar, count * n, like)
    L_bar, e_bar = write_at(factor_bar, L.shape[0], like), write_at(noise_bar, count * n if noise_bar else 0, like)
    blocks, k_bar, lanes, bad = forward_blocks(L, n), new_block(1, L), lanes_of(L), 0
    zero = full_like(k_bar, 0.0)
    task = ForwardTask(eps, out, k_bar, L_bar, e_bar, False, mean, mean_bar)
    rows = out.reshape(count, n), bars.reshape(count, 1), mean.reshape(count, n), mean_bar.reshape(count, n)
    store(blocks.y, n, zero)
    store(blocks.v, n, zero)
    for start in range(first, last, lanes):
        where = whole_chains(start, last, n, lanes)
        gather_runs(bars, start, 1, where.count, k_bar, 1)
        _, _, worse = forward_chunk(task, L, where, blocks, zero, load(k_bar, 0))
        bad += worse + add_means(*rows, start, min(start + lanes, last))
    return bad
