"""Matrices packed by graph or pattern: rounding is symmetrised, complaints name entries as the caller numbers them."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import scipy.sparse
from hypothesis import assume, given
from hypothesis import strategies as st

from sparseggm import Chain, Graph, Grid, PatternError, Star, Topology, from_scipy
from sparseggm.graph import exchange
from tests.numerics import Array
from tests.strategies import dtypes, seeds
from tests.topologies import topologies

FORMS = {
    "dense": np.asarray,
    "batch": lambda matrix: np.stack([np.eye(len(matrix), dtype=matrix.dtype), matrix]),
    "csr": scipy.sparse.csr_array,
    "csc": scipy.sparse.csc_matrix,
    "coo": scipy.sparse.coo_array,
}

each_form = st.sampled_from(list(FORMS))
each_sign = st.sampled_from([1.0, -1.0])


def joined(topology: Topology) -> Array:
    """(n, n) whether an entry is on the graph, by its edges."""
    on = np.eye(topology.n, dtype=bool)
    on[topology.edges[:, 0], topology.edges[:, 1]] = on[topology.edges[:, 1], topology.edges[:, 0]] = True
    return on


def precision_on(topology: Topology, seed: int, dtype: Any = np.float64) -> Array:
    """(n, n) symmetric, of moderate values, a diagonal near 3 and nothing off the graph."""
    rng, n = np.random.default_rng(seed), topology.n
    lower = np.tril(rng.uniform(0.1, 1.0, (n, n)), -1)
    return ((lower + lower.T) * joined(topology) + np.diag(rng.uniform(2.0, 4.0, n)) * np.eye(n)).astype(dtype)


def packings(topology: Topology) -> list[tuple[str, Any]]:
    """Both ways to pack a symmetric matrix, and the start of their messages; the pattern is numbered as the matrix."""
    natural = Graph(topology.n, topology.edges, order=range(topology.n)).precision_pattern
    return [
        (f"{topology}.pack", topology.pack),
        ("Pattern.values_of", lambda matrix: natural.values_of(matrix, symmetric=True)),
    ]


def place(i: int, j: int, value: Any, form: str) -> str:
    return re.escape(f"{value} at ({i}, {j}){', batch element (1,)' if form == 'batch' else ''}")


# ---------------------------------------------------------------------- complaints


@given(topology=topologies(), seed=seeds, form=each_form, value=st.sampled_from([0.125, -1e-300, np.nan, np.inf]))
def test_an_entry_off_the_graph_is_named_as_the_caller_numbers(topology, seed, form, value) -> None:
    strays = np.argwhere(np.tril(~joined(topology)))
    assume(len(strays))
    i, j = map(int, strays[seed % len(strays)])
    matrix = precision_on(topology, seed)
    matrix[i, j] = matrix[j, i] = value
    for function, pack in packings(topology):
        with pytest.raises(PatternError) as caught:
            pack(FORMS[form](matrix))
        start = (
            f"{re.escape(function)}: the matrix must be zero off .*, got {place(j, i, value, form)}, and {j} and {i} "
        )
        assert re.match(f"{start}are not joined. Use a graph that joins them", str(caught.value))
        assert f"zero off {topology}," in str(caught.value) or function == "Pattern.values_of"


@given(topology=topologies(), seed=seeds, form=each_form, by=st.sampled_from([1e-3, -1e-12, np.nan, np.inf]))
def test_mirror_images_that_differ_are_named_as_the_caller_numbers(topology, seed, form, by) -> None:
    assume(len(topology.edges))
    i, j = map(int, topology.edges[seed % len(topology.edges)])
    matrix = precision_on(topology, seed)
    matrix[j, i] += by
    for function, pack in packings(topology):
        with pytest.raises(PatternError) as caught:
            pack(FORMS[form](matrix))
        pair = [place(i, j, matrix[i, j], form), place(j, i, matrix[j, i], form)]
        found = re.match(
            rf"{re.escape(function)}: the matrix must be symmetric, got (.*) and (.*)\. Pass both triangles",
            str(caught.value),
        )
        assert found
        assert sorted(map(re.escape, found.groups())) == sorted(pair)


def test_the_graph_is_named_and_not_a_digest_of_it() -> None:
    matrix = 3 * np.eye(9)
    matrix[0, 8] = matrix[8, 0] = 0.1
    message = (
        "Grid(3, 3).pack: the matrix must be zero off Grid(3, 3), got 0.1 at (0, 8), and 0 and 8 are not joined. "
        "Use a graph that joins them, as from_scipy(matrix) does."
    )
    with pytest.raises(PatternError, match=f"^{re.escape(message)}$"):
        Grid(3, 3).pack(matrix)
    assert from_scipy(scipy.sparse.csr_array(matrix)).pack(matrix).shape == (10,)  # the remedy
    one_sided = np.tril(precision_on(Star(4), 0))
    message = (
        f"Star(n=4).pack: the matrix must be symmetric, got 0.0 at (0, 1) and {one_sided[1, 0]} at (1, 0). Pass both"
    )
    with pytest.raises(PatternError, match=f"^{re.escape(message)}"):
        Star(4).pack(one_sided)


# ---------------------------------------------------------------------- rounding


@given(topology=topologies(), seed=seeds, dtype=dtypes, form=st.sampled_from(["dense", "csr"]))
def test_a_product_of_sparse_matrices_is_packed_and_symmetrised(topology, seed, dtype, form) -> None:
    rng = np.random.default_rng(seed)
    g = scipy.sparse.csr_array(precision_on(topology, seed, dtype))
    c = scipy.sparse.diags_array(rng.uniform(0.1, 10.0, topology.n).astype(dtype))
    product = (g @ c @ g).toarray()
    graph = from_scipy(scipy.sparse.csr_array(product != 0))
    packed = graph.pack(FORMS[form](product))
    assert packed.dtype == dtype
    mean = (product.astype(np.longdouble) + product.T) / 2
    place = graph.order[graph.precision_pattern.rows], graph.order[graph.precision_pattern.cols]
    np.testing.assert_array_equal(packed, mean[place].astype(dtype))
    np.testing.assert_array_equal(packed, graph.pack(FORMS[form](product.T)))


@given(seed=seeds, dtype=dtypes, form=each_form, scales=st.tuples(st.integers(-30, 30), st.integers(-30, 30)))
def test_what_counts_as_rounding_is_relative_to_the_diagonal(seed, dtype, form, scales) -> None:
    """An asymmetry of half the stated one passes, one of twice it does not, however rows are scaled."""
    u = np.finfo(dtype).eps / 2
    root = 2.0 ** np.array([*scales, 0])
    for share, passes in ((0.5, True), (2.0, False)):
        matrix = np.diag(root**2).astype(dtype)
        matrix[1, 0] = share * exchange.ROUNDINGS * u * root[0] * root[1]
        if passes:
            assert Chain(3).pack(FORMS[form](matrix)).ravel()[-4] == matrix[1, 0] / 2
        else:
            with pytest.raises(PatternError, match="must be symmetric"):
                Chain(3).pack(FORMS[form](matrix))


@given(dtype=dtypes, form=each_form)
def test_what_counts_as_rounding_is_relative_to_entries_where_the_diagonal_is_zero(dtype, form) -> None:
    u = np.finfo(dtype).eps / 2
    for share, passes in ((0.5, True), (2.0, False)):
        matrix = np.zeros((3, 3), dtype)
        matrix[0, 1], matrix[1, 0] = 3, 3 * (1 + share * exchange.ROUNDINGS * u)
        if passes:
            assert Chain(3).pack(FORMS[form](matrix)).ravel()[-4] == (matrix[0, 1] + matrix[1, 0]) / 2
        else:
            with pytest.raises(PatternError, match="must be symmetric"):
                Chain(3).pack(FORMS[form](matrix))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_no_numbers_are_equal_to_themselves_alone(value: float) -> None:
    matrix = np.diag([value, 1.0, value])
    matrix[0, 1] = matrix[1, 0] = value
    for form in FORMS.values():
        packed = Chain(3).pack(form(matrix))
        np.testing.assert_array_equal(packed[..., -5:].ravel()[-5:], [value, value, 1.0, 0.0, value])
        uneven = matrix.copy()
        uneven[1, 0] = 1.0
        with pytest.raises(PatternError, match="must be symmetric"):
            Chain(3).pack(form(uneven))
