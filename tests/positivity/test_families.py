"""Positive definite by construction: the families against their definitions, what they promise, what they reach."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparseggm import (
    Chain,
    Cycle,
    Diagonal,
    ExtendedGrid,
    Graph,
    Grid,
    NonFiniteError,
    PatternError,
    ShapeError,
    Star,
    Topology,
    Torus,
    gershgorin,
    linalg,
    parametrize,
)
from tests import numerics
from tests.ledger import check
from tests.numerics import WIDE, Array
from tests.strategies import dense, dtypes, precision_values, seeds, topologies

FAMILIES = {name: getattr(parametrize, name) for name in ("dominant", "scaled", "edge", "spectral")}
"""Those that give a precision."""

LEAST = parametrize.SPECTRAL_MARGIN / (1 + parametrize.SPECTRAL_MARGIN)

batches = st.sampled_from([(), (1,), (3, 2), (0,)])
names = st.sampled_from(sorted(FAMILIES))
graphs = st.one_of(
    topologies(),
    st.builds(Star, st.integers(1, 8)),
    st.builds(Cycle, st.integers(3, 8)),
    st.builds(Torus, st.integers(3, 4), st.just(3)),
)
factor_free = topologies().filter(lambda topology: topology.is_factor_free)


# ---------------------------------------------------------------------- by definition


@pytest.mark.property
@given(topology=factor_free, seed=seeds, batch=batches, dtype=dtypes)
def test_factor_takes_the_inputs_as_l_with_a_bounded_log_diagonal(topology: Topology, seed, batch, dtype) -> None:
    rng = np.random.default_rng(seed)
    inputs = (3 * rng.standard_normal((*batch, parametrize.factor.num_inputs(topology)))).astype(dtype)
    values = parametrize.factor(topology, inputs)
    pattern = topology.factor_pattern
    on_diagonal = pattern.rows == pattern.cols
    exact = np.where(on_diagonal, bounded_exp(inputs), inputs)
    assert values.dtype == dtype
    check("parametrize.factor", type(topology).__name__, dtype, values - exact, level(1, 0, dtype) * abs(exact))
    np.testing.assert_array_equal(values[..., ~on_diagonal], inputs[..., ~on_diagonal])


@pytest.mark.property
@given(topology=factor_free, seed=seeds, batch=batches, dtype=dtypes)
def test_regression_takes_the_inputs_as_weights_and_scales(topology: Topology, seed, batch, dtype) -> None:
    """Bound: an exponential and a product a value."""
    rng = np.random.default_rng(seed)
    inputs = (3 * rng.standard_normal((*batch, parametrize.regression.num_inputs(topology)))).astype(dtype)
    values = parametrize.regression(topology, inputs)
    pattern = topology.factor_pattern
    pivots = bounded_exp(inputs[..., pattern.diagonal])[..., pattern.cols]
    exact = np.where(pattern.rows == pattern.cols, pivots, -pivots * inputs.astype(WIDE))
    assert values.dtype == dtype
    check("parametrize.regression", type(topology).__name__, dtype, values - exact, level(1, 1, dtype) * abs(exact))


def test_regression_weights_are_those_of_the_conditional_means() -> None:
    """E(z_j | z_R) − loc_j = Σ β (z_R − loc_R), from the dense covariance."""
    topology = ExtendedGrid(3, 3)
    pattern, inputs = topology.factor_pattern, np.random.default_rng(0).standard_normal(21)
    L = dense(pattern, parametrize.regression(topology, inputs)).astype(np.float64)
    covariance = np.linalg.inv(L @ L.T)
    for node in range(topology.n - 1):
        stored = np.flatnonzero((pattern.cols == node) & (pattern.rows != node))
        later = np.arange(node + 1, topology.n)
        weights = np.linalg.solve(covariance[np.ix_(later, later)], covariance[later, node])
        np.testing.assert_allclose(weights[pattern.rows[stored] - node - 1], inputs[stored], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("least", [0.05, 0.5])
def test_the_least_scale_bounds_scales_alone_and_leaves_small_inputs_as_they_are(least: float) -> None:
    topology, family = Chain(4), parametrize.RegressionFamily(least)
    pattern, inputs = topology.factor_pattern, np.array([1e30, 0.7, 0.0, 0.3, -1e30, 2.0, 1.0])
    scales = 1 / family(topology, inputs)[pattern.diagonal]
    log_scales = -inputs[pattern.diagonal]
    expected = [least, 1.0, np.exp(5), np.exp(np.log(least) * np.tanh(log_scales[3] / np.log(least)))]
    np.testing.assert_allclose(scales, expected, rtol=1e-14)
    weights = -family(topology, inputs) * np.take(scales, pattern.cols)
    np.testing.assert_allclose(weights[pattern.rows != pattern.cols], [0.7, 0.3, 2.0], rtol=1e-14)
    step, slopes = 1e-6, []
    for sign in (-1, 1):
        shifted = np.where(pattern.rows == pattern.cols, sign * step, 0.0)
        slopes.append(np.log(family(topology, shifted)[0]) / (sign * step))
    np.testing.assert_allclose(slopes, 1.0, rtol=1e-9)


@pytest.mark.parametrize("least", [0.0, 1e-3, 1.0, float("nan")])
def test_a_least_scale_that_no_scale_could_have_is_refused(least: float) -> None:
    with pytest.raises(ValueError, match=r"least_scale must be in \[e\^-5, 1\)"):
        parametrize.RegressionFamily(least)


@pytest.mark.property
@given(name=names, topology=graphs, seed=seeds, batch=batches, dtype=dtypes, scale=st.sampled_from([0.1, 3.0]))
def test_a_family_is_what_its_definition_says(name: str, topology: Topology, seed, batch, dtype, scale) -> None:
    rng, family, n = np.random.default_rng(seed), FAMILIES[name], topology.n
    inputs = (scale * rng.standard_normal((*batch, family.num_inputs(topology)))).astype(dtype)
    values = family(topology, inputs)
    assert values.dtype == dtype
    assert values.shape == (*batch, topology.precision_pattern.nnz)
    exact, magnitude = DEFINITIONS[name](topology, inputs.astype(WIDE))
    # At most three exponentials, n + 1 terms and six products a value; spectral: the eigenvalue, magnitude tells which.
    bound = level(3, n + 6, dtype) * abs(exact) + magnitude
    packed = values_of(topology, exact)
    check(f"parametrize.{name}", type(topology).__name__, dtype, values - packed, values_of(topology, bound))


def bounded_exp(d: Array) -> Array:
    """exp(5 tanh(d / 5)) in WIDE."""
    return np.exp(5 * np.tanh(d.astype(WIDE) / 5))


def level(exponentials: int, roundings: int, dtype: str) -> Array:
    """Relative error: 4 roundings in an exponent ≤ 5, one of exp, functions within 2 units; further roundings."""
    return numerics.rounding(exponentials * 2 * (4 * 5 + 1) + roundings, np.dtype(dtype))


def couplings_matrix(topology: Topology, w: Array) -> Array:
    """(..., n, n) symmetric, w on the edges, in the caller's numbering."""
    W = np.zeros((*w.shape[:-1], topology.n, topology.n), WIDE)
    for e, (i, j) in enumerate(topology.edges):
        W[..., i, j] = W[..., j, i] = w[..., e]
    return W


def diagonal_matrix(x: Array) -> Array:
    return x[..., None] * np.eye(x.shape[-1])


def define_dominant(topology: Topology, inputs: Array) -> tuple[Array, Array]:
    n = topology.n
    W = couplings_matrix(topology, inputs[..., n:])
    P = W + diagonal_matrix(bounded_exp(inputs[..., :n]) + abs(W).sum(axis=-1))
    return P, 0 * P


def define_scaled(topology: Topology, inputs: Array) -> tuple[Array, Array]:
    n = topology.n
    M, _ = define_dominant(topology, np.concatenate([inputs[..., :n], inputs[..., 2 * n :]], axis=-1))
    D = diagonal_matrix(bounded_exp(inputs[..., n : 2 * n]))
    return D @ M @ D, 0 * M


def define_edge(topology: Topology, inputs: Array) -> tuple[Array, Array]:
    n, m = topology.n, len(topology.edges)
    P = diagonal_matrix(bounded_exp(inputs[..., :n]))
    for e, (i, j) in enumerate(topology.edges):
        w, share = inputs[..., n + e], bounded_exp(inputs[..., n + m + e])
        P[..., i, j] = P[..., j, i] = w
        P[..., i, i] += abs(w) * share
        P[..., j, j] += abs(w) / share
    return P, 0 * P


def define_spectral(topology: Topology, inputs: Array) -> tuple[Array, Array]:
    """λ_max errs by n² u ‖R‖ in float64 here and there; relative to 1 + λ_max that shifts P_ij as much."""
    n = topology.n
    R, D = couplings_matrix(topology, inputs[..., n:]), diagonal_matrix(bounded_exp(inputs[..., :n]))
    eigenvalues = np.linalg.eigvalsh(R.astype(np.float64)).astype(WIDE)
    scale = 1 + (1 + parametrize.SPECTRAL_MARGIN) * eigenvalues[..., -1]
    P = D @ (np.eye(n) - R / scale[..., None, None]) @ D
    error = 2 * n**2 * numerics.unit_roundoff(np.float64) * abs(eigenvalues).max(axis=-1) / scale
    return P, error[..., None, None] * abs(P)


DEFINITIONS: dict[str, Callable[[Topology, Array], tuple[Array, Array]]] = {
    "dominant": define_dominant,
    "scaled": define_scaled,
    "edge": define_edge,
    "spectral": define_spectral,
}


def values_of(topology: Topology, P: Array) -> Array:
    """Packed values of a dense matrix in the caller's numbering."""
    return topology.arranged(np.diagonal(P, axis1=-2, axis2=-1), P[..., topology.edges[:, 0], topology.edges[:, 1]])


# ---------------------------------------------------------------------- what they promise


@given(name=names, topology=graphs, seed=seeds, dtype=dtypes, scale=st.sampled_from([0.1, 1.0, 30.0]))
def test_every_output_is_positive_definite(name: str, topology: Topology, seed, dtype, scale) -> None:
    inputs = random_inputs(name, topology, seed, scale).astype(dtype)
    linalg.cholesky(topology.precision_pattern, FAMILIES[name](topology, inputs))


@given(topology=graphs, seed=seeds, scale=st.sampled_from([0.1, 1.0, 30.0]))
def test_dominant_has_the_slack_it_promises(topology: Topology, seed, scale) -> None:
    inputs = random_inputs("dominant", topology, seed, scale)
    precision = parametrize.dominant(topology, inputs)
    slack = gershgorin.slack(topology.precision_pattern, precision)
    promised = bounded_exp(inputs[..., topology.order])
    diagonal = precision[..., topology.precision_pattern.diagonal]
    tolerance = level(1, 0, "float64") * promised + numerics.rounding(2 * topology.n, np.float64) * diagonal
    assert (abs(slack - promised) <= tolerance).all()


@given(name=st.sampled_from(["scaled", "edge"]), topology=graphs, seed=seeds, scale=st.sampled_from([0.1, 1.0, 10.0]))
def test_scaled_and_edge_are_proven_by_weights(name: str, topology: Topology, seed, scale) -> None:
    """Scaled: the slack D_i² e^{d_i} with weights 1/D. Edge: λ_min(P) ≥ min e^{d_i}, by LAPACK."""
    inputs, n = random_inputs(name, topology, seed, scale), topology.n
    pattern, precision = topology.precision_pattern, FAMILIES[name](topology, inputs)
    promised = bounded_exp(inputs[..., topology.order])
    size = gershgorin.bounds(pattern, precision)[1]
    if name == "scaled":
        D = bounded_exp(inputs[..., n + topology.order]).astype(np.float64)
        slack = gershgorin.slack(pattern, precision, 1 / D)
        tolerance = level(5, 2 * n + 12, "float64") * precision[..., pattern.diagonal]
        assert (abs(slack - promised * D**2) <= 2 * tolerance).all()
    else:
        lowest = np.linalg.eigvalsh(pattern.to_dense(precision, symmetric=True))[..., 0]
        tolerance = (n**2 * numerics.unit_roundoff(np.float64) + level(2, n + 3, "float64")) * size
        assert (lowest >= promised.min(axis=-1) - tolerance).all()


@given(topology=graphs, seed=seeds, dtype=dtypes, scale=st.sampled_from([1e-30, 1.0, 1e3, 1e30]))
def test_spectral_keeps_its_distance_from_singular_however_large_its_inputs(topology, seed, dtype, scale) -> None:
    """λ_min(D⁻¹ P D⁻¹) ≥ ε / (1 + ε), less the rounding of P: 8 units of |M| a value, whatever D."""
    inputs, n = random_inputs("spectral", topology, seed, scale).astype(dtype), topology.n
    inputs[..., :n] = np.clip(inputs[..., :n], -50, 50)
    P = dense(topology.precision_pattern, parametrize.spectral(topology, inputs), symmetric=True)
    root = np.sqrt(np.diagonal(P, axis1=-2, axis2=-1))
    H = (P / (root[..., :, None] * root[..., None, :])).astype(np.float64)
    size = abs(H).sum(axis=-1).max(axis=-1)
    tolerance = size * (numerics.gamma(8, dtype) + n**2 * numerics.unit_roundoff(np.float64))
    assert (np.linalg.eigvalsh(H)[..., 0] >= LEAST - tolerance).all()


@given(name=names, topology=graphs, dtype=dtypes, batch=batches)
def test_zero_inputs_are_the_identity(name: str, topology: Topology, dtype: str, batch) -> None:
    zeros = np.zeros((*batch, FAMILIES[name].num_inputs(topology)), dtype)
    P = topology.precision_pattern.to_dense(FAMILIES[name](topology, zeros), symmetric=True)
    np.testing.assert_array_equal(P, np.broadcast_to(np.eye(topology.n), P.shape))


@given(family=st.sampled_from([parametrize.factor, parametrize.regression]), topology=factor_free, dtype=dtypes)
def test_zero_inputs_are_the_identity_factor(family, topology: Topology, dtype: str) -> None:
    zeros = np.zeros(family.num_inputs(topology), dtype)
    L = dense(topology.factor_pattern, family(topology, zeros))
    np.testing.assert_array_equal(L, np.eye(topology.n))


def random_inputs(name: str, topology: Topology, seed: int, scale: float) -> Array:
    return scale * np.random.default_rng(seed).standard_normal((4, FAMILIES[name].num_inputs(topology)))


# ---------------------------------------------------------------------- what they reach


@given(name=st.sampled_from(["scaled", "edge"]), topology=graphs, seed=seeds, radius=st.sampled_from([0.3, 0.9]))
def test_every_walk_summable_precision_is_reached(name: str, topology: Topology, seed, radius) -> None:
    """P = E (I − S) E with ρ(|S|) < 1: x = M⁻¹ 1 > 0 for the comparison matrix M, and X P X has slack x_i.

    Tolerance: the roundings of the inverse map and of the family, each relative to P_ii or |P_ij|.
    """
    rng, n = np.random.default_rng(seed), topology.n
    P = walk_summable(rng, topology, radius)
    comparison = 2 * diagonal_matrix(np.diagonal(P)) - abs(P)
    x = np.linalg.solve(comparison.astype(np.float64), np.ones(n))
    assert (x > 0).all()
    i, j = topology.edges.T
    w = P[i, j]
    if name == "scaled":
        inputs = [unbounded(np.log(x)), unbounded(-np.log(x)), w * x[i] * x[j]]
    else:
        inputs = [unbounded(-np.log(x)), w, unbounded(np.log(x[j] / x[i]))]
    values = FAMILIES[name](topology, np.concatenate(inputs).astype(np.float64))
    condition = np.linalg.cond(comparison.astype(np.float64))
    tolerance = 100 * n * condition * numerics.unit_roundoff(np.float64) * np.diagonal(P).max()
    np.testing.assert_allclose(values.astype(np.float64), values_of(topology, P).astype(np.float64), atol=tolerance)


@given(name=st.sampled_from(["dominant", "scaled", "edge"]), topology=graphs, seed=seeds)
def test_and_nothing_else(name: str, topology: Topology, seed: int) -> None:
    """The comparison matrix of what dominant, scaled and edge give is positive definite."""
    values = FAMILIES[name](topology, random_inputs(name, topology, seed, 1.0))
    off_diagonal = topology.precision_pattern.rows != topology.precision_pattern.cols
    linalg.cholesky(topology.precision_pattern, np.where(off_diagonal, -abs(values), values))


@given(topology=graphs, seed=seeds)
def test_spectral_reaches_every_positive_definite_precision(topology: Topology, seed: int) -> None:
    """By its inverse: D² = diag P, S = I − D⁻¹ P D⁻¹, R = S / (1 − (1 + ε) λ_max(S)), λ_min(I − S) from 1e-3 up."""
    pattern = topology.precision_pattern
    values = precision_values(np.random.default_rng(seed), pattern, (), "nearly singular", np.float64)
    diagonal, couplings = topology.unpack(values)
    root = np.sqrt(diagonal)
    i, j = topology.edges.T
    S = -couplings / (root[i] * root[j])
    top = np.linalg.eigvalsh(couplings_matrix(topology, S).astype(np.float64))[-1]
    inputs = np.concatenate([unbounded(np.log(root)), S / (1 - (1 + parametrize.SPECTRAL_MARGIN) * top)])
    # The inverse divides by λ_min ≥ 1e-3 or so: that many roundings of λ_max, n² u each.
    tolerance = 1e4 * topology.n**2 * numerics.unit_roundoff(np.float64) * diagonal.max()
    np.testing.assert_allclose(parametrize.spectral(topology, inputs), values, rtol=0, atol=tolerance)


def test_a_frustrated_triangle_is_reached_by_spectral_alone() -> None:
    """P = 0.4 I + 0.6 J is positive definite; with signs that make every coupling negative it is not."""
    triangle, off = Graph(3, [(1, 0), (2, 0), (2, 1)]), 0.6
    comparison = triangle.pack((np.ones(3), np.full(3, -off)))
    assert not linalg.attempt_cholesky(triangle.precision_pattern, comparison)[1]
    R = -off / (1 - (1 + parametrize.SPECTRAL_MARGIN) * off)
    P = parametrize.spectral(triangle, np.array([0.0, 0.0, 0.0, R, R, R]))
    np.testing.assert_allclose(
        triangle.precision_pattern.to_dense(P, symmetric=True), 0.4 * np.eye(3) + 0.6, rtol=1e-15
    )


def walk_summable(rng: np.random.Generator, topology: Topology, radius: float) -> Array:
    """(n, n) P = E (I − S) E, random signs, |S| of spectral radius `radius`, E within a factor 2."""
    S = couplings_matrix(topology, rng.standard_normal(len(topology.edges)))
    size = np.linalg.eigvalsh(abs(S).astype(np.float64))[-1]
    E = diagonal_matrix(rng.uniform(0.5, 2.0, topology.n))
    return np.asarray(E @ (np.eye(topology.n) - radius / (size or 1.0) * S) @ E)


def unbounded(log_scale: Array) -> Array:
    """The d with bounded(d) = log_scale."""
    return 5 * np.arctanh(log_scale / 5)


# ---------------------------------------------------------------------- ends, sizes, messages


def test_extreme_inputs_stay_within_e_to_the_five() -> None:
    topology = Chain(2)
    values = parametrize.factor(topology, np.array([1e30, 0.0, -1e30]))
    np.testing.assert_allclose(values, [np.exp(5), 0.0, np.exp(-5)], rtol=2 * np.finfo(float).eps * 5)


def test_numbers_of_inputs() -> None:
    assert parametrize.factor.num_inputs(ExtendedGrid(4, 4)) == 40
    for name, size in {"dominant": 40, "scaled": 56, "edge": 64, "spectral": 40}.items():
        assert FAMILIES[name].num_inputs(Grid(4, 4)) == size
        assert FAMILIES[name].num_inputs(Diagonal(3)) == (6 if name == "scaled" else 3)
    assert parametrize.dominant.num_inputs(ExtendedGrid(4, 4)) == 16 + 33


def test_the_documented_signs_and_order_of_inputs() -> None:
    chain = Chain(2)  # its one edge is (1, 0): node 1 comes first
    diagonal, couplings = chain.unpack(parametrize.edge(chain, np.array([0.0, 0.0, -2.0, unbounded(np.log(4.0))])))
    np.testing.assert_allclose(diagonal, [1 + 2 / 4, 1 + 2 * 4])
    assert couplings.tolist() == [-2.0]
    scales = unbounded(np.log([2.0, 4.0]))
    diagonal, couplings = chain.unpack(parametrize.scaled(chain, np.array([0.0, 0.0, *scales, 3.0])))
    np.testing.assert_allclose(diagonal, [4 * (1 + 3), 16 * (1 + 3)])
    np.testing.assert_allclose(couplings, [3 * 2 * 4])
    assert parametrize.spectral(chain, np.array([0.0, 0.0, 1.0]))[1] < 0


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_says_what_it_needs(name: str) -> None:
    need = FAMILIES[name].num_inputs(Grid(2, 2))
    message = f"parametrize.{name}: inputs must end in {need}, got shape (2, 5)."
    with pytest.raises(ShapeError, match=re.escape(message)):
        FAMILIES[name](Grid(2, 2), np.ones((2, 5)))


@pytest.mark.parametrize("name", ["factor", "regression"])
def test_a_family_of_factors_says_what_it_needs(name: str) -> None:
    family = getattr(parametrize, name)
    with pytest.raises(PatternError, match=re.escape(f"parametrize.{name}: Grid(2, 2) is not factor-free")):
        family.num_inputs(Grid(2, 2))
    with pytest.raises(ShapeError, match=re.escape(f"parametrize.{name}: inputs must end in 5, got shape (2, 4).")):
        family(Chain(3), np.ones((2, 4)))


def test_spectral_names_a_coupling_that_is_not_finite() -> None:
    inputs = np.zeros((2, 5))
    inputs[1, 4] = np.nan
    with pytest.raises(NonFiniteError, match=r"values must be finite, got nan at entry \(2, 1\), batch element \(1,\)"):
        parametrize.spectral(Chain(3), inputs)


@pytest.mark.parametrize("name", ["factor", "regression", "dominant", "scaled", "edge", "spectral"])
def test_a_pattern_in_the_place_of_a_topology_is_refused(name: str) -> None:
    family = getattr(parametrize, name)
    with pytest.raises(PatternError, match=rf"parametrize.{name}: topology must be a Topology, .* got Pattern"):
        family(Chain(3).factor_pattern, np.zeros(5))
