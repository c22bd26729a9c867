"""Each function of `geometry`, given something that is no Gaussian, says which function needs one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import sparseggm as sg
from sparseggm import geometry

G = sg.GaussianGraphicalModel(np.zeros(3), factor=np.array([1.0, 0.0, 1.0, 0.0, 1.0]), topology=sg.Chain(3))
V = np.zeros(3), np.zeros(5)
CALLS: dict[str, list[Callable[[Any], object]]] = {
    "centroid": [lambda x: geometry.centroid([x, G]), lambda x: geometry.centroid([G, x])],
    "coupled_distance": [lambda x: geometry.coupled_distance(x, G), lambda x: geometry.coupled_distance(G, x)],
    "e_geodesic": [lambda x: geometry.e_geodesic(x, G, 0.5), lambda x: geometry.e_geodesic(G, x, 0.5)],
    "fisher_length": [lambda x: geometry.fisher_length([x]), lambda x: geometry.fisher_length([G, x])],
    "fisher_matmul": [lambda x: geometry.fisher_matmul(x, *V)],
    "fisher_rao_bounds": [lambda x: geometry.fisher_rao_bounds(x, G), lambda x: geometry.fisher_rao_bounds(G, x)],
    "fisher_solve": [lambda x: geometry.fisher_solve(x, *V)],
    "jeffreys": [lambda x: geometry.jeffreys(x, G), lambda x: geometry.jeffreys(G, x)],
    "m_geodesic": [lambda x: geometry.m_geodesic(x, G, 0.5), lambda x: geometry.m_geodesic(G, x, 0.5)],
    "moments_on": [lambda x: geometry.moments_on(x, sg.Chain(3))],
    "project": [lambda x: geometry.project(x, sg.Chain(3))],
    "to_coordinates": [lambda x: geometry.to_coordinates(x, "natural")],
    "wasserstein": [lambda x: geometry.wasserstein(x, G), lambda x: geometry.wasserstein(G, x)],
}
OF_NUMBERS = {"from_coordinates"}


def test_every_function_is_listed() -> None:
    functions = {name for name in geometry.__all__ if not isinstance(getattr(geometry, name), type)}
    assert functions - OF_NUMBERS == CALLS.keys()


@pytest.mark.parametrize("wrong", [1, None, "chain", np.zeros(3), sg.Chain(3)], ids=repr)
@pytest.mark.parametrize("name", CALLS)
def test_what_is_no_gaussian_is_refused(name: str, wrong: object) -> None:
    for call in CALLS[name]:
        with pytest.raises(
            TypeError, match=f"{name}: needs .*GaussianGraphicalModel( of arrays)?, got {type(wrong).__name__}"
        ):
            call(wrong)


@pytest.mark.parametrize("wrong", [G, 3, [], None])
def test_what_is_no_list_of_gaussians_is_refused(wrong: Any) -> None:
    for function in (geometry.centroid, geometry.fisher_length):
        with pytest.raises(sg.ShapeError, match=f"{function.__name__}: needs a list of Gaussians, one or more, got"):
            function(wrong)
