"""`GaussianGraphicalModel`: a batch of Gaussians N(loc, P⁻¹), P = L Lᵀ sparse, in NumPy.

All arguments and results are in the caller's numbering of nodes. Parameters and constructors are in `factored`, the
mathematics in `linalg` and `stochastic`; quantities are in nats, and every reduction is formed in float64.

The module is longer than others: it is one class.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt

from sparseggm import linalg
from sparseggm.errors import NonFiniteError, NotPositiveDefiniteError, PatternError, ShapeError
from sparseggm.gaussian import conditioning, regression, selection
from sparseggm.gaussian.covariance import covariance_positions, require_normal_variances, trace_positions
from sparseggm.gaussian.factored import FactoredGaussian
from sparseggm.gaussian.linear import is_linear, observation_of
from sparseggm.graph.colouring import distance_colouring
from sparseggm.graph.exchange import DENSE_LIMIT
from sparseggm.graph.families import Diagonal
from sparseggm.graph.pattern import FloatArray, IntArray, Pattern, as_pairs
from sparseggm.graph.topology import Topology, require_topology
from sparseggm.kernels.sparse.density import LOG_2PI
from sparseggm.linalg import checks
from sparseggm.linalg.checks import Shape
from sparseggm.promotion import as_numbers, widest
from sparseggm.stochastic import estimators
from sparseggm.stochastic.estimators import Estimate
from sparseggm.stochastic.probes import trace_options
from sparseggm.stochastic.randomness import Seed, generator

TraceMethod = Literal["hutchinson", "probing", "hutchpp", "xtrace"]


class GaussianGraphicalModel(FactoredGaussian):
    """Gaussians with mean `loc` and precision P = L Lᵀ, given by the factor L.

    Args:
        loc: (..., n) mean, in the caller's numbering.
        factor: (..., nnz) values of L on `topology.factor_pattern`, diagonal positive.
        topology: the graph. `factor` and `topology` are keyword-only: the packed L and P of a chain have equal lengths.
    Raises:
        ShapeError, DTypeError: sizes or dtypes that do not fit.
        NonFiniteError, NonPositiveError: a value of `loc` or `factor` is not allowed.
    Batch axes of `loc` and `factor` broadcast; L is never copied to do so.
    """

    # ------------------------------------------------------------------ sampling and densities

    def sample(self, size: int | Shape = (), rng: Seed = None) -> FloatArray:
        """Samples loc + L⁻ᵀ ε, of shape size + batch_shape + (n,).

        Args:
            size: number or shape of independent samples of the whole batch.
            rng: source of ε, a generator or a seed; None: a fresh, unseeded one.
        """
        shape = (*_shape_of("sample", size), *self.batch_shape, self.n)
        noise = generator("sample", rng).standard_normal(shape, dtype=self.dtype.type)
        return self.loc + self._in_elimination_order("sample", linalg.solve_t, noise=noise)

    def log_prob(self, x: npt.ArrayLike) -> FloatArray:
        """log N(x; loc, P⁻¹) = ½ [log det P − ‖Lᵀ(x − loc)‖² − n log 2π], nats; batch axes of x (..., n) broadcast."""
        g, (x,) = self._promoted("log_prob", x=x)
        square = g._square_distance("log_prob", x=x, loc=g.loc)
        log_prob = 0.5 * (g._logdet() - square - g.n * LOG_2PI)
        return checks.require_representable("log_prob", log_prob, g.dtype)

    def entropy(self) -> FloatArray:
        """½ [n (1 + log 2π) − log det P], nats, shape batch_shape."""
        entropy = 0.5 * (self.n * (1.0 + LOG_2PI) - self._logdet())
        return checks.require_representable("entropy", np.broadcast_to(entropy, self.batch_shape), self.dtype)

    def kl_divergence(self, other: GaussianGraphicalModel | None = None) -> FloatArray:
        """KL(self ‖ other), exact, in nats; batch axes broadcast. `other` None is the standard normal N(0, I).

            ½ [tr(P_p Σ_q) + (loc_p − loc_q)ᵀ P_p (loc_p − loc_q) − n + log det P_q − log det P_p]

        The topologies may differ: P_p is brought into q's order, and Σ_q computed only where P_p is nonzero, on
        F = (S_q ∪ pattern of P_p).filled(). Between many Gaussians whose factors are on one pattern it is the sum of
        `kl_terms`, each ≥ 0, which loses no digits where the two are nearly equal.
        Cost: one selected inverse on F; to N(0, I) the marginal variances.
        """
        if other is None:
            loc = self.loc if self.topology.is_naturally_ordered else self.loc.take(self.topology.order, axis=-1)
            return kl_to_standard_normal(self.factor_pattern, loc, self.factor, "kl_divergence")
        q, p = self._in_one_dtype_with("kl_divergence", other)
        if regression.on_one_pattern(q, p):
            given = q._apart_from(p), q.factor, p.factor
            if regression.is_one_pass(q.factor_pattern, *given):
                kl = regression.kl_terms("kl_divergence", q.factor_pattern, *given).sum(-1, dtype=np.float64)
                return checks.require_representable("kl_divergence", kl, q.dtype)
        kl = 0.5 * (q._trace_against(p) + q._kl_but_trace("kl_divergence", p))
        return checks.require_representable("kl_divergence", kl, q.dtype)

    def kl_terms(self, other: GaussianGraphicalModel | None = None) -> FloatArray:
        """KL(self ‖ other), exact, in nats, as a sum of a term ≥ 0 for each node: (..., n); None is N(0, I).

        A term is E_q KL(q(z_j | later) ‖ p(z_j | later)), of the conditional of a node given the nodes after it in the
        order of elimination: the chain rule's in that order, not the divergence of marginals. With δ = log σ_q/σ_p and
        Δ = β_q − β_p in the regression coordinates σ_j = 1/L_jj, β_ij = −L_ij/L_jj, and a = L_pᵀ (loc_q − loc_p),

            t_j = ½ (e^{2δ_j} − 1) − δ_j + ½ a_j² + ½ Δ_jᵀ Σ_q Δ_j / σ_p,j².

        Raises:
            PatternError: the two factors are on different patterns, or in different orders of elimination.
        Cost: Σ on the fill, and Σ_j |S_j|² products; in one pass unless rows are few and large, or share a factor.
        """
        function = "kl_terms"
        q, p = (self, None) if other is None else self._in_one_dtype_with(function, other)
        order, pattern = q.topology.order, q.factor_pattern
        if p is None:
            prior, d = (pattern.rows == pattern.cols).astype(q.dtype), q.loc.take(order, axis=-1)
        else:
            regression.require_one_pattern(function, q, p)
            prior, d = p.factor, q._apart_from(p)
        terms = regression.kl_terms(function, pattern, d, q.factor, prior)
        return terms.take(q.topology.inverse_order, axis=-1)

    def _apart_from(self, other: GaussianGraphicalModel) -> FloatArray:
        """The difference of the means, in the order of elimination; infinite where it is beyond the dtype."""
        with np.errstate(over="ignore"):
            return (self.loc - other.loc).take(self.topology.order, axis=-1)

    def _in_one_dtype_with(self, function: str, other: GaussianGraphicalModel) -> tuple[GaussianGraphicalModel, ...]:
        """Both Gaussians in the wider dtype of the two. Raises unless they have the same nodes and batch axes fit."""
        require_arrays(function, other)
        if other.n != self.n:
            raise ShapeError(f"{function}: needs two Gaussians of {self.n} nodes, got one of {other.n}.")
        checks.broadcast(function, this=self.batch_shape, other=other.batch_shape)
        dtype = np.promote_types(self.dtype, other.dtype)
        return self._in_dtype(dtype), other._in_dtype(dtype)

    def _kl_but_trace(self, function: str, other: GaussianGraphicalModel) -> FloatArray:
        """2 KL(self ‖ other) − tr(P_p Σ_q), in float64."""
        square = other._square_distance(function, other_loc=other.loc, loc=self.loc)
        return square - self.n + self._logdet() - other._logdet()

    def _square_distance(self, function: str, **vectors: Any) -> FloatArray:
        """(a − b)ᵀ P (a − b) for the two vectors, in float64."""
        checks.check(function, self.factor_pattern, **vectors)
        shapes = {name: vector.shape[:-1] for name, vector in vectors.items()}
        checks.broadcast(function, **shapes, factor=self.factor.shape[:-1])
        a, b = vectors.values()
        try:
            with np.errstate(over="ignore"):  # the verb tests for infinity
                return square_norm(self._in_elimination_order(function, linalg.matmul_t, difference=a - b))
        except NonFiniteError:
            checks.raise_cause(
                function, {name: (None, vector) for name, vector in vectors.items()}, topology=self.topology
            )
            raise

    def _trace_against(self, other: GaussianGraphicalModel) -> FloatArray:
        """tr(P_p Σ_q) = Σ w P Σ over the entries of P_p, w = 2 off the diagonal, in float64."""
        fill, positions = trace_positions(self.topology, self.factor_pattern, other.graph)
        sigma = linalg.selected_inverse(self.factor_pattern, self.factor, on=fill).take(positions, axis=-1)
        weighted = other.precision * other.graph.precision_pattern.multiplicity
        return cast(FloatArray, np.einsum("...p,...p->...", weighted, sigma.astype(np.float64)))

    # ------------------------------------------------------------------ second moments

    @property
    def variance(self) -> FloatArray:
        """diag Σ, shape batch_shape + (n,), in the caller's numbering. Computed at each access."""
        variances = self._of_factor("variance", linalg.marginal_variances)
        return np.broadcast_to(variances, (*self.batch_shape, self.n)).take(self.topology.inverse_order, axis=-1)

    @property
    def stddev(self) -> FloatArray:
        """√diag Σ, shape batch_shape + (n,). Computed at each access."""
        return np.asarray(np.sqrt(self.variance))

    @property
    def mean(self) -> FloatArray:
        """loc, shape batch_shape + (n,); a view."""
        return np.broadcast_to(self.loc, (*self.batch_shape, self.n))

    @property
    def mode(self) -> FloatArray:
        """loc, which is the mode too."""
        return self.mean

    def covariance_matrix(self) -> FloatArray:
        """Σ, dense, (batch_shape, n, n), in the caller's numbering. Above 20,000 nodes it is refused.

        Cost: n solves with L and a dense product, O(n³); `covariance_on` has single entries.
        """
        root = self._covariance_root("covariance_matrix", "covariance_on")
        return np.broadcast_to(np.swapaxes(root, -1, -2) @ root, (*self.batch_shape, self.n, self.n)).copy()

    def _covariance_root(self, function: str, instead: str) -> FloatArray:
        """Aᵀ with Σ = A Aᵀ, A = L⁻ᵀ: rows in the order of elimination, columns in the caller's; the factor's batch."""
        n, axes = self.n, (1,) * (self.factor.ndim - 1)
        if n > DENSE_LIMIT:
            gigabytes = self.dtype.itemsize * n**2 / 1e9
            raise ShapeError(f"{function}: {n} nodes would take {gigabytes:.1f} GB a matrix. Use {instead}.")
        unit = np.eye(n, dtype=self.dtype)[self.topology.order].reshape(n, *axes, n)
        return np.moveaxis(self._in_elimination_order(function, linalg.solve_t, unit=unit), 0, -2)

    def trace_covariance(self) -> FloatArray:
        """tr Σ, shape batch_shape, exact."""
        trace = np.broadcast_to(_trace_inverse("trace_covariance", self.factor_pattern, self.factor), self.batch_shape)
        return checks.require_representable("trace_covariance", trace, self.dtype)

    def covariance_on(self, edges: npt.ArrayLike) -> FloatArray:
        """Σ_ij for each of the (m, 2) pairs, batch_shape + (m,); exact. Pairs need not be edges, and i = j is allowed.

        Cost: one selected inverse on (S ∪ pairs).filled(): cheap on the graph, more expensive with distant pairs.
        """
        sigma = self._covariance_at("covariance_on", edges)[..., self.n :]
        return np.broadcast_to(sigma, (*self.batch_shape, sigma.shape[-1])).copy()

    def correlation_on(self, edges: npt.ArrayLike) -> FloatArray:
        """Σ_ij / √(Σ_ii Σ_jj) for each of the (m, 2) pairs, batch_shape + (m,); cost as `covariance_on`.

        At most 1 in absolute value, and 1 for i = j, whatever the rounding.
        """
        pairs = as_pairs("correlation_on", edges)
        sigma = self._covariance_at("correlation_on", pairs)
        require_normal_variances("correlation_on", sigma[..., : self.n])
        deviation = np.sqrt(sigma[..., : self.n])  # roots first: a product of variances could overflow or underflow
        correlation = sigma[..., self.n :] / deviation[..., pairs[:, 0]] / deviation[..., pairs[:, 1]]
        correlation = np.where(pairs[:, 0] == pairs[:, 1], 1, correlation.clip(-1, 1))
        return np.broadcast_to(correlation, (*self.batch_shape, len(pairs))).astype(self.dtype)

    def _covariance_at(self, function: str, edges: npt.ArrayLike) -> FloatArray:
        """Σ_ii of every node, then Σ_ij of every pair, (..., n + m), on the batch axes of the factor."""
        fill, nodes, pairs = covariance_positions(self.topology, self.factor_pattern, edges, function)
        sigma = self._of_factor(function, linalg.selected_inverse, on=fill)
        return sigma.take(np.concatenate([nodes, pairs]), axis=-1)

    def precision_matrix(self, sparse: bool = False) -> Any:
        """P in the caller's numbering: dense (..., n, n), or one matrix of scipy.sparse, whose pattern is the graph.

        Raises:
            ShapeError: a dense matrix of more than 20,000 nodes, or a batch of sparse ones.
        """
        pattern, values, place = self.graph.precision_pattern, self.precision, self.topology.inverse_order
        if sparse:
            with checks.speaking_as("precision_matrix", f"{self.graph}.to_scipy"):
                return self.graph.to_scipy(values)
        with checks.speaking_as("precision_matrix", "Pattern.to_dense"):
            dense = pattern.to_dense(values, symmetric=True)
        return dense[..., place[:, None], place]

    # ------------------------------------------------------------------ estimates

    def estimate_trace_covariance(self, method: TraceMethod = "probing", rng: Seed = None, **options: int) -> Estimate:
        """tr Σ from random probes, with its standard error, where the exact trace is too expensive; shape batch_shape.

        Args:
            method: "hutchinson" (num_probes=32), "probing" (distance=4, replicates=2), "hutchpp" (rank=16,
                num_probes=32) or "xtrace" (num_probes=32). Which to choose: docs/stochastic.md.
            rng: source of the probes, a generator or a seed; None: a fresh, unseeded one.
            options: the numbers in parentheses. `stochastic.estimate_trace_by_…` explains them, with cost and variance.
                Probing colours the graph of P so that nodes of one colour are more than `distance` edges apart. A
                default that exceeds the number of directions is reduced to it.
        """
        function, name = "estimate_trace_covariance", f"estimate_trace_by_{method}"
        given = trace_options(function, method, self.n, options)
        with checks.speaking_as(function, name, "distance_colouring"):
            if method == "probing":
                given["colours"] = distance_colouring(self.graph.precision_pattern, given.pop("distance"))
            estimate = getattr(estimators, name)(self.factor_pattern, self.factor, rng=rng, **given)
        return self._as_estimate(function, *estimate)

    def estimate_kl_divergence(
        self, other: GaussianGraphicalModel | None = None, *, num_probes: int, rng: Seed = None
    ) -> Estimate:
        """KL(self ‖ other), unbiased, in nats, and its standard error: tr(P_p Σ_q) from random probes, the rest exact.

        Arguments, topologies and batch axes as `kl_divergence`; may be negative.

        Args:
            num_probes: N, at least 2.
            rng: source of the probes, a generator or a seed; None: a fresh, unseeded one.
        Cost: N solves with L_qᵀ and N products with L_pᵀ: linear in both factors, whatever the fill of their union.
        Variance: (‖M‖_F² − Σ_i M_ii²) / (2N), M = L_q⁻¹ P_p L_q⁻ᵀ: zero for p = q.
        """
        function = "estimate_kl_divergence"
        if other is None:
            zero, one = np.zeros(self.n, self.dtype), np.ones(self.n, self.dtype)
            other = GaussianGraphicalModel(zero, factor=one, topology=Diagonal(self.n))
        q, p = self._in_one_dtype_with(function, other)
        rest = q._kl_but_trace(function, p)
        order = q.topology.inverse_order[p.topology.order]
        with checks.speaking_as(function, "estimate_trace_product"):
            trace, error = estimators.estimate_trace_product(
                q.factor_pattern,
                q.factor,
                p.factor_pattern,
                num_probes,
                rng,
                other_factor=p.factor,
                gather=None if (order == np.arange(q.n)).all() else order,
            )
        return q._as_estimate(function, 0.5 * (trace.astype(np.float64) + rest), 0.5 * error)

    def _as_estimate(self, function: str, value: FloatArray, error: FloatArray) -> Estimate:
        """An `Estimate` on the common batch axes, in the dtype of the Gaussian."""
        parts = np.broadcast_arrays(value, error, np.empty(self.batch_shape))[:2]
        return Estimate(*(checks.require_representable(function, part, self.dtype) for part in parts))

    def covariance_matmul(self, x: npt.ArrayLike) -> FloatArray:
        """Σ x for vectors x (..., n): P⁻¹ x, by two solves with L.

        Error: (P + ΔP) y = x with |ΔP| ≤ (γ_r + γ_c + γ_r γ_c) |L| |L|ᵀ, r and c the longest row and column of L, from
            the bounds of `solve` and `solve_t`.
        """
        g, (x,) = self._promoted("covariance_matmul", x=x)
        return g.colorize(g._in_elimination_order("covariance_matmul", linalg.solve, x=x))

    # ------------------------------------------------------------------ inference

    def condition(self, nodes: npt.ArrayLike, values: npt.ArrayLike) -> GaussianGraphicalModel:
        """The Gaussian of the other nodes, ascending, given z[nodes] = values: on `Graph(n − k, induced edges)`.

        Its `nodes` are their numbers here.

        Args:
            nodes: k distinct nodes, fewer than n, or a mask (n,) of them.
            values: (..., k) in the order of `nodes`; batch axes broadcast.
        Cost: one factorisation of the induced graph, whatever the number of values.
        """
        function = "condition"
        observed = conditioning.distinct_nodes(function, self.topology, nodes)
        kept = np.setdiff1d(np.arange(self.n), observed)
        if not kept.size:
            raise PatternError(f"condition: all {self.n} nodes are given, so nothing is left. Leave at least one.")
        g, (values,) = self._promoted(function, values=values)
        pull = g._times_precision(function, values=g._shift_at(function, observed, values))  # P_AB (v − loc_B)
        graph, gather = conditioning.induced(g.graph, kept)
        precision, loc = g.precision.take(gather, axis=-1), g.loc.take(kept, axis=-1)
        given = g._from_information(function, -pull.take(kept, axis=-1), precision, graph, loc)
        return given._numbered(self.nodes[kept])

    def observe(self, nodes: Any, values: npt.ArrayLike, variance: npt.ArrayLike) -> GaussianGraphicalModel:
        """The posterior of all nodes after noisy observations y = z[nodes] + N(0, variance): on the same graph.

        1/variance is added to the diagonal of P at the observed nodes; the mean moves by P_new⁻¹ (y − loc)/variance.
        Observations y = A z + N(0, variance) through a matrix are on a union of graphs: `fields.LinearObservation`,
        which should be made once if more follow with the same A.

        Args:
            nodes: k distinct nodes, or a mask (n,) of them; or A, (k, n) of scipy.sparse or a `LinearObservation`.
            values, variance: broadcast to (..., k); variances are positive. An infinite variance marks a missing
                observation, whose value may be NaN:
                `g.observe(np.arange(g.n), y, np.where(np.isnan(y), np.inf, variance))`.
        Cost: one factorisation.
        """
        function = "observe"
        if is_linear(nodes):
            return cast(
                GaussianGraphicalModel, observation_of(function, self, nodes).updated(function, self, values, variance)
            )
        observed = conditioning.distinct_nodes(function, self.topology, nodes)
        g, (values, variance) = self._promoted(function, values=values, variance=variance)
        values, weight = conditioning.observations(function, observed, values, variance)
        shift = g._shift_at(function, observed, values)
        more = conditioning.at_nodes(g.topology, observed, weight)
        precision = conditioning.with_more_on_diagonal(g.graph, g.precision, more)
        return g._from_information(function, shift * more, precision, g.graph, g.loc)._numbered(self._nodes)

    def log_evidence(self, nodes: Any, values: npt.ArrayLike, variance: npt.ArrayLike) -> FloatArray:
        """log p(y) of what `observe` takes, nats: exact, see `fields.LinearObservation.log_evidence`.

        Cost: one factorisation.
        """
        plan = observation_of("log_evidence", self, nodes)
        return cast(FloatArray, plan.evidence("log_evidence", self, values, variance))

    def log_normaliser(self) -> FloatArray:
        """log ∫ exp(hᵀ z − ½ zᵀ P z) dz = ½ [n log 2π − log det P + hᵀ P⁻¹ h], nats, with h = P loc.

        Error: of log det P, and γ_{c+1} |L|ᵀ |loc| in each component of Lᵀ loc, whose squares are summed in float64.
        """
        total = 0.5 * (self.n * LOG_2PI - self._logdet() + self._square_of(self.loc))
        return checks.require_representable("log_normaliser", total, self.dtype)

    def _shift_at(self, function: str, nodes: IntArray, values: FloatArray) -> FloatArray:
        """values − loc at the nodes, zero elsewhere: (..., n)."""
        if values.shape[-1:] != nodes.shape:
            raise ShapeError(f"{function}: values must end in {len(nodes)}, the nodes, got shape {values.shape}.")
        checks.broadcast(function, values=values.shape[:-1], gaussian=self.batch_shape)
        checks.require_finite(function, "values", None, values, self.topology, nodes)
        return conditioning.at_nodes(self.topology, nodes, values - self.loc[..., nodes])

    def marginal(self, nodes: npt.ArrayLike, force: bool = False) -> GaussianGraphicalModel:
        """The Gaussian of some nodes alone, numbered as in `nodes`, on their graph with its Schur fill.

        Its `nodes` are their numbers here.

        Raises:
            PatternError: there are no nodes, or a fill of more than 10⁷ entries a batch element and no `force`.
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
        of_some = self._made("marginal", loc, factor, schur.graph, schur.graph.factor_pattern)
        return of_some._numbered(self.nodes[chosen])

    @classmethod
    def fit(cls, samples: npt.ArrayLike, topology: Topology, *, ridge: float = 0.0) -> GaussianGraphicalModel:
        """Maximum likelihood for samples (..., N, n) with mean and covariance C.

        On a factor-free topology (chordal graphs among them) the L on its pattern, each column alone [Schäfer, Katzfuss
        & Owhadi 2021, Thm 2.1]; S_j are the rows of column j:
            L_{S_j, j} = C_{S_j S_j}⁻¹ e₁ / √(e₁ᵀ C_{S_j S_j}⁻¹ e₁).
        On any other the P on the graph, whose Σ is C there within 1e-8 √(C_ii C_jj): covariance selection, by Newton's
        method with conjugate gradients. So is `geometry.project`, on every topology.

        Args:
            ridge: ≥ 0; the variances C_ii are multiplied by 1 + ridge, so that few samples have a fit.
        Raises:
            NotPositiveDefiniteError: too few or degenerate samples: a C_{S_j S_j} is singular to working precision, or
                no Gaussian on the graph has these moments.
        Cost: Σ_j (N |S_j|² + |S_j|³) flops; or the moments, and a few hundred selected inverses for each C.
        """
        function = "fit"
        require_topology(function, topology)
        samples, dtype = as_numbers(function, "samples", samples)
        if samples.shape[-1:] != (topology.n,):
            raise ShapeError(f"fit: samples must end in {topology.n}, the nodes, got shape {samples.shape}.")
        if samples.ndim < 2 or not samples.shape[-2]:
            raise ShapeError(f"fit: samples must be (..., N, {topology.n}) with N ≥ 1, got shape {samples.shape}.")
        mean, factor, pattern = selection.most_likely(topology, samples, ridge)
        loc, factor = (array.astype(widest(dtype)) for array in (mean, factor))
        return cls._made(function, loc, factor, topology, pattern)

    # ------------------------------------------------------------------ float64 scalars a batch element

    def _square_of(self, d: FloatArray) -> FloatArray:
        """dᵀ P d."""
        return square_norm(self.whiten(d))

    def _logdet(self) -> FloatArray:
        return linalg.logdet(self.factor_pattern, self.factor, np.float64)


def require_arrays(function: str, *given: object) -> None:
    """Raise a TypeError unless each is a Gaussian of arrays."""
    for each in given:
        if not isinstance(each, GaussianGraphicalModel):
            found = checks.found_instead(each)
            raise TypeError(f"{function}: needs a GaussianGraphicalModel of arrays, got {found}.")


def kl_to_standard_normal(
    pattern: Pattern, loc: FloatArray, factor: FloatArray, function: str = "kl_to_standard_normal"
) -> FloatArray:
    """KL(N(loc, P⁻¹) ‖ N(0, I)) = ½ [tr Σ + |loc|² − n + log det P], nats, everything in the pattern's numbering.

    Args:
        pattern: of L.
        loc, factor: (..., n) and (..., nnz); batch axes broadcast.
        function: the name that error messages begin with.
    Cost: the marginal variances; the sums are formed in float64.
    """
    checks.check(function, pattern, packed={"factor": factor}, loc=loc)
    trace = _trace_inverse(function, pattern, factor)  # tests every value of the factor
    kl = 0.5 * (trace + square_norm(loc) - pattern.n + linalg.logdet(pattern, factor, np.float64))
    return checks.require_representable(function, kl, factor.dtype, loc=loc)


def _trace_inverse(function: str, pattern: Pattern, factor: FloatArray) -> FloatArray:
    """tr Σ in float64."""
    with checks.speaking_as(function, "marginal_variances"):
        variances = linalg.marginal_variances(pattern, factor)
    with np.errstate(over="ignore"):  # `checks.require_representable` tests for infinity
        return cast(FloatArray, variances.sum(axis=-1, dtype=np.float64))


def square_norm(x: FloatArray) -> FloatArray:
    """‖x‖² over the last axis, in float64, without a copy of x."""
    return cast(FloatArray, np.einsum("...i,...i->...", x, x, dtype=np.float64))


def _shape_of(function: str, size: Any) -> Shape:
    """The shape for `size`, which is a number or a shape of samples."""
    sides = tuple(size) if isinstance(size, Iterable) else (size,)
    if any(isinstance(side, bool) or not hasattr(side, "__index__") or side < 0 for side in sides):
        raise ShapeError(f"{function}: size must be a nonnegative integer, or a shape of them, got {size!r}.")
    return tuple(map(int, sides))
