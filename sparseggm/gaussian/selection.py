"""Covariance selection: the precision on a graph whose inverse agrees with given moments on the graph.

It minimises tr(P S) − log det P over the P ≻ 0 on the graph, where S is given on the graph alone; so it has the
greatest likelihood, and belongs to the Gaussian on the graph that is nearest in KL [Dempster 1972]. Where the graph is
chordal in its order, each column of L is a regression: see `fitting`. Elsewhere Newton's method finds it [Dahl,
Vandenberghe & Roychowdhury 2008]: the gradient is S − Σ, the Hessian V ↦ Σ V Σ on the graph, which is the derivative
of the selected inverse.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from sparseggm import linalg
from sparseggm.errors import NonPositiveError, NotPositiveDefiniteError
from sparseggm.gaussian.fitting import Words, columns_of_factor, mean_and_covariance, of_samples
from sparseggm.graph.pattern import FloatArray, Pattern
from sparseggm.graph.topology import Topology
from sparseggm.linalg import calculus, checks

TOLERANCE = 1e-8
"""Largest |S_ij − Σ_ij| / √(S_ii S_jj) at the end."""

MOST_STEPS, MOST_PRODUCTS = 100, 500
"""Newton steps, and Hessian products in one of them."""

QUADRATIC = 0.25
"""Newton decrement below which the full step stays in the cone, and converges [Boyd & Vandenberghe 2004, §9.6.4]."""


def most_likely(topology: Topology, samples: FloatArray, ridge: float) -> tuple[FloatArray, FloatArray, Pattern]:
    """Mean, L and its pattern for samples (..., N, n), in float64; variances are multiplied by 1 + ridge.

    Raises, beside `mean_and_covariance` and `factor_of_moments`:
        NonPositiveError: the ridge is negative, or not finite.
    """
    if not 0.0 <= ridge < math.inf:
        raise NonPositiveError(f"fit: ridge must be finite and ≥ 0, got {ridge}.")
    mean, covariance = mean_and_covariance(topology, samples)
    covariance[..., topology.precision_pattern.diagonal] *= 1.0 + ridge
    words = of_samples(samples.shape[-2])
    if topology.is_factor_free:
        return mean, columns_of_factor(topology, covariance, words), topology.factor_pattern
    pattern = topology.precision_pattern.filled()
    remedy = f"More than {pattern.longest_column} samples, the longest column of L, suffice; so does a ridge."
    return mean, factor_of_moments(topology, covariance, words._replace(remedy=remedy)), pattern


def factor_of_moments(topology: Topology, covariance: FloatArray, words: Words) -> FloatArray:
    """L (..., nnz) on `topology.precision_pattern.filled()` with (L Lᵀ)⁻¹ = S on the graph, in float64.

    Args:
        covariance: (..., nnz) finite values of S on `topology.precision_pattern`, in float64.
    Raises:
        NotPositiveDefiniteError: no P has these moments, or none was found in `MOST_STEPS`.
    Cost: on a chordal graph in its order Σ_j |S_j|³; else some ten Newton steps, each of ten to a hundred Hessian
        products; a product costs some four selected inverses.
    """
    pattern, fill = topology.precision_pattern, topology.precision_pattern.filled()
    require_correlations(topology, covariance, words)
    if fill is pattern:
        return columns_of_factor(topology, covariance, words, pattern)  # type: ignore[no-any-return]
    batch_shape = covariance.shape[:-1]
    factor = np.empty((*batch_shape, fill.nnz))
    for index in np.ndindex(batch_shape):
        scale = np.sqrt(covariance[index].take(pattern.diagonal))
        correlation = covariance[index] / scale.take(pattern.rows) / scale.take(pattern.cols)
        found = _Newton(pattern, correlation).solved()
        if not found.is_solved:
            raise _failure(topology, found, index, words)
        factor[index] = found.factor / scale.take(fill.rows)
    return factor


def require_correlations(topology: Topology, covariance: FloatArray, words: Words) -> None:
    """Require positive variances, then correlations between −1 and 1 by more than rounding."""
    pattern = topology.precision_pattern
    variance = covariance.take(pattern.diagonal, axis=-1)
    deviation, is_edge = np.sqrt(variance.clip(0.0)), pattern.rows != pattern.cols
    limit = deviation.take(pattern.rows, axis=-1) * deviation.take(pattern.cols, axis=-1)
    bad = ~(is_edge | (covariance > 0.0))
    if not bad.any():
        bad = is_edge & ~(abs(covariance) < limit * (1.0 - 8.0 * np.finfo(np.float64).eps))
    if bad.any():
        *batch, entry = (int(axis) for axis in np.argwhere(bad)[0])
        value, most = covariance[(*batch, entry)], limit[(*batch, entry)]
        nodes = _nodes(topology, entry)
        what = (
            f"covariance of {nodes} is {value:.3g}, its limit {most:.3g}"
            if is_edge[entry]
            else (f"variance of {nodes} is {value:.3g}")
        )
        raise _refusal(f"the {what}", topology, entry, tuple(batch), words)


class Found(NamedTuple):
    """Where Newton's method ended."""

    factor: FloatArray
    gap: FloatArray
    """(nnz,) R − Σ on the graph."""
    steps: int

    @property
    def is_solved(self) -> bool:
        return bool(abs(self.gap).max() <= TOLERANCE)


@dataclass
class _Newton:
    """Newton's method from P = I for correlations R on a pattern that is not closed."""

    pattern: Pattern
    correlation: FloatArray

    def __post_init__(self) -> None:
        self._fill = self.pattern.filled()
        self._places = self.pattern.positions_in(self._fill)
        self._twice = self.pattern.multiplicity

    def solved(self) -> Found:
        """L with (L Lᵀ)⁻¹ = R on the pattern, or what was reached."""
        precision = (self.pattern.rows == self.pattern.cols).astype(np.float64)
        factor, before = linalg.cholesky(self.pattern, precision), np.inf
        for step in range(MOST_STEPS):
            sigma = linalg.selected_inverse(self._fill, factor).take(self._places)
            found = Found(factor, self.correlation - sigma, step)
            worst = float(abs(found.gap).max())
            if found.is_solved or not np.isfinite(worst):
                return found
            move, decrement = self._direction(factor, sigma, found.gap, worst)
            if decrement < TOLERANCE and worst > 0.5 * before:  # rounding alone is left
                return found
            reached = self._step(precision, factor, move, decrement)
            if reached is None:
                return found
            (precision, factor), before = reached, worst
        return found

    def _direction(
        self, factor: FloatArray, sigma: FloatArray, gap: FloatArray, worst: float
    ) -> tuple[FloatArray, float]:
        """Conjugate gradients for H V = −(gradient), and the decrement √(Vᵀ H V), in the stored entries.

        Preconditioned by the diagonal of H: Σ_ii² for a variance, 2 (Σ_ii Σ_jj + Σ_ij²) for an edge. The residual
        falls to √worst of the gradient's, so that the steps converge superlinearly.
        """
        pattern, variance = self.pattern, sigma.take(self.pattern.diagonal)
        pairs = variance.take(pattern.rows) * variance.take(pattern.cols)
        diagonal = np.where(pattern.rows == pattern.cols, pairs, 2.0 * (pairs + sigma**2))
        residual = -self._twice * gap
        move = np.zeros_like(residual)
        direction = residual / diagonal
        size = first = float(residual @ direction)
        for _ in range(MOST_PRODUCTS):
            product = self._hessian(factor, direction)
            along = size / float(direction @ product)
            move += along * direction
            residual = residual - along * product
            before, size = size, float(residual @ (residual / diagonal))
            if size <= min(0.0625, worst) * first:
                break
            direction = residual / diagonal + size / before * direction
        return move, float(np.sqrt(max(0.0, -(self._twice * gap) @ move)))

    def _hessian(self, factor: FloatArray, v: FloatArray) -> FloatArray:
        """m (Σ V Σ) on the pattern, m = 2 off the diagonal: minus the adjoint of P ↦ Σ, which is its own."""
        wide = np.zeros(self._fill.nnz)
        wide[self._places] = self._twice * v
        factor_bar = calculus.selected_inverse_vjp(self._fill, factor, wide)
        return -calculus.cholesky_vjp(self._fill, factor, factor_bar, self.pattern)

    def _step(
        self, precision: FloatArray, factor: FloatArray, move: FloatArray, decrement: float
    ) -> tuple[FloatArray, FloatArray] | None:
        """P and L after the longest of the steps 1, ½, ¼, … that descends enough; None if rounding forbids all.

        1/(1 + decrement) is one that does, because −log det is self-concordant [Boyd & Vandenberghe 2004, §9.6.3].
        """
        start, length = self._value(precision, factor), 1.0
        while length > 0.25 / (1.0 + decrement):
            moved = precision + length * move
            trial, is_made = linalg.attempt_cholesky(self.pattern, moved)
            if is_made:
                descent = start - self._value(moved, trial)
                if decrement < QUADRATIC or descent >= 0.25 * length * decrement**2:
                    return moved, trial
            length *= 0.5
        return None

    def _value(self, precision: FloatArray, factor: FloatArray) -> float:
        """tr(P R) − log det P."""
        return float((self._twice * self.correlation) @ precision - linalg.logdet(self._fill, factor))


def _failure(topology: Topology, found: Found, index: tuple[int, ...], words: Words) -> NotPositiveDefiniteError:
    worst = int(np.argmax(abs(found.gap)))
    problem = (
        f"after {found.steps} Newton steps the correlation of {_nodes(topology, worst)} is off by "
        f"{abs(found.gap[worst]):.2g}, more than {TOLERANCE:g}"
    )
    return _refusal(problem, topology, worst, index, words)


def _refusal(
    problem: str, topology: Topology, entry: int, index: tuple[int, ...], words: Words
) -> NotPositiveDefiniteError:
    return NotPositiveDefiniteError(
        f"{words.function}: found no Gaussian on {topology} for {words.given}: {problem}{checks.in_batch(index)}. "
        f"{words.remedy}",
        batch_index=index,
        column=int(topology.precision_pattern.cols[entry]),
        pivot=float("nan"),
    )


def _nodes(topology: Topology, entry: int) -> str:
    pattern = topology.precision_pattern
    nodes = dict.fromkeys(int(topology.order[k]) for k in (pattern.cols[entry], pattern.rows[entry]))
    return " and ".join(f"node {node}" for node in nodes)
