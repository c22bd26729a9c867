"""Topologies: which nodes of a Gaussian graphical model are joined. Immutable, hashable, numbers-free.

A topology has two facts, `n` and `edges`; all else is derived. It is also the border between two numberings:

* the caller's: `edges`, and everything indexed by node (means, samples, noise, variances);
* the order of elimination: patterns and packed values. `order[k]` is the node eliminated k-th.

Some topologies are *factor-free*: every lower factor L on `factor_pattern` gives a precision P = L Lᵀ on
`precision_pattern`, so a network may emit L. The converse fails: a P on the extended grid's precision pattern
has, in general, a Cholesky factor outside its factor pattern. See docs/architecture.md.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import scipy.sparse

from sparseggm.errors import DTypeError, PatternError, ShapeError
from sparseggm.pattern import FloatArray, IntArray, Pattern, as_pairs


class Topology(ABC):
    """The graph of a precision matrix: which P_ij may be nonzero.

    Subclasses are frozen dataclasses; equality and hash are those of their fields.
    """

    n: int
    """Number of nodes."""

    @property
    @abstractmethod
    def edges(self) -> IntArray:
        """(m, 2) pairs i > j of the graph of P in the caller's numbering, each once, sorted by j and then i."""

    @property
    def order(self) -> IntArray:
        """(n,) `order[k]` is the node eliminated k-th: x_elim = x[..., order]."""
        return frozen(np.arange(self.n, dtype=np.int64))

    @cached_property
    def inverse_order(self) -> IntArray:
        """(n,) when each node is eliminated: x = x_elim[..., inverse_order]."""
        return frozen(np.argsort(self.order))

    @cached_property
    def is_naturally_ordered(self) -> bool:
        """Whether nodes are eliminated as numbered, so that the two numberings agree."""
        return bool((self.order == np.arange(self.n)).all())

    @cached_property
    def precision_pattern(self) -> Pattern:
        """Where P may be nonzero, in elimination order."""
        return Pattern.from_edges(self.n, self.inverse_order[self.edges])

    @cached_property
    def factor_pattern(self) -> Pattern:
        """Where L may be nonzero, in elimination order."""
        return self.precision_pattern.filled()

    @cached_property
    def is_factor_free(self) -> bool:
        """Whether every L on `factor_pattern` gives a P on `precision_pattern`."""
        return self.factor_pattern.gram() is self.precision_pattern

    def __getstate__(self) -> dict[str, Any]:
        """What a pickle or a copy holds: the facts alone. Derived arrays would come back writable."""
        facts = self.__dict__.items()
        return {name: fact for name, fact in facts if not isinstance(getattr(type(self), name, None), cached_property)}

    def describe(self, node: int) -> str:
        """A node in words, for messages."""
        return f"node {node} of {self}"

    # ------------------------------------------------------------------ packed positions

    @cached_property
    def node_positions(self) -> IntArray:
        """(n,) packed position on `precision_pattern` of each node's diagonal."""
        return frozen(self.precision_pattern.diagonal[self.inverse_order].astype(np.int64))

    @cached_property
    def edge_positions(self) -> IntArray:
        """(m,) packed position on `precision_pattern` of each row of `edges`."""
        return frozen(self._positions_of_edges(self.precision_pattern))

    @cached_property
    def factor_positions(self) -> tuple[IntArray, IntArray]:
        """The same two arrays on `factor_pattern`; −1 for an edge of P where L has no entry."""
        nodes = self.factor_pattern.diagonal[self.inverse_order].astype(np.int64)
        return frozen(nodes), frozen(self._positions_of_edges(self.factor_pattern))

    def _positions_of_edges(self, pattern: Pattern) -> IntArray:
        ends = self.inverse_order[self.edges]
        return pattern.positions_of(ends.max(axis=1), ends.min(axis=1))

    # ------------------------------------------------------------------ exchange of precisions

    def pack(self, precision: Any) -> FloatArray:
        """Packed values (..., nnz) on `precision_pattern` of a precision in the caller's numbering.

        Args:
            precision: dense (..., n, n), scipy.sparse, or the pair (diagonal (..., n), couplings (..., m)) with one
                coupling for each row of `edges`.
        Raises:
            PatternError: an entry off the graph, or mirrored entries that differ.
            ShapeError: sizes that do not fit.
            DTypeError: not an array.
        """
        pair = precision if isinstance(precision, tuple) else ()
        arrays = all(isinstance(part, np.ndarray) for part in pair or (precision,))
        if (pair and len(pair) != 2) or not (arrays or scipy.sparse.issparse(precision)):
            raise DTypeError(
                f"{self}.pack: needs a NumPy array, a scipy.sparse matrix or a pair of arrays (diagonal, couplings), "
                f"got {type(precision).__name__}."
            )
        if pair:
            return self._pack_pair(*pair)
        if precision.shape[-2:] != (self.n, self.n):
            raise ShapeError(f"{self}.pack: the precision must be (..., {self.n}, {self.n}), got {precision.shape}.")
        order = self.order
        if scipy.sparse.issparse(precision):
            return self.precision_pattern.values_of(precision.tocsc()[:, order].tocsr()[order, :], symmetric=True)
        return self.precision_pattern.values_of(precision[..., order[:, None], order], symmetric=True)

    def _pack_pair(self, diagonal: FloatArray, couplings: FloatArray) -> FloatArray:
        m = len(self.edges)
        if diagonal.shape[-1:] != (self.n,) or couplings.shape != (*diagonal.shape[:-1], m):
            raise ShapeError(
                f"{self}.pack: needs a diagonal (..., {self.n}) and couplings (..., {m}), one for each row of edges, "
                f"got {diagonal.shape} and {couplings.shape}."
            )
        values = np.empty((*diagonal.shape[:-1], self.precision_pattern.nnz), np.result_type(diagonal, couplings))
        values[..., self.node_positions] = diagonal
        values[..., self.edge_positions] = couplings
        return values

    def unpack(self, values: FloatArray) -> tuple[FloatArray, FloatArray]:
        """The pair (diagonal (..., n), couplings (..., m)) of packed values: the inverse of `pack`."""
        nnz = self.precision_pattern.nnz
        if values.shape[-1:] != (nnz,):
            raise ShapeError(f"{self}.unpack: values must end in {nnz}, the nnz of P, got shape {values.shape}.")
        return values[..., self.node_positions], values[..., self.edge_positions]


@dataclass(frozen=True)
class Diagonal(Topology):
    """No edges: independent nodes. Every verb is O(n)."""

    n: int

    def __post_init__(self) -> None:
        require_positive("Diagonal", n=self.n)

    @cached_property
    def edges(self) -> IntArray:
        return canonical_edges(self.n, [])


@dataclass(frozen=True)
class Chain(Topology):
    """Node i is joined to i + 1. No fill: P and L share the pattern. Every verb is O(n)."""

    n: int

    def __post_init__(self) -> None:
        require_positive("Chain", n=self.n)

    @cached_property
    def edges(self) -> IntArray:
        node = np.arange(self.n)
        return canonical_edges(self.n, np.stack([node[1:], node[:-1]], axis=-1))


@dataclass(frozen=True)
class Band(Topology):
    """Node i is joined to the `bandwidth` = w nodes before it and after it. No fill: P and L share the pattern.

    Solves, log det and sampling are O(n w); factor, tr Σ and gradients through it O(n w²).
    """

    n: int
    bandwidth: int

    def __post_init__(self) -> None:
        require_positive("Band", n=self.n, bandwidth=self.bandwidth)

    @cached_property
    def edges(self) -> IntArray:
        width = min(self.bandwidth, self.n - 1)
        j = np.repeat(np.arange(self.n), width)
        i = j + np.tile(np.arange(1, width + 1), self.n)
        return canonical_edges(self.n, np.stack([i, j], axis=-1)[i < self.n])


@dataclass(frozen=True)
class BlockChain(Topology):
    """`blocks` groups of `size` nodes; a group is joined inside and to the next. Node = block · size + position.

    L is block-lower-bidiagonal with dense blocks: no fill, P and L share the pattern. With b = `size`: solves,
    log det and sampling are O(n b); tr Σ and gradients through it O(n b²).
    """

    blocks: int
    size: int

    def __post_init__(self) -> None:
        require_positive("BlockChain", blocks=self.blocks, size=self.size)

    @property
    def n(self) -> int:  # type: ignore[override]
        return self.blocks * self.size

    @cached_property
    def edges(self) -> IntArray:
        j = np.repeat(np.arange(self.n), 2 * self.size)
        i = j + np.tile(np.arange(2 * self.size), self.n)
        inside = (i > j) & (i < self.n) & (i // self.size <= j // self.size + 1)
        return canonical_edges(self.n, np.stack([i[inside], j[inside]], axis=-1))


class FactorTopology(Topology):
    """A topology that is given by the pattern of L: P is on its Gram pattern. Eliminated as numbered."""

    @abstractmethod
    def _factor_edges(self) -> IntArray:
        """(m, 2) pairs i > j where L_ij may be nonzero."""

    @cached_property
    def factor_pattern(self) -> Pattern:
        return Pattern.from_edges(self.n, self._factor_edges())

    @cached_property
    def precision_pattern(self) -> Pattern:
        return self.factor_pattern.gram()

    @cached_property
    def edges(self) -> IntArray:
        pattern = self.precision_pattern
        off_diagonal = pattern.rows != pattern.cols
        return canonical_edges(self.n, np.stack([pattern.rows, pattern.cols], axis=-1)[off_diagonal])


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
        require_positive("ExtendedGrid", rows=self.rows, cols=self.cols)

    @property
    def n(self) -> int:  # type: ignore[override]
        return self.rows * self.cols

    def describe(self, node: int) -> str:
        return lattice_place(self, node, self.cols)

    def _factor_edges(self) -> IntArray:
        return lattice_edges((self.rows, self.cols))


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
        sizes = {"rows": self.rows, "cols": self.cols, "radius": self.radius, "channels": self.channels}
        require_positive("Stencil", **sizes)

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


# ---------------------------------------------------------------------- edges


def canonical_edges(n: int, edges: Any) -> IntArray:
    """(m, 2) int64 pairs i > j, each once, sorted by j and then i, from pairs in any order and orientation.

    Raises:
        PatternError: not (m, 2) integers, a node outside 0 … n − 1, a node joined to itself, or a pair given twice.
    """
    pairs = as_pairs("edges", edges)
    low, high = pairs.min(axis=1), pairs.max(axis=1)
    outside = (low < 0) | (high >= n)
    if outside.any():
        raise PatternError(f"edges: nodes must be in 0 … {n - 1}, got {tuple(pairs[outside][0].tolist())}.")
    if (low == high).any():
        raise PatternError(f"edges: node {low[low == high][0]} is joined to itself.")
    codes = np.sort(low * n + high)
    twice = codes[1:] == codes[:-1]
    if twice.any():
        j, i = divmod(int(codes[1:][twice][0]), n)
        raise PatternError(f"edges: the pair ({i}, {j}) is given twice.")
    return frozen(np.stack([codes % n, codes // n], axis=-1))


def lattice_edges(shape: tuple[int, ...]) -> IntArray:
    """(m, 2) pairs of nearest neighbours on a lattice, nodes numbered with the last axis fastest."""
    node = np.arange(math.prod(shape), dtype=np.int64).reshape(shape)
    pairs = []
    for axis in range(len(shape)):
        along = np.moveaxis(node, axis, 0)
        pairs.append(np.stack([along[1:].ravel(), along[:-1].ravel()], axis=-1))
    return np.concatenate(pairs)


def lattice_place(topology: Topology, node: int, cols: int) -> str:
    """`Topology.describe` on a lattice of two dimensions."""
    row, col = divmod(node, cols)
    return f"node {node} (row {row}, column {col} of {topology})"


def require_topology(function: str, topology: Any) -> None:
    """Raise where a pattern, or anything else, stands in the place of a topology."""
    if not isinstance(topology, Topology):
        raise PatternError(
            f"{function}: topology must be a Topology, as Chain(n) or Graph(n, edges), got {type(topology).__name__}."
        )


def require_positive(name: str, **sizes: int) -> None:
    """Raise unless every size is an integer of at least 1."""
    require_at_least(1, name, **sizes)


def require_at_least(least: int, name: str, **sizes: int) -> None:
    """Raise unless every size is an integer of at least that."""
    for what, size in sizes.items():
        if not isinstance(size, int | np.integer):
            raise PatternError(f"{name}: {what} must be an integer, got {size!r}.")
        if size < least:
            raise PatternError(f"{name}: {what} must be at least {least}, got {size}.")


def frozen(array: IntArray) -> IntArray:
    """The array, read-only from now on."""
    array.flags.writeable = False
    return array
