"""Jeffreys' divergence, and bounds of the distance of Fisher and Rao, which has no closed form between Gaussians."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from functools import reduce
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from sparseggm import linalg
from sparseggm.errors import ShapeError
from sparseggm.gaussian.factored import trace_positions
from sparseggm.gaussian.model import GaussianGraphicalModel, require_gaussians
from sparseggm.gaussian.potentials import added
from sparseggm.geometry.mixtures import e_geodesic
from sparseggm.graph.pattern import FloatArray
from sparseggm.graph.topology import Topology
from sparseggm.linalg import checks


def jeffreys(q: GaussianGraphicalModel, p: GaussianGraphicalModel) -> FloatArray:
    """J(q, p) = KL(q ‖ p) + KL(p ‖ q), nats, shape of the batch axes together.

        ½ tr[(P_p − P_q)(Σ_q − Σ_p)] + ½ dᵀ (P_q + P_p) d,      d = loc_p − loc_q.

    No log det, and no n, cancels here: where q is near p, so that J is ε², its error is of order u ε.
    Cost: two selected inverses, on the fill of each factor with the union of the graphs.
    """
    require_gaussians("jeffreys", q, p)
    q, p = q._with("jeffreys", p)
    return checks.require_representable("jeffreys", _jeffreys("jeffreys", q, p), q.dtype)


def fisher_length(path: Sequence[GaussianGraphicalModel]) -> FloatArray:
    """Σ_k √J(path_k, path_{k+1}): no less than the distance of Fisher and Rao between the ends.

    √J is the bound of one e-geodesic, along which ∫ ds² = J; so more points on an e-geodesic never enlarge the sum,
    which tends to the length of the curve.

    Args:
        path: Gaussians on the same nodes, one or more.
    Cost: one `jeffreys` a step.
    """
    function = "fisher_length"
    if not isinstance(path, Sequence) or not path:
        raise ShapeError(f"{function}: needs a list of Gaussians, one or more, got {path!r}.")
    require_gaussians(function, *path)
    steps = (q._with(function, p) for q, p in pairwise(path))
    start = np.zeros(path[0].batch_shape)
    length = reduce(operator.add, (np.sqrt(_jeffreys(function, q, p)) for q, p in steps), start)
    return checks.require_representable(function, length, np.result_type(*(each.dtype for each in path)))


class Bounds(NamedTuple):
    """A number between two."""

    lower: FloatArray
    upper: FloatArray


def fisher_rao_bounds(q: GaussianGraphicalModel, p: GaussianGraphicalModel, pieces: int = 8) -> Bounds:
    """Bounds of the Fisher–Rao distance ρ, in the manifold of all Gaussians and in that on the union of the graphs.

    Where neither has an edge, ρ² is the sum of the squares of the nodes' own distances, and both bounds are ρ. Else

        ρ ≤ `fisher_length` of the e-geodesic in equal pieces ≤ √J,
        ρ ≥ arcosh(1 + J)/√2,    ρ ≥ √2 ‖log(diag L_q / diag L_p)‖,    ρ ≥ the distance of each node's marginals.

    The first lower bound is √J (1 − O(J)), so that near Gaussians have bounds near each other: docs/math.md, section
    13.

    Cost: 2 `pieces` selected inverses, `pieces` + 1 factorisations, on the union of the graphs.
    Source: the embedding of [Calvo & Oller 1990], for the first lower bound.
    """
    function = "fisher_rao_bounds"
    if pieces < 1:
        raise ShapeError(f"{function}: pieces must be at least 1, got {pieces}.")
    require_gaussians(function, q, p)
    q, p = q._with(function, p)
    own = _node_distances(q, p)
    graph, _ = _difference(q, p)
    if not len(graph.edges):
        both = checks.require_representable(function, np.sqrt((own**2).sum(axis=-1)), q.dtype)
        return Bounds(both, both)
    path = [e_geodesic(q, p, k / pieces) for k in range(pieces + 1)]
    upper = fisher_length(path)
    jump = 2.0 * np.arcsinh(np.sqrt(0.5 * _jeffreys(function, q, p)))  # arcosh(1 + J)
    pivots = (np.log(end.factor.take(end.factor_pattern.diagonal, axis=-1), dtype=np.float64) for end in path[::pieces])
    scales = np.sqrt(2.0) * np.linalg.norm(operator.sub(*pivots), axis=-1)
    lower = reduce(np.maximum, (jump / np.sqrt(2.0), scales, own.max(axis=-1)))
    return Bounds(checks.require_representable(function, np.minimum(lower, upper), q.dtype), upper)


def _jeffreys(function: str, q: GaussianGraphicalModel, p: GaussianGraphicalModel) -> FloatArray:
    """J in float64, of Gaussians of one dtype."""
    graph, difference = _difference(q, p)
    weighted = graph.precision_pattern.multiplicity * difference.astype(np.float64)
    trace = np.einsum("...p,...p->...", weighted, _covariance(q, graph) - _covariance(p, graph))
    square = sum(g._square_distance(function, loc=q.loc, other_loc=p.loc) for g in (q, p))
    return np.asarray(0.5 * (trace.clip(0.0) + square))  # of rounding alone, the trace may be negative


def _difference(q: GaussianGraphicalModel, p: GaussianGraphicalModel) -> tuple[Topology, FloatArray]:
    """The union of the graphs, and P_p − P_q on it."""
    return added(q.graph, -q.precision, p.graph, p.precision)


def _covariance(g: GaussianGraphicalModel, graph: Topology) -> FloatArray:
    """Σ on the graph's precision pattern, in float64."""
    fill, places = trace_positions(g.topology, g.factor_pattern, graph)
    sigma = g._of_factor("jeffreys", linalg.selected_inverse, on=fill)
    return sigma.take(places, axis=-1).astype(np.float64)


def _node_distances(q: GaussianGraphicalModel, p: GaussianGraphicalModel) -> FloatArray:
    """(..., n) in float64, the distance of each node's two marginals: 2√2 arsinh √{(Δμ² + 2 Δσ²) / (8 σ_q σ_p)}."""
    scales = [np.sqrt(g.variance.astype(np.float64)) for g in (q, p)]
    move, change = q.loc.astype(np.float64) - p.loc, scales[0] - scales[1]
    ratio = (move**2 + 2.0 * change**2) / (8.0 * scales[0] * scales[1])
    return np.asarray(2.0 * np.sqrt(2.0) * np.arcsinh(np.sqrt(ratio)))
