"""The topologies whose factor is known without an order to be found: chains, bands, block chains, factor-free grids."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from sparseggm.graph import plotting
from sparseggm.graph.derived import derived
from sparseggm.graph.edges import (
    canonical_edges,
    lattice_edges,
    set_sizes,
)
from sparseggm.graph.pattern import FloatArray, IntArray
from sparseggm.graph.topology import FactorTopology, Ordered, Topology, lattice_place


@dataclass(frozen=True)
class Diagonal(Topology):
    """No edges: independent nodes. Every verb is O(n)."""

    n: int

    def __post_init__(self) -> None:
        set_sizes(self, "n")

    @derived
    def edges(self) -> IntArray:
        return canonical_edges(self.n, [])

    def node_places(self) -> FloatArray:
        return plotting.rows(self.n)


@dataclass(frozen=True, init=False, repr=False)
class Chain(Ordered):
    """Node i is joined to i + 1. No fill: P and L share the pattern. Every verb is O(n).

    Args:
        n: number of nodes.
        order: `order[k]` is the node to eliminate k-th, instead of as numbered. Backwards, `range(n)[::-1]`, and
            wherever an end of what is left goes first, there is no fill either; an order from the middle has some.
    """

    n: int

    def __init__(self, n: int, *, order: Iterable[int] | None = None) -> None:
        self._take(order, n=n)

    @derived
    def edges(self) -> IntArray:
        node = np.arange(self.n)
        return canonical_edges(self.n, np.stack([node[1:], node[:-1]], axis=-1))

    def node_places(self) -> FloatArray:
        return plotting.rows(self.n, snake=True)


@dataclass(frozen=True, init=False, repr=False)
class Band(Ordered):
    """Node i is joined to the `bandwidth` = w nodes before it and after it. No fill: P and L share the pattern.

    Solves, log det and sampling are O(n w); factor, tr Σ and gradients through it O(n w²). An `order` is as that of
    `Chain`: backwards has no fill.
    """

    n: int
    bandwidth: int

    def __init__(self, n: int, bandwidth: int, *, order: Iterable[int] | None = None) -> None:
        self._take(order, n=n, bandwidth=bandwidth)

    @derived
    def edges(self) -> IntArray:
        width = min(self.bandwidth, self.n - 1)
        j = np.repeat(np.arange(self.n), width)
        i = j + np.tile(np.arange(1, width + 1), self.n)
        return canonical_edges(self.n, np.stack([i, j], axis=-1)[i < self.n])

    def node_places(self) -> FloatArray:
        if self.bandwidth >= max(2, self.n - 1):  # all joined: lines in a slanted column would hide one another
            return plotting.circle(self.n)
        return plotting.slanted(self.n, self.bandwidth)


@dataclass(frozen=True, init=False, repr=False)
class BlockChain(Ordered):
    """`blocks` groups of `size` nodes; a group is joined inside and to the next. Node = block · size + position.

    L is block-lower-bidiagonal with dense blocks: no fill, P and L share the pattern. With b = `size`: solves,
    log det and sampling are O(n b); tr Σ and gradients through it O(n b²). An `order` is as that of `Chain`: blocks
    backwards have no fill, whatever the order inside each.
    """

    blocks: int
    size: int

    def __init__(self, blocks: int, size: int, *, order: Iterable[int] | None = None) -> None:
        self._take(order, blocks=blocks, size=size)

    @property
    def n(self) -> int:  # type: ignore[override]
        return self.blocks * self.size

    @derived
    def edges(self) -> IntArray:
        j = np.repeat(np.arange(self.n), 2 * self.size)
        i = j + np.tile(np.arange(2 * self.size), self.n)
        inside = (i > j) & (i < self.n) & (i // self.size <= j // self.size + 1)
        return canonical_edges(self.n, np.stack([i[inside], j[inside]], axis=-1))

    def node_places(self) -> FloatArray:
        return plotting.lattice((self.blocks, self.size))[:, ::-1] * [-1.0, -1.0]


@dataclass(frozen=True)
class ExtendedGrid(FactorTopology):
    """A grid on L: L_ij ≠ 0 where j is the left or upper neighbour of i. Node = row · cols + col.

    P = L Lᵀ has the grid's edges and, for every node, one between its right and its lower neighbour (an
    anti-diagonal). Solves, log det and sampling are O(n); exact tr Σ is O(n · cols), by the sparse-factor recursion.
    Put the shorter side last.
    """

    rows: int
    cols: int

    def __post_init__(self) -> None:
        set_sizes(self, "rows", "cols")

    @property
    def n(self) -> int:  # type: ignore[override]
        return self.rows * self.cols

    def describe(self, node: int) -> str:
        return lattice_place(self, node, self.cols)

    def _factor_edges(self) -> IntArray:
        return lattice_edges((self.rows, self.cols))

    def node_places(self) -> FloatArray:
        return plotting.lattice((self.rows, self.cols))


@dataclass(frozen=True)
class Stencil(FactorTopology):
    """An image whose L_ij ≠ 0 where i follows j in raster order within a (2 radius + 1)² window about it.

    Node = (row · cols + col) · channels + channel: all channels of a pixel are joined, and to those of later pixels in
    its window. Radius 1 is the 3 × 3 stencil of structured-uncertainty networks, 2 the 5 × 5 one [Dorta et al. 2018]; P
    reaches twice as far. With k = channels · (2 radius² + 2 radius + 1) values a column of L at most, solves, log det
    and sampling are O(n k); exact tr Σ is O(n k · cols · radius · channels), by the sparse-factor recursion.
    """

    rows: int
    cols: int
    radius: int
    channels: int = 1

    def __post_init__(self) -> None:
        set_sizes(self, "rows", "cols", "radius", "channels")

    @property
    def n(self) -> int:  # type: ignore[override]
        return self.rows * self.cols * self.channels

    def _factor_edges(self) -> IntArray:
        node = np.arange(self.n, dtype=np.int64).reshape(self.rows, self.cols, self.channels)
        pairs = []
        for down in range(self.radius + 1):
            for right in range(-self.radius, self.radius + 1):
                if down >= self.rows or abs(right) >= self.cols:
                    continue
                earlier = node[: self.rows - down, max(0, -right) : self.cols - max(0, right)]
                later = node[down:, max(0, right) : self.cols - max(0, -right)]
                i, j = np.broadcast_arrays(later[..., :, None], earlier[..., None, :])
                pairs.append(np.stack([i[i > j], j[i > j]], axis=-1))
        return np.concatenate(pairs)

    def node_places(self) -> FloatArray:
        layers = plotting.lattice((self.channels, self.rows, self.cols))
        return layers.reshape(self.channels, -1, 2).swapaxes(0, 1).reshape(-1, 2)
