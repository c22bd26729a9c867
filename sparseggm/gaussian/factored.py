"""`FactoredGaussian`: the parameters of a batch of Gaussians N(loc, P⁻¹), P = L Lᵀ sparse, and its constructors.

The class owns the arrays, their checks, and the border between the caller's numbering of nodes and the elimination
order of the packed values; it turns a failing column into the caller's node. Probability is in `model`.
"""

from __future__ import annotations

from copy import copy
from typing import Any, Self, cast

import numpy as np
import numpy.typing as npt

from sparseggm import linalg
from sparseggm.errors import NonFiniteError, NotPositiveDefiniteError, PatternError
from sparseggm.gaussian.potentials import Potential, added, require_same_nodes
from sparseggm.graph.derived import make_read_only
from sparseggm.graph.graphs import product_graph
from sparseggm.graph.pattern import FloatArray, IntArray, Pattern
from sparseggm.graph.topology import Topology, require_topology
from sparseggm.linalg import checks
from sparseggm.linalg.checks import Shape
from sparseggm.positivity import gershgorin
from sparseggm.promotion import constant, promoted


class FactoredGaussian:
    """A mean and a sparse factor on a topology: see `GaussianGraphicalModel`."""

    loc: FloatArray
    factor: FloatArray
    topology: Topology
    factor_pattern: Pattern
    """The pattern of L: the topology's, or `precision_pattern.filled()` for a Gaussian made from its precision."""
    is_on_topology: bool
    """Whether P is on `topology`; false if L was given on a topology that is not factor-free. See `graph`."""
    _given: FloatArray | None = None
    """P, where that was given in this dtype. In a wider one the Gaussian is that of its L, which was rounded."""
    _nodes: IntArray | None = None

    def __init__(self, loc: npt.ArrayLike, *, factor: npt.ArrayLike, topology: Topology) -> None:
        function = type(self).__name__
        require_topology(function, topology)
        loc, factor = promoted(function, loc=loc, factor=factor)
        self._set(function, constant(loc), constant(factor), topology, topology.factor_pattern)
        self.is_on_topology = topology.is_factor_free

    @classmethod
    def from_precision(cls, loc: npt.ArrayLike, *, precision: npt.ArrayLike, topology: Topology) -> Self:
        """The Gaussians with precision P: (..., nnz) values on `topology.precision_pattern`, see `topology.pack`.

        Raises:
            NotPositiveDefiniteError: it names batch index, node and pivot, and P's Gershgorin slack there.
        Cost: one `linalg.cholesky`.
        """
        function = f"{cls.__name__}.from_precision"
        require_topology(function, topology)
        loc, precision = (constant(array) for array in promoted(function, loc=loc, precision=precision))
        factor = _factorised(function, topology, precision, loc=loc)
        return cls._made(function, loc, factor, topology, topology.precision_pattern.filled(), precision)

    @classmethod
    def from_factor(cls, loc: npt.ArrayLike, *, factor: npt.ArrayLike, topology: Topology, pattern: Pattern) -> Self:
        """Gaussians given by L on an explicit pattern, such as one with fill.

        `pattern.gram()` must hold `topology.precision_pattern`, and L Lᵀ must vanish off it.
        """
        function = f"{cls.__name__}.from_factor"
        require_topology(function, topology)
        require_graph(function, topology, pattern)
        loc, factor = promoted(function, loc=loc, factor=factor)
        return cls._made(function, constant(loc), constant(factor), topology, pattern)

    @classmethod
    def _made(
        cls,
        function: str,
        loc: FloatArray,
        factor: FloatArray,
        topology: Topology,
        pattern: Pattern,
        given: FloatArray | None = None,
    ) -> Self:
        """A Gaussian with P on the topology, from arrays of one dtype that no caller can write into."""
        self = cls.__new__(cls)
        self._set(function, loc, factor, topology, pattern)
        self.is_on_topology, self._given = True, given
        return self

    def _set(self, function: str, loc: FloatArray, factor: FloatArray, topology: Topology, pattern: Pattern) -> None:
        checks.check(function, pattern, packed={"factor": factor}, loc=loc)
        self.batch_shape: Shape = checks.broadcast(function, loc=loc.shape[:-1], factor=factor.shape[:-1])
        checks.require_finite(function, "loc", None, loc, topology)
        checks.require_finite(function, "factor", pattern, factor, topology)
        checks.require_positive_diagonal(function, pattern, factor, topology)
        loc.flags.writeable = factor.flags.writeable = False
        self.loc, self.factor = loc, factor
        self.topology, self.factor_pattern = topology, pattern

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.topology}, batch_shape={self.batch_shape}, dtype={self.dtype})"

    @property
    def n(self) -> int:
        """Number of nodes."""
        return self.topology.n

    @property
    def graph(self) -> Topology:
        """The graph of P: `topology`; but if L was given on one that is not factor-free, that of L Lᵀ, in its order."""
        return self.topology if self.is_on_topology else product_graph(self.topology)

    @property
    def nodes(self) -> IntArray:
        """(n,) the numbers that these nodes had before `condition` or `marginal` left some out; else 0 … n − 1."""
        return np.arange(self.n) if self._nodes is None else self._nodes

    def _numbered(self, nodes: IntArray | None) -> Self:
        """The same Gaussian, whose nodes had these numbers."""
        self._nodes = None if nodes is None else make_read_only(nodes)
        return self

    @property
    def dtype(self) -> np.dtype[Any]:
        """float32 or float64."""
        return self.factor.dtype

    # ------------------------------------------------------------------ maps

    def whiten(self, d: npt.ArrayLike) -> FloatArray:
        """Lᵀ d for a centred vector d (..., n): white if d has covariance Σ. As in SciPy, no mean is subtracted.

        Cost: 2 nnz(L) flops a vector.
        """
        g, (d,) = self._promoted("whiten", d=d)
        return g._in_elimination_order("whiten", linalg.matmul_t, d=d)

    def colorize(self, eps: npt.ArrayLike) -> FloatArray:
        """L⁻ᵀ ε for white noise ε (..., n): covariance Σ. The inverse of `whiten`; no mean is added.

        Cost: 2 nnz(L) flops a vector.
        """
        g, (eps,) = self._promoted("colorize", eps=eps)
        return g._in_elimination_order("colorize", linalg.solve_t, eps=eps)

    def _in_elimination_order(self, function: str, verb: Any, **vector: Any) -> FloatArray:
        """`verb` of L and one vector in the caller's numbering; errors call the vector by its keyword."""
        [(name, x)] = vector.items()
        checks.check(function, self.factor_pattern, **vector)
        checks.broadcast(function, gaussian=self.factor.shape[:-1], **{name: x.shape[:-1]})
        natural = self.topology.is_naturally_ordered
        try:
            y = verb(self.factor_pattern, self.factor, x if natural else x.take(self.topology.order, axis=-1))
        except NonFiniteError:  # the message names the caller's node, not its place in the elimination
            checks.raise_cause(function, {name: (None, x)}, topology=self.topology)
            raise
        return cast(FloatArray, y if natural else y.take(self.topology.inverse_order, axis=-1))

    def _of_factor(self, function: str, verb: Any, **options: Any) -> FloatArray:
        """`verb` of L alone. L was checked before, so that only the result can overflow."""
        try:
            return cast(FloatArray, verb(self.factor_pattern, self.factor, **options))
        except NonFiniteError:
            checks.raise_cause(function, {"factor": (self.factor_pattern, self.factor)}, topology=self.topology)
            raise

    def _promoted(self, function: str, **values: Any) -> tuple[Self, list[FloatArray]]:
        """This Gaussian and the values, all in the wider of their dtypes: see `promotion`."""
        arrays = promoted(function, self.dtype, **values)
        return self._in_dtype(arrays[0].dtype), arrays

    def _in_dtype(self, dtype: np.dtype[Any]) -> Self:
        """The same numbers in a dtype at least as wide."""
        if dtype == self.dtype:
            return self
        wider = copy(self)
        wider.loc, wider.factor = self.loc.astype(dtype), self.factor.astype(dtype)
        wider._given = None
        return wider

    # ------------------------------------------------------------------ parameters

    @property
    def precision(self) -> FloatArray:
        """(..., nnz) values of P on `graph.precision_pattern`, with the factor's batch axes.

        As given to `from_precision` and the like; else L Lᵀ, at the cost of a Gram product, which has dense columns
        where L has fill.
        """
        if self._given is not None:
            return self._given.copy()
        on, product = self.graph.precision_pattern, self.factor_pattern.gram()
        return self._of_factor("precision", linalg.gram).take(on.positions_in(product), axis=-1)

    @property
    def information_vector(self) -> FloatArray:
        """h = P loc, (..., n); h and P are the natural parameters."""
        return self._times_precision("information_vector", loc=self.loc)

    def _times_precision(self, function: str, **vector: Any) -> FloatArray:
        """P x = L Lᵀ x."""
        white = self._in_elimination_order(function, linalg.matmul_t, **vector)
        return self._in_elimination_order(function, linalg.matmul, **dict.fromkeys(vector, white))

    @classmethod
    def from_information(cls, information: npt.ArrayLike, *, precision: npt.ArrayLike, topology: Topology) -> Self:
        """The Gaussians with density ∝ exp(hᵀ z − ½ zᵀ P z): mean P⁻¹ h. Arguments and errors as `from_precision`."""
        function = f"{cls.__name__}.from_information"
        require_topology(function, topology)
        information, precision = promoted(function, information=information, precision=precision)
        return cls._from_information(function, information, constant(precision), topology)

    @classmethod
    def _from_information(
        cls, function: str, information: FloatArray, precision: FloatArray, topology: Topology, loc: Any = 0.0
    ) -> Self:
        """The Gaussians with precision P, an array that no caller can write into, and mean loc + P⁻¹ h."""
        factor = _factorised(function, topology, precision, information=information)
        pattern = topology.precision_pattern.filled()
        centred = cls._made(function, np.zeros(topology.n, factor.dtype), factor, topology, pattern)
        half = centred._in_elimination_order(function, linalg.solve, information=information)
        move = centred._in_elimination_order(function, linalg.solve_t, information=half)
        return cls._made(function, loc + move, factor, topology, pattern, precision)

    def _updated(
        self, function: str, pull: FloatArray, precision: FloatArray, graph: Topology
    ) -> tuple[Self, FloatArray]:
        """The Gaussians with another precision and mean loc + P⁻¹ pull, and P⁻¹ pull."""
        centred = self._from_information(function, pull, precision, graph)
        return centred._at(function, self.loc + centred.loc)._numbered(self._nodes), centred.loc

    def product(self, other: FactoredGaussian | Potential) -> Self:
        """The Gaussians with density ∝ the product of both: P = P₁ + P₂ and h = h₁ + h₂, on the union of the graphs.

        The graph is that of one of the two, in its order, if it has all edges of the other: then no fill is added to
        that of a P on it. The mean is loc₁ + P⁻¹ (h₂ − P₂ loc₁), which keeps the digits of a mean far from zero.

        Args:
            other: a Gaussian or a `Potential` on the same nodes; batch axes broadcast, the wider dtype is kept.
        Raises:
            NotPositiveDefiniteError: P₁ + P₂ is not positive definite to working precision.
            NonFiniteError: a sum is beyond the dtype.
        Cost: one factorisation. Error: that of the sums, of one factorisation and of its two solves.
        """
        function = "product"
        kinds = FactoredGaussian, Potential
        require_same_nodes(function, self, other, kinds, "sparseggm.GaussianGraphicalModel or sparseggm.Potential")
        dtype = np.promote_types(self.dtype, other.dtype)
        g, more = self._in_dtype(dtype), other._in_dtype(dtype)
        with np.errstate(over="ignore"):  # the factorisation tests for infinity
            graph, precision = added(g.graph, g.precision, more.graph, more.precision)
        pull = more._gradient_at(function, g.loc)
        return g._from_information(function, pull, precision, graph, g.loc)._numbered(self._nodes)

    def _gradient_at(self, function: str, loc: FloatArray) -> FloatArray:
        """h − P z = P (self.loc − z) at z = loc: the gradient of the log-density."""
        with np.errstate(over="ignore"):  # the product tests for infinity
            difference = self.loc - loc
        return self._times_precision(function, difference=difference)

    def moved_to(self, loc: npt.ArrayLike) -> Self:
        """The Gaussians with the same precision and another mean; they share the factor."""
        g, (loc,) = self._promoted("moved_to", loc=loc)
        return g._at("moved_to", constant(loc))

    def _at(self, function: str, loc: FloatArray) -> Self:
        moved = self._made(function, loc, self.factor, self.topology, self.factor_pattern, self._given)
        moved.is_on_topology = self.is_on_topology
        return moved._numbered(self._nodes)


def _factorised(function: str, topology: Topology, precision: FloatArray, **vector: Any) -> FloatArray:
    """The factor L of P, after checks of P and of the vector given with it."""
    pattern = topology.precision_pattern
    checks.check(function, pattern, packed={"precision": precision}, **vector)
    checks.broadcast(function, **{name: array.shape[:-1] for name, array in {**vector, "precision": precision}.items()})
    for name, array in vector.items():
        checks.require_finite(function, name, None, array, topology)
    try:
        return linalg.cholesky(pattern, precision)
    except NonFiniteError:
        checks.raise_cause(function, {"precision": (pattern, precision)}, topology=topology)
        raise
    except NotPositiveDefiniteError as failure:
        raise named_by_node(failure, topology, precision, function) from None


def require_graph(function: str, topology: Topology, pattern: Pattern) -> None:
    """Raise unless an L on the pattern allows L Lᵀ to be nonzero on the whole graph."""
    checks.require_pattern(function, pattern)
    if pattern.n != topology.n:
        raise PatternError(f"{function}: pattern must be one of {topology.n} nodes, as {topology}, got {pattern!r}.")
    ends = topology.inverse_order[topology.edges]
    lacking = pattern.gram().positions_between(*ends.T) < 0
    if lacking.any():
        i, j = topology.edges[lacking][0]
        raise PatternError(
            f"{function}: pattern must be that of an L whose L Lᵀ joins what {topology} does, got one that does not "
            f"join {i} and {j}."
        )


def named_by_node(
    failure: NotPositiveDefiniteError,
    topology: Topology,
    precision: FloatArray,
    function: str,
) -> NotPositiveDefiniteError:
    """The same failure in the caller's terms: node, place on a grid, and Gershgorin slack."""
    node = int(topology.order[failure.column])
    found = "singular to working precision" if failure.pivot > 0 else "not positive definite"
    with np.errstate(over="ignore"):
        slack = gershgorin.slack(topology.precision_pattern, precision[failure.batch_index])[failure.column]
    return failure.saying(
        f"{function}: {found}: pivot {failure.pivot:.3g} at "
        f"{topology.describe(node)}{checks.in_batch(failure.batch_index)}; its Gershgorin slack is {slack:.3g}. "
        "Raise the diagonal, or use parametrize.dominant, which guarantees P ≻ 0."
    )
