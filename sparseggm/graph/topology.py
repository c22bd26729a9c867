"""Topologies: which nodes of a Gaussian graphical model are joined. Immutable, hashable, numbers-free.

A topology has two facts, `n` and `edges`; all else is derived. It is also the border between two numberings:

* the caller's: `edges`, and everything indexed by node (means, samples, noise, variances);
* the order of elimination: patterns and packed values. `order[k]` is the node eliminated k-th.

Some topologies are *factor-free*: every lower factor L on `factor_pattern` gives a precision P = L Lᵀ on
`precision_pattern`, so a network may emit L. The converse fails: a P on the extended grid's precision pattern
has, in general, a Cholesky factor outside its factor pattern. See docs/architecture.md.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, fields
from functools import singledispatch
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import scipy.sparse

from sparseggm.errors import DTypeError, PatternError, ShapeError
from sparseggm.graph import plotting
from sparseggm.graph.derived import derived, make_read_only
from sparseggm.graph.edges import (
    Order,
    canonical_edges,
    checked_order,
    require_positive,
)
from sparseggm.graph.exchange import symmetric_entries
from sparseggm.graph.pattern import FloatArray, IntArray, Pattern
from sparseggm.promotion import as_numbers, promoted

if TYPE_CHECKING:
    from matplotlib.axes import Axes


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
        return make_read_only(np.arange(self.n, dtype=np.int64))

    @derived
    def inverse_order(self) -> IntArray:
        """(n,) when each node is eliminated: x = x_elim[..., inverse_order]."""
        return make_read_only(np.argsort(self.order))

    @derived
    def is_naturally_ordered(self) -> bool:
        """Whether nodes are eliminated as numbered, so that the two numberings agree."""
        return bool((self.order == np.arange(self.n)).all())

    @derived
    def precision_pattern(self) -> Pattern:
        """Where P may be nonzero, in elimination order."""
        return Pattern.from_edges(self.n, self.inverse_order[self.edges])

    @derived
    def factor_pattern(self) -> Pattern:
        """Where L may be nonzero, in elimination order."""
        return self.precision_pattern.filled()

    @derived
    def is_factor_free(self) -> bool:
        """Whether every L on `factor_pattern` gives a P on `precision_pattern`."""
        return self.factor_pattern.gram() is self.precision_pattern

    @derived
    def kept(self) -> dict[str, Any]:
        """What other modules have found for this very object, by their names; equal topologies find their own.

        A dictionary outside, by topologies, would hold one entry for all that are equal, and lose it with the first.
        """
        return {}

    def __getstate__(self) -> dict[str, Any]:
        """What a pickle or a copy holds: the facts alone. Derived arrays would come back writable."""
        facts = self.__dict__.items()
        return {name: fact for name, fact in facts if not isinstance(getattr(type(self), name, None), derived)}

    def describe(self, node: int) -> str:
        """A node in words, for messages."""
        return f"node {node} of {self}"

    # ------------------------------------------------------------------ packed positions

    @derived
    def node_positions(self) -> IntArray:
        """(n,) packed position on `precision_pattern` of each node's diagonal."""
        return make_read_only(self.precision_pattern.diagonal[self.inverse_order].astype(np.int64))

    @derived
    def edge_positions(self) -> IntArray:
        """(m,) packed position on `precision_pattern` of each row of `edges`."""
        return make_read_only(self._positions_of_edges(self.precision_pattern))

    @derived
    def factor_positions(self) -> tuple[IntArray, IntArray]:
        """The same two arrays on `factor_pattern`; −1 for an edge of P where L has no entry."""
        nodes = self.factor_pattern.diagonal[self.inverse_order].astype(np.int64)
        return make_read_only(nodes), make_read_only(self._positions_of_edges(self.factor_pattern))

    def _positions_of_edges(self, pattern: Pattern) -> IntArray:
        return pattern.positions_between(*self.inverse_order[self.edges].T)

    # ------------------------------------------------------------------ exchange of precisions

    def pack(self, precision: Any) -> Any:
        """Packed values (..., nnz) on `precision_pattern` of a precision in the caller's numbering.

        Args:
            precision: dense (..., n, n), scipy.sparse, or the pair (diagonal (..., n), couplings (..., m)) with one
                coupling for each row of `edges`; float32 or float64 as in `promotion`. Dense tensors, a pair of them or
                one sparse tensor give a tensor, differentiable, once `sparseggm.torch` is imported.
        Raises:
            PatternError: an entry off the graph, or mirrored entries that differ by more than rounding, of which the
                packed value is the mean: see `exchange.symmetric_entries`.
            ShapeError: sizes that do not fit.
            DTypeError: not real numbers.
        """
        return pack_rules(precision[0] if isinstance(precision, tuple) and precision else precision, self, precision)

    def _packed(self, precision: Any) -> FloatArray:
        """`pack`, of arrays."""
        function = f"{self}.pack"
        if isinstance(precision, tuple):
            return self._pack_pair(function, precision)
        if scipy.sparse.issparse(precision):
            csr = scipy.sparse.csr_array(precision)
            [data] = promoted(function, precision=csr.data)
            matrix = scipy.sparse.csr_array((data, csr.indices, csr.indptr), csr.shape)
        else:
            [matrix] = promoted(function, precision=precision)
        if matrix.shape[-2:] != (self.n, self.n):
            raise ShapeError(f"{function}: the precision must be (..., {self.n}, {self.n}), got {matrix.shape}.")
        pattern = self.precision_pattern
        return symmetric_entries(function, self, matrix, self.order[pattern.rows], self.order[pattern.cols])

    def _pack_pair(self, function: str, pair: tuple[Any, ...]) -> FloatArray:
        if len(pair) != 2:
            raise DTypeError(f"{function}: a tuple must be a pair (diagonal, couplings), got {len(pair)} values.")
        diagonal, couplings = promoted(function, diagonal=pair[0], couplings=pair[1])
        self.require_pair(diagonal.shape, couplings.shape)
        return self.arranged(diagonal, couplings)

    def require_pair(self, diagonal: tuple[int, ...], couplings: tuple[int, ...]) -> None:
        """Raise unless these are the shapes of a pair that `pack` takes."""
        m = len(self.edges)
        if diagonal[-1:] != (self.n,) or couplings != (*diagonal[:-1], m):
            raise ShapeError(
                f"{self}.pack: needs a diagonal (..., {self.n}) and couplings (..., {m}), one for each row of edges, "
                f"got {diagonal} and {couplings}."
            )

    def arranged(self, diagonal: FloatArray, couplings: FloatArray) -> FloatArray:
        """(..., nnz) anything kept by node (..., n) and by edge (..., m), in the order of packed values."""
        values = np.empty((*diagonal.shape[:-1], self.precision_pattern.nnz), np.result_type(diagonal, couplings))
        values[..., self.node_positions] = diagonal
        values[..., self.edge_positions] = couplings
        return values

    def unpack(self, values: Any) -> tuple[Any, Any]:
        """The pair (diagonal (..., n), couplings (..., m)) of packed values or tensors: the inverse of `pack`."""
        return unpack_rules(values, self)

    def _unpacked(self, values: npt.ArrayLike) -> tuple[FloatArray, FloatArray]:
        """`unpack`, of arrays."""
        array, _ = as_numbers(f"{self}.unpack", "values", values)
        self.require_packed("unpack", array.shape)
        return array.take(self.node_positions, axis=-1), array.take(self.edge_positions, axis=-1)

    def require_packed(self, method: str, shape: tuple[int, ...]) -> None:
        """Raise unless packed values may have this shape."""
        nnz = self.precision_pattern.nnz
        if shape[-1:] != (nnz,):
            raise ShapeError(f"{self}.{method}: values must end in {nnz}, the nnz of P, got shape {shape}.")

    def to_scipy(self, values: npt.ArrayLike) -> Any:
        """One precision (nnz,) as a symmetric scipy.sparse.csc_array in the caller's numbering: the way back of `pack`.

        Every stored entry stays one, so that `from_scipy` of it gives this graph.
        """
        [array] = promoted(f"{self}.to_scipy", values=values)
        if array.ndim != 1:
            raise ShapeError(f"{self}.to_scipy: values must be one matrix, got shape {array.shape}. Take one of them.")
        self.require_packed("to_scipy", array.shape)
        pattern, order = self.precision_pattern, self.order
        i, j = order[pattern.rows], order[pattern.cols]
        off = i != j
        rows, cols = np.concatenate([i, j[off]]), np.concatenate([j, i[off]])
        return scipy.sparse.coo_array((np.concatenate([array, array[off]]), (rows, cols)), (self.n, self.n)).tocsc()

    # ------------------------------------------------------------------ pictures

    def node_places(self) -> FloatArray:
        """(n, 2) places of the nodes in a picture, joined ones about one apart. Here for any graph, dense in n."""
        return plotting.by_distance(self.n, self.edges)

    def plot(
        self,
        ax: Axes | None = None,
        *,
        node_values: npt.ArrayLike | None = None,
        edge_values: npt.ArrayLike | None = None,
        node_limits: tuple[float, float] | None = None,
        edge_limits: tuple[float, float] | None = None,
    ) -> Axes:
        """Plot the graph of P with matplotlib: lines solid where L has an entry too, dashed and grey where it has none.

        Args:
            ax: where to plot; None: a new figure of pyplot's.
            node_values, edge_values: (n,) and (m,), a number for each node and each row of `edges`, shown as colours;
                NaN, or masked, for none. As in `t.plot(node_values=g.variance, edge_values=g.correlation_on(t.edges))`.
            node_limits, edge_limits: ranges of the colours; None: of the values, for edges about zero.
        Raises:
            ImportError: there is no matplotlib.
        """
        nodes, edges = self._colours("node", node_values, self.n), self._colours("edge", edge_values, len(self.edges))
        is_solid, places = self.factor_positions[1] >= 0, self.node_places()
        return plotting.plot_graph(ax, places, self.edges, is_solid, nodes, edges, node_limits, edge_limits)

    def _colours(self, name: str, values: npt.ArrayLike | None, size: int) -> FloatArray | None:
        if values is None:
            return None
        if np.shape(values) != (size,):
            raise ShapeError(f"{self}.plot: {name}_values must be ({size},), got shape {np.shape(values)}.")
        return np.ma.asarray(values, np.float64).filled(np.nan)

    def plot_pattern(self, ax: Axes | None = None) -> Axes:
        """Plot the stored entries, in elimination order: of L blue below the diagonal, its fill orange; of P grey."""
        return plotting.plot_patterns(ax, self.precision_pattern, self.factor_pattern)


@singledispatch
def pack_rules(kind: Any, topology: Topology, precision: Any) -> Any:
    """`topology.pack(precision)` of arrays; `sparseggm.torch` adds the rule for tensors."""
    return topology._packed(precision)


@singledispatch
def unpack_rules(values: Any, topology: Topology) -> tuple[Any, Any]:
    """`topology.unpack(values)` of arrays; `sparseggm.torch` adds the rule for tensors."""
    return topology._unpacked(values)


@dataclass(frozen=True, init=False, repr=False)
class Ordered(Topology):
    """A topology that takes an order of elimination in place of its own: `order[k]` is the node to eliminate k-th."""

    given_order: Order

    @derived
    def order(self) -> IntArray:
        return make_read_only(self._own_order() if self.given_order is None else np.array(self.given_order, np.int64))

    def _own_order(self) -> IntArray:
        """(n,) the order where none was given: as numbered."""
        return np.arange(self.n, dtype=np.int64)

    def _take_order(self, order: Iterable[int] | None) -> None:
        object.__setattr__(self, "given_order", checked_order(type(self).__name__, self.n, order))

    def _take(self, order: Iterable[int] | None, **sizes: int) -> None:
        """What `__init__` does on a frozen dataclass whose other fields are sizes."""
        require_positive(type(self).__name__, **sizes)
        for name, size in sizes.items():
            object.__setattr__(self, name, int(size))
        self._take_order(order)

    def __repr__(self) -> str:
        sizes = [f"{each.name}={getattr(self, each.name)}" for each in fields(self) if each.name != "given_order"]
        return f"{type(self).__name__}({', '.join(sizes)}{self._order_in_words})"

    @property
    def _order_in_words(self) -> str:
        """The end of a `repr`, where thousands of numbers would bury a message."""
        return "" if self.given_order is None else ", order=…"


class FactorTopology(Topology):
    """A topology that is given by the pattern of L: P is on its Gram pattern. Eliminated as numbered."""

    @abstractmethod
    def _factor_edges(self) -> IntArray:
        """(m, 2) pairs i > j where L_ij may be nonzero."""

    @derived
    def factor_pattern(self) -> Pattern:
        return Pattern.from_edges(self.n, self._factor_edges())

    @derived
    def precision_pattern(self) -> Pattern:
        return self.factor_pattern.gram()

    @derived
    def edges(self) -> IntArray:
        pattern = self.precision_pattern
        off_diagonal = pattern.rows != pattern.cols
        return canonical_edges(self.n, np.stack([pattern.rows, pattern.cols], axis=-1)[off_diagonal])


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
