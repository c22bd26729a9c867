"""`GaussianGraphicalModel`: a batch of Gaussians N(loc, P⁻¹), P = L Lᵀ sparse, in NumPy.

Everything a caller gives or gets is in the caller's numbering of nodes. What a Gaussian is made of is in `factored`,
the mathematics in `linalg` and `stochastic`; quantities are in nats, and every reduction is formed in float64.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Literal, cast, get_args

import numpy as np
import numpy.typing as npt

from sparseggm import checks, conditioning, fitting, linalg, stochastic
from sparseggm.checks import Shape
from sparseggm.colouring import distance_colouring
from sparseggm.errors import NonFiniteError, NonPositiveError, NotPositiveDefiniteError, PatternError, ShapeError
from sparseggm.factored import FactoredGaussian, covariance_positions
from sparseggm.pattern import FloatArray, IntArray, Pattern, as_pairs
from sparseggm.stochastic import Estimate
from sparseggm.topology import Diagonal, Topology, require_topology

LOG_2PI = math.log(2.0 * math.pi)
TraceMethod = Literal["hutchinson", "probing", "hutchpp", "xtrace"]
TRACE_METHODS = get_args(TraceMethod)


class GaussianGraphicalModel(FactoredGaussian):
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
            loc = self.loc if self.topology.is_naturally_ordered else self.loc.take(self.topology.order, axis=-1)
            return kl_to_standard_normal(self.factor_pattern, loc, self.factor)
        rest = self._kl_but_trace("kl_divergence", other)
        return checks.require_representable("kl_divergence", 0.5 * (self._trace_against(other) + rest), self.dtype)

    def _kl_but_trace(self, function: str, other: GaussianGraphicalModel) -> FloatArray:
        """2 KL(self ‖ other) − tr(P_p Σ_q), in float64."""
        if not isinstance(other, GaussianGraphicalModel):
            raise TypeError(f"{function}: needs a GaussianGraphicalModel, got {type(other).__name__}.")
        if other.n != self.n:
            raise ShapeError(f"{function}: needs two Gaussians of {self.n} nodes, got one of {other.n}.")
        checks.check(function, self.factor_pattern, loc=self.loc, other_loc=other.loc)
        square = self._square_distance(function, other, other_loc=other.loc, loc=self.loc)
        return square - self.n + self._logdet() - other._logdet()

    @staticmethod
    def _square_distance(function: str, gaussian: GaussianGraphicalModel, **vectors: FloatArray) -> FloatArray:
        """(a − b)ᵀ P (a − b) for the two vectors, in float64, P that of `gaussian`."""
        a, b = vectors.values()
        try:
            with np.errstate(over="ignore"):  # infinity is for the verb to find
                return square_norm(gaussian.whiten(a - b))
        except NonFiniteError:
            checks.explain(function, {name: (None, vector) for name, vector in vectors.items()})
            raise

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
        variances = linalg.marginal_variances(self.factor_pattern, self.factor)
        return np.broadcast_to(variances, (*self.batch_shape, self.n)).take(self.topology.inverse_order, axis=-1)

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
        fill, nodes, pairs = covariance_positions(self.topology, self.factor_pattern, edges)
        sigma = linalg.selected_inverse(self.factor_pattern, self.factor, on=fill)
        return sigma.take(np.concatenate([nodes, pairs]), axis=-1)

    # ------------------------------------------------------------------ estimates

    def estimate_trace_covariance(
        self, method: TraceMethod = "probing", rng: np.random.Generator | None = None, **options: int
    ) -> Estimate:
        """tr Σ from random probes, and its standard error, each of shape batch_shape: for graphs of dear exact trace.

        Args:
            method: "hutchinson" (num_probes), "probing" (distance, replicates), "hutchpp" (rank, num_probes) or
                "xtrace" (num_probes). Which to choose: docs/stochastic.md.
            rng: source of the probes; None: a fresh, unseeded one.
            options: the numbers in parentheses, as of `stochastic.estimate_trace_by_…`, where cost and variance stand.
                Probing colours the graph of P so that nodes of one colour are more than `distance` (4) edges apart.
        """
        if method not in TRACE_METHODS:
            raise ValueError(f"estimate_trace_covariance: method must be one of {TRACE_METHODS}, got {method!r}.")
        by = getattr(stochastic, f"estimate_trace_by_{method}")
        if method == "probing":
            colours = distance_colouring(self.graph.precision_pattern, options.pop("distance", 4))
            by = partial(by, colours=colours)
        estimate = by(self.factor_pattern, self.factor, rng=rng, **options)
        return self._as_estimate("estimate_trace_covariance", *estimate)

    def estimate_kl_divergence(
        self, other: GaussianGraphicalModel | None = None, *, num_probes: int, rng: np.random.Generator | None = None
    ) -> Estimate:
        """KL(self ‖ other), unbiased, in nats, and its standard error: tr(P_p Σ_q) from random probes, the rest exact.

        Arguments, topologies and batch axes as `kl_divergence`; may be negative.

        Args:
            num_probes: N, at least 2.
            rng: source of the probes; None: a fresh, unseeded one.
        Cost: N solves with L_qᵀ and N products with L_pᵀ: linear in both factors, whatever the fill of their union.
        Variance: (‖M‖_F² − Σ_i M_ii²) / (2N), M = L_q⁻¹ P_p L_q⁻ᵀ: zero for p = q.
        """
        if other is None:
            zero, one = np.zeros(self.n, self.dtype), np.ones(self.n, self.dtype)
            other = GaussianGraphicalModel(zero, factor=one, topology=Diagonal(self.n))
        rest = self._kl_but_trace("estimate_kl_divergence", other)
        order = self.topology.inverse_order[other.topology.order]
        trace, error = stochastic.estimate_trace_product(
            self.factor_pattern,
            self.factor,
            other.factor_pattern,
            num_probes,
            rng,
            other_factor=other.factor,
            gather=None if (order == np.arange(self.n)).all() else order,
        )
        return self._as_estimate("estimate_kl_divergence", 0.5 * (trace.astype(np.float64) + rest), 0.5 * error)

    def _as_estimate(self, function: str, value: FloatArray, error: FloatArray) -> Estimate:
        """On the common batch axes, in the dtype."""
        parts = np.broadcast_arrays(value, error, np.empty(self.batch_shape))[:2]
        return Estimate(*(checks.require_representable(function, part, self.dtype) for part in parts))

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
        pull = self._in_elimination_order(linalg.matmul, self.whiten(shift)).take(kept, axis=-1)  # P_AB (v − loc_B)
        graph, gather = conditioning.induced(self.graph, kept)
        return self._moved_by(-pull, self.precision.take(gather, axis=-1), graph, self.loc.take(kept, axis=-1))

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
        schur = conditioning.schur_complement(self.graph, chosen, force)
        try:
            factor = schur.factor_of(linalg.cholesky(schur.pattern, self.precision.take(schur.gather, axis=-1)))
        except NotPositiveDefiniteError as failure:
            raise schur.named_by_node(failure) from None
        factor, loc = np.ascontiguousarray(factor), self.loc.take(chosen, axis=-1)
        return type(self)(loc, factor=factor, topology=schur.graph)

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
        centred = (samples - loc[..., None, :]).take(topology.order, axis=-1)
        factor = fitting.columns_of_factor(topology, centred)
        return cls(loc.astype(samples.dtype), factor=factor.astype(samples.dtype), topology=topology)

    # ------------------------------------------------------------------ float64 scalars a batch element

    def _logdet(self) -> FloatArray:
        return linalg.logdet(self.factor_pattern, self.factor, np.float64)

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
    kl = 0.5 * (trace + square_norm(loc) - pattern.n + linalg.logdet(pattern, factor, np.float64))
    return checks.require_representable("kl_to_standard_normal", kl, factor.dtype, loc=loc)


def _trace_inverse(pattern: Pattern, factor: FloatArray) -> FloatArray:
    """tr Σ in float64."""
    with np.errstate(over="ignore"):  # infinity is for `checks.require_representable`
        return cast(FloatArray, linalg.marginal_variances(pattern, factor).sum(axis=-1, dtype=np.float64))


def square_norm(x: FloatArray) -> FloatArray:
    """‖x‖² over the last axis, in float64, without a copy of x."""
    return cast(FloatArray, np.einsum("...i,...i->...", x, x, dtype=np.float64))
