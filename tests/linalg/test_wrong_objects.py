"""The wrong object in the place of an argument: each is named, with what was needed, before any work."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import scipy.sparse

from sparseggm import (
    Chain,
    DTypeError,
    GaussianGraphicalModel,
    Pattern,
    PatternError,
    ShapeError,
    gershgorin,
    linalg,
)
from tests.verbs import VERBS, arguments

each_verb = pytest.mark.parametrize("verb", VERBS.values(), ids=list(VERBS))


@each_verb
def test_a_topology_where_a_pattern_is_asked_for_is_named(verb) -> None:
    """Which of its two patterns is meant, only the caller knows."""
    chain = Chain(4)
    message = f"{verb.name}: pattern must be a Pattern, got Chain. A topology has two: factor_pattern, of L, and"
    with pytest.raises(PatternError, match=f"^{re.escape(message)}"):
        verb(chain, arguments(verb, chain.factor_pattern))


def test_a_topology_on_which_to_evaluate_is_named() -> None:
    chain = Chain(4)
    with pytest.raises(PatternError, match=r"^selected_inverse: on must be a Pattern, got Chain\."):
        linalg.selected_inverse(chain.factor_pattern, np.ones(7), on=chain)  # type: ignore[arg-type]
    with pytest.raises(
        PatternError, match=r"^gershgorin: pattern must be a Pattern, as precision_pattern, got Chain\."
    ):
        gershgorin.slack(chain, np.ones(7))  # type: ignore[arg-type]


def test_a_pattern_where_a_topology_is_asked_for_is_named() -> None:
    pattern, loc = Chain(4).factor_pattern, np.zeros(4)
    make: Any = GaussianGraphicalModel
    end = r"topology must be a Topology, as Chain\(n\) or Graph\(n, edges\), got Pattern\.$"
    with pytest.raises(PatternError, match=f"^GaussianGraphicalModel: {end}"):
        make(loc, factor=np.ones(7), topology=pattern)
    with pytest.raises(PatternError, match=rf"^GaussianGraphicalModel\.from_precision: {end}"):
        make.from_precision(loc, precision=np.ones(7), topology=pattern)
    with pytest.raises(PatternError, match=f"^fit: {end}"):
        make.fit(np.ones((9, 4)), topology=pattern)
    with pytest.raises(PatternError, match=rf"^GaussianGraphicalModel\.from_factor: {end}"):
        make.from_factor(loc, factor=np.ones(7), topology=pattern, pattern=pattern)
    with pytest.raises(
        PatternError, match=r"^GaussianGraphicalModel\.from_factor: pattern must be a Pattern, got Chain"
    ):
        make.from_factor(loc, factor=np.ones(7), topology=Chain(4), pattern=Chain(4))
    with pytest.raises(TypeError, match=r"^kl_divergence: needs a GaussianGraphicalModel of arrays, got Chain\.$"):
        make(loc, factor=np.ones(7), topology=Chain(4)).kl_divergence(Chain(4))


def test_pack_refuses_one_triangle_and_mirrored_entries_that_differ() -> None:
    chain = Chain(3)
    whole = np.array([[2, -0.5, 0], [-0.5, 2, -0.5], [0, -0.5, 2]])
    uneven = whole + np.array([[0, 0.1, 0], [0, 0, 0], [0, 0, 0]])
    for matrix in (np.tril(whole), np.triu(whole), uneven):
        for form in (np.asarray, scipy.sparse.csr_array, scipy.sparse.coo_array):
            with pytest.raises(PatternError, match="must be symmetric, got "):
                chain.pack(form(matrix))


def test_pack_refuses_a_matrix_of_another_size_sparse_or_dense() -> None:
    """A larger sparse one was once cropped without a word."""
    for n in (2, 4):
        for form in (np.eye(n), scipy.sparse.eye_array(n), scipy.sparse.csr_matrix(np.eye(n))):
            with pytest.raises(ShapeError, match=re.escape(f"must be (..., 3, 3), got ({n}, {n})")):
                Chain(3).pack(form)


def test_pack_refuses_what_is_no_matrix() -> None:
    chain, pair = Chain(3), (np.ones(3), np.zeros(2))
    for bad, message in (
        ((), "a tuple must be a pair (diagonal, couplings), got 0 values."),
        ((*pair, pair[1]), "a tuple must be a pair (diagonal, couplings), got 3 values."),
        (list(pair), "precision must be an array of real numbers, got list: "),
        (None, "precision must hold real numbers in at most float64, got object. "),
        ("abc", "precision must hold real numbers in at most float64, got <U3. "),
        (np.eye(3) * 1j, "precision must hold real numbers in at most float64, got complex128. "),
        (scipy.sparse.eye_array(3) * 1j, "precision must hold real numbers in at most float64, got complex128. "),
        ((pair[0], pair[1] * 1j), "couplings must hold real numbers in at most float64, got complex128. "),
    ):
        with pytest.raises(DTypeError, match=f"^{re.escape(f'Chain(n=3).pack: {message}')}"):
            chain.pack(bad)
    assert chain.pack(pair).tolist() == [1, 0, 1, 0, 1]


@pytest.mark.parametrize(
    ("dtype", "packed"),
    [("int64", "float64"), ("bool", "float64"), ("float16", "float32"), (">f8", "float64"), ("<f4", "float32")],
)
def test_pack_takes_values_as_a_gaussian_does(dtype: str, packed: str) -> None:
    """Integers are weak, halves widened, and lists and numbers of any class are arrays."""
    matrix, chain = np.eye(3, dtype=dtype), Chain(3)
    given = [matrix, (np.diag(matrix), np.zeros(2, dtype))]
    if dtype not in ("float16", ">f8"):  # which scipy.sparse has not
        given += [scipy.sparse.csr_array(matrix), scipy.sparse.lil_matrix(matrix)]
    for each in given:
        values = chain.pack(each)
        assert (values.dtype, values.tolist()) == (packed, [1, 0, 1, 0, 1])
    for given in (np.eye(3).tolist(), ([1, 1, 1], [0, 0])):
        assert chain.pack(given).tolist() == [1, 0, 1, 0, 1]
        assert chain.pack(given).dtype == np.float64
    assert chain.pack((np.ones(3, np.float32), [0, 0])).dtype == np.float32


def test_a_pattern_without_nodes_is_refused() -> None:
    with pytest.raises(PatternError, match=r"^Pattern\.from_edges: n must be at least 1, got 0\.$"):
        Pattern.from_edges(0, [])
