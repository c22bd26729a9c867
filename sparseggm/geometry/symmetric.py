"""The centroid of Jeffreys' divergence, which lies between those of KL's two directions: docs/math.md, section 13."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from sparseggm import linalg
from sparseggm.errors import NotConvergedError, PatternError, in_batch
from sparseggm.gaussian.model import GaussianGraphicalModel
from sparseggm.geometry.conversions import from_coordinates, to_coordinates
from sparseggm.geometry.fisher import fisher_matmul, fisher_solve
from sparseggm.geometry.mixtures import e_geodesic, m_geodesic
from sparseggm.graph.graphs import Graph
from sparseggm.graph.pattern import FloatArray

TOLERANCE = 1e-8
"""Length of the last natural gradient, in a metric of Fisher: √nats."""

MOST_STEPS = 200

MEANS = 4
"""Arithmetic and harmonic means that are taken for the first point."""


class _Slope(NamedTuple):
    """At a point: the gradient of the objective by P, F_b⁻¹ times it, and the length of that."""

    gradient: FloatArray
    move: FloatArray
    length: FloatArray


def jeffreys_centroid(function: str, e: GaussianGraphicalModel, m: GaussianGraphicalModel) -> GaussianGraphicalModel:
    """The Gaussian c with the least KL(c ‖ e) + KL(m ‖ c), on the graph of both.

    With e and m the centroids of KL's two directions, Σ_k w_k J(c, p_k) is that and a constant. The best mean for a P
    is in closed form, so that P alone is sought: see `_slope`. The first step is of length ½, later ones are of that
    of [Barzilai & Borwein 1988]; a step that does not descend is halved.

    Raises:
        PatternError: the graph is not chordal in its order, so that F⁻¹ has no closed form.
        NotConvergedError: not reached in `MOST_STEPS`.
    """
    graph, dtype = e.graph, e.dtype
    if not graph.precision_pattern.is_closed:
        raise PatternError(
            f'{function}: "jeffreys" needs a union of the graphs that is chordal in its order, got {graph}.'
        )
    e, m = (_on_closed_factor(g._in_dtype(np.dtype(np.float64))) for g in (e, m))
    c = _first(e, m)
    value, slope = _value(c, e, m), _slope(c, e, m)
    rate = np.full(value.shape, 0.5)
    for _ in range(MOST_STEPS):
        if (slope.length <= TOLERANCE).all():
            loc, factor = c.loc.astype(dtype), c.factor.astype(dtype)
            return GaussianGraphicalModel._made(function, loc, factor, graph, c.factor_pattern)
        c, taken, value = _descended(c, e, m, slope, rate, value)
        before, slope = slope, _slope(c, e, m)
        rate = _next_rate(before, slope, taken)
    batch_index = tuple(int(k) for k in np.unravel_index(np.argmax(slope.length), slope.length.shape))
    raise NotConvergedError(
        f"{function}: found no Jeffreys centroid in {MOST_STEPS} steps: the natural gradient is still "
        f"{slope.length.max():.2g} long{in_batch(batch_index)}. Are the Gaussians nearly singular?"
    )


def _on_closed_factor(g: GaussianGraphicalModel) -> GaussianGraphicalModel:
    """The Gaussian on a graph whose own L has all entries of P: on an extended grid of two columns L has fewer."""
    graph = g.graph
    if graph.factor_pattern is graph.precision_pattern:
        return g
    return GaussianGraphicalModel.from_precision(
        g.loc, precision=g.precision, topology=Graph(graph.n, graph.edges, graph.order)
    )


def _first(e: GaussianGraphicalModel, m: GaussianGraphicalModel) -> GaussianGraphicalModel:
    """Means of θ and of η of both, again and again: for a full family, without means, both tend to the centroid."""
    one, other = e.moved_to(np.zeros(e.n)), m.moved_to(np.zeros(e.n))
    for _ in range(MEANS):
        one, other = e_geodesic(one, other, 0.5), m_geodesic(one, other, 0.5)
    return _with_best_mean(one, e, m)


def _with_best_mean(
    c: GaussianGraphicalModel, e: GaussianGraphicalModel, m: GaussianGraphicalModel
) -> GaussianGraphicalModel:
    """loc = (P_e + P_c)⁻¹ (P_e loc_e + P_c loc_m)."""
    return c.moved_to(e.product(c.moved_to(m.loc)).loc)


def _value(c: GaussianGraphicalModel, e: GaussianGraphicalModel, m: GaussianGraphicalModel) -> FloatArray:
    return np.asarray(c.kl_divergence(e) + m.kl_divergence(c))


def _slope(c: GaussianGraphicalModel, e: GaussianGraphicalModel, m: GaussianGraphicalModel) -> _Slope:
    """By P, where c has the best mean: g = F_c (P_c − P_e) + W (Σ_c − S), S = Σ_m + (loc_m − loc)(loc_m − loc)ᵀ.

    The direction is F_b⁻¹ g, with b halfway from c to the Gaussian of S in regression coordinates: there 2 F_b is the
    Hessian, if all are of one variable.
    """
    zero, graph = np.zeros(c.n), c.graph
    c0, about = c.moved_to(zero), m.moved_to(m.loc - c.loc)
    (_, own), (_, target) = (to_coordinates(g, "expectation") for g in (c0, about))
    from_e = fisher_matmul(c0, zero, c.precision - e.precision, "natural").values
    gradient = from_e - 0.5 * graph.precision_pattern.multiplicity * (own - target)
    ends = c0, from_coordinates(zero, target, graph, "expectation")
    one, other = (to_coordinates(g, "regression").values for g in ends)
    b = from_coordinates(zero, 0.5 * (one + other), graph, "regression")
    move = fisher_solve(b, zero, gradient, "natural").values
    return _Slope(gradient, move, np.sqrt((gradient * move).sum(axis=-1).clip(0.0)))


def _descended(
    c: GaussianGraphicalModel,
    e: GaussianGraphicalModel,
    m: GaussianGraphicalModel,
    slope: _Slope,
    rate: FloatArray,
    value: FloatArray,
) -> tuple[GaussianGraphicalModel, FloatArray, FloatArray]:
    """The point after the longest of the steps ρ, ρ/2, ρ/4, … that stays in the cone and descends; ρ; the value."""
    rounding = 1e-13 * (c.n + value)
    while True:
        trial, is_made = _moved(c, slope.move, rate)
        trial = _with_best_mean(trial, e, m)
        reached = _value(trial, e, m)
        is_lower = is_made & (reached <= value + rounding)
        if is_lower.all():
            return trial, rate, reached
        rate = np.where(is_lower, rate, 0.5 * rate)


def _moved(
    c: GaussianGraphicalModel, move: FloatArray, rate: FloatArray
) -> tuple[GaussianGraphicalModel, npt.NDArray[np.bool_]]:
    """The Gaussian with P_c − ρ move, or c where that is not positive definite; and where it is."""
    pattern = c.graph.precision_pattern
    tried, is_made = linalg.attempt_cholesky(pattern, c.precision - rate[..., None] * move)
    factor = np.where(np.asarray(is_made)[..., None], tried, c.factor)
    return GaussianGraphicalModel._made("centroid", c.loc, factor, c.graph, c.factor_pattern), np.asarray(is_made)


def _next_rate(before: _Slope, after: _Slope, rate: FloatArray) -> FloatArray:
    """sᵀ F_b s / sᵀ y of the last step s and the change y of the gradient, in [0.001, 1]."""
    square = before.length**2
    curvature = square - (after.gradient * before.move).sum(axis=-1)
    longest = np.maximum(curvature, rate * square)
    return np.asarray((rate * square / np.where(longest > 0.0, longest, 1.0)).clip(1e-3, 1.0))
