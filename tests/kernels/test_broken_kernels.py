"""What a broken kernel once survived: tests written after faults were put into every kernel, three and more each."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given

from sparseggm import Diagonal, NonFiniteError, NonPositiveError, NotPositiveDefiniteError, Pattern, linalg
from tests import numerics
from tests.numerics import WIDE
from tests.strategies import FOUR_CYCLE, dtypes, named_patterns, precision_values, seeds
from tests.verbs import VERBS, arguments

each_dtype = pytest.mark.parametrize("dtype", ["float32", "float64"])


@given(named=named_patterns(3), seed=seeds, dtype=dtypes)
def test_scaling_nodes_by_powers_of_two_scales_rows_to_the_last_bit_and_moves_no_threshold(named, seed, dtype) -> None:
    """chol(D P D) = D L, and Σ → D⁻¹ Σ D⁻¹: an entry is negligible relative to its own row, whatever the units."""
    pattern, rng = named[1], np.random.default_rng(seed)
    filled, one = pattern.filled(), np.dtype(dtype).type
    P = precision_values(rng, pattern, (), "decaying", dtype)
    d = one(2.0) ** rng.integers(-8, 9, pattern.n).astype(dtype)
    L = linalg.cholesky(pattern, P)
    scaled = linalg.cholesky(pattern, P * d[pattern.rows] * d[pattern.cols])
    np.testing.assert_array_equal(scaled, L * d[filled.rows])
    sigma = linalg.selected_inverse(filled, L)
    expected = sigma / d[filled.rows] / d[filled.cols]
    np.testing.assert_array_equal(linalg.selected_inverse(filled, scaled), expected)


@each_dtype
def test_each_threshold_belongs_to_the_row_of_its_entry(dtype: str) -> None:
    """Nodes 1 and 2 hang on 0 by ε, the fill is −ε²; the units of the nodes differ by 2^±10, and change nothing."""
    pattern, one = Pattern.from_edges(3, [(1, 0), (2, 0)]), np.dtype(dtype).type
    filled = pattern.filled()
    for factor in (0.5, 2.0):
        epsilon = one(float(np.sqrt(numerics.negligible(dtype))) * factor)
        P = np.array([1, epsilon, epsilon, 1, 1], dtype)
        L = linalg.cholesky(pattern, P)
        # A chain of the same couplings, on the dense pattern: Σ_20 = ε².
        chain = np.array([1, -epsilon, 0, 1, -epsilon, 1], dtype)
        sigma = linalg.selected_inverse(filled, chain)
        assert (L[4] == 0) == (sigma[2] == 0) == (factor < 1)
        for units in np.ndindex(3, 3, 3):
            d = one(2.0) ** (10 * (np.array(units) - 1)).astype(dtype)
            scaled = linalg.cholesky(pattern, P * d[pattern.rows] * d[pattern.cols])
            np.testing.assert_array_equal(scaled, L * d[filled.rows])
            expected = sigma / d[filled.rows] / d[filled.cols]
            np.testing.assert_array_equal(linalg.selected_inverse(filled, chain * d[filled.rows]), expected)


def test_of_several_failing_pivots_the_first_is_named() -> None:
    with pytest.raises(NotPositiveDefiniteError) as caught:
        linalg.cholesky(Pattern.from_edges(4, []), np.array([1.0, -2.0, -3.0, 1.0]))
    assert (caught.value.column, caught.value.pivot) == (1, -2.0)


@pytest.mark.parametrize("value", [0.0, -2.0, np.nan, np.inf])
@pytest.mark.parametrize("verb", [verb for verb in VERBS.values() if verb.needs_positive_diagonal], ids=str)
def test_a_bad_pivot_of_the_only_matrix_is_an_error(verb, value: float) -> None:
    """The status of row 0 must not be mistaken for success."""
    pattern = FOUR_CYCLE.filled()
    bad = arguments(verb, pattern)
    bad["factor"][pattern.diagonal[2]] = value
    with pytest.raises(NonPositiveError if np.isfinite(value) else NonFiniteError, match=f"^{verb.name}: "):
        verb(pattern, bad)


def test_log_det_takes_logarithms_in_float64() -> None:
    """Equal terms whose float32 logarithms, and then their sum, would be rounded the same way."""
    diagonal = np.full(9, 7.406504154205322, np.float32)
    exact = 2 * np.log(diagonal.astype(WIDE)).sum()
    bound = numerics.logdet_bound_of(diagonal.astype(WIDE), np.dtype(np.float32))
    assert abs(linalg.logdet(Diagonal(len(diagonal)).factor_pattern, diagonal) - exact) <= bound
