"""Coordinates of Gaussians: against dense matrices, and there and back."""

from __future__ import annotations

import importlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparseggm import (
    Chain,
    Cycle,
    ExtendedGrid,
    GaussianGraphicalModel,
    Grid,
    NonFiniteError,
    NotPositiveDefiniteError,
    Pattern,
    PatternError,
    ShapeError,
    geometry,
)
from tests import numerics
from tests.gaussian_bounds import covariance_of, factor_of, family, loc_of, precision_of
from tests.geometry.test_fisher import COORDINATES
from tests.ledger import check
from tests.numerics import WIDE
from tests.strategies import factor_values, precision_values, seeds
from tests.topologies import topologies


@st.composite
def gaussians(draw: st.DrawFn) -> tuple[GaussianGraphicalModel, str]:
    topology, coordinates = draw(topologies(3)), draw(st.sampled_from(COORDINATES))
    rng, dtype = np.random.default_rng(draw(seeds)), np.dtype(draw(st.sampled_from(["float32", "float64"])))
    batch, loc = draw(st.sampled_from([(), (2,), (0,)])), rng.standard_normal(topology.n).astype(dtype)
    if topology.is_factor_free:
        values = factor_values(rng, topology.factor_pattern, batch, "plain", dtype)
        return GaussianGraphicalModel(loc, factor=values, topology=topology), coordinates
    values = precision_values(rng, topology.precision_pattern, batch, "dominant", dtype)
    g = GaussianGraphicalModel.from_precision(loc, precision=values, topology=topology)
    return g, coordinates if coordinates in ("natural", "expectation") else "natural"


def condition(g: GaussianGraphicalModel) -> numerics.Array:
    L = factor_of(g)
    inverse = np.linalg.inv(L.astype(np.float64))
    return np.asarray((L**2).sum(axis=(-1, -2)) * (inverse**2).sum(axis=(-1, -2)))


@pytest.mark.property
@given(drawn=gaussians())
def test_there_and_back_is_the_same_gaussian(drawn: tuple[GaussianGraphicalModel, str]) -> None:
    """Within a few n u of the condition of P, of which Σ's is another; and 1e-8 of Σ where Newton finds P."""
    g, coordinates = drawn
    point = geometry.to_coordinates(g, coordinates)
    back = geometry.from_coordinates(*point, g.topology, coordinates)
    assert point.values.dtype == back.dtype == g.dtype
    far = 1 + (loc_of(g).astype(WIDE) ** 2).sum(axis=-1)
    level = 8 * numerics.rounding(4 * g.n**2 + 20, g.dtype) * condition(g) ** 2 * far
    if coordinates == "expectation" and not g.topology.precision_pattern.is_closed:
        level = level + 1e-7 * condition(g) ** 2
    P = precision_of(g)
    error = np.sqrt(((precision_of(back) - P) ** 2).sum(axis=(-1, -2)) / (P**2).sum(axis=(-1, -2)))
    check(f"from_coordinates {coordinates}", family(g), g.dtype, error, level)
    check(f"from_coordinates {coordinates}, loc", family(g), g.dtype, (abs(loc_of(back) - loc_of(g))).max(-1), level)


@pytest.mark.property
@given(drawn=gaussians())
def test_coordinates_are_those_of_dense_matrices(drawn: tuple[GaussianGraphicalModel, str]) -> None:
    g, coordinates = drawn
    vector, values = geometry.to_coordinates(g, coordinates)
    L, P, S, loc = factor_of(g), precision_of(g), covariance_of(g), loc_of(g)
    exact = {"natural": numerics.apply(P, loc)}.get(coordinates, loc)
    level = 8 * numerics.rounding(4 * g.n**2 + 20, g.dtype) * condition(g)
    size = np.sqrt((P**2).sum(axis=(-1, -2))) + np.sqrt((S**2).sum(axis=(-1, -2))) + (L**2).sum(axis=(-1, -2)) + 1
    bound = (level * size * (1 + (loc**2).sum(axis=-1)))[..., None]
    check(f"to_coordinates {coordinates}, vector", family(g), g.dtype, vector - exact, bound)
    pattern = g.factor_pattern if coordinates in ("factor", "regression") else g.graph.precision_pattern
    if coordinates == "regression":
        pivots = np.diagonal(L, axis1=-2, axis2=-1)[..., None, :]
        matrix = np.where(np.eye(g.n, dtype=bool), -np.log(pivots), -L / pivots)
    elif coordinates == "factor":
        matrix = L
    else:
        matrix = P if coordinates == "natural" else S + loc[..., :, None] * loc[..., None, :]
        matrix = matrix[..., g.graph.order[:, None], g.graph.order]
    check(f"to_coordinates {coordinates}", family(g), g.dtype, values - matrix[..., pattern.rows, pattern.cols], bound)


def test_what_is_not_a_point_is_refused() -> None:
    five, three = np.ones(5), np.zeros(3)
    grid = GaussianGraphicalModel.from_precision(
        np.zeros(4), precision=Grid(2, 2).pack((np.full(4, 4.0), np.ones(4))), topology=Grid(2, 2)
    )
    with pytest.raises(PatternError, match=r"^to_coordinates: needs an L that is free on its pattern"):
        geometry.to_coordinates(grid, "factor")
    with pytest.raises(PatternError, match=r'^from_coordinates: "regression" needs a factor-free topology, got Cycle'):
        geometry.from_coordinates(np.zeros(4), np.ones(8), Cycle(4), "regression")
    with pytest.raises(ValueError, match=r'^from_coordinates: coordinates must be "factor", "regression"'):
        geometry.from_coordinates(three, five, Chain(3), "polar")
    with pytest.raises(ShapeError, match=r"^from_coordinates: on Chain\(n=3\) vector must end in 3 and values in 5"):
        geometry.from_coordinates(three, three, Chain(3), "natural")
    with pytest.raises(NonFiniteError, match=r"^from_coordinates: values must be finite, got nan at node 0"):
        geometry.from_coordinates(three, five * np.nan, Chain(3), "natural")
    with pytest.raises(NotPositiveDefiniteError, match=r"^from_coordinates: found no Gaussian on Chain\(n=3\)"):
        geometry.from_coordinates(three + 2, five, Chain(3), "expectation")
    with pytest.raises(NotPositiveDefiniteError):
        geometry.from_coordinates(three, -five, Chain(3), "natural")


@pytest.mark.parametrize("of_tensors", [False, True])
@pytest.mark.parametrize("coordinates", ["factor", "regression"])
def test_an_l_that_from_coordinates_would_put_elsewhere_is_refused(coordinates: str, of_tensors: bool) -> None:
    """Of two columns, whose L is free where it has fill, or on a pattern of as many entries that is not the graph's."""
    topology, zero = ExtendedGrid(2, 2), np.zeros(4)
    elsewhere = Pattern.from_edges(4, [(1, 0), (2, 0), (2, 1), (3, 1)])
    made = (
        GaussianGraphicalModel.from_factor(zero, factor=np.arange(1.0, 9.0), topology=topology, pattern=elsewhere),
        GaussianGraphicalModel.from_precision(zero, precision=topology.pack(np.eye(4)), topology=topology),
    )
    if of_tensors:
        pytest.importorskip("torch", reason="torch is optional")
        made = tuple(map(importlib.import_module("sparseggm.torch").GaussianGraphicalModel.from_numpy, made))
    for g in made:
        with pytest.raises(PatternError, match=f'^to_coordinates: "{coordinates}" needs an L on the factor pattern of'):
            geometry.to_coordinates(g, coordinates)


def test_batches_that_do_not_broadcast_are_named() -> None:
    for coordinates in ("factor", "regression", "natural", "expectation"):
        with pytest.raises(ShapeError, match=r"got \(2,\) of vector and \(3,\) of values"):
            geometry.from_coordinates(np.zeros((2, 4)), np.ones((3, 7)), Chain(4), coordinates)
    q = [GaussianGraphicalModel(np.zeros((k, 2)), factor=np.ones(3), topology=Chain(2)) for k in (2, 1, 3)]
    with pytest.raises(ShapeError, match=r"fisher_length: batch axes must broadcast, got \(2,\) of step 0"):
        geometry.fisher_length(q)


def test_weights_of_any_scale_are_shares() -> None:
    q = [GaussianGraphicalModel([float(k)], factor=[1.0], topology=Chain(1)) for k in range(2)]
    for scale in (1e-320, 1.0, 1e308):
        assert geometry.centroid(q, [scale, scale], "e").loc[0] == 0.5


@pytest.mark.parametrize("of_tensors", [False, True])
def test_coordinates_beyond_the_dtype_are_refused(of_tensors: bool) -> None:
    make, coordinates_of, kind = GaussianGraphicalModel, geometry.to_coordinates, np.asarray
    if of_tensors:
        torch = pytest.importorskip("torch", reason="torch is optional")
        adapter = importlib.import_module("sparseggm.torch")
        make, coordinates_of, kind = adapter.GaussianGraphicalModel, adapter.geometry.to_coordinates, torch.as_tensor
    far, steep = np.array([1.0, 0.0, 1.0]), np.array([1e-200, 1e200, 1.0])
    for coordinates, factor in (("expectation", far), ("regression", steep)):
        g = make(kind(np.full(2, 1e200)), factor=kind(factor), topology=Chain(2))
        with pytest.raises(NonFiniteError, match=r"^to_coordinates: the arguments are finite but the result overflows"):
            coordinates_of(g, coordinates)
