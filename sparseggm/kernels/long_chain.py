"""One long chain, whose parts go together in lanes.

A recurrence waits for its own divisions, and one chain has nothing else to do meanwhile. So a long chain is cut into
parts of equal length; as many as a vector has lanes make a *strip*, and strips are what threads share. The value that
enters a part is guessed, by starting from nothing so far outside that the couplings in between multiply to less than
half a unit roundoff. Afterwards each guess is compared with the value at which the neighbouring part arrived. Where
they differ by more than 2u, relatively, the part is done again, chunk by chunk, until it meets what it had before. So
the result satisfies the recurrences up to their roundings and 2u where parts meet, whatever the numbers are; couplings
that grow or hardly decay cost time, not accuracy. The number of parts depends on the length of the chain alone.

Every recurrence has a kernel for strips `first … last`, and one that mends: it goes along the seams, does parts again,
and finishes the few nodes that are left over after the last part. A chunk that is done again, or left over, goes in
lanes too: all of them do the same.

What a part passes from chunk to chunk is kept in `carry[strip]`, two rows a chunk. Backward, chunk c leaves y and v of
its first node in rows 2c and 2c + 1, and finds those of the node after it in the next two; forward, it finds what
enters it in rows 2c and 2c + 1, and leaves what enters the next. Arrays are 1-D; an empty one is an argument that is
zero, or a result that is not wanted. A recurrence that has met NaN or infinity arrives at one; an infinite pivot alone
hides, and is looked for.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from sparseggm.kernels import INNER, KERNEL
from sparseggm.kernels.blocks import bad_lanes, bad_numbers, gather_runs, new_block, scatter_runs
from sparseggm.kernels.chain import backward, factorise_nodes, forward, solve_backward, solve_forward
from sparseggm.kernels.seams import (
    WARM_UP,
    bad_chain_pivots,
    differ,
    fetch,
    gather_entries,
    gather_nodes,
    keep,
    part_length,
    reach_of,
    replace,
)
from sparseggm.kernels.step import energies
from sparseggm.kernels.vector import constant, lanes_of, load, not_positive, store

BLOCKS_DIGEST = "ba336af172cfdc4f"
CHAIN_DIGEST = "96e08ccd4ed3b355"
SEAMS_DIGEST = "86bfc2b7caa5829d"
STEP_DIGEST = "0e507065466515ad"

CHUNK = 256
"""Nodes of each part whose blocks are in cache at a time."""


# ---------------------------------------------------------------------- backward


@njit(**KERNEL)
def backward_strips(task, L, carry, sums, first, last):
    """One pass over ε, loc, z, v = task[2:]: z = loc + L⁻ᵀ ε, and v = diag Σ if pivots are to be positive, task[0].

    sums[strip] are those of v + loc² + 2 log L_jj, if wanted. Nonzero status: something may be wrong.
    """
    lanes, chunks = lanes_of(L), carry.shape[1] // 2 - 1
    part, bad = part_length(L, carry), 0
    blocks = _backward_blocks(L)
    for strip in range(first, last):
        start = strip * lanes * part
        y_j, v_j = _guess_backward(task, L, start + part, part, blocks)
        keep(carry[strip], chunks, y_j, v_j)
        for c in range(chunks - 1, -1, -1):
            at, size = start + c * CHUNK, min(CHUNK, part - c * CHUNK)
            gather_runs(L, 2 * at, 2 * part, blocks[0][: 2 * size], -2 * CHUNK)
            y_j, v_j, worse = _backward_chunk(task, blocks, at, part, size, y_j, v_j, sums[strip][c * lanes :])
            keep(carry[strip], c, y_j, v_j)
            bad += worse
    return bad


@njit(**KERNEL)
def mend_backward(suspect, task, L, carry, sums, rest):
    """The left-over nodes, whose sum is rest[0], and the seams. Nonzero status: something is wrong."""
    n, lanes, chunks = (L.shape[0] + 1) // 2, lanes_of(L), carry.shape[1] // 2 - 1
    part, blocks, kept = part_length(L, carry), _backward_blocks(L), new_block(2, L)
    zero, sum_again = constant(kept, 0.0), np.empty(rest.shape[0])
    start = carry.shape[0] * lanes * part
    gather_nodes(L, start, 0, blocks[0][: 2 * (n - start)])
    y_j, v_j, bad = _backward_chunk(task, blocks, start, 0, n - start, zero, zero, rest)
    keep(kept, 0, y_j, v_j)
    for p in range(carry.shape[0] * lanes - 1, -1, -1):
        states, lane = carry[p // lanes], p % lanes
        again = differ(states, chunks, lane, kept)
        if again:
            replace(states, chunks, lane, kept)
        for c in range(chunks - 1 if again else -1, -1, -1):
            at, size = p * part + c * CHUNK, min(CHUNK, part - c * CHUNK)
            gather_runs(L, 2 * at, 0, blocks[0][: 2 * size], 0)
            y_j, v_j, worse = _backward_chunk(task, blocks, at, 0, size, load(kept, 0), load(kept, 1), sum_again)
            keep(kept, 0, y_j, v_j)
            bad += worse
            if rest.shape[0]:
                sums[p // lanes, c * lanes + lane] = sum_again[0]
            if replace(states, c, lane, kept):
                break
        fetch(states, 0, lane, kept)
        bad += bad_lanes(kept)
    if suspect:  # in a part that was done again?
        bad += bad_chain_pivots(task[0], L) + bad_numbers(task[4]) + bad_numbers(task[5])
    return bad


@njit(**INNER)
def _backward_blocks(L):
    """Memory for a chunk: L, ε, y, v, loc, and logarithms."""
    memory = new_block(6 * CHUNK, L)
    eps, y = memory[2 * CHUNK : 3 * CHUNK], memory[3 * CHUNK : 4 * CHUNK]
    v, loc, logs = memory[4 * CHUNK : 5 * CHUNK], memory[5 * CHUNK :], np.empty(CHUNK * lanes_of(L))
    eps[:] = 0.0
    return memory[: 2 * CHUNK], eps, y, v, loc, logs


@njit(**INNER)
def _backward_chunk(task, blocks, at, stride, size, y_j, v_j, sums):
    """Nodes at + size − 1 … at of each lane, whose L is in its block: y and v of the last, and a status."""
    positive, indptr, eps, loc, z, v = task
    L_chunk, eps_chunk, y_chunk, v_chunk, mean, logs = blocks
    y_chunk, v_chunk, bad = y_chunk[:size], v_chunk[:size], bad_chain_pivots(positive, L_chunk[: 2 * size])
    if eps.shape[0]:
        gather_runs(eps, at, stride, eps_chunk[:size], -CHUNK)
    if positive:
        y_j, v_j = backward(L_chunk, eps_chunk, y_chunk, v_chunk, y_j, v_j)
    else:
        y_j = solve_backward(L_chunk, eps_chunk, y_chunk, y_j)
    if loc.shape[0]:
        gather_runs(loc, at, stride, mean[:size], -CHUNK)
        energies(indptr, L_chunk, mean, y_chunk, v_chunk, logs, sums)
        bad += bad_lanes(y_chunk)
    if z.shape[0]:
        scatter_runs(y_chunk, z, at, stride)
    if v.shape[0]:
        scatter_runs(v_chunk, v, at, stride)
    return y_j, v_j, bad


@njit(**INNER)
def _guess_backward(task, L, seam, stride, blocks):
    """y and v at node `seam` of each lane."""
    positive, eps = task[0], task[2]
    L_chunk, eps_chunk, y_chunk, v_chunk = blocks[:4]
    y_j, v_j = constant(L_chunk, 0.0), constant(L_chunk, 0.0)
    reach = reach_of(L, seam, stride, True, L_chunk)
    for offset in range((reach - 1) // CHUNK * CHUNK, -1, -CHUNK):
        size = min(CHUNK, reach - offset)
        gather_nodes(L, seam + offset, stride, L_chunk[: 2 * size])
        gather_entries(eps, seam + offset, stride, eps_chunk[:size])
        if positive:
            y_j, v_j = backward(L_chunk, eps_chunk, y_chunk[:size], v_chunk[:size], y_j, v_j)
        else:
            y_j = solve_backward(L_chunk, eps_chunk, y_chunk[:size], y_j)
    return y_j, v_j


# ---------------------------------------------------------------------- forward


@njit(**KERNEL)
def forward_strips(task, L, entering, carry, first, last):
    """One pass over ε, loc, z̄, k̄, loc̄, L̄, ε̄ = task: ε̄ = L⁻¹ z̄ and, if L̄ is wanted, the other cotangents of a step.

    y and v are computed again from `entering`, what `backward_strips` carried. Nonzero status: something may be wrong.
    """
    lanes, chunks = lanes_of(L), carry.shape[1] // 2 - 1
    part, bad = part_length(L, carry), 0
    blocks = _forward_blocks(L)
    for strip in range(first, last):
        start = strip * lanes * part
        carried, g = _guess_forward(task, L, start, part, blocks)
        keep(carry[strip], 0, carried, g)
        for c in range(chunks):
            at, size = start + c * CHUNK, min(CHUNK, part - c * CHUNK)
            gather_runs(L, 2 * at, 2 * part, blocks[0][: 2 * size], 2 * CHUNK)
            after = entering[strip][2 * c + 2 : 2 * c + 4]
            carried, g, worse = _forward_chunk(task, blocks, at, part, size, after, carried, g)
            keep(carry[strip], c + 1, carried, g)
            bad += worse
    return bad


@njit(**KERNEL)
def mend_forward(suspect, task, L, entering, carry):
    """The seams, then the left-over nodes. Nonzero status: something is wrong."""
    n, lanes, chunks = (L.shape[0] + 1) // 2, lanes_of(L), carry.shape[1] // 2 - 1
    part, bad = part_length(L, carry), 0
    blocks, kept, after = _forward_blocks(L), new_block(2, L), new_block(2, L)
    for p in range(carry.shape[0] * lanes):
        states, lane = carry[p // lanes], p % lanes
        for c in range(chunks if p and differ(states, 0, lane, kept) else 0):
            at, size = p * part + c * CHUNK, min(CHUNK, part - c * CHUNK)
            gather_runs(L, 2 * at, 0, blocks[0][: 2 * size], 0)
            fetch(entering[p // lanes], c + 1, lane, after)
            carried, g, worse = _forward_chunk(task, blocks, at, 0, size, after, load(kept, 0), load(kept, 1))
            keep(kept, 0, carried, g)
            bad += worse
            if replace(states, c + 1, lane, kept):
                break
        fetch(states, chunks, lane, kept)
        bad += bad_lanes(kept)
    start = carry.shape[0] * lanes * part
    after[:] = 0.0
    gather_nodes(L, start, 0, blocks[0][: 2 * (n - start)])
    carried, g, worse = _forward_chunk(task, blocks, start, 0, n - start, after, load(kept, 0), load(kept, 1))
    if suspect:
        bad += bad_chain_pivots(False, L) + bad_numbers(task[4]) + bad_numbers(task[5]) + bad_numbers(task[6])
    return bad + worse + bad_lanes(blocks[6][: n - start])


@njit(**INNER)
def _forward_blocks(L):
    """Memory for a chunk: L, L̄, ε, y, v, z̄, ε̄, loc; y and v have a row for the node after it."""
    memory = new_block(10 * CHUNK + 2, L)
    y, v = memory[5 * CHUNK : 6 * CHUNK + 1], memory[6 * CHUNK + 1 : 7 * CHUNK + 2]
    z_bar, eps_bar = memory[7 * CHUNK + 2 : 8 * CHUNK + 2], memory[8 * CHUNK + 2 : 9 * CHUNK + 2]
    factors = memory[: 2 * CHUNK], memory[2 * CHUNK : 4 * CHUNK]
    return factors[0], factors[1], memory[4 * CHUNK : 5 * CHUNK], y, v, z_bar, eps_bar, memory[9 * CHUNK + 2 :]


@njit(**INNER)
def _forward_chunk(task, blocks, at, stride, size, after, carried, g):
    """Nodes at … at + size − 1 of each lane, whose L is in its block: what enters the next, and a status."""
    eps, loc, z_bar, k_bar, loc_bar, L_bar, eps_bar = task
    L_chunk, L_bar_chunk, eps_chunk, y, v, z_chunk, e_chunk, mean = blocks
    gather_runs(z_bar, at, stride, z_chunk[:size], CHUNK)
    if L_bar.shape[0]:
        gather_runs(eps, at, stride, eps_chunk[:size], CHUNK)
        gather_runs(loc, at, stride, mean[:size], CHUNK)
        store(y, size, load(after, 0))
        store(v, size, load(after, 1))
        backward(L_chunk, eps_chunk, y[:size], v[:size], load(after, 0), load(after, 1))
        carried, g = forward(L_chunk, y, v, z_chunk, k_bar, e_chunk[:size], L_bar_chunk, carried, g)
        for j in range(size):
            store(mean, j, load(z_chunk, j) + k_bar * load(mean, j))
        scatter_runs(L_bar_chunk[: min(2 * size, L_bar.shape[0] - 2 * at)], L_bar, 2 * at, 2 * stride)
        scatter_runs(mean[:size], loc_bar, at, stride)
        bad = bad_lanes(L_bar_chunk[: 2 * size]) + bad_lanes(mean[:size])
    else:
        carried = solve_forward(L_chunk, z_chunk, e_chunk[:size], carried)
        bad = bad_chain_pivots(False, L_chunk[: 2 * size])
    if eps_bar.shape[0]:
        scatter_runs(e_chunk[:size], eps_bar, at, stride)
    return carried, g, bad


@njit(**INNER)
def _guess_forward(task, L, seam, stride, blocks):
    """What enters node `seam` of each lane: b ε̄ of the node before it, and g."""
    z_bar, k_bar, adjoint = task[2], task[3], task[5].shape[0] > 0
    L_chunk, z_chunk, e_chunk = blocks[0], blocks[5], blocks[6]
    one, half = constant(L_chunk, 1.0), constant(L_chunk, 0.5) * k_bar
    carried, g = constant(L_chunk, 0.0), half
    reach = reach_of(L, seam, stride, False, L_chunk)
    for offset in range(reach, 0, -CHUNK):
        size = min(CHUNK, offset)
        gather_nodes(L, seam - offset, stride, L_chunk[: 2 * size])
        gather_entries(z_bar, seam - offset, stride, z_chunk[:size])
        carried = solve_forward(L_chunk, z_chunk, e_chunk[:size], carried)
        for j in range(size if adjoint else 0):
            ratio = load(L_chunk, 2 * j + 1) * (one / load(L_chunk, 2 * j))
            g = half + (ratio * ratio) * g
    return carried, g


# ---------------------------------------------------------------------- factorisation


@njit(**KERNEL)
def factorise_strips(P, L, carry, first, last):
    """L with P = L Lᵀ; carry[strip, c] are the pivots of the first nodes of chunk c. Nonzero status: a pivot fails."""
    lanes, chunks = lanes_of(P), carry.shape[1] - 1
    part, negligible = part_length(P, carry), math.sqrt(np.finfo(P.dtype).tiny)
    P_chunk, L_chunk = new_block(2 * CHUNK + 2, P), new_block(2 * CHUNK, P)
    small = constant(P_chunk, negligible)
    for strip in range(first, last):
        start = strip * lanes * part
        d = _guess_pivot(P, start, part, P_chunk, L_chunk)
        store(carry[strip], 0, d)
        for c in range(chunks):
            at, size = start + c * CHUNK, min(CHUNK, part - c * CHUNK)
            gather_runs(P, 2 * at, 2 * part, P_chunk[: 2 * size + 1], 2 * CHUNK)
            d, failed = factorise_nodes(P_chunk, L_chunk[: 2 * size], small, d)
            if failed >= 0:
                return 1
            scatter_runs(L_chunk[: 2 * size], L, 2 * at, 2 * part)
            store(carry[strip], c + 1, d)
    return 0


@njit(**KERNEL)
def mend_factorise(P, L, carry):
    """The seams, then the left-over nodes. Nonzero status: a pivot fails."""
    n, lanes, chunks = (P.shape[0] + 1) // 2, lanes_of(P), carry.shape[1] - 1
    part, tolerance = part_length(P, carry), np.finfo(P.dtype).eps
    P_chunk, L_chunk = new_block(2 * CHUNK + 2, P), new_block(2 * CHUNK, P)
    small = constant(P_chunk, math.sqrt(np.finfo(P.dtype).tiny))
    kept = new_block(1, P)
    for p in range(carry.shape[0] * lanes):
        pivots = carry[p // lanes, :, p % lanes]
        again = p > 0 and not abs(pivots[0] - kept[0, 0]) <= tolerance * abs(kept[0, 0])
        for c in range(chunks if again else 0):
            at, size = p * part + c * CHUNK, min(CHUNK, part - c * CHUNK)
            gather_runs(P, 2 * at, 0, P_chunk[: 2 * size + 1], 0)
            d, failed = factorise_nodes(P_chunk, L_chunk[: 2 * size], small, load(kept, 0))
            if failed >= 0:
                return 1
            scatter_runs(L_chunk[: 2 * size], L, 2 * at, 0)
            store(kept, 0, d)
            if pivots[c + 1] == kept[0, 0]:
                break
            pivots[c + 1] = kept[0, 0]
        kept[:] = pivots[chunks]
    start = carry.shape[0] * lanes * part
    size = n - start
    gather_nodes(P, start, 0, P_chunk[: 2 * size + 2])
    d, failed = factorise_nodes(P_chunk, L_chunk[: 2 * size], small, load(kept, 0))
    scatter_runs(L_chunk[: 2 * size - 1], L, 2 * start, 0)
    return failed >= 0


@njit(**INNER)
def _guess_pivot(P, seam, stride, P_chunk, L_chunk):
    """The pivot of node `seam` of each lane, from nodes before it, the first of which is taken for uncoupled.

    How a pivot bears on the next, (L_{j+1,j} / L_jj)², is known only afterwards: the way is doubled until it does.
    """
    negligible, small = np.finfo(P.dtype).eps / 4, constant(P_chunk, 0.0)
    reach = WARM_UP
    while True:
        reach = min(reach, stride)
        influence, d = constant(P_chunk, 1.0), constant(P_chunk, 1.0)
        for offset in range(reach, 0, -CHUNK):
            size = min(CHUNK, offset)
            gather_nodes(P, seam - offset, stride, P_chunk[: 2 * size + 2])
            d = load(P_chunk, 0) if offset == reach else d
            d, failed = factorise_nodes(P_chunk, L_chunk[: 2 * size], small, d)
            if failed >= 0:
                return d
            for j in range(size):
                ratio = load(L_chunk, 2 * j + 1) / load(L_chunk, 2 * j)
                influence = influence * (ratio * ratio)
        if reach == stride or not_positive(constant(P_chunk, negligible) - influence) == 0:
            return d
        reach *= 4
