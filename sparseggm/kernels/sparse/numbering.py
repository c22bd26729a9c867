"""Blocks in a pattern's numbering from rows in the caller's, and back: `nodes` (n,), empty where the two agree."""

from __future__ import annotations

from sparseggm.kernels import INNER, njit
from sparseggm.kernels.lanes.blocks import gather_runs, scatter
from sparseggm.kernels.lanes.tiles import streamed
from sparseggm.kernels.lanes.vector import load, store


@njit(**INNER)
def gather_nodes(array, start, stride, stop, nodes, memory, block):
    """block[j, lane] = array[(start + lane) · stride + nodes[j]]; unused lanes repeat the row before `stop`."""
    into = memory if nodes.shape[0] else block
    gather_runs(array, start * stride, stride, stop - start, into, block.shape[0])
    for j in range(nodes.shape[0]):
        store(block, j, load(memory, nodes[j]))


@njit(**INNER)
def scatter_nodes(block, nodes, memory, matrix, start, stop):
    """matrix[start + lane, nodes[j]] = block[j, lane]; nothing where the matrix has no rows."""
    for j in range(nodes.shape[0]):
        store(memory, nodes[j], load(block, j))
    if matrix.shape[0]:
        scatter(memory if nodes.shape[0] else block, matrix, start, stop)


@njit(**INNER)
def following(block, array, start, n):
    """The block as a stream, which prefetches the rows of n numbers that follow those from row `start` on."""
    return streamed(block, array, (start + block.shape[1]) * n, n)
