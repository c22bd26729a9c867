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
    with pytest.raises(PatternError, match=rf"^GaussianGraphicalModel\.on_pattern: {end}"):
        make.on_pattern(loc, factor=np.ones(7), topology=pattern, pattern=pattern)
    with pytest.raises(
        PatternError, match=r"^GaussianGraphicalModel\.on_pattern: pattern must be a Pattern, got Chain"
    ):
        make.on_pattern(loc, factor=np.ones(7), topology=Chain(4), pattern=Chain(4))
    with pytest.raises(TypeError, match=r"^kl_divergence: needs a GaussianGraphicalModel, got Chain\.$"):
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


def test_pack_refuses_what_is_no_array() -> None:
    need = r"^Chain\(n=3\)\.pack: needs a NumPy array, a scipy\.sparse matrix or a pair of arrays "
    pair = (np.ones(3), np.zeros(2))
    for bad in (np.eye(3).tolist(), list(pair), (pair[0], [0.0, 0.0]), (), (*pair, pair[1]), None):
        with pytest.raises(DTypeError, match=need):
            Chain(3).pack(bad)
    assert Chain(3).pack(pair).tolist() == [1, 0, 1, 0, 1]


@pytest.mark.parametrize("dtype", ["int64", "bool", "float16", "complex128", ">f8"])
def test_other_dtypes_pass_pack_but_no_verb(dtype: str) -> None:
    """`pack` moves numbers of any dtype; the first verb refuses them by name."""
    packed = Chain(3).pack(np.eye(3, dtype=dtype))
    assert packed.dtype == dtype
    with pytest.raises(DTypeError, match=r"^cholesky: precision must be float32 or float64 in native byte order, got "):
        linalg.cholesky(Chain(3).precision_pattern, packed)


def test_a_pattern_without_nodes_is_refused() -> None:
    with pytest.raises(PatternError, match=r"^Pattern\.from_edges: n must be at least 1, got 0\.$"):
        Pattern.from_edges(0, [])
