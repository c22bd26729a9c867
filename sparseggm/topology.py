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
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from sparseggm.errors import PatternError, ShapeError
from sparseggm.kernels import symbolic
from sparseggm.pattern import FloatArray, IntArray, Pattern

MINIMUM_DEGREE_LIMIT = 65_536
"""Nodes above which a grid takes nested dissection without trying minimum degree, whose cost grows faster."""


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
        return _frozen(np.arange(self.n, dtype=np.int64))

    @cached_property
    def inverse_order(self) -> IntArray:
        """(n,) when each node is eliminated: x = x_elim[..., inverse_order]."""
        return _frozen(np.argsort(self.order))

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

    # ------------------------------------------------------------------ packed positions

    @cached_property
    def node_positions(self) -> IntArray:
        """(n,) packed position on `precision_pattern` of each node's diagonal."""
        return _frozen(self.precision_pattern.diagonal[self.inverse_order].astype(np.int64))

    @cached_property
    def edge_positions(self) -> IntArray:
        """(m,) packed position on `precision_pattern` of each row of `edges`."""
        return _frozen(self._positions_of_edges(self.precision_pattern))

    @cached_property
    def factor_positions(self) -> tuple[IntArray, IntArray]:
        """The same two arrays on `factor_pattern`; −1 for an edge of P where L has no entry."""
        nodes = self.factor_pattern.diagonal[self.inverse_order].astype(np.int64)
        return _frozen(nodes), _frozen(self._positions_of_edges(self.factor_pattern))

    def _positions_of_edges(self, pattern: Pattern) -> IntArray:
        ends = self.inverse_order[self.edges]
        codes = ends.min(axis=1) * self.n + ends.max(axis=1)
        stored = pattern.cols.astype(np.int64) * self.n + pattern.rows
        positions = np.minimum(np.searchsorted(stored, codes), pattern.nnz - 1)
        return np.where(stored[positions] == codes, positions, -1)

    # ------------------------------------------------------------------ exchange of precisions

    def pack(self, precision: Any) -> FloatArray:
        """Packed values (..., nnz) on `precision_pattern` of a precision in the caller's numbering.

        Args:
            precision: dense (..., n, n), scipy.sparse, or the pair (diagonal (..., n), couplings (..., m)) with one
                coupling for each row of `edges`.
        Raises:
            PatternError: an entry off the graph, or mirrored entries that differ.
            ShapeError: sizes that do not fit.
        """
        if isinstance(precision, tuple):
            return self._pack_pair(*precision)
        order = self.order
        if hasattr(precision, "tocsc"):
            return self.precision_pattern.values_of(precision.tocsc()[:, order].tocsr()[order, :], symmetric=True)
        if precision.shape[-2:] != (self.n, self.n):
            raise ShapeError(f"{self}.pack: the precision must be (..., {self.n}, {self.n}), got {precision.shape}.")
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
        _require_positive("Diagonal", n=self.n)

    @cached_property
    def edges(self) -> IntArray:
        return canonical_edges(self.n, [])


@dataclass(frozen=True)
class Chain(Topology):
    """Node i is joined to i + 1. No fill: P and L share the pattern. Every verb is O(n)."""

    n: int

    def __post_init__(self) -> None:
        _require_positive("Chain", n=self.n)

    @cached_property
    def edges(self) -> IntArray:
        node = np.arange(self.n)
        return canonical_edges(self.n, np.stack([node[1:], node[:-1]], axis=-1))


@dataclass(frozen=True)
class BlockChain(Topology):
    """`blocks` groups of `size` nodes; a group is joined inside and to the next. Node = block · size + position.

    L is block-lower-bidiagonal with dense blocks: no fill, P and L share the pattern. With b = `size`: solves,
    log det and sampling are O(n b); tr Σ and gradients through it O(n b²).
    """

    blocks: int
    size: int

    def __post_init__(self) -> None:
        _require_positive("BlockChain", blocks=self.blocks, size=self.size)

    @property
    def n(self) -> int:  # type: ignore[override]
        return self.blocks * self.size

    @cached_property
    def edges(self) -> IntArray:
        j = np.repeat(np.arange(self.n), 2 * self.size)
        i = j + np.tile(np.arange(2 * self.size), self.n)
        inside = (i > j) & (i < self.n) & (i // self.size <= j // self.size + 1)
        return canonical_edges(self.n, np.stack([i[inside], j[inside]], axis=-1))


@dataclass(frozen=True)
class ExtendedGrid(Topology):
    """A grid on L: L_ij ≠ 0 where j is the left or upper neighbour of i. Node = row · cols + col.

    P = L Lᵀ has the grid's edges and, for every node, one between its right and its lower neighbour (an
    anti-diagonal). Solves, log det and sampling are O(n); exact tr Σ is O(n · cols), by the sparse-factor recursion.
    Put the shorter side last.
    """

    rows: int
    cols: int

    def __post_init__(self) -> None:
        _require_positive("ExtendedGrid", rows=self.rows, cols=self.cols)

    @property
    def n(self) -> int:  # type: ignore[override]
        return self.rows * self.cols

    @cached_property
    def factor_pattern(self) -> Pattern:
        return Pattern.from_edges(self.n, lattice_edges((self.rows, self.cols)))

    @cached_property
    def precision_pattern(self) -> Pattern:
        return self.factor_pattern.gram()

    @cached_property
    def edges(self) -> IntArray:
        pattern = self.precision_pattern
        off_diagonal = pattern.rows != pattern.cols
        return canonical_edges(self.n, np.stack([pattern.rows, pattern.cols], axis=-1)[off_diagonal])


@dataclass(frozen=True, init=False)
class Grid(Topology):
    """A regular lattice of any dimension, each node joined to its nearest neighbours; the last axis varies fastest.

    P is on the grid; L has fill. Eliminated by the better, in Σ c_j² (c_j entries in column j of L), of minimum degree
    and nested dissection, minimum degree on a tie. For m × m: factor, log det and tr Σ O(n^1.5); sampling with a given
    factor O(n log n).

    Args:
        shape: sides, `Grid(28, 28)`.
        order: `order[k]` is the node to eliminate k-th, instead of the above.
    """

    shape: tuple[int, ...]
    _order: tuple[int, ...] | None = field(repr=False)

    def __init__(self, *shape: int, order: Iterable[int] | None = None) -> None:
        if not shape:
            raise PatternError("Grid: needs at least one side, as in Grid(28, 28).")
        _require_positive("Grid", **{f"side {axis}": side for axis, side in enumerate(shape)})
        given = None if order is None else tuple(int(v) for v in order)
        if given is not None and sorted(given) != list(range(math.prod(shape))):
            raise PatternError(f"Grid: order must be a permutation of 0 … {math.prod(shape) - 1}.")
        object.__setattr__(self, "shape", tuple(int(side) for side in shape))
        object.__setattr__(self, "_order", given)

    def __repr__(self) -> str:
        sides = ", ".join(map(str, self.shape))
        return f"Grid({sides})" if self._order is None else f"Grid({sides}, order=…)"

    @property
    def n(self) -> int:  # type: ignore[override]
        return math.prod(self.shape)

    @cached_property
    def edges(self) -> IntArray:
        return canonical_edges(self.n, lattice_edges(self.shape))

    @cached_property
    def order(self) -> IntArray:
        if self._order is not None:
            return _frozen(np.array(self._order, dtype=np.int64))
        dissection = nested_dissection(self.shape)
        if self.n > MINIMUM_DEGREE_LIMIT:
            return _frozen(dissection)
        return _frozen(min(minimum_degree(self.n, self.edges), dissection, key=self._work))

    def _work(self, order: IntArray) -> int:
        """Σ c_j², the flops of a factorisation in this order."""
        filled = Pattern.from_edges(self.n, np.argsort(order)[self.edges]).filled()
        return int((np.diff(filled.indptr).astype(np.int64) ** 2).sum())


# ---------------------------------------------------------------------- edges and orders


def canonical_edges(n: int, edges: Any) -> IntArray:
    """(m, 2) int64 pairs i > j, each once, sorted by j and then i, from pairs in any order and orientation.

    Raises:
        PatternError: a node outside 0 … n − 1, a node joined to itself, or a pair given twice.
    """
    pairs = np.asarray(edges, dtype=np.int64).reshape(-1, 2)
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
    return _frozen(np.stack([codes % n, codes // n], axis=-1))


def lattice_edges(shape: tuple[int, ...]) -> IntArray:
    """(m, 2) pairs of nearest neighbours on a lattice, nodes numbered with the last axis fastest."""
    node = np.arange(math.prod(shape), dtype=np.int64).reshape(shape)
    pairs = []
    for axis in range(len(shape)):
        along = np.moveaxis(node, axis, 0)
        pairs.append(np.stack([along[1:].ravel(), along[:-1].ravel()], axis=-1))
    return np.concatenate(pairs)


def minimum_degree(n: int, edges: IntArray) -> IntArray:
    """The minimum-degree order: always a node of least degree in the remaining graph, ties to the lowest number."""
    both = np.concatenate([edges, edges[:, ::-1]])
    both = both[np.lexsort((both[:, 1], both[:, 0]))]
    indptr = np.searchsorted(both[:, 0], np.arange(n + 1))
    return np.asarray(symbolic.minimum_degree(indptr, np.ascontiguousarray(both[:, 1])))


def nested_dissection(shape: tuple[int, ...]) -> IntArray:
    """The two halves of a lattice first, the middle plane of its longest side (the first such) last, recursively."""
    order: list[IntArray] = []

    def dissect(box: IntArray) -> None:
        if box.size <= 1:
            order.append(box.ravel())
            return
        axis = int(np.argmax(box.shape))
        halves = np.moveaxis(box, axis, 0)
        middle = len(halves) // 2
        dissect(np.moveaxis(halves[:middle], 0, axis))
        dissect(np.moveaxis(halves[middle + 1 :], 0, axis))
        order.append(halves[middle].ravel())

    dissect(np.arange(math.prod(shape), dtype=np.int64).reshape(shape))
    return np.concatenate(order)


def _require_positive(name: str, **sizes: int) -> None:
    for what, size in sizes.items():
        if size < 1:
            raise PatternError(f"{name}: {what} must be at least 1, got {size}.")


def _frozen(array: IntArray) -> IntArray:
    array.flags.writeable = False
    return array
