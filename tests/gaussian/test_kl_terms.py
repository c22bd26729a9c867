"""KL node by node against its definition on dense matrices, its sum against KL, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import reference.gaussian
import sparseggm as sg
from sparseggm.gaussian.regression import moved
from tests import numerics
from tests.numerics import WIDE
from tests.strategies import factor_values, seeds
from tests.topologies import topologies


def gaussian(topology, seed, *batch, dtype=np.float64) -> sg.GaussianGraphicalModel:
    rng = np.random.default_rng(seed)
    loc = rng.standard_normal((*batch, topology.n)).astype(dtype)
    lower = factor_values(rng, topology.factor_pattern, batch, "plain", dtype)
    return sg.GaussianGraphicalModel(loc, factor=lower, topology=topology)


def dense(q: sg.GaussianGraphicalModel):
    """loc and P in WIDE, in the order of elimination."""
    L = q.factor_pattern.to_dense(q.factor.astype(WIDE))
    return q.loc.astype(WIDE)[..., q.topology.order], reference.linalg.gram(L)


def tolerance(q, p, terms):
    """To float64 rounding times the conditions of both precisions, as `tests/test_reference.py`."""
    conditions = [np.linalg.cond(dense(g)[1].astype(float)).max() for g in (q, p)]
    return float(numerics.gamma(q.n**3 + 9, np.float64)) * max(conditions) * (1 + abs(terms).max())


@pytest.mark.property
@given(topology=topologies(3), seed=seeds, batches=st.sampled_from([((), ()), ((2,), ()), ((3, 1), (2,))]))
def test_terms_are_those_of_the_definition_in_the_order_of_elimination(topology, seed, batches) -> None:
    q, p = gaussian(topology, seed, *batches[0]), gaussian(topology, seed + 1, *batches[1])
    terms = q.kl_terms(p)
    assert (terms >= 0).all()
    expected = reference.gaussian.kl_terms(*dense(q), *dense(p))
    atol = tolerance(q, p, expected)
    np.testing.assert_allclose(terms[..., topology.order], expected.astype(float), rtol=0, atol=atol)
    np.testing.assert_allclose(terms.sum(-1), q.kl_divergence(p), rtol=0, atol=topology.n * atol)


@pytest.mark.property
@given(topology=topologies(3), seed=seeds)
def test_terms_to_the_standard_normal_sum_to_its_kl(topology, seed) -> None:
    q = gaussian(topology, seed, 2)
    standard = sg.GaussianGraphicalModel(
        np.zeros(q.n), factor=1.0 * (q.factor_pattern.rows == q.factor_pattern.cols), topology=topology
    )
    terms = q.kl_terms()
    np.testing.assert_array_equal(terms, q.kl_terms(standard))
    atol = topology.n * tolerance(q, standard, terms)
    np.testing.assert_allclose(terms.sum(-1), q.kl_divergence(), rtol=0, atol=atol)


def test_of_a_gaussian_made_from_its_precision_terms_are_on_the_fill() -> None:
    grid = sg.Grid(3, 3)
    precision = np.where(grid.precision_pattern.rows == grid.precision_pattern.cols, 4.0, -0.7)
    q, p = (
        sg.GaussianGraphicalModel.from_precision(x, precision=precision * x[0], topology=grid) for x in np.ones((2, 9))
    )
    np.testing.assert_array_equal(q.kl_terms(p), 0)
    p = sg.GaussianGraphicalModel.from_precision(np.zeros(9), precision=2 * precision, topology=grid)
    np.testing.assert_allclose(q.kl_terms(p).sum(), q.kl_divergence(p), rtol=1e-13)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_gaussian_has_no_term_to_itself(dtype) -> None:
    q = gaussian(sg.ExtendedGrid(3, 3), 0, 3, dtype=dtype)
    np.testing.assert_array_equal(q.kl_terms(q), np.zeros((3, 9), dtype))


@pytest.mark.parametrize("sizes", [(3e38, -3e38), (3e18, -3e19)])
@pytest.mark.parametrize("name", ["kl_terms", "kl_divergence"])
def test_an_overflow_of_the_means_or_the_terms_names_the_function(name, sizes) -> None:
    topology = sg.Chain(3)
    lower = np.tile(np.float32([1, 0.1, 1, 0.1, 1]), (2, 1))
    q, p = (
        sg.GaussianGraphicalModel(np.full((2, 3), size, np.float32), factor=lower, topology=topology) for size in sizes
    )
    with pytest.raises(sg.NonFiniteError, match=f"^{name}: the arguments are finite but the result overflows float32"):
        getattr(q, name)(p)


def test_zero_moves_leave_a_factor_to_the_bit() -> None:
    q = gaussian(sg.ExtendedGrid(3, 3), 0, 3, dtype=np.float32)
    np.testing.assert_array_equal(moved(q.factor_pattern, q.factor, 0 * q.factor), q.factor)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (sg.Star(4), r"of Chain\(n=4\) and .* of Star\(n=4\)"),
        (sg.Chain(4, order=range(4)[::-1]), "one pattern, in one order of elimination"),
    ],
)
def test_factors_on_two_patterns_or_in_two_orders_are_refused(other, message) -> None:
    with pytest.raises(sg.PatternError, match="kl_terms: .*" + message):
        gaussian(sg.Chain(4), 0).kl_terms(gaussian(other, 1))


def test_another_size_and_another_kind_are_refused() -> None:
    with pytest.raises(sg.ShapeError, match="kl_terms: needs two Gaussians of 4 nodes, got one of 5"):
        gaussian(sg.Chain(4), 0).kl_terms(gaussian(sg.Chain(5), 1))
    with pytest.raises(TypeError, match="kl_terms: needs a GaussianGraphicalModel of arrays, got int"):
        gaussian(sg.Chain(4), 0).kl_terms(1)
