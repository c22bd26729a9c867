"""`SparsePrecisionCovariance`: every hook of `scipy.stats.Covariance`, and `multivariate_normal` with it."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

import reference.linalg
from sparseggm import Diagonal, GaussianGraphicalModel, Grid, ShapeError, Topology
from sparseggm.gaussian.scipy_adapter import SparsePrecisionCovariance
from tests import numerics
from tests.gaussian_bounds import covariance_of, factor_of, logdet_bound, precision_of, spread
from tests.numerics import WIDE
from tests.strategies import factor_values
from tests.topologies import topologies

FLOAT64 = np.float64


def gaussian(topology: Topology, dtype: str = "float64") -> GaussianGraphicalModel:
    """Reproducible, well conditioned, with a mean."""
    rng = np.random.default_rng(5)
    factor = factor_values(rng, topology.factor_pattern, (), "plain", dtype)
    return GaussianGraphicalModel(rng.standard_normal(topology.n).astype(dtype), factor=factor, topology=topology)


@given(topology=topologies(3), dtype=st.sampled_from(["float32", "float64"]))
def test_every_hook_has_the_value_of_the_dense_covariance(topology: Topology, dtype: str) -> None:
    g = gaussian(topology, dtype)
    sigma, adapter = covariance_of(g), SparsePrecisionCovariance(g)
    x = np.random.default_rng(0).standard_normal((3, g.n)).astype(dtype)
    assert isinstance(adapter, scipy.stats.Covariance)
    assert adapter.rank == g.n
    assert adapter.shape == (g.n, g.n)
    np.testing.assert_array_equal(adapter.whiten(x), g.whiten(x))
    np.testing.assert_array_equal(adapter.colorize(x), g.colorize(x))
    logdet = reference.linalg.logdet(factor_of(g))
    assert abs(adapter.log_pdet + logdet) <= logdet_bound(g)  # float64, whatever the dtype of g
    # Σ̂ = Rᵀ R with R = L⁻ᵀ from g.n solves, each a perturbation of L by γ_n |L|
    L = abs(precision_root(g))
    change = 3 * numerics.rounding(g.n + 1, g.dtype) * spread(precision_of(g), L @ L.T)
    scale = np.sqrt(np.diag(sigma))
    assert (abs(adapter.covariance - sigma) <= change / (1 - change) * np.outer(scale, scale)).all()


def precision_root(g: GaussianGraphicalModel) -> numerics.Array:
    """L with its rows in the caller's numbering."""
    return factor_of(g)[g.topology.inverse_order]


@pytest.mark.parametrize("topology", [Grid(3, 3), Diagonal(2)], ids=str)
def test_multivariate_normal_takes_it(topology: Topology) -> None:
    g = gaussian(topology)
    sparse = scipy.stats.multivariate_normal(g.loc, SparsePrecisionCovariance(g))
    dense = scipy.stats.multivariate_normal(g.loc, covariance_of(g).astype(FLOAT64))
    x = g.sample(4, np.random.default_rng(0))
    P = precision_of(g).astype(FLOAT64)
    tolerance = float(numerics.gamma(g.n**3, FLOAT64) * np.linalg.cond(P))  # SciPy inverts by eigenvalues
    np.testing.assert_allclose(sparse.logpdf(x), g.log_prob(x), rtol=tolerance)
    np.testing.assert_allclose(sparse.logpdf(x), dense.logpdf(x), rtol=tolerance)
    np.testing.assert_allclose(sparse.entropy(), g.entropy(), rtol=tolerance)
    np.testing.assert_allclose(sparse.entropy(), dense.entropy(), rtol=tolerance)


def test_draws_of_scipy_are_those_of_the_gaussian() -> None:
    """SciPy colours the standard normals of its generator, so that equal seeds give equal draws."""
    g = gaussian(Grid(3, 4))
    draws = scipy.stats.multivariate_normal.rvs(g.loc, SparsePrecisionCovariance(g), size=5, random_state=1)
    noise = np.random.RandomState(1).standard_normal((5, 12))
    np.testing.assert_array_equal(draws, g.loc + g.colorize(noise))


@pytest.mark.parametrize("topology", [Grid(3, 3), Diagonal(2)], ids=str)
def test_a_row_with_nan_has_no_density_and_the_others_have_theirs(topology: Topology) -> None:
    """Missing rows in a data set are NaN by SciPy's own covariances, too."""
    g = gaussian(topology)
    x = g.sample((2, 3), 0)
    x[0, 1, -1] = np.nan
    sparse = scipy.stats.multivariate_normal(g.loc, SparsePrecisionCovariance(g)).logpdf(x)
    dense = scipy.stats.multivariate_normal(g.loc, covariance_of(g).astype(FLOAT64)).logpdf(x)
    np.testing.assert_array_equal(np.isnan(sparse), np.isnan(dense))
    complete = ~np.isnan(sparse)
    np.testing.assert_array_equal(np.argwhere(~complete), [[0, 1]])
    np.testing.assert_allclose(sparse[complete], g.log_prob(x[complete]), rtol=1e-13)
    assert np.isnan(SparsePrecisionCovariance(g).colorize(x[0, 1])).all()


def test_the_log_determinant_keeps_float64_digits_of_a_float32_factor() -> None:
    """Through an entropy rounded to float32 it would be off by up to 1e5 · 1.4 · 2⁻²⁴ = 8e-3."""
    n = 100_000
    factor = np.random.default_rng(0).uniform(0.5, 2.0, n).astype(np.float32)
    g = GaussianGraphicalModel(np.zeros(n, np.float32), factor=factor, topology=Diagonal(n))
    exact = -2 * np.log(factor.astype(WIDE)).sum()
    bound = numerics.rounding(n + 1, FLOAT64) * 2 * abs(np.log(factor.astype(WIDE))).sum()
    assert abs(SparsePrecisionCovariance(g).log_pdet - exact) <= bound


def test_a_batch_is_refused() -> None:
    batch = GaussianGraphicalModel(np.zeros((3, 2)), factor=np.ones(2), topology=Diagonal(2))
    message = r"^SparsePrecisionCovariance: needs one Gaussian, got batch shape \(3,\)\.$"
    with pytest.raises(ShapeError, match=message):
        SparsePrecisionCovariance(batch)
