"""One long chain given its precision: x = P⁻¹ b and log det P, with no memory but that of x.

P = L D Lᵀ with a unit diagonal in L takes one division a node, and no root. Parts, strips, guesses and seams are those
of `strips`. The first pass goes forward and keeps only the two numbers that enter each chunk. The second goes backward:
it computes D, L and D⁻¹ L⁻¹ b of a chunk again, and from them the solution. Reading three numbers a node twice is
cheaper than writing L and y and reading them back.

carry[strip] holds `pull` and `carried` of `eliminate`, which enter chunk c, in rows 2c and 2c + 1; found[strip, c] is
the solution at the first node of chunk c. For c = `chunks`, they belong to the node after the part.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from sparseggm.kernels import INNER, KERNEL, njit
from sparseggm.kernels.chain.chunks import gather_factor, gather_vector
from sparseggm.kernels.chain.recurrences import eliminate, substitute
from sparseggm.kernels.chain.seams import (
    CHUNK,
    WARM_UP,
    chunk_at,
    differ,
    gather_entries,
    gather_nodes,
    left_over,
    load_state,
    most_nodes,
    part_length,
    save_state,
    swap_state,
)
from sparseggm.kernels.lanes.blocks import bad_lanes, begins_a_line, new_block, scatter_runs
from sparseggm.kernels.lanes.sums import log_determinants, new_scratch
from sparseggm.kernels.lanes.vector import full_like, lanes_of, load, not_positive, store


class _Blocks(NamedTuple):
    """P and b of some nodes, which `eliminate` overwrites."""

    P: Any
    w: Any


@njit(**KERNEL)
def eliminate_strips(indptr, P, b, carry, sums, first, last):
    """Go forward along strips: fill `carry`, and sums[strip] = 2 log det P of each chunk and lane. An empty b is zero.

    Nonzero status: a pivot is small, see `recurrences.eliminate`, or not positive.
    """
    lanes, chunks = lanes_of(P), carry.shape[1] // 2 - 1
    part, bad = part_length(P, carry), 0
    blocks, scratch = _blocks(P, CHUNK), new_scratch(P)
    for strip in range(first, last):
        start = strip * lanes * part
        _, _, pull, carried = _look(P, b, start, part, False, full_like(blocks.P, 0.0), full_like(blocks.P, 0.0))
        save_state(carry[strip], 0, pull, carried)
        for c in range(chunks):
            where = chunk_at(P, start + c * CHUNK, part, min(CHUNK, part - c * CHUNK), CHUNK)
            pull, carried, worse = _eliminate_chunk(P, b, where, blocks, pull, carried)
            log_determinants(indptr, blocks.P, where.size, scratch, sums[strip][c * lanes :])
            save_state(carry[strip], c + 1, pull, carried)
            bad += worse
    return bad


@njit(**KERNEL)
def mend_elimination(indptr, P, b, carry, sums, rest):
    """Mend the seams, then do the left-over nodes, whose sum is rest[0]. Nonzero status: also a value not finite."""
    lanes, chunks = lanes_of(P), carry.shape[1] // 2 - 1
    part, bad = part_length(P, carry), 0
    blocks, scratch, kept = _blocks(P, most_nodes(P, carry)), new_scratch(P), new_block(2, P)
    for p in range(carry.shape[0] * lanes):
        states, lane = carry[p // lanes], p % lanes
        again = p > 0 and differ(states, 0, lane, kept)
        if again:
            swap_state(states, 0, lane, kept)
        for c in range(chunks if again else 0):
            where = chunk_at(P, p * part + c * CHUNK, 0, min(CHUNK, part - c * CHUNK), 0)
            pull, carried, worse = _eliminate_chunk(P, b, where, blocks, load(kept, 0), load(kept, 1))
            log_determinants(indptr, blocks.P, where.size, scratch, rest)
            sums[p // lanes, c * lanes + lane] = rest[0]
            save_state(kept, 0, pull, carried)
            bad += worse
            if swap_state(states, c + 1, lane, kept):
                break
        load_state(states, chunks, lane, kept)
        bad += bad_lanes(kept, 0, 2)
    where = left_over(P, carry)
    pull, carried, worse = _eliminate_chunk(P, b, where, blocks, load(kept, 0), load(kept, 1))
    log_determinants(indptr, blocks.P, where.size, scratch, rest)
    return bad + worse


@njit(**KERNEL)
def substitute_strips(P, b, x, carry, found, first, last):
    """Go backward along strips: x of all nodes except those left over."""
    lanes, chunks = lanes_of(P), found.shape[1] - 1
    part, blocks, past_caches = part_length(P, carry), _blocks(P, CHUNK), begins_a_line(x)
    for strip in range(first, last):
        start, entering = strip * lanes * part, carry[strip]
        window, w, _, _ = _look(
            P, b, start + part, part, True, load(entering, 2 * chunks), load(entering, 2 * chunks + 1)
        )
        x_j = substitute(window, w, w.shape[0], full_like(window, 0.0))
        store(found[strip], chunks, x_j)
        for c in range(chunks - 1, -1, -1):
            where = chunk_at(P, start + c * CHUNK, part, min(CHUNK, part - c * CHUNK), -CHUNK)
            _eliminate_chunk(P, b, where, blocks, load(entering, 2 * c), load(entering, 2 * c + 1))
            x_j = substitute(blocks.P, blocks.w, where.size, x_j)
            scatter_runs(blocks.w, where.size, x, where.at, part, lanes, past_caches)
            store(found[strip], c, x_j)
    return 0


@njit(**KERNEL)
def mend_substitution(P, b, x, carry, found):
    """Do the left-over nodes, then mend the seams. Nonzero status: something is not finite."""
    lanes, chunks, part, bad = lanes_of(P), found.shape[1] - 1, part_length(P, carry), 0
    blocks, entering, kept = _blocks(P, most_nodes(P, carry)), new_block(2, P), new_block(1, P)
    where = left_over(P, carry)
    load_state(carry[carry.shape[0] - 1], chunks, lanes - 1, entering)
    _eliminate_chunk(P, b, where, blocks, load(entering, 0), load(entering, 1))
    store(kept, 0, substitute(blocks.P, blocks.w, where.size, full_like(kept, 0.0)))
    scatter_runs(blocks.w, where.size, x, where.at, 0, 1, False)
    for p in range(carry.shape[0] * lanes - 1, -1, -1):
        states, solution, lane = carry[p // lanes], found[p // lanes], p % lanes
        again = differ(solution, chunks, lane, kept)
        for c in range(chunks - 1 if again else -1, -1, -1):
            where = chunk_at(P, p * part + c * CHUNK, 0, min(CHUNK, part - c * CHUNK), 0)
            load_state(states, c, lane, entering)
            _eliminate_chunk(P, b, where, blocks, load(entering, 0), load(entering, 1))
            store(kept, 0, substitute(blocks.P, blocks.w, where.size, load(kept, 0)))
            scatter_runs(blocks.w, where.size, x, where.at, 0, 1, False)
            if swap_state(solution, c, lane, kept):
                break
        load_state(solution, 0, lane, kept)
        bad += bad_lanes(kept, 0, 1)
    return bad


@njit(**INNER)
def _blocks(P, nodes):
    memory = new_block(3 * nodes, P)
    memory[2 * nodes :] = 0.0
    return _Blocks(memory[: 2 * nodes], memory[2 * nodes :])


@njit(**INNER)
def _eliminate_chunk(P, b, where, blocks, pull, carried):
    next_P, next_b = gather_factor(P, where, blocks.P), gather_vector(b, where, blocks.w)
    return eliminate(next_P, next_b, where.size, pull, carried)


@njit(**INNER)
def _look(P, b, seam, stride, outward, pull, carried):
    """Eliminate nodes after a seam, or before it, until those beyond count for less than half a unit roundoff.

    They count for Π |L_{j+1,j}| in every lane, which is known only after the elimination: the way is lengthened until
    that is small, at most to the nodes of a part. Returns P and b of these nodes as `eliminate` leaves them, and the
    `pull` and `carried` of the node after them.
    """
    negligible, reach = (np.finfo(P.dtype).eps / 4) ** 2, WARM_UP
    while True:
        reach = min(reach, stride)
        P_window, w = _blocks(P, reach)
        first = seam if outward else seam - reach
        gather_nodes(P, first, stride, P_window, 0)
        gather_entries(b, first, stride, w, 0)
        pull_after, carried_after, bad = eliminate(P_window, w, reach, pull, carried)
        influence = full_like(P_window, 1.0)
        for j in range(reach):
            ratio = load(P_window, 2 * j + 1)
            influence = influence * (ratio * ratio)
        if bad or reach == stride or not_positive(full_like(P_window, negligible) - influence) == 0:
            return P_window, w, pull_after, carried_after
        reach *= 4
