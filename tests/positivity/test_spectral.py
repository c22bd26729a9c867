"""The certified largest eigenvalue: bracketed, whatever the matrix; and what is told to who hands in something else."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

import sparseggm.torch  # noqa: F401  adds the rule for tensors
from sparseggm import (
    Chain,
    DTypeError,
    Grid,
    NonFiniteError,
    Pattern,
    PatternError,
    ShapeError,
    Star,
    Torus,
    linalg,
    spectral,
)
from tests import numerics
from tests.strategies import named_patterns

KINDS = ("normal", "equal", "negative", "decaying", "signs")


def hollow(pattern: Pattern, kind: str, batch: tuple[int, ...], seed: int, scale: float = 1.0) -> numerics.Array:
    """Values of a symmetric matrix with zero diagonal."""
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((*batch, pattern.nnz))
    if kind in ("equal", "negative"):
        values = np.full_like(values, 1.0 if kind == "equal" else -1.0)
    if kind == "decaying":
        values *= 10.0 ** rng.uniform(-12, 0, values.shape)
    if kind == "signs":
        values = np.sign(values)
    return np.where(pattern.rows == pattern.cols, 0.0, scale * values)


@given(
    named=named_patterns(of="precision"),
    kind=st.sampled_from(KINDS),
    batch=st.sampled_from([(), (1,), (3, 2), (0,), (19,)]),
    seed=st.integers(0, 2**32 - 1),
    scale=st.sampled_from([1e-200, 1.0, 1e200]),
)
@example(named=("Torus", Torus(3, 3).precision_pattern), kind="equal", batch=(2,), seed=0, scale=1.0)  # = its row sums
@example(named=("Star", Star(9).precision_pattern), kind="normal", batch=(2,), seed=0, scale=1.0)  # far below them
def test_the_eigenvalue_lies_within_the_certified_bracket(named, kind, batch, seed, scale) -> None:
    """ρ ≤ λ_max ≤ (1 + ROOM) ρ, to the rounding of LAPACK's, n² u ‖R‖, and of ours, of the same size."""
    pattern = named[1]
    values = hollow(pattern, kind, batch, seed, scale)
    eigenvalues = np.linalg.eigvalsh(pattern.to_dense(values, symmetric=True))
    rounding = 2 * pattern.n**2 * numerics.unit_roundoff(np.float64) * abs(eigenvalues).max(axis=-1)
    rho, v = spectral.leading_eigenpair(pattern, values)
    assert rho.shape == batch
    assert v.shape == (*batch, pattern.n)
    assert (rho <= eigenvalues[..., -1] + rounding).all()
    assert (eigenvalues[..., -1] <= (1 + spectral.ROOM) * rho + rounding).all()
    np.testing.assert_allclose((v**2).sum(axis=-1), 1.0, rtol=numerics.gamma(pattern.n + 4, np.float64))
    dense = spectral.largest_eigenvalue(pattern, values)
    assert (abs(dense - eigenvalues[..., -1]) <= rounding).all()


@pytest.mark.parametrize("topology", [Grid(9, 9), Chain(200), Star(80), Torus(9, 10)], ids=str)
def test_beyond_dense_it_agrees_with_lapack_where_the_gap_allows(topology) -> None:
    pattern = topology.precision_pattern
    assert topology.n > spectral.DENSE_NODES
    values = hollow(pattern, "normal", (3,), 0)
    eigenvalues, vectors = np.linalg.eigh(pattern.to_dense(values, symmetric=True))
    rho, v = spectral.leading_eigenpair(pattern, values)
    np.testing.assert_allclose(rho, eigenvalues[:, -1], rtol=1e-13)
    gap = eigenvalues[:, -1] - eigenvalues[:, -2]
    error = 1 - abs((v * vectors[..., -1]).sum(axis=-1))
    assert (error <= (2e-12 * rho / gap) ** 2 + 1e-14).all()
    np.testing.assert_array_equal(rho, spectral.largest_eigenvalue(pattern, values))


def test_why_an_estimate_from_below_will_not_do() -> None:
    """t I − R is indefinite for t a little below λ_max, and the factorisation says so."""
    pattern = Grid(9, 9).precision_pattern
    values = hollow(pattern, "normal", (), 0)
    rho = float(spectral.largest_eigenvalue(pattern, values))
    for t, definite in ((rho * (1 - 1e-9), False), (rho * (1 + 1e-9), True)):
        shifted = np.where(pattern.rows == pattern.cols, t, -values)
        assert bool(linalg.attempt_cholesky(pattern, shifted)[1]) is definite


def test_float32_is_computed_in_float64_and_a_batch_element_does_not_see_its_neighbours() -> None:
    pattern = Grid(9, 9).precision_pattern
    values = hollow(pattern, "normal", (5,), 0).astype(np.float32)
    values[2] = 0.0
    rho, v = spectral.leading_eigenpair(pattern, values)
    assert rho.dtype == v.dtype == np.float64
    assert rho[2] == 0.0
    for row in range(5):
        alone, _ = spectral.leading_eigenpair(pattern, values[row].astype(np.float64))
        np.testing.assert_allclose(alone, rho[row], rtol=1e-14)


def test_attempts_tell_which_batch_elements_have_a_factor() -> None:
    pattern = Chain(3).precision_pattern
    precision = np.array([[2.0, 1.0, 2.0, 1.0, 2.0], [1.0, 1.0, 1.0, 0.0, 1.0], [np.nan, 0, 1, 0, 1]])
    factor, succeeded = linalg.attempt_cholesky(pattern, precision)
    assert succeeded.tolist() == [True, False, False]
    np.testing.assert_array_equal(factor[0], linalg.cholesky(pattern, precision[0]))
    assert linalg.attempt_cholesky(pattern, precision[0])[1].shape == ()


def test_what_it_refuses() -> None:
    pattern = Chain(3).precision_pattern
    with pytest.raises(ShapeError, match=re.escape("values must end in 5, the nnz of the pattern, got (2, 4).")):
        spectral.largest_eigenvalue(pattern, np.ones((2, 4)))
    with pytest.raises(
        NonFiniteError, match=r"^largest_eigenvalue: values must be finite, got inf at entry \(1, 0\)\.$"
    ):
        spectral.largest_eigenvalue(pattern, np.array([0, np.inf, 0, 0, 0]))
    for n, convert in ((3, np.asarray), (100, np.asarray), (3, torch.tensor), (100, torch.tensor)):
        values = np.full((2, 2 * n - 1), 0.1)
        values[..., ::2] = 0.0
        values[1, 2] = -1.0
        with pytest.raises(PatternError, match=r"zero on the diagonal, got -1 at column 1 of .*, batch element \(1,\)"):
            spectral.largest_eigenvalue(Chain(n).precision_pattern, convert(values))
    with pytest.raises(NonFiniteError, match=r"^leading_eigenpair: the values are finite but their sums overflow"):
        spectral.leading_eigenpair(pattern, np.array([0, 1.5e308, 0, 1.5e308, 0]))

    class Foreign:
        shape = (5,)

    with pytest.raises(DTypeError, match=r"got Foreign\. For tensors, import sparseggm\.torch first\.$"):
        spectral.largest_eigenvalue(pattern, Foreign())
