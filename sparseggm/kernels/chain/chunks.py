"""The recurrences of a chain on a chunk of nodes of each lane, from the gather of numbers to the scatter of results.

Lanes are rows of a batch of chains, where a chunk is a whole chain (`step`), or parts of one long chain (`strips`).
Arrays are 1-D; an empty array stands for an argument that is zero, or a result that is not wanted.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from sparseggm.kernels import INNER, njit
from sparseggm.kernels.chain.recurrences import backward, forward, natural_backward, solve_backward, solve_forward
from sparseggm.kernels.lanes.blocks import bad_lanes, gather_runs, new_block, scatter_runs
from sparseggm.kernels.lanes.sums import kl_terms, new_scratch
from sparseggm.kernels.lanes.tiles import streamed
from sparseggm.kernels.lanes.vector import full_like, load, store


class Place(NamedTuple):
    """Where a chunk stands."""

    at: Any
    """The nodes of lane i begin at at + i · stride in loc, ε, z and other vectors."""
    stride: Any
    at_L: Any
    """The entries of lane i begin at at_L + i · stride_L in L."""
    stride_L: Any
    count: Any
    """Lanes in use; the others repeat the last of these."""
    size: Any
    """Nodes of each lane."""
    entries: Any
    """Entries of L in each lane: 2 · size, one less at the end of a chain."""
    ahead: Any
    """Nodes from here to the chunk that is likely to come next."""


class BackwardTask(NamedTuple):
    """z = loc + L⁻ᵀ ε, v = diag Σ; or z and the natural gradient for the gradient u by the entries of L."""

    positive: Any
    """Whether pivots must be positive, and v is computed."""
    indptr: Any
    eps: Any
    loc: Any
    z: Any
    v: Any
    past_caches: Any
    """Whether z and the natural gradient are stored past the caches."""
    u: Any
    natural: Any
    by_regression: Any
    """Whether u is by log σ_j and β_j, see `recurrences.natural_backward`."""


class ForwardTask(NamedTuple):
    """ε̄ = L⁻¹ z̄, and, if L̄ is wanted, all cotangents of a step."""

    eps: Any
    z_bar: Any
    k_bar: Any
    """A block of one row."""
    L_bar: Any
    eps_bar: Any
    past_caches: Any
    """Whether L̄ is stored past the caches."""
    loc: Any
    loc_bar: Any


@njit(**INNER)
def whole_chains(start, last, n, lanes):
    """The place of the rows of a batch from `start` on, each a whole chain."""
    nnz = 2 * n - 1
    return Place(start * n, n, start * nnz, nnz, min(last - start, lanes), n, nnz, lanes * n)


@njit(**INNER)
def gather_factor(L, where, block):
    """Gather L on a chunk, with a coupling of zero after the end of the chain. Returns the stream of the next chunk."""
    gather_runs(L, where.at_L, where.stride_L, where.count, block, where.entries)
    for p in range(where.entries, 2 * where.size):
        store(block, p, full_like(block, 0.0))
    return streamed(block, L, where.at_L + 2 * where.ahead, where.stride_L)


@njit(**INNER)
def gather_vector(x, where, block):
    """Gather x on a chunk, unless x is empty. Returns the stream of the next chunk."""
    if x.shape[0]:
        gather_runs(x, where.at, where.stride, where.count, block, where.size)
    return streamed(block, x, where.at + where.ahead, where.stride)


# ---------------------------------------------------------------------- backward


class BackwardBlocks(NamedTuple):
    """Memory for a chunk of a `BackwardTask`, and for `kl_terms`."""

    L: Any
    y: Any
    v: Any
    loc: Any
    u: Any
    scratch: Any


@njit(**INNER)
def backward_blocks(L, nodes):
    memory = new_block(7 * nodes, L)
    y, v = memory[2 * nodes : 3 * nodes], memory[3 * nodes : 4 * nodes]
    loc, u = memory[4 * nodes : 5 * nodes], memory[5 * nodes :]
    y[:] = 0.0
    return BackwardBlocks(memory[: 2 * nodes], y, v, loc, u, new_scratch(L))


@njit(**INNER)
def backward_chunk(task, L, where, blocks, y_j, v_j, sums):
    """z and v of a `BackwardTask` from y and v of the node after the chunk; if ε is empty, `blocks` already hold it.

    `sums` are those of `kl_terms`, if there is a loc. Returns y and v of the first node, and a status: nonzero if a
    value may be wrong.
    """
    size, next_L = where.size, gather_factor(L, where, blocks.L)
    next_y = gather_vector(task.eps, where, blocks.y)
    if task.natural.shape[0]:
        next_u = gather_factor(task.u, where, blocks.u)
        v_j = v_j if where.entries == 2 * size else full_like(blocks.v, 1.0)  # the last node divides 0 by that of none
        y_j, v_j, bad = natural_backward(next_L, next_y, next_u, size, y_j, v_j, task.by_regression)
    elif task.positive:
        y_j, v_j, bad = backward(next_L, next_y, blocks.v, size, y_j, v_j)
    else:
        bad = bad_lanes(blocks.L, 0, 2 * size)
        y_j = solve_backward(next_L, next_y, size, y_j)
    if task.loc.shape[0]:
        next_loc = gather_vector(task.loc, where, blocks.loc)
        kl_terms(task.indptr, blocks.L, next_loc, blocks.y, blocks.v, size, blocks.scratch, sums)
        bad += bad_lanes(blocks.y, 0, size)
    past_caches = task.past_caches and where.stride > 0
    if task.natural.shape[0]:
        scatter_runs(blocks.u, where.entries, task.natural, where.at_L, where.stride_L, where.count, past_caches)
    if task.z.shape[0]:
        scatter_runs(blocks.y, size, task.z, where.at, where.stride, where.count, past_caches)
    if task.v.shape[0]:
        scatter_runs(blocks.v, size, task.v, where.at, where.stride, where.count, False)
    return y_j, v_j, bad


# ---------------------------------------------------------------------- forward


class ForwardBlocks(NamedTuple):
    """Memory for a chunk of a `ForwardTask`; y and v have a row for the node after it."""

    L: Any
    y: Any
    v: Any
    e: Any


@njit(**INNER)
def forward_blocks(L, nodes):
    memory = new_block(5 * nodes + 2, L)
    y, v = memory[2 * nodes : 3 * nodes + 1], memory[3 * nodes + 1 : 4 * nodes + 2]
    return ForwardBlocks(memory[: 2 * nodes], y, v, memory[4 * nodes + 2 :])


@njit(**INNER)
def forward_chunk(task, L, where, blocks, carried, g):
    """ε̄ and L̄ of a `ForwardTask`; y and v of the node after the chunk are in the blocks.

    y and v of the chunk are computed again. Returns `carried` and `g` for the next chunk, see `recurrences.forward`,
    and a status: nonzero if a value may be wrong.
    """
    size, y, v = where.size, blocks.y, blocks.v
    next_L, next_e = gather_factor(L, where, blocks.L), gather_vector(task.z_bar, where, blocks.e)
    if task.L_bar.shape[0]:
        next_y = gather_vector(task.eps, where, y)
        _, _, bad = backward(next_L, next_y, v, size, load(y, size), load(v, size))
        carried, g, worse = forward(blocks.L, y, v, next_e, load(task.k_bar, 0), size, carried, g)
        bad += worse
        past_caches = task.past_caches and where.stride > 0
        scatter_runs(blocks.L, where.entries, task.L_bar, where.at_L, where.stride_L, where.count, past_caches)
    else:
        bad = bad_lanes(blocks.L, 0, where.entries)
        carried = solve_forward(next_L, next_e, size, carried)
    if task.eps_bar.shape[0]:
        scatter_runs(blocks.e, size, task.eps_bar, where.at, where.stride, where.count, False)
    return carried, g, bad
