"""The Jeffreys centroid: stationary, least, in closed form for one variable, and refused where it has no way."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparseggm import (
    BlockChain,
    Chain,
    Cycle,
    Diagonal,
    ExtendedGrid,
    GaussianGraphicalModel,
    PatternError,
    Topology,
    Tree,
    geometry,
)
from sparseggm.geometry import symmetric
from tests.geometry.test_mixtures import random_on
from tests.numerics import Array
from tests.strategies import seeds

CHORDAL = [
    Diagonal(3),
    Chain(1),
    Chain(5),
    Chain(5, order=range(5)[::-1]),
    BlockChain(2, 2),
    Tree((1, 3, 3, -1)),
    ExtendedGrid(3, 2),
]


def several(rng: np.random.Generator, topology: Topology, spread: float = 1.0) -> list[GaussianGraphicalModel]:
    scales = np.exp(spread * rng.standard_normal(3))
    made = (random_on(rng, topology) for _ in scales)
    return [
        GaussianGraphicalModel.from_precision(g.loc, precision=s * g.precision, topology=topology)
        for s, g in zip(scales, made, strict=True)
    ]


def total(c: GaussianGraphicalModel, parts: list[GaussianGraphicalModel], weights: Array) -> Array:
    return np.asarray(sum(w * geometry.jeffreys(c, p) for w, p in zip(weights, parts, strict=True)))


@pytest.mark.property
@given(topology=st.sampled_from(CHORDAL), seed=seeds, spread=st.sampled_from([0.1, 1.0, 3.0]))
def test_a_jeffreys_centroid_is_stationary_and_less_than_the_others(
    topology: Topology, seed: int, spread: float
) -> None:
    """Differences of ±1e-4 in the metric of Fisher leave O(1e-4) of a slope, against a curvature of two."""
    rng = np.random.default_rng(seed)
    parts, weights = several(rng, topology, spread), rng.dirichlet(np.ones(3))
    c = geometry.centroid(parts, weights, "jeffreys")
    least = total(c, parts, weights)
    for kind in ("e", "m"):
        assert least <= total(geometry.centroid(parts, weights, kind), parts, weights) * (1 + 1e-12)
    point = geometry.to_coordinates(c, "natural")
    for _ in range(3):
        v = geometry.Tangent(rng.standard_normal(c.n), rng.standard_normal(point.values.shape))
        image = geometry.fisher_matmul(c, *v, "natural")
        step = 1e-4 / np.sqrt(sum(float(a @ b) for a, b in zip(v, image, strict=True)))
        ends = [
            geometry.from_coordinates(*(a + size * b for a, b in zip(point, v, strict=True)), topology, "natural")
            for size in (step, -step)
        ]
        up, down = (total(end, parts, weights) for end in ends)
        assert abs(up - down) / 2e-4 < 1e-4 * (1 + least)
        assert up + down > 2 * least


@pytest.mark.parametrize("ratio", [1.0, 3.0, 1e4])
def test_of_one_variable_it_is_the_geometric_mean_of_the_arithmetic_and_the_harmonic(ratio: float) -> None:
    variances = np.array([1.0, ratio])
    parts = [GaussianGraphicalModel([0.0], factor=[1 / np.sqrt(v)], topology=Chain(1)) for v in variances]
    c = geometry.centroid(parts, kind="jeffreys")
    np.testing.assert_allclose(c.variance, np.sqrt(variances.mean() / (1 / variances).mean()), rtol=1e-7)


def test_every_step_descends(monkeypatch: pytest.MonkeyPatch) -> None:
    values = []
    original = symmetric._descended

    def recorded(*given: object) -> tuple[object, object, object]:
        result = original(*given)
        values.append((given[-1], result[-1]))
        return result

    monkeypatch.setattr(symmetric, "_descended", recorded)
    geometry.centroid(several(np.random.default_rng(0), Chain(6), 3.0), kind="jeffreys")
    assert 3 < len(values) < 40
    assert all(after <= before + 1e-11 for before, after in values)


def test_batches_have_the_centroids_of_their_elements() -> None:
    rng = np.random.default_rng(0)
    one, two = several(rng, Chain(4)), several(rng, Chain(4), 2.0)
    both = [
        GaussianGraphicalModel(np.stack([a.loc, b.loc]), factor=np.stack([a.factor, b.factor]), topology=Chain(4))
        for a, b in zip(one, two, strict=True)
    ]
    c = geometry.centroid(both, kind="jeffreys")
    assert c.batch_shape == (2,)
    for k, parts in enumerate((one, two)):
        np.testing.assert_allclose(c.factor[k], geometry.centroid(parts, kind="jeffreys").factor, rtol=1e-6, atol=1e-7)


def test_float32_stays_float32_and_a_graph_without_a_way_is_refused() -> None:
    rng = np.random.default_rng(0)
    parts = several(rng, Chain(4))
    single = [
        GaussianGraphicalModel(g.loc.astype("f4"), factor=g.factor.astype("f4"), topology=Chain(4)) for g in parts
    ]
    c = geometry.centroid(single, kind="jeffreys")
    assert c.dtype == np.float32
    np.testing.assert_allclose(c.factor, geometry.centroid(parts, kind="jeffreys").factor, rtol=1e-4, atol=1e-4)
    with pytest.raises(PatternError, match=r'^centroid: "jeffreys" needs a union of the graphs that is chordal'):
        geometry.centroid(several(rng, Cycle(5)), kind="jeffreys")
