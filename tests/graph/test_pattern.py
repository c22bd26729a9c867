"""`Pattern`: the packed layout pinned by literal values, every derived fact by its definition, and what it refuses."""

from __future__ import annotations

import copy
import gc
import pickle
import re

import numpy as np
import pytest
import scipy.sparse
from hypothesis import given
from hypothesis import strategies as st

import reference.topology
from sparseggm import Pattern, PatternError, ShapeError
from tests.strategies import dense_pattern, mask, named_patterns, seeds

EXAMPLE = Pattern(4, [0, 3, 5, 6, 7], [0, 1, 3, 1, 2, 2, 3])
"""The 4 × 4 matrix of the module's docstring."""

patterns = named_patterns(3).map(lambda named: named[1])


def edges_of(pattern: Pattern) -> list[tuple[int, int]]:
    pairs = zip(pattern.rows.tolist(), pattern.cols.tolist(), strict=True)
    return [(i, j) for i, j in pairs if i != j]


def expected_mask(pattern: Pattern) -> np.ndarray:
    """Built without `to_dense`."""
    return reference.topology.pattern(pattern.n, edges_of(pattern))


# ---------------------------------------------------------------------- layout


def test_the_packed_layout_is_that_of_the_documentation() -> None:
    values = np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0])
    lower = [[1, 0, 0, 0], [2, 4, 0, 0], [0, 5, 6, 0], [3, 0, 0, 7]]
    symmetric = [[1, 2, 0, 3], [2, 4, 5, 0], [0, 5, 6, 0], [3, 0, 0, 7]]
    np.testing.assert_array_equal(EXAMPLE.to_dense(values), lower)
    np.testing.assert_array_equal(EXAMPLE.to_dense(values, symmetric=True), symmetric)
    assert EXAMPLE.cols.tolist() == [0, 0, 0, 1, 1, 2, 3]
    assert EXAMPLE.diagonal.tolist() == [0, 3, 5, 6]


def test_keys_never_change() -> None:
    """They are stored in checkpoints."""
    assert EXAMPLE.key == KEYS["example"]
    assert Pattern(1, [0, 1], [0]).key == KEYS["one node"]
    assert Pattern.from_edges(784, np.stack([np.arange(1, 784), np.arange(783)], -1)).key == KEYS["chain of 784"]


KEYS = {
    "example": "973271b940686d27027fe1540565f1a1",
    "one node": "da085dcb2d2be7f30b57d6097efbe6cb",
    "chain of 784": "cdd0e1513036c97a8c0f2dbfc7e4db58",
}


@given(pattern=patterns)
def test_columns_hold_their_diagonal_and_then_increasing_rows(pattern: Pattern) -> None:
    entries = list(zip(pattern.cols.tolist(), pattern.rows.tolist(), strict=True))
    assert entries == sorted(set(entries))
    assert [pattern.rows[p] for p in pattern.diagonal] == list(range(pattern.n))
    assert pattern.nnz == len(entries) == pattern.indptr[-1]
    for j in range(pattern.n):
        assert all(col == j for col in pattern.cols[pattern.indptr[j] : pattern.indptr[j + 1]])


@given(pattern=patterns)
def test_derived_facts_are_those_of_the_dense_mask(pattern: Pattern) -> None:
    expected = expected_mask(pattern)
    np.testing.assert_array_equal(mask(pattern), expected)
    i, j = np.nonzero(expected)
    assert pattern.bandwidth == (i - j).max()
    assert pattern.longest_column == expected.sum(axis=0).max()
    assert pattern.longest_row == expected.sum(axis=1).max()
    assert pattern.is_closed == (reference.topology.filled(expected) == expected).all()


@given(pattern=patterns)
def test_fill_is_that_of_naive_elimination(pattern: Pattern) -> None:
    np.testing.assert_array_equal(mask(pattern.filled()), reference.topology.filled(expected_mask(pattern)))
    assert pattern.filled().filled() is pattern.filled()
    assert pattern.filled().is_closed


@given(pattern=patterns)
def test_gram_is_the_pattern_of_the_product(pattern: Pattern) -> None:
    expected = reference.topology.gram(expected_mask(pattern))
    np.testing.assert_array_equal(mask(pattern.gram()), expected)
    assert (pattern.gram() is pattern) == (expected == expected_mask(pattern)).all()


@given(pattern=patterns)
def test_row_structure_lists_the_strictly_lower_entries_of_each_row(pattern: Pattern) -> None:
    row_indptr, row_cols, row_positions = pattern.row_structure
    for i in range(pattern.n):
        part = slice(row_indptr[i], row_indptr[i + 1])
        assert row_cols[part].tolist() == np.flatnonzero(expected_mask(pattern)[i, :i]).tolist()
        assert (pattern.rows[row_positions[part]] == i).all()
        assert (pattern.cols[row_positions[part]] == row_cols[part]).all()


@given(pattern=patterns)
def test_columns_in_a_group_have_the_same_rows_from_a_row_on(pattern: Pattern) -> None:
    closed = pattern.filled()
    (row_indptr, row_cols, _), groups, stored = closed.row_structure, closed.column_groups, expected_mask(closed)
    assert not groups.flags.writeable
    for i in range(closed.n):
        t = row_indptr[i]
        while t < row_indptr[i + 1]:
            group = row_cols[t : t + groups[t]]
            assert len(group) == groups[t] in (1, 2, 4)
            assert (stored[i:, group] == stored[i:, group[:1]]).all()
            t += groups[t]
        assert t == row_indptr[i + 1]


def test_the_last_columns_of_a_dense_pattern_go_together() -> None:
    assert dense_pattern(6).column_groups.tolist() == [1, 2, 0, 2, 0, 1, 4, 0, 0, 0, 4, 0, 0, 0, 1]


@given(pattern=patterns)
def test_envelope_makes_columns_contiguous(pattern: Pattern) -> None:
    expected = expected_mask(pattern)
    for column in expected.T:
        column[np.flatnonzero(column)[0] : np.flatnonzero(column)[-1]] = True
    np.testing.assert_array_equal(mask(pattern.envelope()), expected)


@given(named=named_patterns(3), seed=seeds)
def test_union_holds_the_entries_of_either(named: tuple[str, Pattern], seed: int) -> None:
    a, n = named[1], named[1].n
    b = Pattern.from_edges(n, np.argwhere(np.tril(np.random.default_rng(seed).random((n, n)) < 0.3, -1)))
    np.testing.assert_array_equal(mask(a.union(b)), expected_mask(a) | expected_mask(b))
    assert a.union(b) is b.union(a)
    assert a.union(a) is a
    np.testing.assert_array_equal(a.union(b).rows[a.positions_in(a.union(b))], a.rows)
    np.testing.assert_array_equal(a.union(b).cols[a.positions_in(a.union(b))], a.cols)


@given(pattern=patterns, seed=seeds)
def test_permuted_renumbers_the_symmetric_matrix(pattern: Pattern, seed: int) -> None:
    rng = np.random.default_rng(seed)
    values, order = rng.standard_normal((2, pattern.nnz)), rng.permutation(pattern.n)
    renumbered, gather = pattern.permuted(order)
    expected = pattern.to_dense(values, symmetric=True)[:, order][:, :, order]
    np.testing.assert_array_equal(renumbered.to_dense(values[..., gather], symmetric=True), expected)


# ---------------------------------------------------------------------- identity


@given(pattern=patterns)
def test_equal_structure_is_the_same_object(pattern: Pattern) -> None:
    twin = Pattern(pattern.n, pattern.indptr.astype(np.int64).tolist(), pattern.rows.tolist())
    assert twin is pattern
    assert Pattern.from_edges(pattern.n, edges_of(pattern)[::-1]) is pattern
    assert Pattern.from_key(pattern.key) is pattern
    assert copy.copy(pattern) is copy.deepcopy(pattern) is pattern
    assert pickle.loads(pickle.dumps(pattern)) is pattern


def test_a_different_size_or_structure_is_another_key() -> None:
    keys = {Pattern.from_edges(n, edges).key for n in (2, 3) for edges in ([], [(1, 0)])}
    assert len(keys) == 4


def test_a_pattern_lives_only_as_long_as_it_is_used() -> None:
    pattern = Pattern.from_edges(7, [(6, 0), (3, 1), (6, 3)])
    derived = pattern.filled().key, pattern.gram().key
    key = pattern.key
    del pattern
    gc.collect()
    for dead in (key, *derived):
        with pytest.raises(PatternError, match=f"no pattern '{dead}' is alive in this process"):
            Pattern.from_key(dead)


def test_structure_arrays_are_read_only_and_not_those_of_the_caller() -> None:
    rows = np.array([0, 1, 1], np.int32)
    pattern = Pattern(2, np.array([0, 2, 3], np.int32), rows)
    rows[1] = 0
    assert pattern.rows.tolist() == [0, 1, 1]
    for array in (pattern.rows, pattern.indptr, pattern.cols, *pattern.row_structure):
        assert not array.flags.writeable


# ---------------------------------------------------------------------- exchange


@given(pattern=patterns, seed=seeds, batch=st.sampled_from([(), (1,), (3, 2), (0,)]), symmetric=st.booleans())
def test_values_of_inverts_to_dense(pattern: Pattern, seed: int, batch: tuple[int, ...], symmetric: bool) -> None:
    values = np.random.default_rng(seed).standard_normal((*batch, pattern.nnz))
    again = pattern.values_of(pattern.to_dense(values, symmetric), symmetric)
    np.testing.assert_array_equal(again, values, strict=True)


@given(pattern=patterns, seed=seeds, symmetric=st.booleans(), form=st.sampled_from(["csc", "csr", "coo"]))
def test_values_of_inverts_to_scipy(pattern: Pattern, seed: int, symmetric: bool, form: str) -> None:
    values = np.random.default_rng(seed).standard_normal(pattern.nnz)
    matrix = pattern.to_scipy(values, symmetric)
    np.testing.assert_array_equal(matrix.toarray(), pattern.to_dense(values, symmetric))
    np.testing.assert_array_equal(pattern.values_of(matrix.asformat(form), symmetric), values)


def test_one_triangular_matrix_is_a_scipy_matrix_without_a_copy() -> None:
    values = np.arange(7.0)
    assert np.shares_memory(EXAMPLE.to_scipy(values).data, values)


@given(pattern=patterns, seed=seeds)
def test_banded_form_is_lapacks_lower_band(pattern: Pattern, seed: int) -> None:
    values = np.random.default_rng(seed).standard_normal((2, pattern.nnz))
    ab, dense = pattern.to_banded(values), pattern.to_dense(values)
    assert ab.shape == (2, pattern.bandwidth + 1, pattern.n)
    for i, j in np.ndindex(pattern.n, pattern.n):
        if 0 <= i - j <= pattern.bandwidth:
            np.testing.assert_array_equal(ab[:, i - j, j], dense[:, i, j])
    band, packed = Pattern.from_banded(ab)
    np.testing.assert_array_equal(band.to_dense(packed), dense)


def test_from_banded_ignores_the_unused_corner() -> None:
    ab = np.array([[1.0, 2.0, 3.0], [4.0, 5.0, np.nan], [6.0, np.nan, np.nan]])
    pattern, values = Pattern.from_banded(ab)
    np.testing.assert_array_equal(pattern.to_dense(values), [[1, 0, 0], [4, 2, 0], [6, 5, 3]])


def test_from_scipy_keeps_stored_zeros_and_adds_the_diagonal() -> None:
    lower = scipy.sparse.coo_array(([5.0, 0.0], ([1, 2], [1, 0])), shape=(3, 3))
    pattern, values = Pattern.from_scipy(lower)
    assert edges_of(pattern) == [(2, 0)]
    np.testing.assert_array_equal(pattern.to_dense(values), lower.toarray())


def test_nan_survives_the_exchange() -> None:
    values = np.array([1.0, np.nan, 3.0, 4.0, 5.0, 6.0, np.nan])
    np.testing.assert_array_equal(EXAMPLE.values_of(EXAMPLE.to_dense(values)), values)
    np.testing.assert_array_equal(EXAMPLE.values_of(EXAMPLE.to_scipy(values)), values)


# ---------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("n", "indptr", "rows", "message"),
    [
        (0, [0], [], "Pattern: n must be at least 1, got 0."),
        (2, [0, 1], [0, 1], "Pattern: indptr must be (3,) from 0 to the number of rows, got shape (2,)."),
        (2, [0, 1, 3], [0, 1], "Pattern: indptr must be (3,) from 0 to the number of rows, got shape (3,)."),
        (2, [0, 2, 2], [0, 1], "Pattern: each column must start with its diagonal entry."),
        (2, [0, 1, 2], [0, 0], "Pattern: each column must start with its diagonal entry."),
        (3, [0, 3, 4, 5], [0, 2, 1, 1, 2], "Pattern: the rows of a column must increase and stay below 3."),
        (3, [0, 3, 4, 5], [0, 1, 1, 1, 2], "Pattern: the rows of a column must increase and stay below 3."),
        (2, [0, 2, 3], [0, 2, 1], "Pattern: the rows of a column must increase and stay below 2."),
    ],
)
def test_malformed_structures_are_refused(n: int, indptr: list[int], rows: list[int], message: str) -> None:
    with pytest.raises(PatternError, match=f"^{re.escape(message)}$"):
        Pattern(n, indptr, rows)


def test_a_negative_row_is_refused() -> None:
    with pytest.raises(PatternError):
        Pattern(2, [0, 2, 3], [0, -1, 1])


def test_edges_out_of_range_are_refused() -> None:
    message = "Pattern.from_edges: nodes must be in 0 … 2, got 0 … 3."
    with pytest.raises(PatternError, match=f"^{re.escape(message)}$"):
        Pattern.from_edges(3, [(0, 3)])
    with pytest.raises(PatternError, match=r"got -1 … 1"):
        Pattern.from_edges(3, [(1, -1)])


def test_entries_off_the_pattern_are_refused_with_their_place() -> None:
    dense = EXAMPLE.to_dense(np.ones(7))
    dense[2, 0] = 1e-300
    for matrix in (dense, scipy.sparse.csr_array(dense)):
        with pytest.raises(PatternError, match=r"must be zero off Pattern\(.*\), got 1e-300 at \(2, 0\)\.$"):
            EXAMPLE.values_of(matrix)


def test_an_upper_entry_or_an_unequal_mirror_is_refused() -> None:
    dense = EXAMPLE.to_dense(np.ones(7), symmetric=True)
    for matrix in (dense, scipy.sparse.csr_array(dense)):
        with pytest.raises(PatternError, match=r"must be lower triangular, got 1\.0 at \(0, 1\)\. Pass its lower"):
            EXAMPLE.values_of(matrix)
    dense[0, 3] = 2.0
    for matrix in (dense, scipy.sparse.csr_array(dense)):
        with pytest.raises(PatternError, match=r"must be symmetric, got 1\.0 at \(3, 0\) and 2\.0 at \(0, 3\)"):
            EXAMPLE.values_of(matrix, symmetric=True)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: EXAMPLE.union(Pattern.from_edges(3, [])), PatternError, "must have the same n, got 4 and 3"),
        (lambda: EXAMPLE.positions_in(Pattern.from_edges(3, [])), PatternError, "must have the same n, got 4 and 3"),
        (lambda: EXAMPLE.positions_in(Pattern.from_edges(4, [])), PatternError, "entry (1, 0) is not in"),
        (lambda: EXAMPLE.permuted([0, 1, 1, 3]), PatternError, "order must be a permutation of 0 … 3"),
        (lambda: EXAMPLE.to_dense(np.ones(6)), ShapeError, "values must end in 7, the nnz of the pattern, got (6,)"),
        (lambda: EXAMPLE.to_banded(np.ones((7, 1))), ShapeError, "must end in 7, the nnz of the pattern, got (7, 1)"),
        (lambda: EXAMPLE.to_scipy(np.ones((1, 7))), ShapeError, "must be (7,), one matrix, got shape (1, 7)"),
        (lambda: EXAMPLE.values_of(np.eye(3)), ShapeError, "must be (..., 4, 4), got (3, 3)"),
        (lambda: EXAMPLE.values_of(scipy.sparse.eye_array(3)), ShapeError, "must be (..., 4, 4), got (3, 3)"),
        (lambda: Pattern.from_banded(np.ones((3, 2))), ShapeError, "(..., bandwidth + 1 ≤ n, n), got shape (3, 2)"),
        (lambda: Pattern.from_scipy(scipy.sparse.csr_array((2, 3))), ShapeError, "must be square, got shape (2, 3)"),
        (
            lambda: Pattern.from_scipy(scipy.sparse.csr_array(np.ones((2, 2)))),
            PatternError,
            "triangular, got an entry at (0, 1)",
        ),
        (lambda: Pattern.from_key("no such key"), PatternError, "no pattern 'no such key' is alive"),
    ],
)
def test_misfits_are_refused_in_words(call, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        call()


def test_a_large_dense_form_asks_to_be_forced() -> None:
    pattern = Pattern.from_edges(20_001, [])
    with pytest.raises(ShapeError, match=r"20001 nodes would take 3\.2 GB a matrix\. Use to_scipy, or force=True"):
        pattern.to_dense(np.ones(20_001))


def test_positions_of_entries_and_of_what_is_none() -> None:
    assert EXAMPLE.positions_of(np.array([[3, 2], [2, 3]]), np.array([[0, 1], [0, 3]])).tolist() == [[2, 4], [-1, 6]]
    assert EXAMPLE.positions_of(np.array([3]), np.array([0, 0, 1])).tolist() == [2, 2, -1]
    assert EXAMPLE.positions_of(np.array([5, -1, 0]), np.array([4, -1, 1])).tolist() == [-1, -1, -1]


def test_the_entry_between_two_nodes_has_one_position_in_either_orientation() -> None:
    i, j = np.indices((5, 5)) - 1
    expected = np.where(i >= j, EXAMPLE.positions_of(i, j), EXAMPLE.positions_of(j, i))
    np.testing.assert_array_equal(EXAMPLE.positions_between(i, j), expected)
    assert (expected >= 0).sum() == 2 * EXAMPLE.nnz - EXAMPLE.n
