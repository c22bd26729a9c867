"""Jeffreys' divergence, and bounds of the distance of Fisher and Rao, which has no closed form between Gaussians."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from functools import reduce
from itertools import pairwise
from typing import Any, NamedTuple

from sparseggm.errors import ShapeError
from sparseggm.gaussian.covariance import trace_positions
from sparseggm.gaussian.potentials import added
from sparseggm.geometry.kinds import Gaussian, kind_of, require_gaussians, together
from sparseggm.geometry.mixtures import e_geodesic
from sparseggm.graph.edges import require_at_least
from sparseggm.graph.topology import Topology
from sparseggm.linalg import checks
from sparseggm.positivity.namespace import Array, array_namespace, in_float64, mask, take


def jeffreys(q: Gaussian, p: Gaussian) -> Array:
    """J(q, p) = KL(q ‖ p) + KL(p ‖ q), nats, shape of the batch axes together.

        ½ tr[(P_p − P_q)(Σ_q − Σ_p)] + ½ dᵀ (P_q + P_p) d,      d = loc_p − loc_q.

    No log det, and no n, cancels here: where q is near p, so that J is ε², its error is of order u ε.
    Cost: two selected inverses, on the fill of each factor with the union of the graphs.
    """
    q, p = together("jeffreys", q, p)
    return kind_of(q.loc).rounded("jeffreys", _jeffreys("jeffreys", q, p), q.loc)


def fisher_length(path: Sequence[Gaussian]) -> Array:
    """Σ_k √J(path_k, path_{k+1}): no less than the distance of Fisher and Rao between the ends.

    √J is the bound of one e-geodesic, along which ∫ ds² = J; so more points on an e-geodesic never enlarge the sum,
    which tends to the length of the curve.

    Args:
        path: Gaussians on the same nodes, one or more.
    Gradient, of tensors: zero for a step of no length, where a length has none.
    Cost: one `jeffreys` a step.
    """
    function = "fisher_length"
    if not isinstance(path, Sequence) or not path:
        raise ShapeError(f"{function}: needs a list of Gaussians, one or more, got {path!r}.")
    require_gaussians(function, *path)
    checks.broadcast(function, **{f"step {k}": tuple(each.batch_shape) for k, each in enumerate(path)})
    steps = (together(function, q, p) for q, p in pairwise(path))
    start = in_float64(path[0].loc[..., 0] * 0.0)
    length = reduce(operator.add, (_root(_jeffreys(function, q, p)) for q, p in steps), start)
    widest = max((each.loc for each in path), key=lambda loc: int(loc.dtype.itemsize))
    return kind_of(widest).rounded(function, length, widest)


class Bounds(NamedTuple):
    """A number between two."""

    lower: Array
    upper: Array


def fisher_rao_bounds(q: Gaussian, p: Gaussian, pieces: int = 8) -> Bounds:
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
    require_at_least(1, function, pieces=pieces)
    q, p = together(function, q, p)
    rounded, xp = kind_of(q.loc).rounded, array_namespace(q.loc)
    own = _node_distances(q, p)
    graph, _ = _difference(q, p)
    if not len(graph.edges):
        both = rounded(function, _root((own**2).sum(-1)), q.loc)
        return Bounds(both, both)
    path = [e_geodesic(q, p, k / pieces) for k in range(pieces + 1)]
    upper = fisher_length(path)
    jump = 2.0 * xp.arcsinh(_root(0.5 * _jeffreys(function, q, p)))  # arcosh(1 + J)
    pivots = (xp.log(in_float64(take(end.factor, end.factor_pattern.diagonal))) for end in (path[0], path[-1]))
    scales = _root(2.0 * (operator.sub(*pivots) ** 2).sum(-1))
    lower = reduce(xp.maximum, (jump / math.sqrt(2.0), scales, xp.amax(own, -1)))
    return Bounds(rounded(function, xp.minimum(lower, in_float64(upper)), q.loc), upper)


def _jeffreys(function: str, q: Any, p: Any) -> Array:
    """J in float64, of Gaussians of one dtype."""
    graph, difference = _difference(q, p)
    pattern = graph.precision_pattern
    terms = in_float64(difference) * (_covariance(function, q, graph) - _covariance(function, p, graph))
    below = array_namespace(terms).where(mask(terms, pattern.rows != pattern.cols), terms, 0.0)
    trace = terms.sum(-1) + below.sum(-1)
    square = kind_of(q.loc).square_distance
    return 0.5 * (trace.clip(0.0) + square(function, q, p.loc) + square(function, p, q.loc))  # rounding alone is < 0


def _difference(q: Any, p: Any) -> tuple[Topology, Array]:
    """The union of the graphs, and P_p − P_q on it."""
    return added(q.graph, -q.precision, p.graph, p.precision, kind_of(q.loc).joint_graph)


def _covariance(function: str, g: Any, graph: Topology) -> Array:
    """Σ on the graph's precision pattern, in float64."""
    fill, places = trace_positions(g.topology, g.factor_pattern, graph)
    return in_float64(take(kind_of(g.loc).selected_inverse(function, g, fill), places))


def _node_distances(q: Any, p: Any) -> Array:
    """(..., n) in float64, the distance of each node's two marginals: 2√2 arsinh √{(Δμ² + 2 Δσ²) / (8 σ_q σ_p)}."""
    xp = array_namespace(q.loc)
    one, two = (xp.sqrt(in_float64(g.variance)) for g in (q, p))
    move, change = in_float64(q.loc) - in_float64(p.loc), one - two
    # Ratios first: products of deviations leave the range before the distance does.
    square = (move / one) * (move / two) + 2.0 * (change / one) * (change / two)
    return 2.0 * math.sqrt(2.0) * xp.arcsinh(_root(square / 8.0))


def _root(square: Array) -> Array:
    """√x of x ≥ 0, whose gradient is zero at zero."""
    xp, is_positive = array_namespace(square), square > 0.0
    return xp.where(is_positive, xp.sqrt(xp.where(is_positive, square, 1.0)), 0.0)
