"""Singular precisions are refused whatever the luck of rounding; stiff ones are not. See `linalg.cholesky`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import reference.linalg
from sparseggm import (
    Chain,
    Cycle,
    ExtendedGrid,
    GaussianGraphicalModel,
    Grid,
    NotPositiveDefiniteError,
    Pattern,
    Star,
    Topology,
    Torus,
    linalg,
)
from sparseggm.torch import GaussianGraphicalModel as Distribution
from tests import numerics
from tests.numerics import Array

FAMILIES: dict[str, Callable[[int], Topology]] = {
    "Chain": Chain,
    "Cycle": Cycle,
    "Star": Star,
    "Grid": lambda n: Grid(3, n),
    "ExtendedGrid": lambda n: ExtendedGrid(3, n),
    "Torus": lambda n: Torus(4, n),
}
WEIGHTS: dict[str, Callable[[int], Array]] = {
    "1": np.ones,
    "0.1": lambda m: np.full(m, 0.1),
    "1/3": lambda m: np.full(m, 1 / 3),
    "powers of 2": lambda m: 2.0 ** np.random.default_rng(m).integers(-6, 7, m),
}
each_dtype = pytest.mark.parametrize("dtype", ["float32", "float64"])


def laplacian(topology: Topology, weights: Array, ground: float = 0.0, dtype: Any = np.float64) -> Array:
    """Packed D − W, singular as the ones are in its kernel, with `ground` added at node 0."""
    i, j = np.array(topology.edges).T
    diagonal = np.bincount(i, weights, topology.n) + np.bincount(j, weights, topology.n)
    diagonal[0] += ground
    return topology.pack((diagonal.astype(dtype), -weights.astype(dtype)))


# Each takes pattern, precision, topology and raises where P has no factor.
FACTORISATIONS: dict[str, Callable[[Pattern, Array, Topology], Any]] = {
    "cholesky": lambda pattern, P, _: linalg.cholesky(pattern, P),
    "precision_logdet": lambda pattern, P, _: linalg.precision_logdet(pattern, P),
    "precision_solve": lambda pattern, P, t: linalg.precision_solve(pattern, P, np.ones(t.n, P.dtype)),
    "from_precision": lambda _, P, t: GaussianGraphicalModel.from_precision(
        np.zeros(t.n, P.dtype), precision=P, topology=t
    ),
    "torch": lambda _, P, t: Distribution.from_precision(
        torch.zeros(t.n, dtype=torch.from_numpy(P).dtype), precision=torch.from_numpy(P), topology=t
    ),
}


@each_dtype
@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_laplacian_of_a_graph_is_refused(family: str, weights: str, dtype: str) -> None:
    for n in range(3, 60, 1 if family == "Cycle" else 7):
        topology = FAMILIES[family](n)
        P = laplacian(topology, WEIGHTS[weights](len(topology.edges)), dtype=dtype)
        _, succeeded = linalg.attempt_cholesky(topology.precision_pattern, P)
        assert not succeeded, topology


@pytest.mark.parametrize("function", FACTORISATIONS)
@pytest.mark.parametrize("topology", [Cycle(4), Cycle(5), Grid(3, 3), Chain(20_000)], ids=str)
def test_whoever_factorises_refuses(topology: Topology, function: str) -> None:
    P = laplacian(topology, np.ones(len(topology.edges)))
    with pytest.raises(NotPositiveDefiniteError, match=r"singular to working precision|not positive definite"):
        FACTORISATIONS[function](topology.precision_pattern, P, topology)


def test_the_message_says_that_the_pivot_is_positive_and_means_nothing() -> None:
    topology = Cycle(4)
    P = laplacian(topology, np.ones(4))
    with pytest.raises(
        NotPositiveDefiniteError, match=r"singular to working precision: pivot 2.22e-16 at column 3 of 4"
    ):
        linalg.cholesky(topology.precision_pattern, P)
    message = r"from_precision: singular to working precision: pivot 2.22e-16 at node 3.*; its Gershgorin slack is 0\."
    with pytest.raises(NotPositiveDefiniteError, match=message):
        FACTORISATIONS["from_precision"](topology.precision_pattern, P, topology)


@each_dtype
@pytest.mark.parametrize("batch", [1, 3, 40])
def test_of_a_batch_the_singular_element_is_named_and_the_others_are_not(batch: int, dtype: str) -> None:
    topology = Grid(3, 3)
    weights = np.full(len(topology.edges), 0.1)
    rows = np.stack([laplacian(topology, weights, ground=1e-3, dtype=dtype)] * batch)
    pattern = topology.precision_pattern
    good = linalg.cholesky(pattern, rows)
    rows[batch // 2] = laplacian(topology, weights, dtype=dtype)
    factor, succeeded = linalg.attempt_cholesky(pattern, rows)
    np.testing.assert_array_equal(np.flatnonzero(~succeeded), [batch // 2])
    np.testing.assert_array_equal(factor[succeeded], good[succeeded])
    with pytest.raises(NotPositiveDefiniteError) as caught:
        linalg.cholesky(pattern, rows)
    assert caught.value.batch_index == (batch // 2,)


def pivot_errors(L: Array, dtype: Any) -> Array:
    """min(∛u P_kk, γ_{r+1} wᵀ |L| |L|ᵀ |w|) of each pivot, w = L_kk L⁻ᵀ e_k, by definition."""
    n, u = len(L), numerics.unit_roundoff(dtype)
    errors = np.empty(n)
    for k in range(n):
        leading = L[: k + 1, : k + 1]
        w = L[k, k] * np.linalg.solve(leading.T, np.eye(k + 1)[k])
        longest = (L != 0).sum(axis=1).max()
        errors[k] = numerics.gamma(longest + 1, dtype) * ((abs(leading).T @ abs(w)) ** 2).sum()
        errors[k] = min(errors[k], np.cbrt(u) * (leading[k] ** 2).sum())
    return errors


@pytest.mark.parametrize("topology", [Chain(30), Cycle(17), Grid(4, 5), ExtendedGrid(4, 4), Star(12)], ids=str)
def test_a_pivot_is_refused_where_its_error_reaches_it_and_only_there(topology: Topology) -> None:
    """Both answers, on both sides of the bound; in float32, so that float64 knows the pivots."""
    rng, answers = np.random.default_rng(0), set()
    pattern = topology.precision_pattern
    for exponent in np.linspace(-9, 0, 37):
        weights = 2.0 ** rng.integers(-3, 4, len(topology.edges))
        P = laplacian(topology, weights, ground=2.0 ** round(exponent * np.log2(10)), dtype=np.float32)
        _, succeeded = linalg.attempt_cholesky(pattern, P)
        try:
            L = reference.linalg.cholesky(pattern.to_dense(P.astype(np.float64), symmetric=True))
        except np.linalg.LinAlgError:  # float32 has no place for so little ground
            assert not succeeded, exponent
            continue
        margin = (np.diagonal(L) ** 2 / pivot_errors(L, np.float32)).min()
        if margin > 2:  # the computed pivot is within its error of the exact one
            assert succeeded, (exponent, margin)
        if margin < 0.2:
            assert not succeeded, (exponent, margin)
        answers.add((bool(margin > 2), bool(succeeded)))
    assert {(True, True), (False, False)} <= answers


@pytest.mark.parametrize("n", [100, 20_000, 100_000])
@pytest.mark.parametrize("steps", ["equal", "1 and 100 in turn"])
@pytest.mark.parametrize("end", [0, -1])
def test_random_walks_with_condition_numbers_to_1e12_pass(end: int, steps: str, n: int) -> None:
    """Held at one end by 1/n: det P is the product of the steps' precisions and of 1/n, by the matrix-tree theorem.

    The relative error of a pivot is γ_3 S_j, and S_j = 1 + (L_{j,j−1} / L_jj)² (S_{j−1} + 3), see `pivot_errors`.
    """
    topology, hold = Chain(n), 1.0 / n
    weights = np.ones(n - 1) if steps == "equal" else np.where(np.arange(n - 1) % 2, 1.0, 100.0)
    P = laplacian(topology, weights)
    P[topology.precision_pattern.diagonal[end]] += hold
    factor = linalg.cholesky(topology.precision_pattern, P)
    ratios = (factor[1::2] / factor[2::2]) ** 2
    S = np.ones(n)
    for j in range(1, n):
        S[j] = 1 + ratios[j - 1] * (S[j - 1] + 3)
    relative = numerics.gamma(3, np.float64) * S
    assert relative.max() < 1
    exact = np.log(weights).sum() + np.log(hold)
    error = -np.log1p(-relative).sum() + numerics.gamma(n, np.float64) * (2 * abs(np.log(weights)).sum() + n)
    assert abs(linalg.logdet(topology.factor_pattern, factor) - exact) <= error


# ---------------------------------------------------------------------- by dense fronts


@each_dtype
@pytest.mark.usefixtures("fronts_everywhere")
def test_by_fronts_too_singular_matrices_are_refused(dtype: str) -> None:
    for family in ("Cycle", "Star", "Torus"):
        test_the_laplacian_of_a_graph_is_refused(family, "0.1", dtype)
    for topology in (Cycle(17), Grid(4, 5), Star(12)):
        test_a_pivot_is_refused_where_its_error_reaches_it_and_only_there(topology)
    test_of_a_batch_the_singular_element_is_named_and_the_others_are_not(3, dtype)
    test_the_message_says_that_the_pivot_is_positive_and_means_nothing()


def test_a_singular_large_matrix_is_refused() -> None:
    box = Grid(11, 11, 11)
    with pytest.raises(NotPositiveDefiniteError):
        linalg.cholesky(box.precision_pattern, laplacian(box, np.ones(len(box.edges))))


def test_a_small_pivot_in_a_batch_changes_no_log_determinant() -> None:
    box = Grid(11, 11, 11)
    rows = np.stack([laplacian(box, np.ones(len(box.edges)), ground) for ground in (1.0, 1e-4, 0.5)])
    pattern = box.precision_pattern
    one_by_one = [linalg.precision_logdet(pattern, row) for row in rows]
    np.testing.assert_array_equal(linalg.precision_logdet(pattern, rows), one_by_one)
