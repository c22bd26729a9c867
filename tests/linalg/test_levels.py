"""Probabilities of levels: the sequential definition, unbiased against quadrature, gradients against differences."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import reference.levels
from sparseggm import Chain, Diagonal, DTypeError, ExtendedGrid, NonPositiveError, ShapeError, Star
from sparseggm.linalg.levels import levels_log_prob, levels_log_prob_and_gradients, sample_in_levels
from tests.ledger import check
from tests.numerics import Array
from tests.strategies import factor_values, named_patterns
from tests.verbs import EDGES


def problem(pattern: Any, seed: int, dtype: Any, spread: float = 1.0) -> tuple[Array, ...]:
    rng = np.random.default_rng(seed)
    loc = (spread * rng.standard_normal((2, pattern.n))).astype(dtype)
    factor = factor_values(rng, pattern, (2,), "plain", dtype)
    levels = rng.integers(0, 8, (2, pattern.n))
    return loc, factor, levels, EDGES, rng.uniform(0.01, 0.99, (3, 2, pattern.n)).astype(dtype)


@pytest.mark.property
@given(named=named_patterns(), seed=st.integers(0, 2**32 - 1), dtype=st.sampled_from(["float32", "float64"]))
def test_a_sample_and_its_probability_are_those_of_the_definition(named: Any, seed: int, dtype: str) -> None:
    """Each node is as exact as its conditional mean, whose error grows with those after it: bounded for few nodes."""
    family, pattern = named
    loc, factor, levels, edges, uniform = problem(pattern, seed, dtype)
    z, log_prob = sample_in_levels(pattern, loc, factor, levels, edges, uniform)
    np.testing.assert_array_equal(levels_log_prob(pattern, loc, factor, levels, edges, uniform), log_prob)
    lower, upper = edges[levels], edges[levels + 1]
    for k, b in np.ndindex(3, 2):
        arguments = pattern.to_dense(factor[b].astype(float)), loc[b].astype(float), lower[b], upper[b]
        exact_z, exact = reference.levels.sequential(*arguments, uniform[k, b].astype(float))
        bound = 1e-9 * (1 + abs(exact))
        check("levels_log_prob", family, dtype, np.array([log_prob[k, b] - exact]), np.array([bound]))
        assert (abs(z[k, b] - exact_z) <= 1e-9 * (1 + abs(exact_z)) + np.finfo(dtype).eps * abs(exact_z)).all()
        eps = np.finfo(dtype).eps * (1 + abs(z[k, b]))
        assert ((lower[b] - eps <= z[k, b]) & (z[k, b] <= upper[b] + eps)).all()


def test_the_weights_average_to_the_probability() -> None:
    pattern, rng = Chain(3).factor_pattern, np.random.default_rng(0)
    factor, loc, levels = np.array([1.0, 0.5, 1.2, -0.7, 0.9]), np.array([0.1, -0.3, 0.2]), np.array([2, 4, 6])
    weights = np.exp(levels_log_prob(pattern, loc, factor, levels, EDGES, rng.random((40_000, 3))))
    dense = pattern.to_dense(factor)
    exact = reference.levels.probability(dense @ dense.T, loc, EDGES[levels], EDGES[levels + 1])
    assert abs(weights.mean() - exact) <= 4 * weights.std() / np.sqrt(len(weights))
    assert weights.std() > 0


def test_the_probabilities_of_all_levels_of_a_node_add_up_to_one() -> None:
    loc, factor, levels = np.array([0.7]), np.array([1.3]), np.arange(8)[:, None]
    log_prob = levels_log_prob(Diagonal(1).factor_pattern, loc, factor, levels, EDGES, np.full((8, 1), 0.5))
    assert abs(np.exp(log_prob).sum() - 1) <= 8 * 2.0**-52


@pytest.mark.property
@given(named=named_patterns(), seed=st.integers(0, 2**32 - 1), dtype=st.sampled_from(["float32", "float64"]))
def test_gradients_are_those_of_the_definition(named: Any, seed: int, dtype: str) -> None:
    """Derived there for means and deviations instead of the ends of intervals."""
    pattern = named[1]
    loc, factor, levels, edges, uniform = problem(pattern, seed, dtype)
    log_prob, by_loc, by_factor = levels_log_prob_and_gradients(pattern, loc, factor, levels, edges, uniform)
    np.testing.assert_array_equal(levels_log_prob(pattern, loc, factor, levels, edges, uniform), log_prob)
    lower, upper = edges[levels], edges[levels + 1]
    for k, b in np.ndindex(3, 2):
        arguments = pattern.to_dense(factor[b].astype(float)), loc[b].astype(float), lower[b], upper[b]
        of_factor, of_loc = reference.levels.gradients(*arguments, uniform[k, b].astype(float))
        of_factor = of_factor[pattern.rows, pattern.cols]
        for found, exact in ((by_loc[k, b], of_loc), (by_factor[k, b], of_factor)):
            assert (abs(found - exact) <= 1e-8 * (1 + abs(exact).max()) + np.finfo(dtype).eps * abs(exact)).all()


@pytest.mark.parametrize("topology", [Diagonal(3), Chain(4), ExtendedGrid(2, 3), Star(4)], ids=str)
def test_gradients_agree_with_differences(topology: Any) -> None:
    pattern = topology.factor_pattern
    loc, factor, levels, edges, uniform = problem(pattern, 1, "float64")
    _, by_loc, by_factor = levels_log_prob_and_gradients(pattern, loc, factor, levels, edges, uniform)
    step = 1e-6
    for at, gradient in enumerate((by_loc, by_factor)):
        for place in range(gradient.shape[-1]):
            values = []
            for sign in (1, -1):
                moved = [loc.copy(), factor.copy()]
                moved[at][..., place] += sign * step
                values.append(levels_log_prob(pattern, *moved, levels, edges, uniform))
            difference = (values[0] - values[1]) / (2 * step)
            assert (abs(gradient[..., place] - difference) <= 1e-7 * (1 + abs(gradient).max())).all()


def test_nothing_is_nan_however_wrong_the_parameters_are() -> None:
    pattern = ExtendedGrid(3, 3).factor_pattern
    loc, factor, levels, edges, uniform = problem(pattern, 0, "float64", spread=1e6)
    factor[..., pattern.diagonal] = 1e8
    assert np.isfinite(levels_log_prob(pattern, loc, factor, levels, edges, uniform)).all()
    gradients = levels_log_prob_and_gradients(pattern, loc, factor, levels, edges, uniform)
    assert all(np.isfinite(gradient).all() for gradient in gradients)


def test_what_is_refused() -> None:
    pattern = Chain(3).factor_pattern
    loc, factor, levels, edges, uniform = problem(pattern, 0, "float64")
    with pytest.raises(ShapeError, match=r"^levels_log_prob: levels must be in 0 … 7, got 0 … 8"):
        levels_log_prob(pattern, loc, factor, np.array([0, 8, 1]), edges, uniform)
    with pytest.raises(DTypeError, match="levels must be integers, got float64"):
        levels_log_prob(pattern, loc, factor, levels.astype(float), edges, uniform)
    with pytest.raises(ShapeError, match="levels must end in 3"):
        levels_log_prob(pattern, loc, factor, levels[..., :2], edges, uniform)
    with pytest.raises(ShapeError, match=r"edges must have one axis, the same for all, got shape \(1, 9\)"):
        levels_log_prob(pattern, loc, factor, levels, edges[None], uniform)
    with pytest.raises(NonPositiveError, match="factor"):
        levels_log_prob(pattern, loc, -factor, levels, edges, uniform)
