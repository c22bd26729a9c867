"""`GaussianGraphicalModel`: samples and their moments, memory, sharing of factors, and what it refuses."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from sparseggm import (
    Chain,
    Diagonal,
    ExtendedGrid,
    GaussianGraphicalModel,
    Grid,
    NonFiniteError,
    NonPositiveError,
    NotPositiveDefiniteError,
    ShapeError,
    Topology,
    linalg,
)
from tests.numerics import Array
from tests.strategies import dense, factor_values, gaussians, precision_values

FLOAT64 = np.float64

# ---------------------------------------------------------------------- samples


@given(g=gaussians(), seed=st.integers(0, 2**32 - 1), size=st.sampled_from([(), 3, (2, 2), (0,)]))
def test_a_sample_is_loc_plus_the_coloured_noise_of_its_generator(g: GaussianGraphicalModel, seed: int, size) -> None:
    z = g.sample(size, np.random.default_rng(seed))
    shape = ((size,) if isinstance(size, int) else size) + (*g.batch_shape, g.n)
    noise = np.random.default_rng(seed).standard_normal(shape, dtype=g.dtype.type)
    assert z.shape == shape
    assert z.dtype == g.dtype
    np.testing.assert_array_equal(z, g.loc + g.colorize(noise))


def test_samples_without_a_generator_differ() -> None:
    g = GaussianGraphicalModel(np.zeros(3), factor=np.ones(5), topology=Chain(3))
    assert (g.sample() != g.sample()).any()


@pytest.mark.parametrize("topology", [Chain(6), Grid(3, 3), ExtendedGrid(2, 4)], ids=str)
def test_samples_have_the_moments_of_the_gaussian(topology: Topology) -> None:
    """Exact tests at level 1e-6 each, with a fixed seed: w = Lᵀ(z − loc), by the dense L, should be white.

    Σ w² over all is χ² with one degree a number; the mean of each w, and Σ_s w_si w_sj / √(Σ_s w_si²) for each pair,
    are exactly normal.
    """
    rng, draws = np.random.default_rng(2), 2000
    precision = precision_values(rng, topology.precision_pattern, (), "dominant", FLOAT64)
    g = GaussianGraphicalModel.from_precision(rng.standard_normal(topology.n), precision=precision, topology=topology)
    d = (g.sample(draws, rng) - g.loc)[:, topology.order]
    w = d @ dense(g.factor_pattern, g.factor).astype(FLOAT64)
    assert 1e-6 < scipy.stats.chi2(w.size).cdf((w**2).sum()) < 1 - 1e-6
    z = np.concatenate([w.sum(axis=0) / np.sqrt(draws), off_diagonal(w.T @ w / np.sqrt((w**2).sum(axis=0)))])
    assert abs(z).max() < scipy.stats.norm.isf(1e-6 / (2 * z.size))


def off_diagonal(matrix: Array) -> Array:
    return matrix[~np.eye(len(matrix), dtype=bool)]


# ---------------------------------------------------------------------- contracts


def test_attributes_are_what_was_given() -> None:
    topology = Grid(2, 2)
    loc, precision = np.zeros((3, 4)), topology.pack((np.full(4, 4.0), np.ones(4)))
    g = GaussianGraphicalModel.from_precision(loc, precision=precision, topology=topology)
    np.testing.assert_array_equal(g.loc, loc)
    assert (g.n, g.batch_shape, g.topology) == (4, (3,), topology)
    assert g.factor.shape == (9,)  # never broadcast to the batch of loc
    assert g.factor_pattern is topology.precision_pattern.filled()
    extended = ExtendedGrid(2, 2)
    precision = np.where(extended.precision_pattern.rows == extended.precision_pattern.cols, 4.0, 1.0)
    from_precision = GaussianGraphicalModel.from_precision(np.zeros(4), precision=precision, topology=extended)
    assert from_precision.factor_pattern is extended.precision_pattern.filled() is not extended.factor_pattern


def test_factor_and_precision_must_be_named() -> None:
    """A chain's L and P have equal lengths, and nothing else would tell them apart."""
    with pytest.raises(TypeError):
        GaussianGraphicalModel(np.zeros(2), np.ones(3), Chain(2))  # type: ignore[misc]


def test_results_own_their_memory_and_inputs_stay() -> None:
    g = GaussianGraphicalModel(np.zeros((3, 2)), factor=np.ones(3), topology=Chain(2))
    x = np.ones((3, 2))
    for result in (g.sample(), g.log_prob(x), g.entropy(), g.kl_divergence(), g.variance, g.whiten(x), g.colorize(x)):
        assert result.flags.writeable
        result[...] = np.nan
    assert np.isfinite(g.loc).all()
    assert np.isfinite(g.factor).all()
    assert (x == 1).all()
    assert np.isfinite(g.variance).all()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"loc": np.zeros(3)}, ShapeError, "loc must end in 4, the size of the pattern, got shape (3,)."),
        ({"factor": np.ones(8)}, ShapeError, "factor must end in 9, the nnz of the pattern, got shape (8,)."),
        (
            {"loc": np.zeros((2, 4)), "factor": np.ones((3, 9))},
            ShapeError,
            "batch axes must broadcast, got (2,) of loc",
        ),
        ({"loc": np.array([0.0, np.nan, 0, 0])}, NonFiniteError, "loc must be finite, got nan at"),
        ({"factor": np.full(9, np.inf)}, NonFiniteError, "factor must be finite, got inf at"),
        ({"factor": -np.ones(9)}, NonPositiveError, "the diagonal of factor must be positive, got -1 at"),
    ],
)
def test_misfits_are_named(change, error: type[Exception], message: str) -> None:
    arguments = {"loc": np.zeros(4), "factor": np.ones(9)} | change
    with pytest.raises(error, match=f"^GaussianGraphicalModel.*: {re.escape(message)}"):
        GaussianGraphicalModel(arguments.pop("loc"), **arguments, topology=Grid(2, 2))


def test_a_precision_that_is_not_positive_definite_is_named_by_the_callers_node() -> None:
    grid = Grid(2, 3)
    precision = np.tile(grid.pack((np.full(6, 5.0), np.full(7, -1.0))), (2, 1))
    node = 4
    precision[1, grid.node_positions[node]] = -0.5
    with pytest.raises(NotPositiveDefiniteError) as caught:
        GaussianGraphicalModel.from_precision(np.zeros(6), precision=precision, topology=grid)
    failure = caught.value
    assert grid.order[failure.column] == node
    assert failure.batch_index == (1,)
    assert str(failure).startswith("GaussianGraphicalModel.from_precision: not positive definite: pivot ")
    place = "at node 4 (row 1, column 1 of Grid(2, 3)), batch element (1,); its Gershgorin slack is -3.5. Raise"
    assert place in str(failure)


def test_kl_divergence_refuses_another_size() -> None:
    a = GaussianGraphicalModel(np.zeros(4), factor=np.ones(4), topology=Diagonal(4))
    b = GaussianGraphicalModel(np.zeros(3), factor=np.ones(5), topology=Chain(3))
    with pytest.raises(ShapeError, match=r"^kl_divergence: needs two Gaussians of 4 nodes, got one of 3\.$"):
        a.kl_divergence(b)


@pytest.mark.parametrize("method", ["log_prob", "whiten", "colorize"])
def test_a_vector_of_a_wrong_size_or_with_nan_is_refused(method: str) -> None:
    g = GaussianGraphicalModel(np.zeros(9), factor=np.ones(Grid(3, 3).factor_pattern.nnz), topology=Grid(3, 3))
    with pytest.raises(ShapeError, match=r"must end in 9, the size of the pattern, got shape \(2, 8\)\.$"):
        getattr(g, method)(np.zeros((2, 8)))
    with pytest.raises(NonFiniteError, match="must be finite, got nan"):
        getattr(g, method)(np.full((2, 9), np.nan))


def test_one_factor_serves_many_means() -> None:
    """`factor` without the batch axes of `loc` gives every element what its own copy would."""
    topology, rng = Grid(2, 3), np.random.default_rng(3)
    factor, loc = factor_values(rng, topology.factor_pattern, (), "plain", FLOAT64), rng.standard_normal((5, 6))
    shared = GaussianGraphicalModel(loc, factor=factor, topology=topology)
    copies = GaussianGraphicalModel(loc, factor=np.tile(factor, (5, 1)), topology=topology)
    for name in ("entropy", "kl_divergence", "trace_covariance"):
        np.testing.assert_array_equal(getattr(shared, name)(), getattr(copies, name)())
    np.testing.assert_array_equal(shared.variance, copies.variance)
    np.testing.assert_array_equal(shared.log_prob(loc * 2), copies.log_prob(loc * 2))
    assert linalg.logdet(topology.factor_pattern, factor).shape == ()


@pytest.mark.parametrize(("name", "word"), [("whiten", "d"), ("colorize", "eps"), ("log_prob", "x")])
def test_a_vector_that_is_not_finite_is_named_by_the_callers_node(name: str, word: str) -> None:
    topology = Grid(3, 3)
    g = GaussianGraphicalModel(np.zeros(9), factor=np.ones(topology.factor_pattern.nnz), topology=topology)
    x = np.zeros((2, 9))
    x[1, 2] = np.nan
    assert topology.inverse_order[2] != 2
    with pytest.raises(
        NonFiniteError, match=rf"^{name}: {word} must be finite, got nan at node 2 .*, batch element \(1,\)"
    ):
        getattr(g, name)(x)


@pytest.mark.parametrize("size", [-1, (2, -1), 2.5, "ab", True, [2.0], None])
def test_a_size_that_is_no_shape_is_refused(size: Any) -> None:
    g = GaussianGraphicalModel(np.zeros(3), factor=np.ones(3), topology=Diagonal(3))
    with pytest.raises(ShapeError, match=r"^sample: size must be a nonnegative integer, or a shape of them, got "):
        g.sample(size)
