"""The training step of chains: see `step`, whose other patterns have index work to do.

Arguments are addresses, see `addresses`, of arrays with one row a batch element; `like` is any of their type.
"""

from __future__ import annotations

import numpy as np

from sparseggm.kernels import INNER, KERNEL, njit
from sparseggm.kernels.chain.chunks import backward_blocks, backward_chunk, forward_blocks, forward_chunk
from sparseggm.kernels.lanes.addresses import read_at, write_at
from sparseggm.kernels.lanes.blocks import add_means, bad_lanes, gather_runs, is_in_lines, new_block
from sparseggm.kernels.lanes.vector import full_like, lanes_of, load, store


@njit(**KERNEL)
def sample_and_kl(like, count, n, indptr, loc, factor, noise, z, kl, first, last):
    """z and kl, both overwritten. Nonzero status: something is not finite, or a pivot not positive."""
    mean, L, eps = (
        read_at(loc, count * n, like),
        read_at(factor, count * (2 * n - 1), like),
        read_at(noise, count * n, like),
    )
    samples, divergence = write_at(z, count * n, like), write_at(kl, count, like)
    blocks, lanes, bad = backward_blocks(L, n), lanes_of(L), 0
    task = True, indptr, eps, mean, samples, samples[:0], is_in_lines(samples.reshape(count, n))
    zero, sums = full_like(blocks[0], 0.0), np.empty(lanes)
    for start in range(first, last, lanes):
        where = _place(start, last, n, lanes)
        _, _, worse = backward_chunk(task, L, where, blocks, zero, zero, sums)
        stop = min(start + lanes, last)
        for lane in range(stop - start):
            divergence[start + lane] = 0.5 * (sums[lane] - n)
        bad += worse + bad_lanes(divergence, start, stop)
    return bad


@njit(**KERNEL)
def sample_and_kl_vjp(like, count, n, loc, factor, noise, z_bar, kl_bar, loc_bar, factor_bar, noise_bar, first, last):
    """The cotangents of loc, factor and noise, all overwritten; but no noise_bar at the address 0. Status likewise."""
    mean, L, eps = (
        read_at(loc, count * n, like),
        read_at(factor, count * (2 * n - 1), like),
        read_at(noise, count * n, like),
    )
    out, bars, mean_bar = (
        read_at(z_bar, count * n, like),
        read_at(kl_bar, count, like),
        write_at(loc_bar, count * n, like),
    )
    L_bar, e_bar = write_at(factor_bar, L.shape[0], like), write_at(noise_bar, count * n if noise_bar else 0, like)
    blocks, k_bar, lanes, bad = forward_blocks(L, n), new_block(1, L), lanes_of(L), 0
    _, y, v, _ = blocks
    zero = full_like(k_bar, 0.0)
    task = eps, out, k_bar, L_bar, e_bar, False
    rows = out.reshape(count, n), bars.reshape(count, 1), mean.reshape(count, n), mean_bar.reshape(count, n)
    store(y, n, zero)
    store(v, n, zero)
    for start in range(first, last, lanes):
        where = _place(start, last, n, lanes)
        gather_runs(bars, start, 1, where[4], k_bar, 1)
        _, _, worse = forward_chunk(task, L, where, blocks, zero, load(k_bar, 0))
        bad += worse + add_means(*rows, start, min(start + lanes, last))
    return bad


@njit(**INNER)
def _place(start, last, n, lanes):
    """`where` of `chunks`: whole chains, the rows from `start` on."""
    nnz = 2 * n - 1
    return start * n, n, start * nnz, nnz, min(last - start, lanes), n, nnz, lanes * n
