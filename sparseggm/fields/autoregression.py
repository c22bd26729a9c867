"""Stationary autoregressions of any order, as a Gaussian of the series itself on a band.

    x_t − loc = Σ_k φ_k (x_{t−k} − loc) + ε_t,    ε_t ~ N(0, σ²),    k = 1 … p

In companion form the states of an AR(p) share p − 1 numbers with the states before, so that Q is singular. The series
has a density: its precision is banded, of width p, with an exact stationary start. Eliminated backwards in time, column
t of the factor holds (1, −φ_1, …, −φ_p) / σ; the first p columns hold the regressions of lower orders, which the
Levinson–Durbin recursion gives backwards [Brockwell & Davis 1991, §5.2]:

    φ^{k−1}_j = (φ^k_j + r_k φ^k_{k−j}) / (1 − r_k²),    σ²_{k−1} = σ²_k / (1 − r_k²),    r_k = φ^k_k.

The r_k are the partial autocorrelations. The model is stationary where all |r_k| < 1.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from sparseggm.errors import NonPositiveError, PatternError, ShapeError
from sparseggm.fields.parameters import (
    common_batch,
    expanded,
    gaussian_of_factor,
    parameters,
    require_between,
    require_positive,
)
from sparseggm.graph.edges import require_positive as require_sizes
from sparseggm.graph.families import Band, Chain
from sparseggm.graph.topology import Topology
from sparseggm.linalg import checks
from sparseggm.positivity.namespace import Array, array_namespace, as_array, known_to_fail, scatter


class Autoregression:
    """A stationary AR(p) of `steps` = T numbers: node t is x_t.

    Args:
        steps: T, more than the order.
        order: p.
    `topology` is `Chain(T)` for p = 1, else `Band(T, p)`, eliminated backwards.
    """

    topology: Topology

    def __init__(self, steps: int, order: int = 1) -> None:
        require_sizes("Autoregression", steps=steps, order=order)
        if order >= steps:
            raise PatternError(f"Autoregression: steps must exceed the order {order}, got {steps}.")
        self.steps, self.order = int(steps), int(order)
        backwards = range(steps)[::-1]
        self.topology = Chain(steps, order=backwards) if order == 1 else Band(steps, order, order=backwards)

    def __repr__(self) -> str:
        return f"Autoregression(steps={self.steps}, order={self.order})"

    def prior(self, coefficients: Any, variance: Any, loc: Any = 0.0) -> Any:
        """The Gaussian of the series, in NumPy, or in torch if a parameter is a tensor.

        Args:
            coefficients: φ, (..., p); a number for p = 1. `from_partial` gives stationary ones.
            variance: σ² of ε, (...).
            loc: mean of the series, a number or (..., T).
        Raises:
            NonPositiveError: the coefficients are not stationary: it names the first |r_k| ≥ 1 that is met.
        Cost: O(T p).
        """
        function = "Autoregression.prior"
        coefficients, variance, loc = parameters(function, coefficients=coefficients, variance=variance, loc=loc)
        coefficients = self._checked(function, "coefficients", coefficients)
        require_positive(function, variance=variance)
        factor = self._factor(function, coefficients, variance)
        loc = expanded(loc, (self.steps,)) if loc.ndim == 0 else loc
        return gaussian_of_factor(factor, loc, self.topology)

    def from_partial(self, partial: Any) -> Array:
        """φ (..., p) from partial autocorrelations r in (−1, 1): a bijection onto the stationary models.

        As r = tanh(θ) a gradient step can never leave them.
        """
        function = "Autoregression.from_partial"
        (partial,) = parameters(function, partial=partial)
        partial = self._checked(function, "partial", partial)
        require_between(function, "partial", partial, -1.0, 1.0)
        xp, phi = array_namespace(partial), partial[..., :1]
        for k in range(1, self.order):
            r = partial[..., k : k + 1]
            phi = xp.concatenate([phi - r * xp.flip(phi, (-1,)), r], -1)
        return phi

    def _checked(self, function: str, name: str, value: Array) -> Array:
        value = value[None] if value.ndim == 0 and self.order == 1 else value
        if tuple(value.shape[-1:]) != (self.order,):
            raise ShapeError(f"{function}: {name} must end in {self.order}, got shape {tuple(value.shape)}.")
        return value

    def _factor(self, function: str, coefficients: Array, variance: Array) -> Array:
        """Column t: (1, −φ_1, …, −φ_k) / σ_k with k = min(t, p), rows t, t − 1, …"""
        xp, T, p = array_namespace(coefficients), self.steps, self.order
        batch = common_batch(function, coefficients=coefficients.shape[:-1], variance=variance.shape)
        columns = self._regressions(function, coefficients, variance)
        last = expanded(columns[-1][..., None, :], (*batch, T - p, p + 1)).reshape(*batch, (T - p) * (p + 1))
        parts, rows, cols = [last], [np.arange(p, T)[:, None] - np.arange(p + 1)], [np.arange(p, T).repeat(p + 1)]
        for t in range(p):
            parts.append(expanded(columns[t], (*batch, t + 1)))
            rows.append(t - np.arange(t + 1))
            cols.append(np.full(t + 1, t))
        states, equations = (np.concatenate([part.ravel() for part in each]) for each in (rows, cols))
        positions = self.topology.factor_pattern.positions_of(T - 1 - states, T - 1 - equations)
        return scatter([(positions, xp.concatenate(parts, -1))], len(positions))

    def _regressions(self, function: str, phi: Array, variance: Array) -> list[Array]:
        """(1, −φ^k) / σ_k, (..., k + 1), for k = 0 … p."""
        xp, scale, columns = array_namespace(phi), variance, []
        one = xp.ones_like(phi[..., :1])
        for k in range(self.order, -1, -1):
            columns.append(xp.concatenate([one, -phi], -1) / xp.sqrt(scale)[..., None])
            if k:
                r = phi[..., -1:]
                self._require_stationary(function, k, r)
                rest, shrink = phi[..., :-1], (1 - r) * (1 + r)
                phi = (rest + r * xp.flip(rest, (-1,))) / shrink
                scale = scale / shrink[..., 0]
        return columns[::-1]

    def _require_stationary(self, function: str, k: int, r: Array) -> None:
        stationary = array_namespace(r).abs(r) < 1
        if known_to_fail(stationary):
            found = as_array(r)[..., 0]
            index = tuple(int(axis) for axis in np.argwhere(~(abs(found) < 1))[0])
            raise NonPositiveError(
                f"{function}: coefficients must be stationary, got partial autocorrelation {found[index]:.6g} of order "
                f"{k}{checks.in_batch(index)}. from_partial gives stationary ones, where rounding leaves them so; "
                "local_level is a random walk."
            )
