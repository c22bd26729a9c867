"""The moments of a Gaussian on a graph, and the Gaussian on a graph with given moments: covariance selection."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from sparseggm.errors import ShapeError
from sparseggm.gaussian.covariance import covariance_positions
from sparseggm.gaussian.fitting import Words
from sparseggm.geometry.kinds import kind_of, require_finite, require_gaussians
from sparseggm.graph.topology import Topology, require_topology
from sparseggm.linalg import checks
from sparseggm.positivity.namespace import Array, array_namespace, in_dtype_of, in_float64, scatter, take


class Moments(NamedTuple):
    """Mean and covariance on a graph, in the caller's numbering; batch axes broadcast."""

    loc: Array
    """(..., n) mean."""
    variance: Array
    """(..., n) Σ_ii."""
    covariance: Array
    """(..., m) Σ_ij for each row of `topology.edges`."""


def moments_on(q: Any, topology: Topology) -> Moments:
    """Mean, variances and covariances of a Gaussian on the edges of any graph on its nodes.

    Raises:
        ShapeError: the graph has another number of nodes.
    Cost: one selected inverse on (S_q ∪ edges).filled().
    """
    require_gaussians("moments_on", q)
    require_topology("moments_on", topology)
    if topology.n != q.topology.n:
        raise ShapeError(f"moments_on: topology must have {q.topology.n} nodes, as the Gaussian, got {topology}.")
    fill, *places = covariance_positions(q.topology, q.factor_pattern, topology.edges)
    sigma = kind_of(q.loc).selected_inverse("moments_on", q, fill)
    return Moments(q.loc, *(take(sigma, positions) for positions in places))


def project(moments: Moments | Any, topology: Topology) -> Any:
    """The Gaussian p on a graph with the same mean, variances and covariances on the edges: covariance selection.

    Of all Gaussians on the graph it is nearest to any q with these moments: KL(q ‖ p') = KL(q ‖ p) + KL(p ‖ p') for
    every p' on the graph [Dempster 1972; Speed & Kiiveri 1986]. Its P is on the graph, on an extended grid or a stencil
    too, whose L has fill then; `fit` is nearest among the L on the topology's factor pattern there.

    Args:
        moments: the moments, or a Gaussian on as many nodes.
    Returns:
        a Gaussian with Σ_ij = moments within 1e-8 √(Σ_ii Σ_jj) on the graph, within rounding on a chordal one.
    Raises:
        PatternError: of tensors, the graph is not chordal in its order.
        NotPositiveDefiniteError: no Gaussian has these moments, or the nearest to singular of them was not reached.
        ShapeError, DTypeError, NonFiniteError: moments that do not fit the graph.
    Cost: where the graph is chordal in its order, Σ_j |S_j|³; else some ten Newton steps, each of ten to a hundred
        products of four selected inverses: 3 to 6 s for a 64 × 64 grid.
    Source: the columns of [Schäfer, Katzfuss & Owhadi 2021, Thm 2.1]; [Dahl, Vandenberghe & Roychowdhury 2008].
    """
    require_topology("project", topology)
    if checks.is_gaussian(moments):
        with checks.speaking_as("project", "moments_on"):
            moments = moments_on(moments, topology)
    if not isinstance(moments, Moments):
        raise TypeError(f"project: needs Moments or a GaussianGraphicalModel, got {type(moments).__name__}.")
    return projected("project", moments, topology, "Give the moments of a positive definite covariance.")


def projected(function: str, moments: Moments, topology: Topology, remedy: str) -> Any:
    """`project` for a function, which its errors name; they end with the remedy."""
    kind = kind_of(moments.loc)
    arrays = dict(zip(moments._fields, kind.numbers(function, None, **moments._asdict()), strict=True))
    for (name, array), count in zip(arrays.items(), (topology.n, topology.n, len(topology.edges)), strict=True):
        if array.shape[-1:] != (count,):
            raise ShapeError(f"{function}: {name} must end in {count} on {topology}, got shape {tuple(array.shape)}.")
        require_finite(function, name, array)
    checks.broadcast(function, **{name: tuple(array.shape[:-1]) for name, array in arrays.items()})
    loc, *second = arrays.values()
    batch = np.broadcast_shapes(*(tuple(array.shape[:-1]) for array in second))
    wide = (array_namespace(array).broadcast_to(array, (*batch, array.shape[-1])) for array in second)
    places = topology.node_positions, topology.edge_positions
    covariance = scatter([*zip(places, map(in_float64, wide), strict=True)], topology.precision_pattern.nnz)
    factor = kind.factor_of_moments(topology, covariance, Words(function, "these moments", remedy))
    return kind.of_factor(function, loc, in_dtype_of(factor, loc), topology, topology.precision_pattern.filled())
