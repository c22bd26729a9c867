"""Everything that takes `rng` takes a generator, a seed, a SeedSequence or None, and says so of anything else."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from sparseggm import Chain, GaussianGraphicalModel, Grid, stochastic

GRID = Grid(4, 4)
PATTERN = GRID.factor_pattern
FACTOR = np.where(PATTERN.rows == PATTERN.cols, 2.0, -0.5)
COLOURS = np.arange(16) % 5
G = GaussianGraphicalModel(np.zeros(16), factor=FACTOR, topology=GRID)

CALLS: dict[str, Callable[[Any], Any]] = {
    "sample": lambda rng: G.sample(3, rng),
    "estimate_trace_covariance": lambda rng: G.estimate_trace_covariance("hutchinson", rng),
    "estimate_kl_divergence": lambda rng: G.estimate_kl_divergence(num_probes=3, rng=rng),
    "estimate_trace_by_hutchinson": lambda rng: stochastic.estimate_trace_by_hutchinson(PATTERN, FACTOR, 3, rng),
    "estimate_trace_by_probing": lambda rng: stochastic.estimate_trace_by_probing(PATTERN, FACTOR, COLOURS, rng=rng),
    "estimate_trace_by_hutchpp": lambda rng: stochastic.estimate_trace_by_hutchpp(PATTERN, FACTOR, 2, 3, rng),
    "estimate_trace_by_xtrace": lambda rng: stochastic.estimate_trace_by_xtrace(PATTERN, FACTOR, 3, rng),
    "estimate_trace_product": lambda rng: stochastic.estimate_trace_product(
        PATTERN, FACTOR, Chain(16).factor_pattern, 3, rng, other_factor=np.ones(31)
    ),
    "estimate_variances_by_rao_blackwell": lambda rng: stochastic.estimate_variances_by_rao_blackwell(
        PATTERN, FACTOR, 3, rng
    ),
    "estimate_variances_by_probing": lambda rng: stochastic.estimate_variances_by_probing(
        PATTERN, FACTOR, COLOURS, rng=rng
    ),
}

each_call = pytest.mark.parametrize("name", CALLS)


def test_the_list_above_has_every_public_function_that_takes_rng() -> None:
    places = {**vars(stochastic), **vars(GaussianGraphicalModel)}
    functions = {
        name
        for name, function in places.items()
        if inspect.isfunction(function) and not name.startswith("_") and "rng" in inspect.signature(function).parameters
    }
    assert functions - {"generator"} == set(CALLS)


@each_call
def test_a_seed_stands_for_its_generator(name: str) -> None:
    call = CALLS[name]
    expected = np.asarray(call(np.random.default_rng(7)))
    for seed in (7, np.int64(7), np.random.SeedSequence(7)):
        np.testing.assert_array_equal(np.asarray(call(seed)), expected)
    assert (np.asarray(call(8)) != expected).any()
    assert (np.asarray(call(None)) != np.asarray(call(None))).any()


@each_call
def test_a_generator_moves_on(name: str) -> None:
    rng = np.random.default_rng(7)
    first, second = np.asarray(CALLS[name](rng)), np.asarray(CALLS[name](rng))
    assert (first != second).any()


@each_call
@pytest.mark.parametrize(("wrong", "error"), [("0", TypeError), (0.5, TypeError), (-1, ValueError)])
def test_what_is_no_seed_is_named(name: str, wrong: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=rf"^{name}: rng must be a numpy\.random\.Generator, a nonnegative integer, .* got"):
        CALLS[name](wrong)
