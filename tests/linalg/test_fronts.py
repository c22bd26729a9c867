"""Dense fronts: chosen where they are faster, held to the bounds of the columns that they replace, on every pattern."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given

from sparseggm import (
    Graph,
    Grid,
    NonFiniteError,
    NonPositiveError,
    NotPositiveDefiniteError,
    Pattern,
    linalg,
)
from sparseggm.graph import fronts
from sparseggm.linalg import calculus, engines
from tests.kernels import test_broken_kernels as broken
from tests.linalg import test_calculus, test_hard_cases, test_laws, test_values
from tests.numerics import Array
from tests.strategies import named_patterns, precision_values, seeds

LAWS = [
    test_values.test_cholesky_is_backward_stable,
    test_values.test_selected_inverse_solves_its_defining_equations,
    test_values.test_selected_inverse_on_a_larger_pattern_is_the_inverse_there,
    test_values.test_marginal_variances_are_within_their_a_posteriori_bound,
    test_values.test_trace_inverse_is_within_its_a_posteriori_bound,
    test_values.test_precision_solve_is_what_its_verbs_give,
    test_laws.test_scaling_p_by_a_power_of_four_scales_l_by_its_root_to_the_last_bit,
    test_laws.test_a_variance_is_at_least_its_conditional_variance,
    test_laws.test_cholesky_on_a_larger_pattern_is_the_same_factor,
    broken.test_scaling_nodes_by_powers_of_two_scales_rows_to_the_last_bit_and_moves_no_threshold,
    broken.test_of_several_failing_pivots_the_first_is_named,
    test_calculus.test_cholesky_vjp_solves_its_equation,
    test_calculus.test_cholesky_vjp_on_the_pattern_of_p_is_that_part_of_it,
    test_calculus.test_cholesky_vjp_is_the_adjoint_of_cholesky_jvp,
    test_calculus.test_the_selected_inverse_is_the_reverse_mode_of_cholesky_at_log_det,
]


@pytest.mark.property
@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
@pytest.mark.usefixtures("fronts_everywhere")
def test_a_law_of_columns_is_one_of_fronts(law: Callable[[], None]) -> None:
    law()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.usefixtures("fronts_everywhere")
def test_thresholds_are_those_of_columns(dtype: str) -> None:
    broken.test_each_threshold_belongs_to_the_row_of_its_entry(dtype)
    test_values.test_fill_is_zero_below_the_stated_threshold_and_accurate_above(dtype)
    test_values.test_covariances_are_zero_below_the_stated_threshold_and_accurate_above(dtype)
    test_hard_cases.test_the_smallest_and_the_fullest_graphs_solve_their_equations("complete", dtype)


@pytest.mark.property
@given(named=named_patterns(3, "precision"), seed=seeds)
def test_supernodes_are_a_tree_of_which_each_front_holds_its_columns(named: tuple[str, Pattern], seed: int) -> None:
    filled = named[1].filled()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fronts, "LEAST_ENTRIES", 0)
        patch.setattr(fronts, "COLUMN_WORK", math.inf)
        patch.setattr(fronts, "MOST_SCRATCH", math.inf)
        tree = fronts.fronts_of(*filled.structure)
    assert tree is not None
    sets = [tree.columns[begin:end] for begin, end in zip(tree.indptr, tree.indptr[1:], strict=False)]
    assert np.array_equal(np.sort(np.concatenate(sets)), np.arange(filled.n))
    below = [filled.rows[filled.indptr[own[-1]] + 1 : filled.indptr[own[-1] + 1]] for own in sets]
    parents = np.full(len(sets), -1)
    for s, (begin, end) in enumerate(zip(tree.child_indptr, tree.child_indptr[1:], strict=False)):
        parents[tree.children[begin:end]] = s
        assert (tree.children[begin:end] < s).all()
    for s, own in enumerate(sets):
        front = {*own.tolist(), *below[s].tolist()}
        assert all({*filled.rows[filled.indptr[j] : filled.indptr[j + 1]].tolist()} <= front for j in own)
        if below[s].size:
            parent = parents[s]
            assert {*below[s].tolist()} <= {*sets[parent].tolist(), *below[parent].tolist()}
        else:
            assert parents[s] == -1
    assert tree.largest == max(len(own) + len(rest) for own, rest in zip(sets, below, strict=True))
    assert tree.panel == max(len(own) * (len(own) + len(rest)) for own, rest in zip(sets, below, strict=True))


def large(seed: int = 0) -> tuple[Pattern, Array]:
    """P of a graph in three dimensions beside one without edges: a pattern that has fronts by itself."""
    box = Grid(11, 11, 11)
    graph = Graph(box.n + 5, box.edges)
    pattern = graph.precision_pattern
    return pattern, precision_values(np.random.default_rng(seed), pattern, (), "dominant", "float64")


def test_large_matrices_have_fronts_and_small_ones_and_bands_do_not() -> None:
    assert large()[0].filled().fronts is not None
    assert Grid(20, 20).precision_pattern.filled().fronts is None
    band = Pattern.from_edges(5_000, [(i, i + k) for i in range(4_992) for k in range(1, 9)])
    assert band.nnz > fronts.LEAST_ENTRIES
    assert band.fronts is None


def test_many_small_parts_that_share_many_nodes_have_no_fronts() -> None:
    """Each would leave its update of the shared nodes on the stack: forty times the entries of L."""
    groups, width, shared = 300, 8, 400
    n = groups * width + shared
    cliques = [(i, j) for i in range(n - shared) for j in range(i + 1, i - i % width + width)]
    beside = [(i, j) for i in range(n - shared) for j in range(n - shared, n)]
    pattern = Pattern.from_edges(n, cliques + beside).filled()
    assert pattern.nnz > fronts.LEAST_ENTRIES
    assert pattern.fronts is None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fronts, "MOST_SCRATCH", math.inf)
        patch.setattr(fronts, "COLUMN_WORK", math.inf)
        tree = fronts.fronts_of(*pattern.structure)
    assert tree is not None
    assert tree.scratch > 10 * pattern.nnz


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_fronts_and_columns_agree_on_a_large_matrix(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within the rounding of both, which a well-conditioned P keeps near u."""
    pattern, precision = large()
    P = precision.astype(dtype)

    def answers() -> list[Array]:
        filled, factor = pattern.filled(), linalg.cholesky(pattern, P)
        cotangent = np.random.default_rng(1).standard_normal(factor.shape).astype(dtype)
        inverse = linalg.selected_inverse(filled, factor), linalg.marginal_variances(filled, factor)
        return [factor, *inverse, calculus.cholesky_vjp(filled, factor, cotangent), linalg.precision_logdet(pattern, P)]

    by_fronts = answers()
    monkeypatch.setattr(engines, "ENGINES", [engines.Sparse()])
    tolerance = 200 * np.finfo(dtype).eps
    for ours, theirs in zip(by_fronts, answers(), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=tolerance, atol=tolerance * abs(theirs).max())


def test_results_of_fronts_do_not_depend_on_the_batch() -> None:
    pattern, one = large()
    filled, many = pattern.filled(), np.stack([large(seed)[1] for seed in (1, 0, *range(2, 18))])
    factor, factors = linalg.cholesky(pattern, one), linalg.cholesky(pattern, many)
    np.testing.assert_array_equal(factors[1], factor)
    np.testing.assert_array_equal(linalg.precision_logdet(pattern, many)[1], linalg.precision_logdet(pattern, one))
    for verb in (linalg.selected_inverse, linalg.marginal_variances):
        np.testing.assert_array_equal(verb(filled, factors)[1], verb(filled, factor))


def test_a_large_matrix_that_fails_is_refused_in_the_column_that_failed() -> None:
    pattern, precision = large()
    for column in (3, pattern.n - 2):
        broken_precision = precision.copy()
        broken_precision[pattern.indptr[column]] = -1.0
        with pytest.raises(NotPositiveDefiniteError) as caught:
            linalg.cholesky(pattern, np.stack([precision, broken_precision]))
        assert caught.value.batch_index == (1,)
        assert caught.value.column == column
        factors, succeeded = linalg.attempt_cholesky(pattern, np.stack([precision, broken_precision]))
        assert succeeded.tolist() == [True, False]
        np.testing.assert_array_equal(factors[0], linalg.cholesky(pattern, precision))


@pytest.mark.parametrize(
    ("value", "error"), [(0.0, NonPositiveError), (-1.0, NonPositiveError), (np.nan, NonFiniteError)]
)
def test_a_bad_pivot_of_a_large_factor_is_an_error(value: float, error: type[Exception]) -> None:
    pattern, precision = large()
    factor = linalg.cholesky(pattern, precision)
    factor[pattern.filled().indptr[7]] = value
    for verb in (linalg.selected_inverse, linalg.marginal_variances):
        with pytest.raises(error):
            verb(pattern.filled(), factor)
