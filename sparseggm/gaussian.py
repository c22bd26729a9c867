"""`GaussianGraphicalModel`: a batch of Gaussians N(loc, P⁻¹), P = L Lᵀ sparse, in NumPy.

Everything a caller gives or gets is in the caller's numbering of nodes; this class crosses the border to the
elimination order of the packed values, and turns a failing column into the caller's node. The mathematics is in
`linalg`; quantities are in nats, and every reduction is formed in float64.
"""

from __future__ import annotations

import math
from typing import Any, cast

import numpy as np

from sparseggm import checks, gershgorin, linalg
from sparseggm.checks import Shape
from sparseggm.errors import NotPositiveDefiniteError, PatternError
from sparseggm.graphs import Grid, Torus
from sparseggm.pattern import FloatArray, Pattern
from sparseggm.topology import ExtendedGrid, Topology

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

    def __init__(self, loc: FloatArray, *, factor: FloatArray, topology: Topology) -> None:
        self._set(loc, factor, topology, topology.factor_pattern)

    @classmethod
    def from_precision(cls, loc: FloatArray, *, precision: FloatArray, topology: Topology) -> GaussianGraphicalModel:
        """The Gaussians with precision P: (..., nnz) values on `topology.precision_pattern`, see `topology.pack`.

        Raises:
            NotPositiveDefiniteError: names batch index, node and pivot, and P's Gershgorin slack there.
        Cost: one `linalg.cholesky`.
        """
        pattern = topology.precision_pattern
        try:
            factor = linalg.cholesky(pattern, precision)
        except NotPositiveDefiniteError as failure:
            raise _named_by_node(failure, topology, precision) from None
        self = cls.__new__(cls)
        self._set(loc, factor, topology, pattern.filled())
        return self

    def _set(self, loc: FloatArray, factor: FloatArray, topology: Topology, pattern: Pattern) -> None:
        verb = type(self).__name__
        checks.check(verb, pattern, packed={"factor": factor}, loc=loc)
        self.batch_shape: Shape = checks.broadcast(verb, loc=loc.shape[:-1], factor=factor.shape[:-1])
        checks.require_finite(verb, "loc", None, loc)
        checks.require_finite(verb, "factor", pattern, factor)
        checks.require_positive_diagonal(verb, pattern, factor)
        self.loc, self.factor, self.topology, self.factor_pattern = loc, factor, topology, pattern

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.topology}, batch_shape={self.batch_shape}, dtype={self.dtype})"

    @property
    def n(self) -> int:
        """Number of nodes."""
        return self.topology.n

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
        if self.topology.is_naturally_ordered or x.shape[-1:] != (self.n,):  # a wrong shape is for the verb to name
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
        size = (size,) if isinstance(size, int) else tuple(size)
        rng = np.random.default_rng() if rng is None else rng
        noise = rng.standard_normal((*size, *self.batch_shape, self.n), dtype=self.dtype.type)
        return self.loc + self.colorize(noise)

    def log_prob(self, x: FloatArray) -> FloatArray:
        """log N(x; loc, P⁻¹) = ½ [log det P − ‖Lᵀ(x − loc)‖² − n log 2π], nats; batch axes of x (..., n) broadcast."""
        checks.check("log_prob", self.factor_pattern, x=x, loc=self.loc)
        return self._as_result(0.5 * (self._logdet() - _square(self.whiten(x - self.loc)) - self.n * LOG_2PI))

    def entropy(self) -> FloatArray:
        """½ [n (1 + log 2π) − log det P], nats, shape batch_shape."""
        entropy = 0.5 * (self.n * (1.0 + LOG_2PI) - self._logdet())
        return self._as_result(np.broadcast_to(entropy, self.batch_shape))

    def kl_divergence(self, other: GaussianGraphicalModel | None = None) -> FloatArray:
        """KL(self ‖ other), exact, in nats; batch axes broadcast. `other` None is the standard normal N(0, I).

            ½ [tr(P_p Σ_q) + (loc_p − loc_q)ᵀ P_p (loc_p − loc_q) − n + log det P_q − log det P_p]

        Σ_q is computed only where P_p is nonzero, on F = (S_q ∪ pattern of P_p).filled().
        Raises:
            PatternError: another topology, whose order of elimination may differ.
        Cost: one selected inverse on F; to N(0, I) the marginal variances.
        """
        if other is None:
            loc = self.loc if self.topology.is_naturally_ordered else self.loc[..., self.topology.order]
            return kl_to_standard_normal(self.factor_pattern, loc, self.factor)
        if other.topology != self.topology:
            raise PatternError(f"kl_divergence: needs two Gaussians on {self.topology}, got one on {other.topology}.")
        checks.check("kl_divergence", self.factor_pattern, loc=self.loc, other_loc=other.loc)
        trace = self._trace_against(other)
        square = _square(other.whiten(other.loc - self.loc))
        return self._as_result(0.5 * (trace + square - self.n + self._logdet() - other._logdet()))

    def _trace_against(self, other: GaussianGraphicalModel) -> FloatArray:
        """tr(P_p Σ_q) = Σ w P Σ over stored entries, w = 2 off the diagonal, in float64."""
        on = other.factor_pattern.gram()
        precision = linalg.gram(other.factor_pattern, other.factor).astype(np.float64)
        weighted = np.where(on.rows == on.cols, precision, 2.0 * precision)
        fill = self.factor_pattern.union(on).filled()
        sigma = linalg.selected_inverse(self.factor_pattern, self.factor, on=fill)[..., on.positions_in(fill)]
        return cast(FloatArray, np.einsum("...p,...p->...", weighted, sigma.astype(np.float64)))

    # ------------------------------------------------------------------ second moments

    @property
    def variance(self) -> FloatArray:
        """diag Σ, shape batch_shape + (n,), in the caller's numbering. Computed at each access."""
        variances = linalg.marginal_variances(self.factor_pattern, self.factor)[..., self.topology.inverse_order]
        return np.broadcast_to(variances, (*self.batch_shape, self.n)).copy()

    def trace_covariance(self) -> FloatArray:
        """tr Σ, shape batch_shape, exact."""
        return self._as_result(np.broadcast_to(self._trace(), self.batch_shape))

    # ------------------------------------------------------------------ float64 scalars a batch element

    def _logdet(self) -> FloatArray:
        return _logdet(self.factor_pattern, self.factor)

    def _trace(self) -> FloatArray:
        return _trace_inverse(self.factor_pattern, self.factor)

    def _as_result(self, nats: Any) -> FloatArray:
        return np.array(nats, dtype=self.dtype)


def kl_to_standard_normal(pattern: Pattern, loc: FloatArray, factor: FloatArray) -> FloatArray:
    """KL(N(loc, P⁻¹) ‖ N(0, I)) = ½ [tr Σ + |loc|² − n + log det P], nats, everything in the pattern's numbering.

    Args:
        pattern: of L.
        loc, factor: (..., n) and (..., nnz); batch axes broadcast.
    Cost: the marginal variances; the sums are formed in float64.
    """
    checks.check("kl_to_standard_normal", pattern, packed={"factor": factor}, loc=loc)
    trace = _trace_inverse(pattern, factor)  # tests every value of the factor
    kl = np.asarray(0.5 * (trace + _square(loc) - pattern.n + _logdet(pattern, factor)))
    if not np.isfinite(kl.sum()):
        checks.require_finite("kl_to_standard_normal", "loc", None, loc)
    return kl.astype(factor.dtype)


def _logdet(pattern: Pattern, factor: FloatArray) -> FloatArray:
    """2 Σ log L_jj in float64, diagonal known to be positive."""
    return cast(FloatArray, 2.0 * np.log(factor[..., pattern.diagonal], dtype=np.float64).sum(axis=-1))


def _trace_inverse(pattern: Pattern, factor: FloatArray) -> FloatArray:
    """tr Σ in float64."""
    return cast(FloatArray, linalg.marginal_variances(pattern, factor).sum(axis=-1, dtype=np.float64))


def _square(x: FloatArray) -> FloatArray:
    """‖x‖² over the last axis, in float64."""
    return cast(FloatArray, np.einsum("...i,...i->...", x, x, dtype=np.float64))


def _named_by_node(
    failure: NotPositiveDefiniteError, topology: Topology, precision: FloatArray
) -> NotPositiveDefiniteError:
    """The same failure in the caller's words: node, place on a grid, and what Gershgorin's theorem says of it."""
    node = int(topology.order[failure.column])
    slack = gershgorin.slack(topology.precision_pattern, precision[failure.batch_index])[failure.column]
    return NotPositiveDefiniteError(
        f"GaussianGraphicalModel.from_precision: not positive definite: pivot {failure.pivot:.3g} at node {node}"
        f"{_place(topology, node)}{checks.in_batch(failure.batch_index)}; its Gershgorin slack is {slack:.3g}. "
        "Raise the diagonal, or use parametrize.dominant, which guarantees P ≻ 0.",
        batch_index=failure.batch_index,
        column=failure.column,
        pivot=failure.pivot,
    )


def _place(topology: Topology, node: int) -> str:
    """Where a node is, in words: row and column on a lattice of two dimensions."""
    if isinstance(topology, ExtendedGrid):
        row, col = divmod(node, topology.cols)
    elif isinstance(topology, Grid | Torus) and len(topology.shape) == 2:
        row, col = divmod(node, topology.shape[1])
    else:
        return f" of {topology}"
    return f" (row {row}, column {col} of {topology})"
