"""Straight lines and means, in natural parameters (h, P) = (P loc, P) and in expectation parameters (E z, E z zᵀ).

Natural parameters of Gaussians on graphs stay on the union of the graphs; so do e-geodesics and e-means. A mixture of
expectation parameters is known on that union, and the Gaussian on it that has them is its projection.
"""

from __future__ import annotations

import operator
from functools import reduce
from typing import Any

import numpy as np
import numpy.typing as npt

from sparseggm.errors import NotPositiveDefiniteError
from sparseggm.gaussian.potentials import added
from sparseggm.geometry.kinds import Gaussian, kind_of, require_finite, together
from sparseggm.geometry.projection import Moments, moments_on, projected
from sparseggm.graph.topology import Topology
from sparseggm.linalg import checks
from sparseggm.positivity.namespace import Array, in_dtype_of, take


def e_geodesic(q: Gaussian, p: Gaussian, t: npt.ArrayLike) -> Gaussian:
    """The Gaussian with natural parameters (1 − t) θ_q + t θ_p, on the union of the graphs.

        P = (1 − t) P_q + t P_p,      loc = loc_q + t P⁻¹ P_p (loc_p − loc_q).

    Args:
        t: number, or an array that broadcasts against the batch axes; beyond [0, 1] as far as P ≻ 0.
    Raises:
        NotPositiveDefiniteError: P at t is not positive definite to working precision.
    Cost: two Gram products, one factorisation on the union and its two solves. Error: as `product`.
    """
    q, p = together("e_geodesic", q, p)
    return of_natural("e_geodesic", [q, p], _ends("e_geodesic", q, t))  # type: ignore[no-any-return]


def m_geodesic(q: Gaussian, p: Gaussian, t: npt.ArrayLike) -> Gaussian:
    """The Gaussian on the union of the graphs with expectation parameters (1 − t) η_q + t η_p there.

        loc = (1 − t) loc_q + t loc_p,      Σ = (1 − t) Σ_q + t Σ_p + t (1 − t) d dᵀ on the graph,   d = loc_p − loc_q.

    Args:
        t: number, or an array that broadcasts against the batch axes; beyond [0, 1] as far as a Gaussian has Σ.
    Raises:
        NotPositiveDefiniteError: no Gaussian on the graph has these moments.
    Cost: two selected inverses, and one `project`. Error: as `project`.
    """
    q, p = together("m_geodesic", q, p)
    return of_expectation("m_geodesic", [q, p], _ends("m_geodesic", q, t))  # type: ignore[no-any-return]


def _ends(function: str, q: Any, t: npt.ArrayLike) -> list[Array]:
    """1 − t and t."""
    (at,) = kind_of(q.loc).numbers(function, q.loc, t=t)
    at = in_dtype_of(at, q.loc)
    require_finite(function, "t", at[..., None])
    return [1 - at, at]


def of_natural(function: str, gaussians: list[Any], weights: list[Array]) -> Any:
    """The Gaussian of Σ_k w_k θ_k; its mean is that of the first and a move, which keeps the digits of a far mean."""
    first, kind = gaussians[0], kind_of(gaussians[0].loc)

    def add(sum_: tuple[Topology, Array], more: tuple[Topology, Array]) -> tuple[Topology, Array]:
        return added(*sum_, *more, kind.joint_graph)

    with np.errstate(over="ignore"):  # the factorisation tests for infinity
        shares = [weight[..., None] for weight in weights]
        scaled = [(g.graph, w * g.precision) for g, w in zip(gaussians, shares, strict=True)]
        graph, precision = reduce(add, scaled)
        pulls = [w * kind.gradient_at(function, g, first.loc) for g, w in zip(gaussians, shares, strict=True)]
        pull = reduce(operator.add, pulls)
    try:
        return kind.of_information(function, pull, precision, graph, first.loc)
    except NotPositiveDefiniteError as failure:
        if all((weight >= 0).all() for weight in weights):
            raise
        raise _outside(function, weights[1], failure) from None


def _outside(function: str, t: Array, failure: NotPositiveDefiniteError) -> NotPositiveDefiniteError:
    return failure.saying(
        f"{function}: t must be in [0, 1], or so near that a Gaussian is there, got t from {t.min():.4g} to "
        f"{t.max():.4g}, where one is not{checks.in_batch(failure.batch_index)}."
    )


def of_expectation(function: str, gaussians: list[Any], weights: list[Array]) -> Any:
    """The Gaussian of Σ_k w_k η_k on the union of the graphs."""
    joint_graph = kind_of(gaussians[0].loc).joint_graph
    graph = reduce(lambda one, two: joint_graph(one, two)[0], (g.graph for g in gaussians))
    shares = [weight[..., None] for weight in weights]
    with np.errstate(over="ignore", invalid="ignore"):  # `projected` tests for infinity
        loc = _sum(w * (g.loc - gaussians[0].loc) for g, w in zip(gaussians, shares, strict=True)) + gaussians[0].loc
        parts = [_about(loc, moments_on(g, graph), graph) for g in gaussians]
        variance = _sum(w * part.variance for part, w in zip(parts, shares, strict=True))
        covariance = _sum(w * part.covariance for part, w in zip(parts, shares, strict=True))
    try:
        mixture = Moments(loc, variance, covariance)
        return projected(function, mixture, graph, "Let t be in [0, 1], and variances well above rounding.")
    except NotPositiveDefiniteError as failure:
        if all((weight >= 0).all() for weight in weights):
            raise
        raise _outside(function, weights[1], failure) from None


def _about(loc: Array, own: Moments, graph: Topology) -> Moments:
    """Second moments about another point: Σ + (loc − point) (loc − point)ᵀ on the graph."""
    i, j = graph.edges.T
    d = own.loc - loc
    return Moments(loc, own.variance + d**2, own.covariance + take(d, i) * take(d, j))


def _sum(terms: Any) -> Array:
    return reduce(operator.add, terms)
