"""Parts of one long chain: the values that they pass to each other, and how far a guess must look. See `strips`."""

import numpy as np

from sparseggm.kernels import INNER, njit
from sparseggm.kernels.chain.chunks import Place
from sparseggm.kernels.lanes.tiles import streamed
from sparseggm.kernels.lanes.vector import full_like, lanes_of, load, not_finite, not_positive, store

CHUNK = 256
"""Nodes of each part that are in cache at a time."""

WARM_UP = 64
"""Nodes by which a guess looks further outward at a time."""


@njit(**INNER)
def part_length(L, carry):
    """Number of nodes of a part: whole lines of memory, so that results can be stored past the caches."""
    lanes = lanes_of(L)
    return ((L.shape[0] + 1) // 2 - 1) // (carry.shape[0] * lanes * lanes) * lanes


@njit(**INNER)
def most_nodes(L, carry):
    """Largest number of nodes processed at once: a chunk, or all nodes left over after the last part if more."""
    return max(CHUNK, left_over(L, carry).size)


@njit(**INNER)
def chunk_at(L, at, stride, size, ahead):
    """The place of `size` nodes of each part, from node `at` on in the first."""
    entries = min(2 * size, L.shape[0] - 2 * at)
    return Place(at, stride, 2 * at, 2 * stride, lanes_of(L), size, entries, ahead)


@njit(**INNER)
def left_over(L, carry):
    """The place of the nodes left over after the last part, the same in every lane."""
    start = carry.shape[0] * lanes_of(L) * part_length(L, carry)
    return chunk_at(L, start, 0, (L.shape[0] + 1) // 2 - start, 0)


@njit(**INNER)
def save_state(states, c, first, second):
    store(states, 2 * c, first)
    store(states, 2 * c + 1, second)


@njit(**INNER)
def load_state(states, c, lane, kept):
    """Copy the state that one part (one lane of a strip) saved at chunk c into all lanes of `kept`."""
    rows = kept.shape[0]
    for i in range(rows):
        kept[i] = states[rows * c + i, lane]


@njit(**INNER)
def differ(states, c, lane, kept):
    """Whether the state that a part began with differs by more than 2u, relatively, from its neighbour's in `kept`."""
    tolerance, rows, near = np.finfo(kept.dtype).eps, kept.shape[0], True
    for i in range(rows):
        near &= abs(states[rows * c + i, lane] - kept[i, 0]) <= tolerance * abs(kept[i, 0])
    return not near


@njit(**INNER)
def swap_state(states, c, lane, kept):
    """Overwrite the state that a part saved before by `kept`, its present one; returns whether they were equal."""
    rows, equal = kept.shape[0], True
    for i in range(rows):
        equal &= states[rows * c + i, lane] == kept[i, 0]
        states[rows * c + i, lane] = kept[i, 0]
    return equal


@njit(**INNER)
def bad_chain_pivots(positive, L):
    """The number of pivots that are infinite or NaN; if `positive`, also of those that are not positive."""
    bad = 0
    for j in range(0, L.shape[0], 2):
        bad += not_positive(load(L, j)) if positive else not_finite(load(L, j))
    return bad


@njit(**INNER)
def reach_of(L, seam, stride, outward, L_chunk):
    """Number of nodes after a seam, or before it, with Π |b_j / a_j| < u / 2 in every lane; at most those of a part."""
    influence, reach = full_like(L_chunk, 1.0), 0
    negligible = full_like(L_chunk, (np.finfo(L.dtype).eps / 4) ** 2)
    while reach < stride:
        size = min(WARM_UP, stride - reach)
        gather_nodes(L, seam + reach if outward else seam - reach - size, stride, L_chunk[: 2 * size], 0)
        for j in range(size):
            ratio = load(L_chunk, 2 * j + 1) / load(L_chunk, 2 * j)
            influence = influence * (ratio * ratio)
        reach += size
        if not_positive(negligible - influence) == 0:
            break
    return reach


@njit(**INNER)
def gather_nodes(L, first, stride, block, ahead):
    """Gather diagonals and couplings of nodes first + lane · stride + i; a node outside the chain is 1 and uncoupled.

    Returns the block, whose loads prefetch the nodes `ahead` of these.
    """
    for lane in range(block.shape[1]):
        for i in range(block.shape[0] // 2):
            p = 2 * (first + lane * stride + i)
            block[2 * i, lane] = L[p] if 0 <= p < L.shape[0] else 1.0
            block[2 * i + 1, lane] = L[p + 1] if 0 <= p < L.shape[0] - 1 else 0.0
    return streamed(block, L, 2 * (first + ahead), 2 * stride)


@njit(**INNER)
def gather_entries(x, first, stride, block, ahead):
    """Gather x[first + lane · stride + i], 0 outside the chain; nothing if x is empty. Otherwise as `gather_nodes`."""
    for lane in range(block.shape[1] if x.shape[0] else 0):
        for i in range(block.shape[0]):
            j = first + lane * stride + i
            block[i, lane] = x[j] if 0 <= j < x.shape[0] else 0.0
    return streamed(block, x, first + ahead, stride)
