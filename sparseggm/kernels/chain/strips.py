"""One long chain, with its parts side by side in lanes.

A recurrence waits for its own divisions, and a single chain offers no other work meanwhile. So a long chain is cut into
parts of equal length; as many parts as a vector has lanes make a *strip*, and threads share the strips. The value that
enters a part is guessed: the recurrence starts from zero, so far outside the part that the couplings in between
multiply to less than half a unit roundoff. Afterwards each guess is compared with the value at which the neighbouring
part arrived. Where they differ by more than 2u, relatively, the part is done again, chunk by chunk, until it reproduces
a value that it had before. So the result satisfies the recurrences up to their roundings and 2u where parts meet,
whatever the numbers are; couplings that grow or hardly decay cost time, not accuracy. The number of parts depends on
the length of the chain alone.

Every recurrence has a kernel for strips `first … last`, and one that mends: it goes along the seams, does parts again,
and finishes the few nodes that are left over after the last part. A chunk that is done again, or left over, goes in
lanes too, and all lanes do the same.

The values that a part passes from chunk to chunk are kept in `carry[strip]`, two rows a chunk. Backward, chunk c writes
y and v of its first node to rows 2c and 2c + 1, and reads y and v of the node after it from the next two. Forward, it
reads the two values that enter it from rows 2c and 2c + 1, and writes those for the next chunk. Arrays are 1-D; an
empty array stands for an argument that is zero, or a result that is not wanted. NaN and infinity propagate, so that it
is enough to test the last value of a recurrence; only an infinite pivot escapes (x / ∞ = 0), and pivots are tested
separately.
"""

from __future__ import annotations

import math

import numpy as np

from sparseggm.kernels import INNER, KERNEL, njit
from sparseggm.kernels.chain.chunks import backward_blocks, backward_chunk, forward_blocks, forward_chunk
from sparseggm.kernels.chain.recurrences import backward, factorise_nodes, solve_backward, solve_forward
from sparseggm.kernels.chain.seams import (
    CHUNK,
    WARM_UP,
    bad_chain_pivots,
    chunk_at,
    differ,
    gather_entries,
    gather_nodes,
    left_over,
    load_state,
    most_nodes,
    part_length,
    reach_of,
    save_state,
    swap_state,
)
from sparseggm.kernels.lanes.blocks import (
    add_means,
    bad_lanes,
    bad_numbers,
    begins_a_line,
    gather_runs,
    new_block,
    scatter_runs,
)
from sparseggm.kernels.lanes.tiles import streamed
from sparseggm.kernels.lanes.vector import full_like, lanes_of, load, not_positive, store

# ---------------------------------------------------------------------- backward


@njit(**KERNEL)
def backward_strips(task, L, carry, sums, first, last):
    """One pass of a `BackwardTask` along strips.

    sums[strip] are the sums of v + loc² + 2 log L_jj, if wanted. Nonzero status: something may be wrong.
    """
    lanes, chunks = lanes_of(L), carry.shape[1] // 2 - 1
    part, bad = part_length(L, carry), 0
    blocks = backward_blocks(L, CHUNK)
    for strip in range(first, last):
        start = strip * lanes * part
        y_j, v_j = _guess_backward(task, L, start + part, part, blocks)
        save_state(carry[strip], chunks, y_j, v_j)
        for c in range(chunks - 1, -1, -1):
            at, size = start + c * CHUNK, min(CHUNK, part - c * CHUNK)
            where = chunk_at(L, at, part, size, -CHUNK)
            y_j, v_j, worse = backward_chunk(task, L, where, blocks, y_j, v_j, sums[strip][c * lanes :])
            save_state(carry[strip], c, y_j, v_j)
            bad += worse
    return bad


@njit(**KERNEL)
def mend_backward(suspect, task, L, carry, sums, rest):
    """Do the left-over nodes, whose sum is rest[0], then mend the seams. Nonzero status: something is wrong."""
    lanes, chunks = lanes_of(L), carry.shape[1] // 2 - 1
    part, blocks, kept = part_length(L, carry), backward_blocks(L, most_nodes(L, carry)), new_block(2, L)
    zero, sum_again = full_like(kept, 0.0), np.empty(rest.shape[0])
    y_j, v_j, bad = backward_chunk(task, L, left_over(L, carry), blocks, zero, zero, rest)
    save_state(kept, 0, y_j, v_j)
    for p in range(carry.shape[0] * lanes - 1, -1, -1):
        states, lane = carry[p // lanes], p % lanes
        again = differ(states, chunks, lane, kept)
        if again:
            swap_state(states, chunks, lane, kept)
        for c in range(chunks - 1 if again else -1, -1, -1):
            at, size = p * part + c * CHUNK, min(CHUNK, part - c * CHUNK)
            where = chunk_at(L, at, 0, size, 0)
            y_j, v_j, worse = backward_chunk(task, L, where, blocks, load(kept, 0), load(kept, 1), sum_again)
            save_state(kept, 0, y_j, v_j)
            bad += worse
            if rest.shape[0]:
                sums[p // lanes, c * lanes + lane] = sum_again[0]
            if swap_state(states, c, lane, kept):
                break
        load_state(states, 0, lane, kept)
        bad += bad_lanes(kept, 0, 2)
    if suspect:  # the failure may lie in a part that was done again since: look at the results
        bad += bad_chain_pivots(task.positive, L) + bad_numbers(task.z) + bad_numbers(task.v)
        bad += bad_numbers(task.natural)
    return bad


@njit(**INNER)
def _guess_backward(task, L, seam, stride, blocks):
    """Guess y and v at node `seam` of each lane."""
    L_chunk, y_chunk = blocks.L, blocks.y
    y_j, v_j = full_like(L_chunk, 0.0), full_like(L_chunk, 0.0)
    reach = reach_of(L, seam, stride, True, L_chunk)
    for offset in range((reach - 1) // CHUNK * CHUNK, -1, -CHUNK):
        size = min(CHUNK, reach - offset)
        next_L = gather_nodes(L, seam + offset, stride, L_chunk[: 2 * size], -CHUNK)
        next_y = gather_entries(task.eps, seam + offset, stride, y_chunk[:size], -CHUNK)
        if task.positive:
            y_j, v_j, _ = backward(next_L, next_y, blocks.v, size, y_j, v_j)
        else:
            y_j = solve_backward(next_L, next_y, size, y_j)
    return y_j, v_j


# ---------------------------------------------------------------------- forward


@njit(**KERNEL)
def forward_strips(task, L, entering, carry, first, last):
    """One pass of a `ForwardTask` along strips, loc̄ included.

    y and v are computed again from `entering`, the `carry` of `backward_strips`. Nonzero status: a value may be wrong.
    """
    lanes, chunks = lanes_of(L), carry.shape[1] // 2 - 1
    part, bad = part_length(L, carry), 0
    blocks = forward_blocks(L, CHUNK)
    for strip in range(first, last):
        start = strip * lanes * part
        carried, g = _guess_forward(task, L, start, part, blocks)
        save_state(carry[strip], 0, carried, g)
        for c in range(chunks):
            at, size = start + c * CHUNK, min(CHUNK, part - c * CHUNK)
            where = chunk_at(L, at, part, size, CHUNK)
            carried, g, worse = _forward_chunk(task, L, where, blocks, entering[strip], 2 * c + 2, carried, g)
            save_state(carry[strip], c + 1, carried, g)
            bad += worse
            for lane in range(lanes):
                bad += _add_mean(task, at + lane * part, size)
    return bad


@njit(**KERNEL)
def mend_forward(suspect, task, L, entering, carry):
    """Mend the seams, then do the left-over nodes. Nonzero status: something is wrong."""
    lanes, chunks = lanes_of(L), carry.shape[1] // 2 - 1
    part, bad = part_length(L, carry), 0
    blocks, kept, after = forward_blocks(L, most_nodes(L, carry)), new_block(2, L), new_block(2, L)
    for p in range(carry.shape[0] * lanes):
        states, lane = carry[p // lanes], p % lanes
        for c in range(chunks if p and differ(states, 0, lane, kept) else 0):
            at, size = p * part + c * CHUNK, min(CHUNK, part - c * CHUNK)
            where = chunk_at(L, at, 0, size, 0)
            load_state(entering[p // lanes], c + 1, lane, after)
            carried, g, worse = _forward_chunk(task, L, where, blocks, after, 0, load(kept, 0), load(kept, 1))
            save_state(kept, 0, carried, g)
            bad += worse
            if swap_state(states, c + 1, lane, kept):
                break
        load_state(states, chunks, lane, kept)
        bad += bad_lanes(kept, 0, 2)
    after[:] = 0.0
    where = left_over(L, carry)
    carried, g, worse = _forward_chunk(task, L, where, blocks, after, 0, load(kept, 0), load(kept, 1))
    if suspect:
        bad += bad_chain_pivots(False, L) + bad_numbers(task.L_bar) + bad_numbers(task.eps_bar)
        bad += bad_numbers(task.loc_bar)
    return bad + worse + bad_lanes(blocks.e, 0, where.size) + _add_mean(task, where.at, where.size)


@njit(**INNER)
def _forward_chunk(task, L, where, blocks, entering, row, carried, g):
    """`forward_chunk`, with y and v of the node after the chunk from `row` of `entering`."""
    if task.L_bar.shape[0]:
        store(blocks.y, where.size, load(entering, row))
        store(blocks.v, where.size, load(entering, row + 1))
    return forward_chunk(task, L, where, blocks, carried, g)


@njit(**INNER)
def _add_mean(task, at, size):
    """loc̄ of some nodes, if it is wanted."""
    if not task.loc_bar.shape[0]:
        return 0
    z_bar, loc, loc_bar = task.z_bar[at : at + size], task.loc[at : at + size], task.loc_bar[at : at + size]
    return add_means(z_bar.reshape(1, size), task.k_bar, loc.reshape(1, size), loc_bar.reshape(1, size), 0, 1)


@njit(**INNER)
def _guess_forward(task, L, seam, stride, blocks):
    """Guess the values that enter node `seam` of each lane: b ε̄ of the node before it, and g."""
    L_chunk, e_chunk = blocks.L, blocks.e
    one, start = full_like(L_chunk, 1.0), load(task.k_bar, 0)
    carried, g = full_like(L_chunk, 0.0), start
    reach = reach_of(L, seam, stride, False, L_chunk)
    for offset in range(reach, 0, -CHUNK):
        size = min(CHUNK, offset)
        next_L = gather_nodes(L, seam - offset, stride, L_chunk[: 2 * size], CHUNK)
        next_e = gather_entries(task.z_bar, seam - offset, stride, e_chunk[:size], CHUNK)
        carried = solve_forward(next_L, next_e, size, carried)
        for j in range(size if task.L_bar.shape[0] else 0):
            ratio = load(L_chunk, 2 * j + 1) * (one / load(L_chunk, 2 * j))
            g = start + (ratio * ratio) * g
    return carried, g


# ---------------------------------------------------------------------- factorisation


@njit(**KERNEL)
def factorise_strips(P, L, carry, first, last):
    """L with P = L Lᵀ; carry[strip, c] are the pivots of the first nodes of chunk c.

    Status 1: a pivot fails; 2: a pivot is small, see `recurrences.factorise_nodes`.
    """
    lanes, chunks, small_pivots = lanes_of(P), carry.shape[1] - 1, 0
    part, negligible = part_length(P, carry), math.sqrt(np.finfo(P.dtype).tiny)
    P_chunk, L_chunk = new_block(2 * CHUNK + 2, P), new_block(2 * CHUNK, P)
    small, past_caches = full_like(P_chunk, negligible), begins_a_line(L)
    for strip in range(first, last):
        start = strip * lanes * part
        d, least = _guess_pivot(P, start, part, P_chunk, L_chunk), full_like(P_chunk, 1.0)
        store(carry[strip], 0, d)
        for c in range(chunks):
            at, size = start + c * CHUNK, min(CHUNK, part - c * CHUNK)
            gather_runs(P, 2 * at, 2 * part, lanes, P_chunk, 2 * size + 1)
            next_P = streamed(P_chunk, P, 2 * (at + CHUNK), 2 * part)
            d, failed, least = factorise_nodes(next_P, L_chunk[: 2 * size], small, d, least)
            if failed >= 0:
                return 1
            scatter_runs(L_chunk, 2 * size, L, 2 * at, 2 * part, lanes, past_caches)
            store(carry[strip], c + 1, d)
        small_pivots += not_positive(least)
    return 2 if small_pivots else 0


@njit(**KERNEL)
def mend_factorise(P, L, carry):
    """Mend the seams, then do the left-over nodes. Status as `factorise_strips`."""
    lanes, chunks = lanes_of(P), carry.shape[1] - 1
    part, most = part_length(P, carry), most_nodes(P, carry)
    P_chunk, L_chunk = new_block(2 * most + 2, P), new_block(2 * most, P)
    small = full_like(P_chunk, math.sqrt(np.finfo(P.dtype).tiny))
    kept, least = new_block(1, P), full_like(P_chunk, 1.0)
    for p in range(carry.shape[0] * lanes):
        pivots, lane = carry[p // lanes], p % lanes
        again = p > 0 and differ(pivots, 0, lane, kept)
        for c in range(chunks if again else 0):
            at, size = p * part + c * CHUNK, min(CHUNK, part - c * CHUNK)
            gather_runs(P, 2 * at, 0, lanes, P_chunk, 2 * size + 1)
            next_P = streamed(P_chunk, P, 2 * (at + CHUNK), 0)
            d, failed, least = factorise_nodes(next_P, L_chunk[: 2 * size], small, load(kept, 0), least)
            if failed >= 0:
                return 1
            scatter_runs(L_chunk, 2 * size, L, 2 * at, 0, lanes, False)
            store(kept, 0, d)
            if swap_state(pivots, c + 1, lane, kept):
                break
        load_state(pivots, chunks, lane, kept)
    where = left_over(P, carry)
    start, size = where.at, where.size
    # The node that `gather_nodes` puts after the last is 1 and uncoupled: its pivot is not small.
    next_P = gather_nodes(P, start, 0, P_chunk[: 2 * size + 2], 0)
    d, failed, least = factorise_nodes(next_P, L_chunk[: 2 * size], small, load(kept, 0), least)
    scatter_runs(L_chunk, 2 * size - 1, L, 2 * start, 0, lanes, False)
    if failed >= 0:
        return 1
    return 2 if not_positive(least) else 0


@njit(**INNER)
def _guess_pivot(P, seam, stride, P_chunk, L_chunk):
    """Guess the pivot of node `seam` of each lane from nodes before it, the first of which is taken for uncoupled.

    A pivot changes the next one by (L_{j+1,j} / L_jj)² times its own change, which is known only after the
    factorisation: the guess starts four times as far away until the product of these is negligible.
    """
    negligible, small = np.finfo(P.dtype).eps / 4, full_like(P_chunk, 0.0)
    reach = WARM_UP
    while True:
        reach = min(reach, stride)
        influence, d = full_like(P_chunk, 1.0), full_like(P_chunk, 1.0)
        for offset in range(reach, 0, -CHUNK):
            size = min(CHUNK, offset)
            next_P = gather_nodes(P, seam - offset, stride, P_chunk[: 2 * size + 2], CHUNK)
            d = load(P_chunk, 0) if offset == reach else d
            d, failed, _ = factorise_nodes(next_P, L_chunk[: 2 * size], small, d, d)
            if failed >= 0:
                return d
            for j in range(size):
                ratio = load(L_chunk, 2 * j + 1) / load(L_chunk, 2 * j)
                influence = influence * (ratio * ratio)
        if reach == stride or not_positive(full_like(P_chunk, negligible) - influence) == 0:
            return d
        reach *= 4
