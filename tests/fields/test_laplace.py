"""The Laplace approximation: exact for a Gaussian likelihood, else against dense optimisation and differences."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.optimize
import scipy.stats
import torch

import sparseggm as sg
import sparseggm.torch
from sparseggm import fields
from sparseggm.errors import (
    DTypeError,
    NonFiniteError,
    NonPositiveError,
    NotConvergedError,
    NotPositiveDefiniteError,
    PatternError,
    ShapeError,
)
from tests.fields.test_spatial import laplacian, mesh
from tests.fields.test_state_space import dense_precision
from tests.numerics import Array

RNG = np.random.default_rng(0)
GRID = sg.Grid(3, 4)
PRIOR = fields.CAR(GRID).prior(1.5, 0.9, 0.3)
COUNTS = RNG.poisson(3.0, 12).astype(float)
EXPOSURE = RNG.uniform(0.5, 3.0, 12)
TRIALS = RNG.integers(1, 9, 12)
HITS = RNG.binomial(TRIALS, 0.4)

LIKELIHOODS: dict[str, tuple[fields.Likelihood, Callable[[Array], Array]]] = {
    "poisson": (
        fields.Poisson(COUNTS, EXPOSURE),
        lambda eta: scipy.stats.poisson.logpmf(COUNTS, EXPOSURE * np.exp(eta)),
    ),
    "binomial": (
        fields.Binomial(HITS, TRIALS),
        lambda eta: scipy.stats.binom.logpmf(HITS, TRIALS, 1 / (1 + np.exp(-eta))),
    ),
    "negative binomial": (
        fields.NegativeBinomial(COUNTS, 2.5, EXPOSURE),
        lambda eta: scipy.stats.nbinom.logpmf(COUNTS, 2.5, 2.5 / (2.5 + EXPOSURE * np.exp(eta))),
    ),
    "normal": (fields.Normal(COUNTS, 0.7), lambda eta: scipy.stats.norm.logpdf(COUNTS, eta, math.sqrt(0.7))),
}


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_terms_are_scipys_and_their_derivatives(name: str) -> None:
    likelihood, expected = LIKELIHOODS[name]
    eta, h = RNG.standard_normal(12), 1e-4
    terms = likelihood(eta)
    low, high = likelihood(eta - h), likelihood(eta + h)
    np.testing.assert_allclose(terms.log_prob, expected(eta), rtol=1e-12)
    np.testing.assert_allclose(terms.gradient, (high.log_prob - low.log_prob) / (2 * h), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(terms.curvature, -(high.gradient - low.gradient) / (2 * h), rtol=1e-6, atol=1e-6)
    for term, of_tensors in zip(terms, likelihood(torch.tensor(eta)), strict=True):
        np.testing.assert_allclose(of_tensors, term, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_the_mode_is_scipys(name: str) -> None:
    likelihood, log_prob = LIKELIHOODS[name]
    P = dense_precision(PRIOR)

    def loss(z: Array) -> float:
        return float(-log_prob(z).sum() + 0.5 * (z - PRIOR.loc) @ P @ (z - PRIOR.loc))

    found = fields.laplace(PRIOR, likelihood)
    best = scipy.optimize.minimize(loss, PRIOR.loc, method="BFGS", options={"gtol": 1e-8})
    np.testing.assert_allclose(found.posterior.loc, best.x, atol=1e-6)
    assert loss(found.posterior.loc) <= best.fun + 1e-12
    W = likelihood(found.posterior.loc).curvature
    np.testing.assert_allclose(dense_precision(found.posterior), P + np.diag(W), rtol=1e-12, atol=1e-12)
    logdets = np.linalg.slogdet(P)[1] - np.linalg.slogdet(P + np.diag(W))[1]
    assert found.log_evidence == pytest.approx(-loss(found.posterior.loc) + 0.5 * logdets, rel=1e-11)


def test_with_a_gaussian_likelihood_it_is_the_exact_posterior() -> None:
    field = fields.Matern(mesh(80))
    prior = field.prior(0.4, 1.2)
    corners = field.domain.triangles[:30]
    plan = fields.LinearObservation(field.topology, field.projector(field.domain.points[corners].mean(1)))
    y = RNG.standard_normal(30)
    found = fields.laplace(prior, fields.Normal(y, 0.1), plan)
    exact = plan.posterior(prior, y, 0.1)
    assert found.steps <= 2
    np.testing.assert_allclose(found.posterior.loc, exact.loc, atol=1e-9)
    np.testing.assert_allclose(found.posterior.variance, exact.variance, rtol=1e-9)
    assert found.log_evidence == pytest.approx(float(plan.log_evidence(prior, y, 0.1)), rel=1e-10)
    np.testing.assert_allclose(
        found.observation.predictive(found.posterior).mean, plan.predictive(exact).mean, atol=1e-9
    )


def test_a_missing_count_says_nothing() -> None:
    counts = COUNTS.copy()
    counts[[2, 7]] = np.nan
    seen = np.flatnonzero(~np.isnan(counts))
    A = np.eye(12)[seen]
    found = fields.laplace(PRIOR, fields.Poisson(counts, EXPOSURE))
    fewer = fields.laplace(PRIOR, fields.Poisson(counts[seen], EXPOSURE[seen]), fields.LinearObservation(GRID, A))
    assert found.log_evidence == pytest.approx(float(fewer.log_evidence), rel=1e-12)
    np.testing.assert_allclose(found.posterior.loc, fewer.posterior.loc, atol=1e-10)


def test_each_element_of_a_batch_is_a_problem_of_its_own() -> None:
    prior = fields.CAR(GRID).prior([[0.5], [2.0]], 0.9)
    counts = RNG.poisson(3.0, (3, 12))
    found = fields.laplace(prior, fields.Poisson(counts, EXPOSURE))
    assert found.log_evidence.shape == (2, 3)
    for i, j in np.ndindex(2, 3):
        alone = fields.laplace(fields.CAR(GRID).prior([0.5, 2.0][i], 0.9), fields.Poisson(counts[j], EXPOSURE))
        assert found.log_evidence[i, j] == pytest.approx(float(alone.log_evidence), rel=1e-11)


def test_far_starts_end_at_the_same_mode() -> None:
    likelihood = LIKELIHOODS["poisson"][0]
    near = fields.laplace(PRIOR, likelihood)
    for start in (-30.0, 30.0):
        far = fields.laplace(PRIOR, likelihood, start=np.full(12, start))
        np.testing.assert_allclose(far.posterior.loc, near.posterior.loc, atol=1e-9)


@pytest.mark.parametrize("sd", [1.0, 1e3, 1e6, 1e14])
def test_a_count_of_zero_beside_a_vague_prior_has_a_mode_far_away(sd: float) -> None:
    prior = sg.GaussianGraphicalModel([0.0], factor=[1 / sd], topology=sg.Chain(1))
    P = 1 / sd**2
    z = scipy.optimize.brentq(lambda z: -np.exp(z) - P * z, -800.0, 0.0, xtol=1e-14, rtol=1e-15)
    expected = -np.exp(z) - 0.5 * P * z**2 + 0.5 * np.log(P / (P + np.exp(z)))
    assert fields.laplace(prior, fields.Poisson([0])).log_evidence == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    "likelihood",
    [fields.Poisson([0] * 4), fields.Binomial([1] * 4), fields.NegativeBinomial([0] * 4, 2.0)],
    ids=["poisson", "binomial", "negative binomial"],
)
def test_data_that_pull_without_an_end_settle_no_improper_prior(likelihood: fields.Likelihood) -> None:
    walk = fields.IntrinsicGaussian(
        sg.Chain(4).pack(np.diff(np.eye(4), axis=0).T @ np.diff(np.eye(4), axis=0)), topology=sg.Chain(4)
    )
    for tensors in (False, True):
        prior = sparseggm.torch.fields.IntrinsicGaussian(torch.tensor(walk.precision), topology=sg.Chain(4))
        with pytest.raises(NotPositiveDefiniteError, match=r"laplace: P \+ Aᵀ W A must be .*all 0"):
            fields.laplace(prior if tensors else walk, likelihood)


def test_an_intrinsic_prior_gives_its_posterior_and_its_evidence() -> None:
    """The density of `log_prob` has volume across the null space: ½ log 2π VᵀV beside the diffuse evidence."""
    walk = fields.IntrinsicGaussian(
        sg.Chain(9).pack((np.array([1.0, *[2.0] * 7, 1.0]), -np.ones(8))), topology=sg.Chain(9)
    )
    y = RNG.standard_normal(9)
    found = fields.laplace(walk, fields.Normal(y, 0.4))
    exact = walk.observe(np.arange(9), y, 0.4)
    np.testing.assert_allclose(found.posterior.loc, exact.loc, atol=1e-10)
    diffuse = float(walk.log_evidence(np.arange(9), y, 0.4))
    assert found.log_evidence == pytest.approx(diffuse + 0.5 * math.log(2 * math.pi * 9), rel=1e-10)


def test_an_intrinsic_prior_of_tensors_has_gradients() -> None:
    t = sg.Chain(9)
    structure = torch.tensor(t.pack((np.array([1.0, *[2.0] * 7, 1.0]), -np.ones(8))))

    def loss(log_scale: torch.Tensor) -> torch.Tensor:
        walk = sparseggm.torch.fields.IntrinsicGaussian(log_scale.exp() * structure, topology=t)
        return fields.laplace(walk, fields.Poisson(COUNTS[:9])).log_evidence

    assert torch.autograd.gradcheck(loss, (torch.tensor(0.3).double().requires_grad_(),), eps=1e-5, atol=1e-7)


# ---------------------------------------------------------------------- gradients


def evidence(theta: torch.Tensor) -> torch.Tensor:
    prior = fields.CAR(GRID).prior(theta[0].exp(), theta[1].tanh(), theta[2])
    return fields.laplace(prior, fields.NegativeBinomial(COUNTS, theta[3].exp(), EXPOSURE)).log_evidence


def test_the_gradient_of_the_evidence_is_that_of_differences() -> None:
    theta = torch.tensor([0.2, 1.0, 0.3, 0.8], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(evidence, (theta,), eps=1e-5, atol=1e-7)


def test_the_gradient_of_the_mode_is_the_implicit_functions() -> None:
    def mode(theta: torch.Tensor) -> torch.Tensor:
        prior = fields.CAR(GRID).prior(theta[0].exp(), theta[1].tanh(), theta[2])
        result: torch.Tensor = fields.laplace(prior, fields.Poisson(COUNTS, EXPOSURE)).posterior.loc
        return result

    theta = torch.tensor([0.2, 1.0, 0.3], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(mode, (theta,), eps=1e-5, atol=1e-7)


SECOND: dict[str, Callable[[torch.Tensor], fields.Likelihood]] = {
    "poisson": lambda size: fields.Poisson(COUNTS, EXPOSURE),
    "binomial": lambda size: fields.Binomial(HITS, TRIALS),
    "negative binomial": lambda size: fields.NegativeBinomial(COUNTS, size, EXPOSURE),
    "normal": lambda size: fields.Normal(COUNTS, size),
    "custom": lambda size: fields.CustomLikelihood(lambda eta: -(eta**2) / size - (size + eta.exp()).log()),
}


@pytest.mark.parametrize("name", SECOND)
def test_second_derivatives_are_those_of_differences(name: str) -> None:
    """Of evidence, mode and variances, by hyperparameters of the prior and of the likelihood."""

    def results(theta: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        prior = fields.CAR(GRID).prior(theta[0].exp(), theta[1].tanh(), theta[2])
        found = fields.laplace(prior, SECOND[name](theta[3].exp()))
        return found.log_evidence, found.posterior.loc[..., :3], found.posterior.variance[..., :3]

    theta = torch.tensor([0.2, 1.0, 0.3, 0.8], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(results, (theta,), eps=1e-5, atol=1e-6)


def test_a_likelihood_of_ones_own_by_autograd_is_the_built_in_one() -> None:
    y, E = torch.tensor(COUNTS), torch.tensor(EXPOSURE)

    def both(theta: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        prior = fields.CAR(GRID).prior(theta[0].exp(), theta[1].tanh(), theta[2])
        own = fields.CustomLikelihood(lambda eta: y * (eta + E.log()) - E * eta.exp() - (y + 1).lgamma())
        given = fields.laplace(prior, fields.Poisson(COUNTS, EXPOSURE)).log_evidence
        return fields.laplace(prior, own).log_evidence, given

    theta = torch.tensor([0.2, 1.0, 0.3], dtype=torch.float64, requires_grad=True)
    own, given = both(theta)
    assert own.item() == pytest.approx(given.item(), rel=1e-12)
    np.testing.assert_allclose(
        *(torch.autograd.grad(each, theta, retain_graph=True)[0] for each in (own, given)), rtol=1e-9
    )


# ---------------------------------------------------------------------- BYM2


def dense_evidence(y: Array, X: Array, S: Array) -> float:
    """log ∫ N(y; X β, S) dβ, flat β."""
    K = np.linalg.inv(S)
    H = X.T @ K @ X
    beta = np.linalg.solve(H, X.T @ K @ y)
    r = y - X @ beta
    k = len(y) - X.shape[1]
    logdets = np.linalg.slogdet(S)[1] + np.linalg.slogdet(H)[1]
    return float(-0.5 * (r @ K @ r + logdets + k * math.log(2 * math.pi)))


def test_the_evidence_of_bym2_is_that_of_its_dense_definition() -> None:
    """β₀ + X β + N(0, sd² ((1 − mix) I + mix Q⁻ / s)), with Σ u = 0 and flat effects."""
    D, W = laplacian(GRID, np.ones(len(GRID.edges)))
    covariate, y = RNG.standard_normal((12, 1)), RNG.standard_normal(12)
    model = fields.BYM2(GRID, covariate)
    plan = fields.LinearObservation(model.topology, model.matrix)
    X = np.hstack([np.ones((12, 1)), covariate])
    for sd, mix in ((0.7, 0.3), (1.4, 0.95), (2.0, 0.01)):
        spatial = np.linalg.pinv(D - W)
        spatial /= np.exp(np.log(np.diag(spatial)).mean())
        S = sd**2 * ((1 - mix) * np.eye(12) + mix * spatial) + 0.5 * np.eye(12)
        found = fields.laplace(model.prior(sd, mix), fields.Normal(y, 0.5), plan)
        assert found.log_evidence == pytest.approx(dense_evidence(y, X, S), rel=1e-9)
        K = np.linalg.inv(S)
        effects = np.linalg.solve(X.T @ K @ X, X.T @ K @ y)
        assert found.posterior.loc[-1] == pytest.approx(effects[1], rel=1e-9)
        assert found.posterior.variance[-1] == pytest.approx(np.linalg.inv(X.T @ K @ X)[1, 1], rel=1e-9)


def test_gradients_of_bym2() -> None:
    model = fields.BYM2(GRID, np.linspace(0, 1, 12)[:, None])
    plan = fields.LinearObservation(model.topology, model.matrix)

    def loss(theta: torch.Tensor) -> torch.Tensor:
        prior = model.prior(theta[0].exp(), theta[1].sigmoid())
        return fields.laplace(prior, fields.Poisson(COUNTS, EXPOSURE), plan).log_evidence

    theta = torch.tensor([-0.5, 0.4], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(loss, (theta,), eps=1e-5, atol=1e-7)


# ---------------------------------------------------------------------- mistakes


def test_a_mode_that_is_not_reached_says_how_far_it_came() -> None:
    with pytest.raises(NotConvergedError, match=r"not reached in 1 steps: log-density -\d.*nats below it.*max_steps"):
        fields.laplace(PRIOR, LIKELIHOODS["poisson"][0], max_steps=1)
    wrong = fields.CustomLikelihood(lambda eta: -(eta**2), lambda eta: 2 * eta, lambda eta: 2 + 0 * eta)
    with pytest.raises(NotConvergedError, match=r"since step \d+ gains nothing.*may not be its own"):
        fields.laplace(PRIOR, wrong)
    with pytest.raises(NotConvergedError, match=r"log-density -2\.\d+e\+303, from where a step is beyond the range"):
        fields.laplace(fields.CAR(sg.Chain(3)).prior(1.0, 0.5), fields.Poisson(np.full(3, 1e300)))


def test_a_start_without_a_likelihood_is_refused() -> None:
    with pytest.raises(NonFiniteError, match=r"finite at the start, got -inf\. Give start="):
        fields.laplace(PRIOR, LIKELIHOODS["poisson"][0], start=np.full(12, 1e3))


def test_likelihoods_refuse_what_they_cannot_have_seen() -> None:
    tensors = fields.CAR(GRID).prior(torch.tensor(1.0).double(), 0.5)
    with pytest.raises(
        ValueError, match=r"Poisson: counts must be nonnegative integers, or NaN, got -1 at \(1,\)"
    ) as raised:
        fields.Poisson([0, -1])
    assert not isinstance(raised.value, NonFiniteError)
    with pytest.raises(NonFiniteError, match=r"got inf at \(0,\)"):
        fields.Poisson([np.inf, 1])
    with pytest.raises(ValueError, match=r"got 1\.5"):
        fields.Binomial([1.5], 3)
    with pytest.raises(ValueError, match=r"at most trials, got 4 at \(0,\)"):
        fields.Binomial([4], [3])
    with pytest.raises(ValueError, match=r"at most trials, got 2 at \(0, 1\)"):
        fields.Binomial([1, 2, 3], [[1, 1, 1], [5, 5, 5]])
    with pytest.raises(NonPositiveError, match="size must be positive"):
        fields.NegativeBinomial([1], 0.0)
    with pytest.raises(DTypeError, match="counts must hold real numbers"):
        fields.Poisson(["one"])
    with pytest.raises(NonFiniteError, match="trials must be known where successes are"):
        fields.Binomial([1.0, math.nan], [math.nan, math.nan])
    with pytest.raises(TypeError, match="log_prob must be differentiable"):
        fields.laplace(tensors, fields.CustomLikelihood(torch.zeros_like))
    with pytest.raises(TypeError, match="needs gradient and curvature, or neither"):
        fields.CustomLikelihood(lambda eta: eta, lambda eta: eta)
    with pytest.raises(TypeError, match="arrays need gradient"):
        fields.laplace(PRIOR, fields.CustomLikelihood(lambda eta: -(eta**2)))
    with pytest.raises(DTypeError, match="the likelihood has a tensor as a parameter, but the prior is of arrays"):
        fields.laplace(PRIOR, fields.NegativeBinomial(COUNTS, torch.tensor(2.0)))
    with pytest.raises(ValueError, match="its own η_i alone"):
        fields.laplace(tensors, fields.CustomLikelihood(lambda eta: -((eta + eta.roll(1, -1)) ** 2)))
    with pytest.raises(ShapeError, match=r"log_prob must give \(..., 12\)"):
        fields.laplace(tensors, fields.CustomLikelihood(lambda eta: -(eta**2).sum(-1)))


OF_LISTS: dict[str, Callable[[Any], Any]] = {
    "poisson": fields.Poisson,
    "binomial": lambda counts: fields.Binomial(counts, 9),
    "trials": lambda counts: fields.Binomial(np.zeros(3), counts),
    "negative binomial": lambda counts: fields.NegativeBinomial(counts, 2.5),
    "normal": lambda counts: fields.Normal(counts, 0.7),
}


@pytest.mark.parametrize("name", OF_LISTS)
def test_what_likelihoods_observe_is_read_by_one_rule(name: str) -> None:
    counts = np.array([1.0, 2.0, 3.0])
    likelihood = OF_LISTS[name](counts)
    expected = likelihood(np.array([0.0, 1.0, 2.0]))
    counts[:] = 0.0  # theirs alone
    for term, of_integers in zip(expected, likelihood([0, 1, 2]), strict=True):
        np.testing.assert_array_equal(of_integers, term)
    for wrong in (
        np.ma.masked_array([1.0, 2.0, 3.0], [0, 1, 0]),
        [[1], [1, 2]],
        torch.ones(3, requires_grad=True),
        [1j],
    ):
        with pytest.raises(DTypeError):
            OF_LISTS[name](wrong)
    with pytest.raises(ShapeError, match="an observation for each η"):
        likelihood(np.zeros(4))
    if name != "trials":
        with pytest.raises(ShapeError, match="an observation for each η"):
            OF_LISTS[name]([1.0])(np.zeros(3))


@pytest.mark.parametrize(
    "make",
    [
        lambda: fields.Poisson([1, 2, 3], [1.0, 2.0]),
        lambda: fields.Binomial([1, 2, 3], [3, 4]),
        lambda: fields.NegativeBinomial([1, 2, 3], [1.0, 2.0]),
        lambda: fields.Normal([1, 2, 3], [1.0, 2.0]),
    ],
)
def test_shapes_that_do_not_broadcast_are_named(make: Callable[[], Any]) -> None:
    with pytest.raises(ShapeError, match=r"shapes must broadcast, got \(3,\) of .* and .*\(2,\)"):
        make()


@pytest.mark.parametrize("y", [0, 3, 15, 16, 1000])
@pytest.mark.parametrize("size", [1e-8, 0.5, 1.0, 15.9, 16.0, 17.0, 1e6])
def test_the_negative_binomial_is_a_sum_of_logarithms(y: int, size: float) -> None:
    # log C(y + r − 1, y) = Σ_k log((r + k) / (k + 1)), k = 0 … y − 1
    choose = float(np.log((size + np.arange(y)) / (1.0 + np.arange(y))).sum())
    for eta in (-3.0, 0.0, 8.0):
        mean = math.exp(eta)
        expected = choose - y * math.log1p(size / mean) - size * math.log1p(mean / size)
        likelihood = fields.NegativeBinomial([float(y)], size)
        assert float(likelihood(np.array([eta])).log_prob[0]) == pytest.approx(expected, rel=1e-12, abs=1e-12 * (1 + y))


def test_a_negative_binomial_of_great_size_is_poisson() -> None:
    eta, counts = np.array([-2.0, 0.0, 3.0]), [5.0, 0.0, 40.0]
    expected = fields.Poisson(counts)(eta)
    for size in (1e16, 1e20, 1e200):  # Γ(y + r) / Γ(r) alone cancels all digits
        for term, poisson in zip(fields.NegativeBinomial(counts, size)(eta), expected, strict=True):
            np.testing.assert_allclose(term, poisson, rtol=1e-12, atol=1e-11)


def test_what_is_no_problem_is_refused() -> None:
    poisson: Any = LIKELIHOODS["poisson"][0]
    plan = fields.LinearObservation(GRID, np.eye(12), noise=sg.Chain(12))
    for observation in (np.eye(12), plan):
        with pytest.raises(TypeError, match="observation must be a LinearObservation without noise="):
            fields.laplace(PRIOR, poisson, observation)
    with pytest.raises(TypeError, match="likelihood must be a function of η"):
        fields.laplace(PRIOR, 3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="likelihood must give Terms, got ndarray"):
        fields.laplace(PRIOR, lambda eta: eta)  # type: ignore[arg-type, return-value]
    with pytest.raises(NonFiniteError, match="start must be finite"):
        fields.laplace(PRIOR, poisson, start=np.full(12, math.nan))
    with pytest.raises(DTypeError, match="start is a tensor"):
        fields.laplace(PRIOR, poisson, start=torch.zeros(12))
    with pytest.raises(PatternError, match="max_steps must be an integer"):
        fields.laplace(PRIOR, poisson, max_steps="3")  # type: ignore[arg-type]


def test_what_is_no_prior_is_refused() -> None:
    with pytest.raises(TypeError, match=r"prior must be a GaussianGraphicalModel.*, got ndarray"):
        fields.laplace(np.eye(3), LIKELIHOODS["poisson"][0])
    with pytest.raises(ShapeError, match="start must end in 12"):
        fields.laplace(PRIOR, LIKELIHOODS["poisson"][0], start=np.zeros(3))
    with pytest.raises(ShapeError, match="observation must be of 12 nodes"):
        fields.laplace(PRIOR, LIKELIHOODS["poisson"][0], fields.LinearObservation(sg.Chain(3), np.eye(3)))


def test_the_evidence_of_an_intrinsic_prior_in_float32_is_that_in_float64() -> None:
    """P is the same number for number, and 20,000 terms of its constant are not rounded."""
    n = 20_000
    walk, y = sg.Chain(n), np.random.default_rng(0).standard_normal(n)
    P = walk.pack((np.r_[1.0, np.full(n - 2, 2.0), 1.0], -np.ones(n - 1)))
    found, expected = (
        fields.laplace(fields.IntrinsicGaussian(P.astype(dtype), topology=walk), fields.Normal(y, 0.5)).log_evidence
        for dtype in (np.float32, np.float64)
    )
    assert found == pytest.approx(expected, rel=1e-12)


def test_likelihoods_and_models_say_what_they_are() -> None:
    y = np.array([1.0, np.nan, 0.0])
    shown = [
        fields.Poisson(y),
        fields.Binomial(y, 2),
        fields.NegativeBinomial(y, 1.0),
        fields.Normal(y, 1.0),
        fields.CustomLikelihood(np.sin),
        fields.CAR(sg.Chain(3)),
        fields.BYM2(sg.Chain(3), np.eye(3)[:, :2]),
    ]
    assert [repr(each) for each in shown] == [
        "Poisson(2 counts)",
        "Binomial(2 counts)",
        "NegativeBinomial(2 counts)",
        "Normal(2 values)",
        "CustomLikelihood(sin)",
        "CAR(Chain(n=3))",
        "BYM2(Chain(n=3), 2 covariates)",
    ]
