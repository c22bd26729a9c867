"""Estimates of the Gaussian class: its exact values, between topologies whose orders of elimination differ.

All vectors of random signs on six nodes are few enough to take them all: the mean is then exact, within rounding. The
rest is tested at fixed seeds, within 5 standard errors.
"""

from __future__ import annotations

import itertools
import re
from typing import Any

import numpy as np
import pytest

from sparseggm import (
    Chain,
    Cycle,
    Diagonal,
    ExtendedGrid,
    GaussianGraphicalModel,
    Graph,
    Grid,
    ShapeError,
    Star,
    Topology,
    Tree,
    stochastic,
)
from tests.numerics import gamma
from tests.stochastic.test_estimators import AllSigns
from tests.strategies import factor_values, precision_values

SIX = {
    "Chain": Chain(6),
    "Grid": Grid(2, 3),
    "ExtendedGrid": ExtendedGrid(2, 3),
    "Star": Star(6),
    "Tree": Tree([1, -1, 1, 2, 2, 0]),
    "Cycle": Cycle(6),
    "Graph": Graph(6, [(0, 3), (3, 5), (1, 5), (1, 4)], order=[4, 2, 0, 5, 1, 3]),
}
FROM = ("factor", "precision")
METHODS: dict[str, dict[str, int]] = {
    "hutchinson": {"num_probes": 200},
    "probing": {"distance": 2, "replicates": 20},
    "hutchpp": {"rank": 5, "num_probes": 100},
    "xtrace": {"num_probes": 12},
}


def gaussian(topology: Topology, made_from: str, seed: int, batch: Any = (), dtype: Any = np.float64) -> Any:
    """Moderate: P is diagonally dominant, or L well conditioned."""
    rng = np.random.default_rng(seed)
    loc = rng.standard_normal((*batch, topology.n)).astype(dtype)
    if made_from == "precision":
        precision = precision_values(rng, topology.precision_pattern, batch, "dominant", dtype)
        return GaussianGraphicalModel.from_precision(loc, precision=precision, topology=topology)
    factor = factor_values(rng, topology.factor_pattern, batch, "plain", dtype)
    return GaussianGraphicalModel(loc, factor=factor, topology=topology)


@pytest.mark.parametrize(("first", "second"), [*itertools.product(SIX, repeat=2)])
@pytest.mark.parametrize("made_from", FROM)
def test_the_estimate_of_kl_over_all_signs_is_the_kl_divergence(first: str, second: str, made_from: str) -> None:
    q, p = gaussian(SIX[first], made_from, 0), gaussian(SIX[second], made_from, 1)
    estimate = q.estimate_kl_divergence(p, num_probes=64, rng=AllSigns(6))
    # As in test_stochastic: conditions below 1e3, hence 1e3 · 64 roundings of a sum whose terms are below 1e3.
    assert abs(estimate.value - q.kl_divergence(p)) <= 1e3 * gamma(64, np.float64) * 1e3


@pytest.mark.parametrize("name", SIX)
def test_the_estimate_of_the_trace_over_all_signs_is_the_trace(name: str) -> None:
    g = gaussian(SIX[name], "precision", 2)
    estimate = g.estimate_trace_covariance("hutchinson", AllSigns(6), num_probes=64)
    assert abs(estimate.value - g.trace_covariance()) <= 1e3 * gamma(64, np.float64) * g.trace_covariance()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("made_from", FROM)
@pytest.mark.parametrize("topology", [Grid(5, 6), ExtendedGrid(5, 6), Star(30), Cycle(30)], ids=str)
def test_every_method_is_within_five_standard_errors_of_the_trace(method: Any, made_from: str, topology: Any) -> None:
    """12 estimates each; XTrace's error is about what it says, the others' is normal."""
    g = gaussian(topology, made_from, 3, (12,))
    estimate = g.estimate_trace_covariance(method, np.random.default_rng(4), **METHODS[method])
    rounding = 1e3 * gamma(64, np.float64) * g.trace_covariance()
    assert (abs(estimate.value - g.trace_covariance()) <= 5 * estimate.standard_error + rounding).all()
    assert (estimate.standard_error <= g.trace_covariance()).all()  # it does say something


@pytest.mark.parametrize("other", [None, Chain(30), Grid(5, 6), Star(30), ExtendedGrid(6, 5)], ids=str)
@pytest.mark.parametrize("topology", [Grid(5, 6), ExtendedGrid(5, 6), Tree([-1, *range(29)])], ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_estimate_of_kl_is_within_five_standard_errors(topology: Topology, other: Any, dtype: str) -> None:
    q = gaussian(topology, "factor", 5, (12,), dtype)
    p = None if other is None else gaussian(other, "precision", 6, (12,), dtype)
    estimate = q.estimate_kl_divergence(p, num_probes=100, rng=np.random.default_rng(7))
    exact = q.kl_divergence(p)
    assert estimate.value.dtype == estimate.standard_error.dtype == q.dtype
    rounding = gamma(64, q.dtype) * (abs(exact) + q.n)  # of sums of n terms near one, which leave the KL
    assert (abs(estimate.value - exact) <= 5 * estimate.standard_error + rounding).all()
    assert (estimate.standard_error <= abs(exact) + 1).all()


def test_kl_from_itself_is_estimated_without_chance() -> None:
    g = gaussian(Grid(4, 5), "precision", 8, (3,))
    estimate = g.estimate_kl_divergence(g, num_probes=2)
    assert np.abs(estimate).max() <= 1e3 * gamma(20, np.float64) * 20


def test_estimates_have_the_batch_of_mean_and_factor_together() -> None:
    """Means alone have a batch here, then the other Gaussian alone."""
    q, p = gaussian(Grid(2, 3), "precision", 9), gaussian(Star(6), "factor", 10, (4,))
    q = q.moved_to(np.zeros((2, 1, 6)))
    for estimate in (q.estimate_trace_covariance(), q.estimate_trace_covariance("xtrace", num_probes=3)):
        assert isinstance(estimate, stochastic.Estimate)
        assert estimate.value.shape == estimate.standard_error.shape == (2, 1)
    for estimate in (q.estimate_kl_divergence(p, num_probes=2), p.estimate_kl_divergence(q, num_probes=2)):
        assert estimate.value.shape == estimate.standard_error.shape == (2, 4)


def test_the_generator_decides_the_estimate() -> None:
    g = gaussian(Grid(4, 5), "precision", 11)
    for estimate in (
        lambda rng: g.estimate_trace_covariance("probing", rng, distance=1, replicates=3),
        lambda rng: g.estimate_kl_divergence(num_probes=3, rng=rng),
    ):
        assert estimate(np.random.default_rng(0)) == estimate(np.random.default_rng(0))
        assert estimate(np.random.default_rng(0)) != estimate(np.random.default_rng(1))


def test_what_does_not_fit_is_named() -> None:
    g = gaussian(Grid(2, 3), "precision", 12)
    with pytest.raises(
        ValueError, match=r"^estimate_trace_covariance: method must be one of .*xtrace'\), got 'exact'\.$"
    ):
        g.estimate_trace_covariance("exact")
    with pytest.raises(TypeError, match="num_probes"):
        g.estimate_trace_covariance("probing", num_probes=3)
    with pytest.raises(ShapeError, match=r"^estimate_kl_divergence: needs two Gaussians of 6 nodes, got one of 5\.$"):
        g.estimate_kl_divergence(gaussian(Chain(5), "factor", 0), num_probes=2)


@pytest.mark.parametrize("method", [*METHODS])
@pytest.mark.parametrize("topology", [Grid(5, 6), Chain(3), Diagonal(2)], ids=str)
def test_every_method_has_defaults_which_fit_small_graphs(method: Any, topology: Topology) -> None:
    g = gaussian(topology, "precision", 13)
    estimate = g.estimate_trace_covariance(method, 0)
    exact = g.trace_covariance()
    assert abs(estimate.value - exact) <= 6 * estimate.standard_error + 1e3 * gamma(64, np.float64) * exact


WRONG_OPTIONS: list[tuple[str, dict[str, Any], type[Exception], str]] = [
    ("hutchinson", {"distance": 3}, TypeError, "method 'hutchinson' takes num_probes, got distance"),
    ("probing", {"num_probes": 3}, TypeError, "method 'probing' takes distance and replicates, got num_probes"),
    ("hutchpp", {"replicates": 3}, TypeError, "method 'hutchpp' takes rank and num_probes, got replicates"),
    ("xtrace", {"rank": 3}, TypeError, "method 'xtrace' takes num_probes, got rank"),
    ("hutchinson", {"num_probes": 1}, ValueError, "num_probes must be at least 2, for a standard error, got 1"),
    ("hutchinson", {"num_probes": 2.5}, TypeError, "num_probes must be an integer, got 2.5"),
    ("probing", {"replicates": 1}, ValueError, "replicates must be at least 2"),
    ("probing", {"replicates": 2.5}, TypeError, "replicates must be an integer, got 2.5"),
    ("probing", {"distance": -1}, ValueError, "distance must be at least 0, got -1"),
    ("probing", {"distance": 1.5}, TypeError, "distance must be an integer, got 1.5"),
    ("hutchpp", {"rank": 6}, ValueError, "rank must be at most n − 1 = 5, got 6"),
    ("hutchpp", {"rank": -1}, ValueError, "rank must be at least 0, got -1"),
    ("hutchpp", {"num_probes": 1}, ValueError, "num_probes must be at least 2"),
    ("xtrace", {"num_probes": 7}, ValueError, "num_probes must be at most n = 6, got 7"),
    ("xtrace", {"num_probes": "6"}, TypeError, "num_probes must be an integer, got '6'"),
]


@pytest.mark.parametrize(("method", "options", "error", "message"), WRONG_OPTIONS)
def test_a_wrong_option_is_named_in_the_words_of_the_call(
    method: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=f"^estimate_trace_covariance: {re.escape(message)}"):
        gaussian(Grid(2, 3), "precision", 14).estimate_trace_covariance(method, **options)
