"""`GaussianGraphicalModel`: a batch of Gaussians N(loc, P⁻¹), P = L Lᵀ sparse, in NumPy.

Everything a caller gives or gets is in the caller's numbering of nodes; this class crosses the border to the
elimination order of the packed values, and turns a failing column into the caller's node. The mathematics is in
`linalg`; quantities are in nats, and every reduction is formed in float64.
"""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from sparseggm import checks, conditioning, fitting, gershgorin, linalg
from sparseggm.checks import Shape
from sparseggm.errors import NonFiniteError, NonPositiveError, NotPositiveDefiniteError, PatternError, ShapeError
from sparseggm.graphs import graph_of
from sparseggm.pattern import FloatArray, IntArray, Pattern, as_pairs
from sparseggm.topology import Topology, require_topology

LOG_2PI = math.log(2.0 * math.pi)


class GaussianGraphicalModel:
    """Gaussians with mean `loc` and precision P = L Lᵀ, given by the factor L.

    Args:
        loc: (..., n) mean, in the caller's numbering.
        factor: (..., nnz) values of L on `topology.factor_pattern`, diagonal positive.
        topology: the graph. `factor` and `topology` are keyword-only: the packed L and P of a chain have equal lengths.
    Raises:
        ShapeError, DTypeError: sizes or dtypes that do not fit.
        NonFiniteError, NonPositiveError: a value of `loc` or `factor`.
    Batch axes of `loc` and `factor` broadcast; L is never copied to do so.
    """

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
    def from_precision(cls, loc: FloatArray, *, precision: FloatArray, topology: Topology) -> GaussianGraphicalModel:
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
            raise _named_by_node(failure, topology, precision) from None
        return cls.on_pattern(loc, factor=factor, topology=topology, pattern=pattern.filled())

    @classmethod
    def on_pattern(
        cls, loc: FloatArray, *, factor: FloatArray, topology: Topology, pattern: Pattern
    ) -> GaussianGraphicalModel:
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

    @cached_property
    def graph(self) -> Topology:
        """Of P: `topology`; but for an L given on one that is not factor-free, the graph of L Lᵀ in the same order."""
        return self.topology if self.is_on_topology else graph_of(self.factor_pattern.gram(), self.topology.order)

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
        y = verb(self.factor_pattern, self.factor, x[..., self.topology.order])
        return cast(FloatArray, y[..., self.topology.inverse_order])

    # ------------------------------------------------------------------ sampling and densities

    def sample(self, size: int | Shape = (), rng: np.random.Generator | None = None) -> FloatArray:
        """Draws loc + L⁻ᵀ ε, of shape size + batch_shape + (n,).

        Args:
            size: number or shape of independent draws of the whole batch.
            rng: source of ε; None: a fresh, unseeded one.
        """
        size = (int(size),) if isinstance(size, int | np.integer) else tuple(size)
        rng = np.random.default_rng() if rng is None else rng
        noise = rng.standard_normal((*size, *self.batch_shape, self.n), dtype=self.dtype.type)
        return self.loc + self.colorize(noise)

    def log_prob(self, x: FloatArray) -> FloatArray:
        """log N(x; loc, P⁻¹) = ½ [log det P − ‖Lᵀ(x − loc)‖² − n log 2π], nats; batch axes of x (..., n) broadcast."""
        checks.check("log_prob", self.factor_pattern, x=x, loc=self.loc)
        square = self._square_distance("log_prob", self, x=x, loc=self.loc)
        log_prob = 0.5 * (self._logdet() - square - self.n * LOG_2PI)
        return checks.require_representable("log_prob", log_prob, self.dtype)

    def entropy(self) -> FloatArray:
        """½ [n (1 + log 2π) − log det P], nats, shape batch_shape."""
        entropy = 0.5 * (self.n * (1.0 + LOG_2PI) - self._logdet())
        return checks.require_representable("entropy", np.broadcast_to(entropy, self.batch_shape), self.dtype)

    def kl_divergence(self, other: GaussianGraphicalModel | None = None) -> FloatArray:
        """KL(self ‖ other), exact, in nats; batch axes broadcast. `other` None is the standard normal N(0, I).

            ½ [tr(P_p Σ_q) + (loc_p − loc_q)ᵀ P_p (loc_p − loc_q) − n + log det P_q − log det P_p]

        The topologies may differ: P_p is brought into q's order, and Σ_q computed only where P_p is nonzero, on
        F = (S_q ∪ pattern of P_p).filled().
        Cost: one selected inverse on F; to N(0, I) the marginal variances.
        """
        if other is None:
            loc = self.loc if self.topology.is_naturally_ordered else self.loc[..., self.topology.order]
            return kl_to_standard_normal(self.factor_pattern, loc, self.factor)
        if not isinstance(other, GaussianGraphicalModel):
            raise TypeError(f"kl_divergence: needs a GaussianGraphicalModel, got {type(other).__name__}.")
        if other.n != self.n:
            raise ShapeError(f"kl_divergence: needs two Gaussians of {self.n} nodes, got one of {other.n}.")
        checks.check("kl_divergence", self.factor_pattern, loc=self.loc, other_loc=other.loc)
        square = self._square_distance("kl_divergence", other, other_loc=other.loc, loc=self.loc)
        kl = 0.5 * (self._trace_against(other) + square - self.n + self._logdet() - other._logdet())
        return checks.require_representable("kl_divergence", kl, self.dtype)

    @staticmethod
    def _square_distance(function: str, gaussian: GaussianGraphicalModel, **vectors: FloatArray) -> FloatArray:
        """(a − b)ᵀ P (a − b) for the two vectors, in float64, P that of `gaussian`."""
        a, b = vectors.values()
        try:
            with np.errstate(over="ignore"):  # infinity is for the verb to find
                return _square(gaussian.whiten(a - b))
        except NonFiniteError:
            checks.explain(function, {name: (None, vector) for name, vector in vectors.items()})

    def _trace_against(self, other: GaussianGraphicalModel) -> FloatArray:
        """tr(P_p Σ_q) = Σ w P Σ over the edges of p, w = 2 off the diagonal, in float64."""
        diagonal, couplings = other.graph.unpack(other.precision.astype(np.float64))
        sigma = self._covariance_at(other.graph.edges).astype(np.float64)
        own = np.einsum("...i,...i->...", diagonal, sigma[..., : self.n])
        return cast(FloatArray, own + 2.0 * np.einsum("...e,...e->...", couplings, sigma[..., self.n :]))

    # ------------------------------------------------------------------ second moments

    @property
    def variance(self) -> FloatArray:
        """diag Σ, shape batch_shape + (n,), in the caller's numbering. Computed at each access."""
        variances = linalg.marginal_variances(self.factor_pattern, self.factor)[..., self.topology.inverse_order]
        return np.broadcast_to(variances, (*self.batch_shape, self.n)).copy()

    def trace_covariance(self) -> FloatArray:
        """tr Σ, shape batch_shape, exact."""
        return checks.require_representable(
            "trace_covariance", np.broadcast_to(self._trace(), self.batch_shape), self.dtype
        )

    def covariance_on(self, edges: npt.ArrayLike) -> FloatArray:
        """Σ_ij for each of the (m, 2) pairs, batch_shape + (m,); exact. Pairs need not be edges, and i = j is allowed.

        Cost: one selected inverse on (S ∪ pairs).filled(): cheap on the graph, dearer with distant pairs.
        """
        sigma = self._covariance_at(edges)[..., self.n :]
        return np.broadcast_to(sigma, (*self.batch_shape, sigma.shape[-1])).copy()

    def correlation_on(self, edges: npt.ArrayLike) -> FloatArray:
        """Σ_ij / √(Σ_ii Σ_jj) for each of the (m, 2) pairs, batch_shape + (m,); cost as `covariance_on`."""
        pairs = as_pairs("correlation_on", edges)
        sigma = self._covariance_at(pairs)
        deviation = np.sqrt(sigma[..., : self.n])  # roots first: a product of variances could leave the range
        correlation = sigma[..., self.n :] / deviation[..., pairs[:, 0]] / deviation[..., pairs[:, 1]]
        return np.broadcast_to(correlation, (*self.batch_shape, len(pairs))).copy()

    def _covariance_at(self, edges: npt.ArrayLike) -> FloatArray:
        """Σ_ii of every node, then Σ_ij of every pair, (..., n + m), on the batch axes of the factor."""
        pairs = as_pairs("covariance_on", edges)
        if pairs.size and (pairs.min() < 0 or pairs.max() >= self.n):
            raise PatternError(f"covariance_on: nodes must be in 0 … {self.n - 1}, got {pairs.min()} … {pairs.max()}.")
        ends = self.topology.inverse_order[pairs]
        fill = self.factor_pattern.union(Pattern.from_edges(self.n, ends)).filled()
        sigma = linalg.selected_inverse(self.factor_pattern, self.factor, on=fill)
        nodes = fill.diagonal[self.topology.inverse_order]
        positions = np.concatenate([nodes, fill.positions_of(ends.max(1), ends.min(1))])
        return sigma[..., positions]

    @property
    def precision(self) -> FloatArray:
        """(..., nnz) values of P on `graph.precision_pattern`; batch axes of the factor. Cost: one Gram product."""
        on, product = self.graph.precision_pattern, self.factor_pattern.gram()
        return linalg.gram(self.factor_pattern, self.factor)[..., on.positions_in(product)]

    @property
    def information(self) -> FloatArray:
        """h = P loc, (..., n): with P, the natural parameters."""
        return self._in_elimination_order(linalg.matmul, self.whiten(self.loc))

    @classmethod
    def from_information(
        cls, information: FloatArray, *, precision: FloatArray, topology: Topology
    ) -> GaussianGraphicalModel:
        """The Gaussians with density ∝ exp(hᵀ z − ½ zᵀ P z): mean P⁻¹ h. Arguments and errors as `from_precision`."""
        centred = cls.from_precision(information, precision=precision, topology=topology)
        return centred.moved_to(centred.colorize(centred._in_elimination_order(linalg.solve, information)))

    def moved_to(self, loc: FloatArray) -> GaussianGraphicalModel:
        """The same precision about another mean; the factor is shared."""
        moved = self.on_pattern(loc, factor=self.factor, topology=self.topology, pattern=self.factor_pattern)
        moved.is_on_topology = self.is_on_topology
        return moved

    # ------------------------------------------------------------------ inference

    def condition(self, nodes: npt.ArrayLike, values: npt.ArrayLike) -> GaussianGraphicalModel:
        """The Gaussian of the other nodes, ascending, given z[nodes] = values: on `Graph(n − k, induced edges)`.

        Args:
            nodes: k distinct nodes, fewer than n.
            values: (..., k) in the order of `nodes`; batch axes broadcast.
        Cost: one factorisation of the induced graph, whatever the number of values.
        """
        observed = conditioning.distinct_nodes("condition", self.topology, nodes)
        kept = np.setdiff1d(np.arange(self.n), observed)
        if not kept.size:
            raise PatternError(f"condition: all {self.n} nodes are given, so nothing is left. Leave at least one.")
        shift = self._shift_at("condition", observed, np.asarray(values, self.dtype))
        pull = self._in_elimination_order(linalg.matmul, self.whiten(shift))[..., kept]  # P_AB (v − loc_B)
        graph, precision = conditioning.induced(self.graph, self.precision, kept)
        return self._moved_by(-pull, precision, graph, self.loc[..., kept])

    def observe(self, nodes: npt.ArrayLike, values: npt.ArrayLike, variance: npt.ArrayLike) -> GaussianGraphicalModel:
        """The posterior of all nodes after noisy observations y = z[nodes] + N(0, variance): on the same graph.

        P gains 1/variance on the diagonal of the observed nodes; the mean moves by P_new⁻¹ (y − loc)/variance.

        Args:
            nodes: k distinct nodes.
            values, variance: broadcast to (..., k); variances positive, infinite for no observation.
        Cost: one factorisation.
        """
        observed = conditioning.distinct_nodes("observe", self.topology, nodes)
        values, variance = np.broadcast_arrays(np.asarray(values, self.dtype), np.asarray(variance, self.dtype))
        with np.errstate(over="ignore", divide="ignore"):
            weight = np.asarray(1.0 / variance)
        if not (np.isfinite(weight) & (weight >= 0.0)).all():
            raise NonPositiveError(
                f"observe: variance must be positive, and 1/variance in the range of {self.dtype}, got "
                f"{variance.min()}. Use condition for exact values."
            )
        shift = self._shift_at("observe", observed, values)
        more = conditioning.at_nodes(self.topology, observed, weight)
        precision = conditioning.with_more_on_diagonal(self.graph, self.precision, more)
        return self._moved_by(shift * more, precision, self.graph, self.loc)

    def _shift_at(self, function: str, nodes: IntArray, values: FloatArray) -> FloatArray:
        """values − loc at the nodes, zero elsewhere: (..., n)."""
        if values.shape[-1:] != nodes.shape:
            raise ShapeError(f"{function}: values must end in {len(nodes)}, the nodes, got shape {values.shape}.")
        checks.require_finite(function, "values", None, values)
        return conditioning.at_nodes(self.topology, nodes, values - self.loc[..., nodes])

    def _moved_by(
        self, pull: FloatArray, precision: FloatArray, topology: Topology, loc: FloatArray
    ) -> GaussianGraphicalModel:
        """Precision P, mean loc + P⁻¹ pull: rounding is relative to the move, not to a mean far from zero."""
        centred = type(self).from_information(pull, precision=precision, topology=topology)
        return centred.moved_to(loc + centred.loc)

    def marginal(self, nodes: npt.ArrayLike, force: bool = False) -> GaussianGraphicalModel:
        """The Gaussian of some nodes alone, numbered as in `nodes`, on their graph with its Schur fill.

        Raises:
            PatternError: no nodes, or a fill of more than 10⁷ entries a batch element, unless `force`.
            NotPositiveDefiniteError: P = L Lᵀ is not positive definite to working precision.
        Cost: one factorisation in which the other nodes go first.
        """
        chosen = conditioning.distinct_nodes("marginal", self.topology, nodes)
        graph, factor = conditioning.marginal(self.graph, self.precision, chosen, force)
        return type(self)(np.ascontiguousarray(self.loc[..., chosen]), factor=factor, topology=graph)

    @classmethod
    def fit(cls, samples: FloatArray, topology: Topology) -> GaussianGraphicalModel:
        """Maximum likelihood for samples (..., N, n), on a factor-free topology (chordal graphs among them).

        Column j of L minimises KL to the empirical covariance C on its own [Schäfer, Katzfuss & Owhadi 2021, Thm 2.1]:
            L_{S_j, j} = C_{S_j S_j}⁻¹ e₁ / √(e₁ᵀ C_{S_j S_j}⁻¹ e₁),        S_j the rows of column j.
        Raises:
            PatternError: the topology is not factor-free.
            NotPositiveDefiniteError: too few or degenerate samples: a C_{S_j S_j} is singular to working precision.
        Cost: Σ_j (N |S_j|² + |S_j|³) flops.
        """
        require_topology("fit", topology)
        if not topology.is_factor_free:
            raise PatternError(f"fit: {topology} is not factor-free, so maximum likelihood has no closed form on it.")
        checks.check("fit", topology.factor_pattern, samples=samples)
        if samples.ndim < 2 or not samples.shape[-2]:
            raise ShapeError(f"fit: samples must be (..., N, {topology.n}) with N ≥ 1, got shape {samples.shape}.")
        checks.require_finite("fit", "samples", None, samples)
        loc = samples.mean(axis=-2, dtype=np.float64)
        centred = samples[..., topology.order] - loc[..., None, topology.order]
        factor = fitting.columns_of_factor(topology, centred)
        return cls(loc.astype(samples.dtype), factor=factor.astype(samples.dtype), topology=topology)

    # ------------------------------------------------------------------ float64 scalars a batch element

    def _logdet(self) -> FloatArray:
        return _logdet(self.factor_pattern, self.factor)

    def _trace(self) -> FloatArray:
        return _trace_inverse(self.factor_pattern, self.factor)


def kl_to_standard_normal(pattern: Pattern, loc: FloatArray, factor: FloatArray) -> FloatArray:
    """KL(N(loc, P⁻¹) ‖ N(0, I)) = ½ [tr Σ + |loc|² − n + log det P], nats, everything in the pattern's numbering.

    Args:
        pattern: of L.
        loc, factor: (..., n) and (..., nnz); batch axes broadcast.
    Cost: the marginal variances; the sums are formed in float64.
    """
    checks.check("kl_to_standard_normal", pattern, packed={"factor": factor}, loc=loc)
    trace = _trace_inverse(pattern, factor)  # tests every value of the factor
    kl = 0.5 * (trace + _square(loc) - pattern.n + _logdet(pattern, factor))
    return checks.require_representable("kl_to_standard_normal", kl, factor.dtype, loc=loc)


def _logdet(pattern: Pattern, factor: FloatArray) -> FloatArray:
    """2 Σ log L_jj in float64, diagonal known to be positive."""
    return cast(FloatArray, 2.0 * np.log(factor[..., pattern.diagonal], dtype=np.float64).sum(axis=-1))


def _trace_inverse(pattern: Pattern, factor: FloatArray) -> FloatArray:
    """tr Σ in float64."""
    with np.errstate(over="ignore"):  # infinity is for `checks.require_representable`
        return cast(FloatArray, linalg.marginal_variances(pattern, factor).sum(axis=-1, dtype=np.float64))


def _square(x: FloatArray) -> FloatArray:
    """‖x‖² over the last axis, in float64."""
    return cast(FloatArray, np.einsum("...i,...i->...", x, x, dtype=np.float64))


def _named_by_node(
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
