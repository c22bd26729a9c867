"""`Gram`: the graph of P + Aᵀ W A for a fixed pattern of A, and where each product of entries of A belongs on it."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from sparseggm.errors import DTypeError, NonFiniteError, PatternError, ShapeError
from sparseggm.gaussian.designs import Design
from sparseggm.gaussian.potentials import gathered
from sparseggm.graph.derived import derived
from sparseggm.graph.families import Diagonal
from sparseggm.graph.graphs import Graph, union
from sparseggm.graph.joint import Gather, has_edges_of, joint_graph
from sparseggm.graph.pattern import IntArray
from sparseggm.graph.topology import Topology, require_topology
from sparseggm.linalg import checks
from sparseggm.positivity.namespace import (
    Array,
    array_namespace,
    constant_like,
    has_floats,
    known,
    known_to_fail,
    segment_sum,
    take,
)


class Gram:
    """A sparse matrix A and a graph of P, analysed: see `LinearObservation`."""

    prior_topology: Topology
    """The graph of z."""
    topology: Topology
    """The graph of the posterior: that of z, in its order, if it joins the nodes of every row; else a union."""
    noise: Topology | None

    def __init__(self, topology: Topology, matrix: Any, noise: Topology | None = None, *, force: bool = False) -> None:
        function = type(self).__name__
        require_topology(function, topology)
        self._design = Design(function, matrix, topology.n)
        self._noise = Diagonal(self._design.shape[0]) if noise is None else noise
        require_topology(function, self._noise)
        if self._noise.n != self._design.shape[0]:
            raise ShapeError(
                f"{function}: noise must be a graph of {self._design.shape[0]} nodes, one for each row of the matrix, "
                f"got {noise}."
            )
        self.prior_topology, self.noise = topology, noise
        products = self._design.products(function, self._noise_ends, force)
        i, j = products.nodes.T
        graph = Graph(topology.n, products.nodes[i != j])
        self.topology = topology if has_edges_of(topology, graph) else union(topology, graph)
        self._of_prior = self._gather_of(topology)
        on = self.topology.precision_pattern.positions_between(*self.topology.inverse_order[products.nodes].T)
        self._products, self._target = products, on[products.pair]
        # An entry of Aᵀ W A off the diagonal is stored once: so are the products for it and for its mirror image.
        self._scale = products.times * self._noise.precision_pattern.multiplicity[products.of]
        self._scale *= np.where(i == j, 1.0, 0.5)[products.pair]

    def __repr__(self) -> str:
        k, n = self.shape
        noise = "" if self.noise is None else f", noise={self.noise}"
        return f"{type(self).__name__}({self.prior_topology}, {k} × {n} matrix of {len(self.rows)} entries{noise})"

    # ------------------------------------------------------------------ the matrix

    @property
    def shape(self) -> tuple[int, int]:
        """(k, n)."""
        return self._design.shape

    @property
    def rows(self) -> IntArray:
        """(nnz,) the row of each entry of A: row by row, columns ascending. So are `cols` and `entries`."""
        return self._design.rows

    @property
    def cols(self) -> IntArray:
        """(nnz,) the node of each entry."""
        return self._design.cols

    @property
    def entries(self) -> npt.NDArray[Any]:
        """(nnz,) the values of A that methods take without `entries`."""
        return self._design.entries

    def matmul(self, x: Array, entries: Array | None = None) -> Array:
        """A x: (..., k) from (..., n), in the dtype of x."""
        x, a = self._beside("LinearObservation.matmul", "x", x, self.shape[1], entries)
        return self._design.matmul(a, x)

    def matmul_t(self, y: Array, entries: Array | None = None) -> Array:
        """Aᵀ y: (..., n) from (..., k), in the dtype of y."""
        y, a = self._beside("LinearObservation.matmul_t", "y", y, self.shape[0], entries)
        return self._design.matmul_t(a, y)

    def gram(self, weights: Array, entries: Array | None = None) -> Array:
        """Aᵀ W A, packed on `topology.precision_pattern`, in the dtype of the weights.

        Args:
            weights: (..., k) the diagonal of W; with correlated noise W packed on `noise.precision_pattern`. Of any
                sign: a sum with a precision is tested where it is factorised.
            entries: (..., nnz) values of A in place of its own.
        Cost: a product for each pair of entries of a row.
        Error: |Δ| ≤ γ_{t+3} |A|ᵀ |W| |A| entrywise, t the number of products that make the entry.
        """
        size = self._noise.precision_pattern.nnz
        weights, a = self._beside("LinearObservation.gram", "weights", weights, size, entries)
        return self._gram(weights, a)

    def precision(self, prior_precision: Array, weights: Array, entries: Array | None = None) -> Array:
        """P + Aᵀ W A, packed on `topology.precision_pattern`, for P packed on `prior_topology.precision_pattern`."""
        function, size = "LinearObservation.precision", self.prior_topology.precision_pattern.nnz
        gram = self.gram(weights, entries)
        prior_precision = known(function, "prior_precision", prior_precision)
        if prior_precision.shape[-1:] != (size,):
            raise ShapeError(
                f"{function}: prior_precision must end in {size}, the nnz of P on {self.prior_topology}, got shape "
                f"{tuple(prior_precision.shape)}."
            )
        batches = {"prior_precision": prior_precision.shape[:-1], "gram": gram.shape[:-1]}
        checks.broadcast(function, **{name: tuple(shape) for name, shape in batches.items()})
        return self._sum(self.prior_topology, prior_precision, gram)

    def _beside(self, function: str, name: str, x: Array, size: int, entries: Array | None) -> tuple[Array, Array]:
        """A vector, and the entries of A in its dtype."""
        x = known(function, name, x)
        if not has_floats(x):
            raise DTypeError(f"{function}: {name} must be of floating-point numbers, got {x.dtype}.")
        if x.shape[-1:] != (size,):
            raise ShapeError(f"{function}: {name} must end in {size}, got shape {tuple(x.shape)}.")
        a = constant_like(x, self.entries if entries is None else entries)
        self._require_entries(function, a)
        checks.broadcast(function, **{name: tuple(x.shape[:-1]), "entries": tuple(a.shape[:-1])})
        return x, a

    def _require_entries(self, function: str, entries: Array) -> None:
        if entries.shape[-1:] != (self._design.nnz,):
            raise ShapeError(
                f"{function}: entries must end in {self._design.nnz}, the entries of the matrix, got shape "
                f"{tuple(entries.shape)}."
            )
        if known_to_fail(array_namespace(entries).isfinite(entries)):
            raise NonFiniteError(f"{function}: entries must be finite, got NaN or infinity.")

    # ------------------------------------------------------------------ sums of products

    @derived
    def _noise_ends(self) -> IntArray:
        """(nnz, 2) the observations of each entry of the precision of the noise."""
        pattern = self._noise.precision_pattern
        return self._noise.order[np.stack([pattern.rows, pattern.cols], axis=-1)]

    def _noise_matmul(self, weights: Array, x: Array) -> Array:
        """W x: (..., k)."""
        if self.noise is None:
            return weights * x
        r, s = self._noise_ends.T
        off = np.flatnonzero(r != s)
        places, rows, cols = (np.concatenate(pair) for pair in ((np.arange(len(r)), off), (r, s[off]), (s, r[off])))
        return segment_sum(take(weights, places) * take(x, cols), rows, self.shape[0])

    def _gram(self, weights: Array, a: Array) -> Array:
        products = self._products
        terms = constant_like(a, self._scale) * take(a, products.first) * take(a, products.second)
        terms = take(weights, products.of) * terms
        return segment_sum(terms, self._target, self.topology.precision_pattern.nnz)

    def _sum(self, graph: Topology, precision: Array, gram: Array) -> Array:
        """P on its graph, and Aᵀ W A."""
        return gram + gathered(precision, self._of_prior if graph is self.prior_topology else self._gather_of(graph))

    def _gather_of(self, graph: Topology) -> Gather:
        joint, _, gather = joint_graph(self.topology, graph)
        if joint is not self.topology:
            raise PatternError(
                f"LinearObservation: the prior must be on {self.prior_topology}, or join no other nodes than "
                f"{self.topology}, got {graph}. Make a LinearObservation for prior.graph."
            )
        return gather
