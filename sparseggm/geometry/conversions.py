"""Gaussians in the four systems of coordinates of `fisher`, and back."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from sparseggm.errors import PatternError, ShapeError
from sparseggm.gaussian.covariance import trace_positions
from sparseggm.gaussian.linear import representable
from sparseggm.geometry.fisher import Coordinates, require_coordinates_known
from sparseggm.geometry.kinds import kind_of, require_finite, require_free_factor, require_gaussians
from sparseggm.geometry.projection import Moments, projected
from sparseggm.graph.pattern import Pattern
from sparseggm.graph.topology import Topology, require_topology
from sparseggm.linalg import checks
from sparseggm.positivity.namespace import Array, array_namespace, take, where_diagonal


class Point(NamedTuple):
    """Coordinates of Gaussians: on the same places as a `Tangent`."""

    vector: Array
    """(..., n) loc, or P loc in "natural", in the caller's numbering."""
    values: Array
    """(..., nnz) the rest, on the factor pattern; in "natural" and "expectation" on `graph.precision_pattern`."""


def to_coordinates(g: Any, coordinates: Coordinates) -> Point:
    """The coordinates of a Gaussian: a `Point`.

        factor        loc, L                        regression     loc, log σ_j on the diagonal and β_ij below it
        natural       P loc, P on the graph         expectation    E z, E z zᵀ = Σ + loc locᵀ on the graph

    `from_coordinates` takes them back, with the topology `g.graph`.

    Raises:
        PatternError: in "factor" and "regression", of a Gaussian whose L, made of P, has fill, or is not on the factor
            pattern of its graph.
    Cost: none, O(nnz), one Gram product, one selected inverse.
    Error: E z zᵀ and P loc hold the digits of a mean that is far from zero, and so many fewer of Σ.
    """
    function = "to_coordinates"
    require_gaussians(function, g)
    require_coordinates_known(function, coordinates)
    if coordinates == "natural":
        return Point(g.information_vector, g.precision)
    if coordinates == "expectation":
        return Point(g.loc, representable(function, _second_moments(function, g)))
    pattern, factor = g.factor_pattern, kind_of(g.loc).factor(g)
    require_free_factor(function, g)
    if pattern is not g.graph.factor_pattern:
        raise PatternError(
            f'{function}: "{coordinates}" needs an L on the factor pattern of {g.graph}, got one on another pattern, '
            "where `from_coordinates` would not put it."
        )
    if coordinates == "factor":
        return Point(g.loc, factor)
    xp, pivots = array_namespace(factor), take(factor, pattern.diagonal)
    scales = kind_of(factor).verbs.on_diagonal(pattern, -xp.log(pivots))
    with np.errstate(over="ignore"):  # tested below
        regressions = where_diagonal(pattern, scales, -factor / take(pivots, pattern.cols))
    return Point(g.loc, representable(function, regressions))


def from_coordinates(vector: npt.ArrayLike, values: npt.ArrayLike, topology: Topology, coordinates: Coordinates) -> Any:
    """The Gaussian with these coordinates: the inverse of `to_coordinates`.

    Args:
        vector, values: see `Point`; arrays or tensors, batch axes broadcast.
        topology: of the Gaussian, whose `factor_pattern` or `precision_pattern` the values are on.
    Raises:
        PatternError: in "factor" and "regression", a topology that is not factor-free.
        NotPositiveDefiniteError: no Gaussian has these natural or expectation parameters.
    Cost: none, O(nnz), one factorisation, one `project`.
    """
    function = "from_coordinates"
    require_topology(function, topology)
    require_coordinates_known(function, coordinates)
    kind = kind_of(vector)
    x, packed = kind.numbers(function, None, vector=vector, values=values)
    is_by_factor = coordinates in ("factor", "regression")
    if is_by_factor and not topology.is_factor_free:
        raise PatternError(f'{function}: "{coordinates}" needs a factor-free topology, got {topology}.')
    pattern = topology.factor_pattern if is_by_factor else topology.precision_pattern
    if (x.shape[-1:], packed.shape[-1:]) != ((topology.n,), (pattern.nnz,)):
        raise ShapeError(
            f"{function}: on {topology} vector must end in {topology.n} and values in {pattern.nnz}, got shapes "
            f"{tuple(x.shape)} and {tuple(packed.shape)}."
        )
    checks.broadcast(function, vector=tuple(x.shape[:-1]), values=tuple(packed.shape[:-1]))
    require_finite(function, "vector", x)
    require_finite(function, "values", packed, pattern, topology)
    if coordinates == "expectation":
        return _of_second_moments(function, x, packed, topology)
    if coordinates == "natural":
        return kind.gaussian.from_information(x, precision=packed, topology=topology)
    factor = _factor_of_regressions(pattern, packed) if coordinates == "regression" else packed
    return kind.gaussian(x, factor=factor, topology=topology)


def _factor_of_regressions(pattern: Pattern, values: Array) -> Array:
    """L_jj = 1/σ_j, L_ij = −β_ij/σ_j."""
    pivots = array_namespace(values).exp(-take(values, pattern.diagonal))
    below = -values * take(pivots, pattern.cols)
    return where_diagonal(pattern, kind_of(values).verbs.on_diagonal(pattern, pivots), below)


def _second_moments(function: str, g: Any) -> Array:
    """Σ + loc locᵀ on the graph."""
    graph = g.graph
    fill, places = trace_positions(g.topology, g.factor_pattern, graph)
    sigma = take(kind_of(g.loc).selected_inverse(function, g, fill), places)
    with np.errstate(over="ignore", invalid="ignore"):  # the caller tests for infinity
        return sigma + _products_on(graph, g.loc)


def _of_second_moments(function: str, loc: Array, second: Array, topology: Topology) -> Any:
    covariance = second - _products_on(topology, loc)
    parts = (take(covariance, places) for places in (topology.node_positions, topology.edge_positions))
    remedy = "Give E z and E z zᵀ of a Gaussian, whose mean is not far from zero."
    return projected(function, Moments(loc, *parts), topology, remedy)


def _products_on(graph: Topology, loc: Array) -> Array:
    """loc_i loc_j on the precision pattern."""
    pattern, order = graph.precision_pattern, graph.order
    return take(loc, order[pattern.rows]) * take(loc, order[pattern.cols])
