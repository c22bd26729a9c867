"""The largest eigenvalue by lanes, against LAPACK within the bounds of both; and when it must not be used."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparseggm import threads
from sparseggm.linalg.eigenpairs import leading_pairs
from sparseggm.positivity.spectral import leading_projector
from tests.numerics import Array

UNIT = np.finfo(float).eps / 2


def size(matrix: Array) -> Array:
    return np.asarray(abs(matrix).sum(axis=-1).max(axis=-1))


def symmetric(rng: np.random.Generator, *shape: int) -> Array:
    root = rng.standard_normal((*shape, shape[-1]))
    return root + root.swapaxes(-1, -2)


def with_eigenvalues(rng: np.random.Generator, eigenvalues: Array) -> Array:
    q, _ = np.linalg.qr(rng.standard_normal((*eigenvalues.shape, eigenvalues.shape[-1])))
    matrix = (q * eigenvalues[..., None, :]) @ q.swapaxes(-1, -2)
    return (matrix + matrix.swapaxes(-1, -2)) / 2


def assert_leading(matrix: Array) -> Array:
    """λ, v and Π within the bounds of LAPACK's and ours; returns which are to be used."""
    n = matrix.shape[-1]
    eigenvalues, vectors = np.linalg.eigh(matrix)
    value, v, is_alone = leading_pairs(matrix)
    bound = 64 * n * UNIT * size(matrix)
    assert (abs(value - eigenvalues[:, -1]) <= bound)[is_alone].all()
    gap = eigenvalues[:, -1] - eigenvalues[:, -2] if n > 1 else np.ones(len(matrix))
    assert (gap > 1e-5 * size(matrix))[is_alone].all()
    projector = vectors[:, :, -1:] * vectors[:, None, :, -1]
    with np.errstate(divide="ignore", invalid="ignore"):
        allowed = 4 * bound / gap
    found, whole = leading_projector(matrix)
    assert (abs(found - eigenvalues[:, -1]) <= bound).all()
    for each in (whole, v[:, :, None] * v[:, None, :]):
        assert (np.linalg.norm(each - projector, axis=(1, 2)) <= allowed)[is_alone].all()
    return is_alone


@pytest.mark.property
@given(
    n=st.integers(2, 24), count=st.integers(1, 19), power=st.sampled_from([-300, -20, 0, 20, 300]), seed=st.integers(0)
)
def test_it_is_that_of_lapack(n: int, count: int, power: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    assert assert_leading(symmetric(rng, count, n) * 10.0**power).mean() > 0.9


@pytest.mark.parametrize("n", [2, 3, 5, 16, 64])
def test_an_eigenvalue_near_the_largest_is_noticed(n: int) -> None:
    """At distances from 1/2 to nothing: the pair is used only where it stands alone, and is then right."""
    rng, gaps = np.random.default_rng(n), np.append(2.0 ** -np.arange(1, 56), 0.0)
    eigenvalues = rng.uniform(-1, 0.4, (len(gaps), n))
    eigenvalues[:, 0], eigenvalues[:, 1] = 1.0, 1.0 - gaps
    is_alone = assert_leading(with_eigenvalues(rng, eigenvalues))
    assert is_alone[:8].all()
    assert not is_alone[20:].any()


@pytest.mark.parametrize("n", [2, 3, 8, 17])
def test_structured_matrices(n: int) -> None:
    """Paths, cycles with either sign, stars, complete graphs, blocks apart, a diagonal, zero."""
    path = np.eye(n, k=1) + np.eye(n, k=-1)
    cycle, star, ones = path.copy(), np.zeros((n, n)), np.ones((n, n)) - np.eye(n)
    cycle[0, -1] = cycle[-1, 0] = 1
    star[0, 1:] = star[1:, 0] = 1
    blocks = np.kron(np.eye(2), np.ones((n, n)))[:n, :n]
    matrices = np.stack([path, cycle, -cycle, star, -star, ones, -ones, blocks, np.diag(np.arange(n)), 0 * path])
    is_alone = assert_leading(matrices)
    assert is_alone[[0, 3, 5, 8]].all()  # of a connected graph with weights > 0 it is simple
    assert not is_alone[-1]


def test_bits_do_not_depend_on_batch_and_threads() -> None:
    matrix = symmetric(np.random.default_rng(0), 40, 16)
    together = leading_pairs(matrix)
    for row in (0, 7, 39):
        for one, all_ in zip(leading_pairs(matrix[row : row + 1]), together, strict=True):
            np.testing.assert_array_equal(one[0], all_[row])
    threads.set_num_threads(2)
    try:
        for again, first in zip(leading_pairs(matrix), together, strict=True):
            np.testing.assert_array_equal(again, first)
    finally:
        threads.set_num_threads(None)


@pytest.mark.parametrize("wrong", [np.nan, np.inf, 1.7e308])
def test_what_is_beyond_the_range_is_not_used(wrong: float) -> None:
    matrix = symmetric(np.random.default_rng(0), 9, 4)
    matrix[3, 0, 1] = matrix[3, 1, 0] = matrix[3, 0, 2] = matrix[3, 2, 0] = wrong
    is_alone = leading_pairs(matrix)[2]
    assert not is_alone[3]
    assert np.delete(is_alone, 3).all()
