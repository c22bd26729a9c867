"""The recurrences of a chain on a chunk of nodes of each lane, from the gather of numbers to the scatter of results.

Lanes are rows of a batch of chains, of which a chunk is the whole (`step`), or parts of one long chain (`long_chain`).
Arrays are 1-D, and an empty one is an argument that is zero, or a result that is not wanted. Where a chunk stands is
said by a tuple `where`:

    at, stride      lane i has nodes at + i · stride … of loc, ε, z and the like
    at_L, stride_L  and entries at_L + i · stride_L … of L
    count           lanes from there on repeat the last of these
    size, entries   nodes of each lane, and entries of L: one less than twice as many at the end of a chain
    ahead           nodes from here to the chunk that is likely to come next
"""

from __future__ import annotations

from sparseggm.kernels import INNER, njit
from sparseggm.kernels.chain.recurrences import backward, forward, solve_backward, solve_forward
from sparseggm.kernels.lanes.blocks import bad_lanes, gather_runs, new_block, scatter_runs
from sparseggm.kernels.lanes.sums import kl_terms, new_scratch
from sparseggm.kernels.lanes.vector import full_like, load, store


@njit(**INNER)
def gather_factor(L, where, block):
    """L on a chunk, a coupling of zero after the end of the chain."""
    _, _, at, stride, count, size, entries, _ = where
    gather_runs(L, at, stride, count, block, entries)
    for p in range(entries, 2 * size):
        store(block, p, full_like(block, 0.0))


# ---------------------------------------------------------------------- backward


@njit(**INNER)
def backward_blocks(L, nodes):
    """Memory for some nodes: L, y, v, loc, and what `kl_terms` needs."""
    memory = new_block(5 * nodes, L)
    y, v = memory[2 * nodes : 3 * nodes], memory[3 * nodes : 4 * nodes]
    y[:] = 0.0
    return memory[: 2 * nodes], y, v, memory[4 * nodes :], new_scratch(L)


@njit(**INNER)
def backward_chunk(task, L, where, blocks, y_j, v_j, sums):
    """z = loc + L⁻ᵀ ε and v = diag Σ of task[2:] = ε, loc, z, v, from y and v of the node after the chunk.

    Task[0]: pivots must be positive, and v is computed. Task[1] is the pattern's indptr. Sums are those of `kl_terms`,
    if there is a loc. Returns y and v of the first node, and a status: nonzero if a value may be wrong.
    """
    positive, indptr, eps, loc, z, v, past_caches = task
    L_chunk, y_chunk, v_chunk, mean, scratch = blocks
    at, stride, at_L, stride_L, count, size, _, ahead = where
    coming = (L, at_L + 2 * ahead, stride_L), (eps, at + ahead, stride)
    gather_factor(L, where, L_chunk)
    if eps.shape[0]:
        gather_runs(eps, at, stride, count, y_chunk, size)
    if positive:
        y_j, v_j, bad = backward(L_chunk, y_chunk, v_chunk, size, y_j, v_j, coming)
    else:
        bad = bad_lanes(L_chunk, 0, 2 * size)
        y_j = solve_backward(L_chunk, y_chunk, size, y_j, coming)
    if loc.shape[0]:
        gather_runs(loc, at, stride, count, mean, size)
        kl_terms(indptr, L_chunk, mean, y_chunk, v_chunk, size, scratch, sums, (loc, at + ahead, stride))
        bad += bad_lanes(y_chunk, 0, size)
    if z.shape[0]:
        scatter_runs(y_chunk, size, z, at, stride, count, past_caches and stride > 0)
    if v.shape[0]:
        scatter_runs(v_chunk, size, v, at, stride, count, False)
    return y_j, v_j, bad


# ---------------------------------------------------------------------- forward


@njit(**INNER)
def forward_blocks(L, nodes):
    """Memory for some nodes: L, y, v and ε̄; y and v have a row for the node after them."""
    memory = new_block(5 * nodes + 2, L)
    y, v = memory[2 * nodes : 3 * nodes + 1], memory[3 * nodes + 1 : 4 * nodes + 2]
    return memory[: 2 * nodes], y, v, memory[4 * nodes + 2 :]


@njit(**INNER)
def forward_chunk(task, L, where, blocks, carried, g):
    """ε̄ = L⁻¹ z̄, and L̄ if it is wanted, of task = ε, z̄, k̄, L̄, ε̄; y and v of the node after the chunk are in the blocks.

    y and v of the chunk are computed again. Returns what enters the next chunk, see `chain.forward`, and a status:
    nonzero if a value may be wrong.
    """
    eps, z_bar, k_bar, L_bar, eps_bar, past_caches = task
    L_chunk, y, v, e = blocks
    at, stride, at_L, stride_L, count, size, entries, ahead = where
    coming = (L, at_L + 2 * ahead, stride_L), (z_bar, at + ahead, stride)
    gather_factor(L, where, L_chunk)
    gather_runs(z_bar, at, stride, count, e, size)
    if L_bar.shape[0]:
        gather_runs(eps, at, stride, count, y, size)
        _, _, bad = backward(L_chunk, y, v, size, load(y, size), load(v, size), (coming[0], (eps, at + ahead, stride)))
        carried, g, worse = forward(L_chunk, y, v, e, load(k_bar, 0), size, carried, g, coming[1])
        bad += worse
        scatter_runs(L_chunk, entries, L_bar, at_L, stride_L, count, past_caches and stride > 0)
    else:
        bad = bad_lanes(L_chunk, 0, entries)
        carried = solve_forward(L_chunk, e, size, carried, coming)
    if eps_bar.shape[0]:
        scatter_runs(e, size, eps_bar, at, stride, count, False)
    return carried, g, bad
