"""Maximum likelihood: the moments it must recover, that nothing near is likelier, and what it refuses."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import reference.inference
import reference.linalg
import reference.topology
from sparseggm import (
    BlockChain,
    Chain,
    Diagonal,
    DTypeError,
    ExtendedGrid,
    GaussianGraphicalModel,
    Graph,
    Grid,
    NonFiniteError,
    NotPositiveDefiniteError,
    ShapeError,
    Stencil,
    Topology,
)
from sparseggm.gaussian import fitting
from tests import numerics
from tests.gaussian_bounds import factor_of, in_callers_numbering
from tests.ledger import check
from tests.numerics import WIDE, Array
from tests.peak_memory import TOPOLOGIES
from tests.strategies import mask
from tests.topologies import chordal_graphs, topologies

FLOAT64 = np.float64
factor_free = topologies(3).filter(lambda topology: topology.is_factor_free)


@dataclass(frozen=True)
class Fit:
    """Samples, what was fitted to them, and their moments in WIDE and elimination order."""

    g: GaussianGraphicalModel
    samples: Array

    @property
    def covariance(self) -> Array:
        order = self.g.topology.order
        return reference.inference.moments(self.samples.astype(WIDE)[..., order])[1]

    @property
    def residual(self) -> Array:
        """C L − e_j / L_jj on the pattern: the gradient of the mean log likelihood, zero at the maximum."""
        L = factor_of(self.g)
        return np.where(mask(self.g.factor_pattern), self.covariance @ L - numerics.reciprocal_diagonal(L), 0)

    @property
    def residual_bound(self) -> Array:
        """√C_ii (ε Σ_k √C_kk |L_kj|), ε = 6 c² γ_c 2^{c−1} for the solve and γ_{N+12} for the correlations.

        R y = e₁ is solved with partial pivoting: (R + ΔR) ŷ = e₁ with max |ΔR| ≤ 2 c² γ_c ρ, growth ρ ≤ 2^{c−1}
        [Higham 2002, Thm 9.5]; |R_ij| ≤ 1, and scaling back multiplies row i by √C_ii. A correlation is a sum of N
        products of numbers centred (with the error of the mean, γ_N of the largest sample) and scaled. Rounding L to
        its dtype changes C L and 1/L_jj = (C L)_jj.
        """
        L, C = abs(factor_of(self.g)), self.covariance
        c, count = self.g.factor_pattern.longest_column, self.samples.shape[-2]
        root = np.sqrt(np.diagonal(C, axis1=-2, axis2=-1))
        centred = abs(self.samples).max(axis=-2)[..., self.g.topology.order] / root
        solve = 6 * c**2 * numerics.rounding(c, FLOAT64) * 2.0 ** (c - 1)
        own = numerics.rounding(3, self.g.dtype) if self.g.dtype != FLOAT64 else 0
        level = solve + numerics.rounding(count + 12, FLOAT64) * (1 + centred.max(axis=-1, initial=0)) ** 2 + own
        reach = (root[..., :, None] * L).sum(axis=-2, keepdims=True)
        return np.asarray(level)[..., None, None] * root[..., :, None] * reach * mask(self.g.factor_pattern)


@st.composite
def fits(draw: st.DrawFn, on: st.SearchStrategy[Topology] = factor_free) -> Fit:
    """Correlated samples with a mean, in units from a millionth to a million, a few more than the longest column."""
    topology = draw(on)
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    batch = draw(st.sampled_from([(), (1,), (2, 3), (0,)]))
    dtype = draw(st.sampled_from(["float32", "float64"]))
    count = 3 * topology.factor_pattern.longest_column + draw(st.integers(0, 20))
    n = topology.n
    mixing = np.eye(n) + rng.uniform(-0.5, 0.5, (n, n)) / np.sqrt(n)
    units = 10.0 ** rng.uniform(-6, 6, n) if draw(st.booleans()) else np.ones(n)
    samples = (rng.standard_normal((*batch, count, n)) @ mixing + rng.standard_normal(n)) * units
    samples = samples.astype(dtype)
    return Fit(GaussianGraphicalModel.fit(samples, topology), samples)


# ---------------------------------------------------------------------- the maximum


@pytest.mark.property
@given(fit=fits())
def test_the_mean_is_that_of_the_samples(fit: Fit) -> None:
    exact = fit.samples.astype(WIDE).mean(axis=-2)
    size = abs(fit.samples).astype(WIDE).mean(axis=-2)
    bound = numerics.rounding(fit.samples.shape[-2] + 1, FLOAT64) * size + numerics.stored(exact, fit.g.dtype)
    assert fit.g.loc.dtype == fit.g.factor.dtype == fit.samples.dtype
    check("fit: mean", type(fit.g.topology).__name__, fit.g.dtype, fit.g.loc - exact, bound)


@pytest.mark.property
@given(fit=fits())
def test_the_likelihood_has_no_slope_at_the_fit(fit: Fit) -> None:
    family = type(fit.g.topology).__name__
    check("fit: slope", family, fit.g.dtype, fit.residual, fit.residual_bound)


@pytest.mark.property
@given(fit=fits(), seed=st.integers(0, 2**32 - 1), size=st.sampled_from([1e-6, 1e-3, 0.1, 1.0]))
def test_no_other_factor_on_the_pattern_is_likelier(fit: Fit, seed: int, size: float) -> None:
    """The mean log likelihood is concave in L, so it grows by at most the slope times the step."""
    pattern, L = fit.g.factor_pattern, factor_of(fit.g)
    scale = np.sqrt(1 / np.diagonal(fit.covariance, axis1=-2, axis2=-1))[..., :, None]
    step = size * np.random.default_rng(seed).uniform(-1, 1, L.shape) * mask(pattern) * scale
    diagonal = np.arange(pattern.n)
    step[..., diagonal, diagonal] = np.maximum(step[..., diagonal, diagonal], -0.9 * L[..., diagonal, diagonal])
    likelihood = reference.inference.log_likelihood
    gain = likelihood(L + step, fit.covariance) - likelihood(L, fit.covariance)
    slack = (fit.residual_bound * abs(step)).sum(axis=(-1, -2))
    slack += numerics.gamma(pattern.n**2 + 9, WIDE) * (1 + abs(likelihood(L, fit.covariance))) * pattern.n
    assert (gain <= slack).all()
    assert (gain < 0).all() or size < 0.1


@pytest.mark.property
@given(fit=fits(chordal_graphs(8)))
def test_on_a_chordal_graph_every_clique_has_the_moments_of_the_samples(fit: Fit) -> None:
    """Σ = C on the graph: both solve Takahashi's equations, whose residual spreads as in `inverse_forward_bound`."""
    L = factor_of(fit.g)
    sigma = reference.linalg.inverse(L)
    bound = spread_residual(abs(L), fit.residual_bound)
    stored = mask(fit.g.factor_pattern)
    difference = np.where(stored, sigma - fit.covariance, 0)
    check("fit: moments", "Graph", fit.g.dtype, difference, np.where(stored, bound, 0))


def spread_residual(size: Array, residual: Array) -> Array:
    """E with L_jj E_ij = ρ_ij + Σ_{k>j} E_ik |L_kj|, columns backwards: what a residual ρ does to the inverse."""
    n = size.shape[-1]
    out = np.zeros_like(size)
    for j in reversed(range(n)):
        for rows in (slice(j + 1, n), slice(j, j + 1)):
            known = numerics.apply(out[..., rows, j + 1 :], size[..., j + 1 :, j])
            out[..., rows, j] = (residual[..., rows, j] + known) / size[..., j, j][..., None]
            out[..., j, rows] = out[..., rows, j]
    return out


@pytest.mark.property
@given(fit=fits(chordal_graphs(6)))
def test_the_precision_is_that_of_cliques_less_separators(fit: Fit) -> None:
    """Lauritzen's formula, which knows no factor: P̂ − P ≤ |ΔL||L|ᵀ + |L||ΔL|ᵀ + |ΔL||ΔL|ᵀ."""
    topology = fit.g.topology
    edges = [(int(i), int(j)) for i, j in topology.edges]
    C = in_callers_numbering(topology, fit.covariance)
    expected = reference.inference.fit_precision(edges, topology.order.tolist(), C)
    L, change = abs(factor_of(fit.g)), column_error(fit)
    product = change @ numerics.transpose(L + change)
    bound = in_callers_numbering(topology, product + numerics.transpose(product))
    P = in_callers_numbering(topology, reference.linalg.gram(factor_of(fit.g)))
    check("fit: precision", "Graph", fit.g.dtype, P - expected, bound)


def column_error(fit: Fit) -> Array:
    """|L̂ − L| for a residual ρ of C L̂ = e₁/L̂_jj, column by column.

    C⁻¹e₁ = L_jj L gives L̂ = (L_jj/L̂_jj) L + C⁻¹ρ; its first row says |1 − (L_jj/L̂_jj)²| ≤ t = (|C⁻¹||ρ|)₁ / L̂_jj.
    """
    computed, out = abs(factor_of(fit.g)), np.zeros_like(factor_of(fit.g))
    stored = mask(fit.g.factor_pattern)
    for j in range(fit.g.n):
        rows = np.flatnonzero(stored[:, j]).tolist()
        inverse = reference.linalg.inverse(
            reference.linalg.cholesky(reference.inference.block(fit.covariance, rows, rows))
        )
        move = numerics.apply(abs(inverse), fit.residual_bound[..., rows, j])
        t = move[..., :1] / computed[..., rows[:1], j]
        out[..., rows, j] = move + t * (computed[..., rows, j] + move) / (1 - t)
    return out


def test_the_oracles_agree_on_a_known_case() -> None:
    """Two samples' moments by hand: C = [[2, 1], [1, 1]], P = C⁻¹ = [[1, −1], [−1, 2]]."""
    C = np.array([[2.0, 1.0], [1.0, 1.0]])
    L = reference.inference.fit_factor(np.tril(np.ones((2, 2), bool)), C)
    np.testing.assert_allclose(L @ L.T, [[1, -1], [-1, 2]], rtol=1e-15)
    np.testing.assert_allclose(reference.inference.fit_precision([(1, 0)], [0, 1], C), [[1, -1], [-1, 2]], rtol=1e-15)
    np.testing.assert_allclose(reference.inference.fit_precision([], [0, 1], C), [[0.5, 0], [0, 1]], rtol=1e-15)


@pytest.mark.parametrize("topology", [Diagonal(4), Chain(5), BlockChain(2, 3), ExtendedGrid(3, 3), Stencil(3, 3, 1)])
def test_many_samples_of_a_gaussian_give_it_back(topology: Topology) -> None:
    """Of N samples, 2 N KL(fit ‖ truth) is nearly χ² with a degree for each number that was fitted."""
    rng, count = np.random.default_rng(3), 100_000
    factor = np.where(topology.factor_pattern.rows == topology.factor_pattern.cols, 1.5, 0.3)
    truth = GaussianGraphicalModel(np.arange(topology.n) * 1.0, factor=factor, topology=topology)
    fitted = GaussianGraphicalModel.fit(truth.sample(count, rng), topology)
    degrees = topology.n + topology.factor_pattern.nnz
    assert 0 < 2 * count * fitted.kl_divergence(truth) < degrees + 8 * np.sqrt(2 * degrees)


def test_units_do_not_matter() -> None:
    """Twenty orders of magnitude between two variables, scaled by powers of two: the same fit to a few bits."""
    rng, chain = np.random.default_rng(0), Chain(4)
    samples = rng.standard_normal((50, 4)) @ np.tril(np.ones((4, 4)))
    units = 2.0 ** np.array([0, 66, -66, 10])
    plain, scaled = (GaussianGraphicalModel.fit(x, chain) for x in (samples, samples * units))
    back = scaled.factor * units[chain.factor_pattern.rows]
    np.testing.assert_array_equal(back, plain.factor)


# ---------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("samples", "topology", "error", "message"),
    [
        (
            np.zeros((5, 4)),
            Grid(2, 2),
            NotPositiveDefiniteError,
            r"fit: found no Gaussian on Grid\(2, 2\) for 5 samples",
        ),
        (np.zeros(4), Chain(4), ShapeError, r"fit: samples must be \(\.\.\., N, 4\) with N ≥ 1, got shape \(4,\)\."),
        (
            np.zeros((0, 4)),
            Chain(4),
            ShapeError,
            r"fit: samples must be \(\.\.\., N, 4\) with N ≥ 1, got shape \(0, 4\)",
        ),
        (np.zeros((5, 3)), Chain(4), ShapeError, r"fit: samples must end in 4"),
        (
            np.zeros((5, 4), complex),
            Chain(4),
            DTypeError,
            r"fit: samples must hold real numbers in at most float64, got",
        ),
        (np.full((5, 4), np.nan), Chain(4), NonFiniteError, r"fit: samples must be finite, got nan"),
        (
            np.ones((5, 4)),
            Chain(4),
            NotPositiveDefiniteError,
            r"fit: the correlation of node 3 of Chain\(n=4\) and its 0",
        ),
    ],
)
def test_what_cannot_be_fitted_is_refused(samples, topology: Topology, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{message}"):
        GaussianGraphicalModel.fit(samples, topology)


def test_too_few_samples_are_refused_by_the_node_and_the_batch_element() -> None:
    rng, topology = np.random.default_rng(0), Graph(4, [(1, 0), (2, 0), (2, 1)], order=[3, 2, 1, 0])
    samples = rng.standard_normal((2, 9, 4))
    samples[1, :, 1] = samples[1, :, 0] - samples[1, :, 2]
    message = r"^fit: the correlation of node 2 of Graph\(.*\) and its 2 later neighbours is singular for 9 samples"
    with pytest.raises(NotPositiveDefiniteError, match=message) as caught:
        GaussianGraphicalModel.fit(samples, topology)
    assert (caught.value.batch_index, caught.value.column) == ((1,), 1)


# ---------------------------------------------------------------------- chunks


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")
@pytest.mark.parametrize("name", TOPOLOGIES)
def test_what_is_held_beside_the_samples_does_not_grow_with_them(name: str) -> None:
    """Four arrays of a chunk, and moments of less than that. 10,000 images are 8 MB of bytes, and 63 in float64."""
    ran = subprocess.run([sys.executable, "-m", "tests.peak_memory", name], capture_output=True, text=True, check=True)
    assert float(ran.stdout) <= 4 * 8 * fitting.CHUNK_VALUES / 1e6


@pytest.mark.parametrize("chunk", [1, 7, 1000])
@pytest.mark.parametrize("batch", [(), (3,), (2, 3), (0,)])
def test_chunks_do_not_matter_beyond_the_rounding_of_a_sum(
    monkeypatch: pytest.MonkeyPatch, chunk: int, batch: tuple[int, ...]
) -> None:
    topology, rng = Stencil(3, 4, 1), np.random.default_rng(0)
    samples = rng.standard_normal((*batch, 50, 12)) + 100.0
    whole = GaussianGraphicalModel.fit(samples, topology)
    monkeypatch.setattr(fitting, "CHUNK_VALUES", chunk)
    parts = GaussianGraphicalModel.fit(samples, topology)
    np.testing.assert_array_equal(parts.loc, whole.loc)
    np.testing.assert_allclose(parts.factor, whole.factor, rtol=0, atol=1e3 * numerics.gamma(50, FLOAT64))


def test_a_sample_that_is_not_finite_is_named_wherever_it_is() -> None:
    samples = np.random.default_rng(0).standard_normal((2, 50, 4))
    for value in (np.nan, np.inf, -np.inf):
        bad = samples.copy()
        bad[1, 30, 2] = value
        with pytest.raises(NonFiniteError, match=rf"^fit: samples must be finite, got {value} at column 2, batch el"):
            GaussianGraphicalModel.fit(bad, Chain(4))
    with pytest.raises(NonFiniteError, match=r"^fit: the arguments are finite but the result overflows float64"):
        GaussianGraphicalModel.fit(samples * 1e300, Chain(4))
