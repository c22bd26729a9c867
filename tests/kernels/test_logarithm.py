"""The logarithm of the kernels: below one unit in the last place, on the whole range."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sparseggm.kernels.lanes.logarithm import logarithms
from tests.numerics import WIDE


def error_in_last_places(x: np.ndarray) -> np.ndarray:
    found = x.copy()
    logarithms(found)
    exact = np.log(x.astype(WIDE))
    return np.asarray(abs(found - exact) / np.spacing(abs(found)).astype(WIDE))


@given(st.lists(st.floats(min_value=5e-324, max_value=np.finfo(float).max), min_size=1, max_size=40))
def test_on_the_whole_range(numbers: list[float]) -> None:
    assert (error_in_last_places(np.array(numbers)) < 1).all()


def test_on_a_sweep_of_scales_and_close_to_one() -> None:
    rng = np.random.default_rng(0)
    scales = np.exp(rng.uniform(-744, 709, 100_000))
    near_one = 1 + rng.standard_normal(100_000) * np.exp(rng.uniform(-37, -1, 100_000))
    x = np.concatenate([scales, near_one[near_one > 0], [1 - 2.0**-53, 1 + 2.0**-52, 0.5**0.5, 2.0**0.5]])
    assert (error_in_last_places(x) < 1).all()


def test_one_and_powers_of_two_are_as_exact_as_can_be() -> None:
    x = np.array([1.0, 2.0, 0.5, 2.0**-1074])
    logarithms(x)
    np.testing.assert_array_equal(x, [0.0, np.log(2.0), -np.log(2.0), -1074 * np.log(2.0)])
