"""`FactoredGaussian`: what a batch of Gaussians N(loc, P⁻¹), P = L Lᵀ sparse, is made of, and from what it can be made.

Owns the arrays, their checks, and the border between the caller's numbering of nodes and the elimination order of the
packed values; turns a failing column into the caller's node. What is asked of a Gaussian is in `gaussian`.
"""

from __future__ import annotations

from typing import Any, Self, cast
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

from sparseggm import checks, gershgorin, linalg
from sparseggm.checks import Shape
from sparseggm.errors import NonFiniteError, NotPositiveDefiniteError, PatternError
from sparseggm.graphs import product_graph
from sparseggm.pattern import FloatArray, IntArray, Pattern, as_pairs
from sparseggm.topology import Topology, require_topology


class FactoredGaussian:
    """A mean and a sparse factor on a topology: see `GaussianGraphicalModel`."""

    loc: FloatArray
    factor: FloatArray
    topology: Topology
    factor_pattern: Pattern
    """Of L: the topology's, or `precision_pattern.filled()` for a Gaussian made from its precision."""
    is_on_topology: bool
    """Whether P is on `topology`: unless L was given on a topology that is not factor-free. See `graph`."""

    def __init__(self, loc: FloatArray, *, factor: FloatArray, topology: Topology) -> None:
        require_topology(type(self).__name__, topology)
        self._set(loc, factor, topology, topology.factor_pattern)
        self.is_on_topology = topology.is_factor_free

    @classmethod
    def from_precision(cls, loc: FloatArray, *, precision: FloatArray, topology: Topology) -> Self:
        """The Gaussians with precision P: (..., nnz) values on `topology.precision_pattern`, see `topology.pack`.

        Raises:
            NotPositiveDefiniteError: names batch index, node and pivot, and P's Gershgorin slack there.
        Cost: one `linalg.cholesky`.
        """
        require_topology(f"{cls.__name__}.from_precision", topology)
        pattern = topology.precision_pattern
        try:
            factor = linalg.cholesky(pattern, precision)
        except NotPositiveDefiniteError as failure:
            raise named_by_node(failure, topology, precision) from None
        return cls.on_pattern(loc, factor=factor, topology=topology, pattern=pattern.filled())

    @classmethod
    def on_pattern(cls, loc: FloatArray, *, factor: FloatArray, topology: Topology, pattern: Pattern) -> Self:
        """The Gaussians with factor L, of a P on the graph, on a pattern whose Gram pattern holds that of the graph."""
        require_topology(f"{cls.__name__}.on_pattern", topology)
        checks.require_pattern(f"{cls.__name__}.on_pattern", pattern)
        topology.precision_pattern.positions_in(pattern.gram())  # raises where it lacks an entry
        self = cls.__new__(cls)
        self._set(loc, factor, topology, pattern)
        return self

    def _set(self, loc: FloatArray, factor: FloatArray, topology: Topology, pattern: Pattern) -> None:
        verb = type(self).__name__
        checks.check(verb, pattern, packed={"factor": factor}, loc=loc)
        self.batch_shape: Shape = checks.broadcast(verb, loc=loc.shape[:-1], factor=factor.shape[:-1])
        checks.require_finite(verb, "loc", None, loc)
        checks.require_finite(verb, "factor", pattern, factor)
        checks.require_positive_diagonal(verb, pattern, factor)
        self.loc, self.factor, self.topology, self.factor_pattern = loc, factor, topology, pattern
        self.is_on_topology = True

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.topology}, batch_shape={self.batch_shape}, dtype={self.dtype})"

    @property
    def n(self) -> int:
        """Number of nodes."""
        return self.topology.n

    @property
    def graph(self) -> Topology:
        """Of P: `topology`; but for an L given on one that is not factor-free, the graph of L Lᵀ in the same order."""
        return self.topology if self.is_on_topology else product_graph(self.topology)

    @property
    def dtype(self) -> np.dtype[Any]:
        """float32 or float64."""
        return self.factor.dtype

    # ------------------------------------------------------------------ maps

    def whiten(self, d: FloatArray) -> FloatArray:
        """Lᵀ d for a centred vector d (..., n): white if d has covariance Σ. As in SciPy, no mean is subtracted.

        Cost: 2 nnz(L) flops a vector.
        """
        return self._in_elimination_order(linalg.matmul_t, d)

    def colorize(self, eps: FloatArray) -> FloatArray:
        """L⁻ᵀ ε for white noise ε (..., n): covariance Σ. The inverse of `whiten`; no mean is added.

        Cost: 2 nnz(L) flops a vector.
        """
        return self._in_elimination_order(linalg.solve_t, eps)

    def _in_elimination_order(self, verb: Any, x: FloatArray) -> FloatArray:
        fits = isinstance(x, np.ndarray) and x.shape[-1:] == (self.n,)
        if self.topology.is_naturally_ordered or not fits:  # a misfit is for the verb to name
            return cast(FloatArray, verb(self.factor_pattern, self.factor, x))
        try:
            y = verb(self.factor_pattern, self.factor, x.take(self.topology.order, axis=-1))
        except NonFiniteError:
            checks.require_finite(verb.__name__, "the vector", None, x)  # by the caller's node, not the elimination's
            raise
        return cast(FloatArray, y.take(self.topology.inverse_order, axis=-1))

    # ------------------------------------------------------------------ parameters

    @property
    def precision(self) -> FloatArray:
        """(..., nnz) values of P on `graph.precision_pattern`; batch axes of the factor. Cost: one Gram product."""
        on, product = self.graph.precision_pattern, self.factor_pattern.gram()
        return linalg.gram(self.factor_pattern, self.factor).take(on.positions_in(product), axis=-1)

    @property
    def information(self) -> FloatArray:
        """h = P loc, (..., n): with P, the natural parameters."""
        return self._in_elimination_order(linalg.matmul, self.whiten(self.loc))

    @classmethod
    def from_information(cls, information: FloatArray, *, precision: FloatArray, topology: Topology) -> Self:
        """The Gaussians with density ∝ exp(hᵀ z − ½ zᵀ P z): mean P⁻¹ h. Arguments and errors as `from_precision`."""
        centred = cls.from_precision(information, precision=precision, topology=topology)
        return centred.moved_to(centred.colorize(centred._in_elimination_order(linalg.solve, information)))

    def moved_to(self, loc: FloatArray) -> Self:
        """The same precision about another mean; the factor is shared."""
        moved = self.on_pattern(loc, factor=self.factor, topology=self.topology, pattern=self.factor_pattern)
        moved.is_on_topology = self.is_on_topology
        return moved


def covariance_positions(
    topology: Topology, pattern: Pattern, pairs: npt.ArrayLike
) -> tuple[Pattern, IntArray, IntArray]:
    """F, where the selected inverse of an L on `pattern` must be formed, and the place on F of nodes and of pairs.

    Args:
        pairs: (m, 2) nodes of the topology, in any order; i = j is allowed.
    Returns:
        (pattern of L ∪ pairs).filled(), packed positions (n,) of Σ_ii and (m,) of Σ_ij.
    """
    pairs = as_pairs("covariance_on", pairs)
    n = topology.n
    if pairs.size and (pairs.min() < 0 or pairs.max() >= n):
        raise PatternError(f"covariance_on: nodes must be in 0 … {n - 1}, got {pairs.min()} … {pairs.max()}.")
    ends = topology.inverse_order[pairs]
    fill = pattern.union(Pattern.from_edges(n, ends)).filled()
    nodes = fill.diagonal[topology.inverse_order].astype(np.int64)
    return fill, nodes, fill.positions_of(ends.max(1), ends.min(1))


_OfGraph = WeakKeyDictionary[Topology, tuple[str, Pattern, IntArray]]
_trace_positions: WeakKeyDictionary[Topology, _OfGraph] = WeakKeyDictionary()


def trace_positions(topology: Topology, pattern: Pattern, graph: Topology) -> tuple[Pattern, IntArray]:
    """What tr(P Σ) needs of Σ, P being on another graph: F of `covariance_positions`, and the place of each P_ij on F.

    Found once for an L on `pattern`, and kept while both topologies live: a prior meets many posteriors.
    """
    of_graph = _trace_positions.setdefault(topology, WeakKeyDictionary())
    key, fill, positions = of_graph.get(graph, ("", pattern, np.empty(0, np.int64)))
    if key != pattern.key:
        on = graph.precision_pattern
        fill, _, positions = covariance_positions(topology, pattern, graph.order[np.stack([on.rows, on.cols], axis=-1)])
        of_graph[graph] = pattern.key, fill, positions
    return fill, positions


def named_by_node(
    failure: NotPositiveDefiniteError, topology: Topology, precision: FloatArray
) -> NotPositiveDefiniteError:
    """The same failure in the caller's words: node, place on a grid, and what Gershgorin's theorem says of it."""
    node = int(topology.order[failure.column])
    with np.errstate(over="ignore"):
        slack = gershgorin.slack(topology.precision_pattern, precision[failure.batch_index])[failure.column]
    return NotPositiveDefiniteError(
        f"GaussianGraphicalModel.from_precision: not positive definite: pivot {failure.pivot:.3g} at "
        f"{topology.describe(node)}{checks.in_batch(failure.batch_index)}; its Gershgorin slack is {slack:.3g}. "
        "Raise the diagonal, or use parametrize.dominant, which guarantees P ≻ 0.",
        batch_index=failure.batch_index,
        column=failure.column,
        pivot=failure.pivot,
    )
