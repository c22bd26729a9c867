"""`constrain`: a Gaussian given A z = e exactly, for a few rows A, which may be dense, such as a sum that is zero.

With S = Σ Aᵀ and G = A Σ Aᵀ, dense (k, k): N(loc + S G⁻¹ (e − A loc), Σ − S G⁻¹ Sᵀ), and any sample of the Gaussian is
moved to one of the constrained by z − S G⁻¹ (A z − e), conditioning by kriging [Rue & Held 2005, Alg. 2.6]. So nothing
but L is factorised. One implementation serves arrays and tensors.
"""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import numpy.typing as npt

from sparseggm.errors import NonFiniteError, NotPositiveDefiniteError, PatternError, ShapeError, in_batch
from sparseggm.fields.parameters import own
from sparseggm.gaussian.designs import Design
from sparseggm.gaussian.linear import Gaussian, observation_of, representable
from sparseggm.kernels.sparse.density import LOG_2PI
from sparseggm.linalg import checks
from sparseggm.positivity.namespace import (
    Array,
    array_namespace,
    as_array,
    constant_like,
    in_dtype_of,
    in_float64,
    known_to_fail,
    refuse_transforms,
    unit_roundoff,
)


def constrain(g: Gaussian, matrix: Any, values: Any) -> Constrained:
    """The Gaussian of z given A z = e.

    Args:
        g: a GaussianGraphicalModel, of arrays or tensors.
        matrix: A (k, n), of scipy.sparse or dense, in the caller's numbering of nodes. Rows may be dense, k is small.
        values: e, broadcast to (..., k).
    Raises:
        PatternError: rows that are linearly dependent: redundant, or contradictory. The test is that of
            `numpy.linalg.matrix_rank` for rows of length 1: σ_min ≤ max(k, n) ε σ_max.
        NotPositiveDefiniteError: A Σ Aᵀ is singular to working precision.
        NonFiniteError: A Σ Aᵀ is beyond the normal numbers of the dtype, above or below.
    Cost: 2 k solves with L, and k² n + k³ flops.
    """
    return Constrained(g, matrix, values)


class Constrained:
    """A Gaussian on the subspace A z = e: see `constrain`."""

    def __init__(self, g: Gaussian, matrix: Any, values: Any) -> None:
        function = "constrain"
        checks.require_gaussian(function, "g", g)
        refuse_transforms(function, g.loc)
        design = Design(function, matrix, g.topology.n)
        dense = np.zeros(design.shape)
        dense[design.rows, design.cols] = design.entries
        # Integers take the dtype of the Gaussian.
        self.gaussian, (a, e) = g._promoted(function, matrix=dense.astype(design.entries.dtype), values=values)
        if tuple(e.shape[-1:]) not in ((), (1,), design.shape[:1]):
            raise ShapeError(f"{function}: values must broadcast to (..., {len(dense)}), got shape {tuple(e.shape)}.")
        self.matrix, self.values = own(a), array_namespace(e).broadcast_to(own(e), (*e.shape[:-1], len(dense)))
        checks.broadcast(function, values=tuple(self.values.shape[:-1]), gaussian=tuple(g.batch_shape))
        if known_to_fail(array_namespace(e).isfinite(e)):
            raise NonFiniteError(f"{function}: values must be finite, got NaN or infinity.")
        _require_rank(function, dense, as_array(self.values))
        self._prepare(function)

    def _prepare(self, function: str) -> None:
        """S = Σ Aᵀ, G = A Σ Aᵀ, and the mean."""
        g, a = self.gaussian, self.matrix
        xp, loc = array_namespace(a), g.loc
        batch = g.covariance_matmul(a.reshape(len(a), *(1,) * len(g.batch_shape), a.shape[-1]))  # (k, ..., n)
        self._spread = xp.moveaxis(batch, 0, -2)  # (..., k, n): Sᵀ
        with np.errstate(over="ignore", invalid="ignore"):  # tested below
            self._gram = self._spread @ a.T
        self._require_normal(function)
        scale = xp.sqrt(xp.diagonal(self._gram, 0, -2, -1))
        correlation = self._gram / scale[..., :, None] / scale[..., None, :]
        try:
            root = xp.linalg.cholesky(correlation)
        except xp.linalg.LinAlgError:
            root = constant_like(correlation, _roots_as_far_as_they_go(as_array(correlation)))
        pivots, k = xp.diagonal(root, 0, -2, -1), len(a)
        fits = pivots**2 > k * (k + 1) * unit_roundoff(a)
        if known_to_fail(fits):
            *batch, row = (int(place) for place in np.argwhere(~as_array(fits))[0])
            raise NotPositiveDefiniteError(
                f"{function}: A Σ Aᵀ is singular to working precision{in_batch(tuple(batch))}: the Gaussian determines "
                "a combination of rows already. Leave one out, or use float64.",
                batch_index=tuple(batch),
                column=row,
                pivot=float(pivots[(*batch, row)]) ** 2,
            )
        self._half_logdet = (xp.log(in_float64(pivots)) + xp.log(in_float64(scale))).sum(-1)
        self.mean = own(self._moved_twice(function, loc))

    def _require_normal(self, function: str) -> None:
        """Raise where products of G overflow, or fall among subnormal numbers, which have fewer digits."""
        xp = array_namespace(self._gram)
        limits = xp.finfo(self._gram.dtype)
        fits = xp.isfinite(self._gram).all(-1) & (xp.diagonal(self._gram, 0, -2, -1) >= limits.tiny / limits.eps)
        if known_to_fail(fits):
            row = int(np.nonzero(~as_array(fits))[-1][0])
            raise NonFiniteError(
                f"{function}: A Σ Aᵀ must be in the range of {self._gram.dtype}, got numbers beyond it in row {row}. "
                "Divide this row of the matrix, and its value, by its largest entry."
            )

    def __repr__(self) -> str:
        return f"Constrained({self.gaussian!r}, {len(self.matrix)} rows)"

    def project(self, z: Any) -> Array:
        """z − S G⁻¹ (A z − e): a sample of g becomes one of this Gaussian, its mean this mean.

        Done twice, so that A z = e to γ_n (|A| |z| + |e|) though G is solved with fewer digits.
        """
        return self._moved_twice("project", self._points("project", z)[1])

    def _points(self, function: str, x: Any) -> tuple[Gaussian, Array]:
        """The Gaussian and (..., n) finite numbers in one dtype."""
        g, (point,) = self.gaussian._promoted(function, x=x)
        if tuple(point.shape[-1:]) != (g.topology.n,):
            raise ShapeError(f"{function}: needs points that end in {g.topology.n}, got shape {tuple(point.shape)}.")
        if known_to_fail(array_namespace(point).isfinite(point)):
            raise NonFiniteError(f"{function}: needs finite points, got NaN or infinity.")
        checks.broadcast(function, points=tuple(point.shape[:-1]), gaussian=tuple(self.mean.shape[:-1]))
        return g, point

    def _moved_twice(self, function: str, z: Array) -> Array:
        with np.errstate(over="ignore", invalid="ignore"):  # tested below
            moved = self._moved(self._moved(z))
        return representable(function, moved)

    def _moved(self, z: Array) -> Array:
        a, e, gram, spread = (constant_like(z, each) for each in (self.matrix, self.values, self._gram, self._spread))
        weights = array_namespace(z).linalg.solve(gram, (z @ a.T - e)[..., None])
        return z - (weights * spread).sum(-2)

    @property
    def variance(self) -> Array:
        """diag (Σ − S G⁻¹ Sᵀ), (..., n); zero where a node is determined.

        Error: a few γ_n of Σ_ii, as a difference of two numbers of that size; never below zero.
        """
        xp = array_namespace(self._spread)
        known = (self._spread * xp.linalg.solve(self._gram, self._spread)).sum(-2)
        variance = self.gaussian.variance - known
        return representable("variance", xp.where(variance < 0, xp.zeros_like(variance), variance))  # NaN is not zero

    def sample(self, *args: Any, **options: Any) -> Array:
        """Samples, size + batch_shape + (n,), of the arguments that the Gaussian's own `sample` takes.

        The batch is that of Gaussian and values together. Differentiable samples of tensors: `project(g.rsample())`.
        """
        g = self.gaussian
        if tuple(g.batch_shape) != tuple(self.mean.shape[:-1]):
            g = g.moved_to(array_namespace(g.loc).broadcast_to(g.loc, self.mean.shape))
        return self.project(g.sample(*args, **options))

    def log_prob(self, x: Any) -> Array:
        """log density at x (..., n) on the subspace, by its (n − k)-dimensional volume, nats; −∞ off the subspace.

            log N(x; loc, Σ) − log N(e; A loc, A Σ Aᵀ) − ½ log det A Aᵀ       [Rue & Held 2005, eq. 2.30]

        A point of the subspace has |A x − e| ≤ √u (|A| |x| + |e|).
        """
        g, point = self._points("log_prob", x)
        xp, a = array_namespace(point), constant_like(point, self.matrix)
        gap = point @ a.T - self.values
        size = abs(point) @ abs(a).T + abs(self.values)
        level = unit_roundoff(point) ** 0.5
        volume = 0.5 * xp.linalg.slogdet(in_float64(a @ a.T))[1]
        density = in_float64(g.log_prob(point)) - self.log_density - volume
        there = (abs(gap) <= level * size).all(-1)
        return in_dtype_of(xp.where(there, density, -float("inf")), point)

    @property
    def log_density(self) -> Array:
        """log N(e; A loc, A Σ Aᵀ), nats, float64: how likely the values were before they were known."""
        xp = array_namespace(self.matrix)
        with np.errstate(over="ignore", invalid="ignore"):  # tested below
            gap = in_float64(self.values - self.gaussian.loc @ self.matrix.T)
            square = (gap * xp.linalg.solve(in_float64(self._gram), gap[..., None])[..., 0]).sum(-1)
        return representable("log_density", -0.5 * (square + len(self.matrix) * LOG_2PI) - self._half_logdet)

    def observe(self, nodes: Any, values: Any, variance: Any) -> Constrained:
        """The posterior after what `GaussianGraphicalModel.observe` takes: observed first, then constrained."""
        posterior = observation_of("observe", self.gaussian, nodes).updated("observe", self.gaussian, values, variance)
        return Constrained(posterior, as_array(self.matrix), self.values)

    def log_evidence(self, nodes: Any, values: Any, variance: Any) -> Array:
        """log p(y | A z = e) = log p(y) + log p(e | y) − log p(e), nats."""
        before = self.gaussian.log_evidence(nodes, values, variance)
        after = self.observe(nodes, values, variance).log_density
        return in_dtype_of(in_float64(before) + after - self.log_density, before)


def _roots_as_far_as_they_go(matrices: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The Cholesky factor of each matrix, zero from the row on where there is none."""
    roots = np.zeros_like(matrices)
    for place in np.ndindex(matrices.shape[:-2]):
        with contextlib.suppress(np.linalg.LinAlgError):
            for rows in range(1, matrices.shape[-1] + 1):
                roots[(*place, slice(rows), slice(rows))] = np.linalg.cholesky(matrices[place][:rows, :rows])
    return roots


def _require_rank(function: str, dense: npt.NDArray[Any], values: npt.NDArray[Any]) -> None:
    """Raise unless the rows, each scaled to length 1, are linearly independent."""
    largest = abs(dense).max(axis=1, initial=0)
    if not largest.all():
        raise PatternError(f"{function}: row {int(np.argmin(largest))} of the matrix is zero. Leave it out.")
    length = largest * np.sqrt(((dense / largest[:, None]) ** 2).sum(axis=1))
    u, sigma, _ = np.linalg.svd(dense / length[:, None])
    limit = max(dense.shape) * np.finfo(np.float64).eps
    if len(dense) > dense.shape[1] or sigma[-1] <= limit * sigma[0]:
        combination = u[:, -1] / length
        rows = np.flatnonzero(abs(u[:, -1]) > 1e-8)
        total = abs(values @ combination).max(initial=0)
        kind = "redundant" if total <= 1e-8 * (abs(values) @ abs(combination)).max(initial=0) else "contradictory"
        raise PatternError(
            f"{function}: rows {', '.join(map(str, rows[:8]))} of the matrix are linearly dependent to working "
            f"precision, and {kind}: a combination of them is zero, that of their values is {total:.3g}. Leave one out."
        )
