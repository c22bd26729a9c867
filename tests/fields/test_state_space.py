"""State-space models and autoregressions: precisions against recursions of covariances, evidence against statsmodels.

Figures of statsmodels 0.15 are written down, so that it is no dependency: `UnobservedComponents` with the same known or
nearly diffuse first state.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
import torch

import sparseggm as sg
import sparseggm.torch as st
from sparseggm.errors import NonFiniteError, NonPositiveError, PatternError, ShapeError
from tests.gaussian.test_nile import NILE, TRUTH, YEARS
from tests.numerics import Array


def covariance_by_recursion(F: Array, Q: Array, V: Array, T: int) -> Array:
    """Cov(x_s, x_t) = F^{s−t} Cov(x_t, x_t), s ≥ t; F and Q may depend on time."""
    b = len(V)
    blocks = np.zeros((T, b, T, b))
    now = V
    for t in range(T):
        later = now
        for s in range(t, T):
            blocks[s, :, t], blocks[t, :, s] = later, later.T
            later = F[s] @ later if s < T - 1 else later
        now = F[t] @ now @ F[t].T + Q[t] if t < T - 1 else now
    return blocks.reshape(T * b, T * b)


def spd(rng: np.random.Generator, *shape: int) -> Array:
    root = rng.standard_normal((*shape, shape[-1]))
    return root @ root.swapaxes(-1, -2) + np.eye(shape[-1])


def dense_precision(g: sg.GaussianGraphicalModel) -> Array:
    order = g.topology.inverse_order
    return g.graph.precision_pattern.to_dense(g.precision, symmetric=True)[..., order[:, None], order]


def assert_inverse(g: sg.GaussianGraphicalModel, covariance: Array) -> None:
    """P Σ = I within n u ‖P‖ ‖Σ‖."""
    P = dense_precision(g)
    bound = 4 * g.n * np.finfo(float).eps * np.linalg.norm(P) * np.linalg.norm(covariance)
    np.testing.assert_allclose(P @ covariance, np.eye(g.n), atol=bound)


@pytest.mark.parametrize(("T", "b"), [(1, 1), (1, 3), (2, 1), (6, 1), (5, 3)])
def test_the_precision_is_the_inverse_of_the_covariance_from_its_recursion(T: int, b: int) -> None:
    rng = np.random.default_rng(T * 10 + b)
    F, Q, V = rng.standard_normal((T - 1, b, b)), spd(rng, T - 1, b), spd(rng, b)
    g = sg.fields.StateSpace(T, b).prior(F, Q, 0.0, V)
    assert_inverse(g, covariance_by_recursion(F, Q, V, T))


def test_the_mean_follows_the_transition_and_the_drift() -> None:
    rng = np.random.default_rng(0)
    T, b = 6, 2
    F, c, m = rng.standard_normal((T - 1, b, b)), rng.standard_normal((T - 1, b)), rng.standard_normal(b)
    g = sg.fields.StateSpace(T, b).prior(F, spd(rng, b), m, 2.0, drift=c)
    means = [m]
    for t in range(T - 1):
        means.append(F[t] @ means[t] + c[t])
    np.testing.assert_allclose(g.loc, np.concatenate(means), rtol=1e-12, atol=1e-12)


def test_batch_axes_broadcast_and_equal_single_models() -> None:
    rng = np.random.default_rng(1)
    T, b = 4, 2
    model = sg.fields.StateSpace(T, b)
    F, Q, V = rng.standard_normal((3, 1, b, b)), spd(rng, b), spd(rng, 5, 1, b)
    g = model.prior(F, Q, 0.0, V)
    assert g.batch_shape == (5, 3)
    for i, j in np.ndindex(5, 3):
        np.testing.assert_allclose(g.factor[i, j], model.prior(F[j], Q, 0.0, V[i, 0]).factor, rtol=1e-14, atol=1e-14)


def test_tensors_give_the_same_gaussian_with_gradients() -> None:
    rng = np.random.default_rng(2)
    model = sg.fields.StateSpace(4, 2)
    given = rng.standard_normal((2, 2)), spd(rng, 2), rng.standard_normal(2), spd(rng, 2), rng.standard_normal(2)
    g, h = model.prior(*given), model.prior(*map(torch.tensor, given))
    assert isinstance(h, st.GaussianGraphicalModel)
    np.testing.assert_allclose(h.factor, g.factor, rtol=1e-14)
    np.testing.assert_allclose(h.loc, g.loc, rtol=1e-13, atol=1e-13)

    def log_prob(F: torch.Tensor, C: torch.Tensor, m: torch.Tensor, D: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        return model.prior(F, C @ C.mT, m, D @ D.mT, c).log_prob(torch.ones(8, dtype=torch.float64))

    given = given[0], np.linalg.cholesky(given[1]), given[2], np.linalg.cholesky(given[3]), given[4]
    assert torch.autograd.gradcheck(log_prob, [torch.tensor(x, requires_grad=True) for x in given])


@pytest.mark.parametrize("count", [3, 2, 1])
def test_a_batch_of_variances_is_no_axis_of_time(count: int) -> None:
    """Even where it is as long: here three steps."""

    def prior(level: Array, season: Array) -> sg.GaussianGraphicalModel:
        both = sg.fields.structural(sg.fields.local_linear_trend(level, 2.0), sg.fields.seasonal(3, season))
        return sg.fields.StateSpace(4, both.size).prior(both.transition, both.noise, 0.0, 1e3)

    level, season = np.arange(1.0, count + 1), 1.0 / np.arange(1.0, count + 1)
    together = prior(level, season)
    assert together.batch_shape == (count,)
    for k in range(count):
        np.testing.assert_array_equal(together.factor[k], prior(level[k], season[k]).factor)


# ---------------------------------------------------------------------- evidence, beside statsmodels


def evidence(component: sg.fields.Component, variance: float, initial: float, y: Array, mean: float = 0.0) -> float:
    model = sg.fields.StateSpace(len(y), component.size)
    prior = model.prior(component.transition, component.noise, mean, initial)
    plan = sg.fields.LinearObservation(prior.topology, model.observation(component.observation))
    assert plan.topology is prior.topology
    return float(plan.log_evidence(prior, y, variance, missing=np.isnan(y)))


def test_a_nearly_diffuse_trend_keeps_the_digits_of_its_evidence() -> None:
    trend = sg.fields.local_linear_trend(1_400.0, 20.0)
    assert evidence(trend, 15_000.0, 1e12, NILE) == pytest.approx(TRUTH, abs=1e-8)


GAPS = NILE.copy()
GAPS[20:40] = GAPS[60:80] = np.nan


def kalman(F: Array, Q: Array, h: Array, r: float, m: Array, V: Array, y: Array) -> float:
    """log p(y) by the filter."""
    total = 0.0
    for value in y:
        if not np.isnan(value):
            s = h @ V @ h + r
            gain, error = V @ h / s, value - h @ m
            total -= 0.5 * (np.log(2 * np.pi * s) + error**2 / s)
            m, V = m + gain * error, V - np.outer(gain, gain) * s
        m, V = F @ m, F @ V @ F.T + Q
    return total


@pytest.mark.parametrize("y", [NILE, GAPS], ids=["complete", "with gaps"])
@pytest.mark.parametrize(
    "component",
    [
        sg.fields.local_level(1_469.0),
        sg.fields.structural(sg.fields.local_level(1_469.0), sg.fields.seasonal(7, 30.0)),
        sg.fields.structural(sg.fields.local_linear_trend(900.0, 8.0), sg.fields.seasonal(4, 30.0)),
    ],
    ids=["level", "level and season", "trend and season"],
)
def test_the_evidence_is_that_of_a_kalman_filter(component: sg.fields.Component, y: Array) -> None:
    b = component.size
    own = evidence(component, 15_099.0, 1e6, y, 0.0)
    filtered = kalman(
        component.transition, component.noise, component.observation, 15_099.0, np.zeros(b), 1e6 * np.eye(b), y
    )
    assert own == pytest.approx(filtered, rel=1e-11)


STATSMODELS = {  # variances of the noise and the components, initial variance; log-likelihoods without and with gaps
    "level": (sg.fields.local_level(1_469.0), 15_099.0, 1e10, -644.9775511063583, -393.0189333777032),
    "trend": (sg.fields.local_linear_trend(1_400.0, 20.0), 15_000.0, 1e12, -661.4830903154731, -409.24186112693775),
    "level and season": (
        sg.fields.structural(sg.fields.local_level(1_469.0), sg.fields.seasonal(7, 30.0)),
        15_099.0,
        1e6,
        -663.8176756693022,
        -409.9975641579414,
    ),
}


@pytest.mark.parametrize("name", STATSMODELS)
def test_log_likelihoods_are_those_of_statsmodels(name: str) -> None:
    """`UnobservedComponents(y, "llevel" or "lltrend", freq_seasonal=[{"period": 7}])`, known start, no burn-in.

    Of a trend, whose start is nearly diffuse, statsmodels' own error is 3e-10, against sixty digits; ours are 2e-12.
    """
    component, noise, initial, complete, with_gaps = STATSMODELS[name]
    assert evidence(component, noise, initial, NILE) == pytest.approx(complete, abs=1e-9)
    assert evidence(component, noise, initial, GAPS) == pytest.approx(with_gaps, abs=1e-9)


def test_smoothed_levels_are_those_of_statsmodels() -> None:
    model, level = sg.fields.StateSpace(YEARS, 1), sg.fields.local_level(1_469.0)
    prior = model.prior(level.transition, level.noise, 0.0, 1e10)
    plan = sg.fields.LinearObservation(model.topology, model.observation([1.0]))
    for y, mean, variance in (
        (NILE, 829.5508959052881, 2326.67955903975),
        (GAPS, 827.2750687006364, 2334.0684623359093),
    ):
        smoothed = plan.posterior(prior, y, 15_099.0, missing=np.isnan(y))
        assert smoothed.loc[50] == pytest.approx(mean, rel=1e-9)
        assert smoothed.variance[50] == pytest.approx(variance, rel=1e-9)


def test_autoregressive_likelihoods_are_those_of_statsmodels() -> None:
    """`SARIMAX(z, order=(2, 0, 0)).loglike([0.5, 0.2, 1.3])`, complete, and of the marginal where years are missing."""
    z = (NILE - NILE.mean()) / 100
    prior = sg.fields.Autoregression(YEARS, 2).prior([0.5, 0.2], 1.3)
    assert prior.log_prob(z) == pytest.approx(-184.09806493582323, rel=1e-11)
    seen = np.delete(np.arange(YEARS), np.arange(20, 40))
    assert prior.marginal(seen).log_prob(z[seen]) == pytest.approx(-148.6024947250785, rel=1e-11)


def test_the_evidence_is_that_of_pyros_hidden_markov_model() -> None:
    """Whose first state has made a transition already, and whose matrices act on rows."""
    pyro = pytest.importorskip("pyro.distributions", reason="Pyro is not installed: pip install pyro-ppl")
    rng, (T, b, k) = np.random.default_rng(0), (7, 3, 2)
    F, H, m = 0.5 * rng.standard_normal((b, b)), rng.standard_normal((k, b)), rng.standard_normal(b)
    Q, V, variance, y = spd(rng, b), spd(rng, b), rng.uniform(0.5, 1.0, k), rng.standard_normal((T, k))
    zeros = [torch.zeros(size, dtype=torch.float64) for size in (b, k)]
    theirs = pyro.GaussianHMM(
        pyro.MultivariateNormal(torch.from_numpy(m), torch.from_numpy(V)),
        torch.from_numpy(F.T),
        pyro.MultivariateNormal(zeros[0], torch.from_numpy(Q)),
        torch.from_numpy(H.T),
        pyro.Normal(zeros[1], torch.from_numpy(variance).sqrt()).to_event(1),
        duration=T,
    ).log_prob(torch.from_numpy(y))
    model = sg.fields.StateSpace(T, b)
    prior = model.prior(F, Q, F @ m, F @ V @ F.T + Q)
    plan = sg.fields.LinearObservation(model.topology, model.observation(H))
    assert plan.log_evidence(prior, y.ravel(), np.tile(variance, T)) == pytest.approx(theirs.item(), abs=1e-9)


def test_a_smoother_and_its_evidence_are_those_of_dynamax() -> None:
    """Of dynamax 1.0.3, `lgssm_smoother` in float64, which adds 1e-9 to diagonals before it solves."""
    t = np.arange(8)
    F, Q = np.array([[0.9, 0.2], [-0.1, 0.7]]), np.array([[0.5, 0.1], [0.1, 0.3]])
    H, variance = np.array([[1.0, 0.5], [0.0, 1.0], [1.0, -1.0]]), np.array([0.4, 0.2, 0.7])
    y = np.stack([np.sin(t), np.cos(2 * t), 0.1 * t], axis=-1).ravel()
    model = sg.fields.StateSpace(8, 2)
    prior = model.prior(F, Q, np.array([1.0, -1.0]), np.array([[2.0, 0.3], [0.3, 1.0]]))
    plan = sg.fields.LinearObservation(model.topology, model.observation(H))
    posterior = plan.posterior(prior, y, np.tile(variance, 8))
    evidence = plan.log_evidence(prior, y, np.tile(variance, 8))
    assert evidence == pytest.approx(-31.54421345755497, rel=1e-9)
    assert posterior.loc[6:8] == pytest.approx([0.24541259188032477, 0.2804287556591635], abs=1e-8)
    assert posterior.variance[6:8] == pytest.approx([0.14734049563751217, 0.08984277851934362], abs=1e-8)
    assert posterior.covariance_on([(7, 6)]) == pytest.approx([0.010429951505852133], abs=1e-8)


@pytest.mark.parametrize("persistence", [0.0, 0.6])
def test_errors_that_go_together_are_a_model_of_their_own(persistence: float) -> None:
    """Within a step by R, and over time by a transition: against the dense density."""
    rng = np.random.default_rng(5)
    T, b, p = 6, 2, 3
    F, Q, V, R, H = rng.standard_normal((b, b)), spd(rng, b), spd(rng, b), spd(rng, p), rng.standard_normal((p, b))
    y, model, errors = rng.standard_normal(T * p), sg.fields.StateSpace(T, b), sg.fields.StateSpace(T, p)
    A, carried, start = model.observation(H), persistence * np.eye(p), R / (1 - persistence**2)
    plan = sg.fields.LinearObservation(model.topology, A, noise=errors.topology)
    found = plan.log_evidence(model.prior(F, Q, 0.0, V), y, errors.prior(carried, R, 0.0, start))
    steps = np.broadcast_to(carried, (T - 1, p, p)), np.broadcast_to(R, (T - 1, p, p))
    of_states = covariance_by_recursion(*(np.broadcast_to(each, (T - 1, b, b)) for each in (F, Q)), V, T)
    S = A @ of_states @ A.T + covariance_by_recursion(*steps, start, T)
    expected = scipy.stats.multivariate_normal(np.zeros(T * p), S).logpdf(y)
    assert found == pytest.approx(expected, rel=1e-11)


def test_a_season_sums_to_zero_over_a_period_where_it_has_no_noise() -> None:
    for period in (2, 3, 7, 12):
        season = sg.fields.seasonal(period, 1.0)
        state = np.random.default_rng(period).standard_normal(period - 1)
        values = []
        for _ in range(2 * period):
            values.append(season.observation @ state)
            state = season.transition @ state
        np.testing.assert_allclose(values[:period], values[period:], atol=1e-12)
        assert abs(sum(values[:period])) < 1e-12


def test_maximum_likelihood_on_the_nile_is_that_of_the_books() -> None:
    """15,099 and 1,469 [Durbin & Koopman 2012, §2.10], by gradients through the evidence."""
    model, y = sg.fields.StateSpace(YEARS, 1), torch.tensor(NILE)
    plan = sg.fields.LinearObservation(model.topology, model.observation([1.0]))
    logs = torch.tensor(np.log([10_000.0, 1_000.0]), requires_grad=True)
    optimiser = torch.optim.LBFGS([logs], max_iter=100, tolerance_grad=1e-9, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimiser.zero_grad()
        noise, step = logs.exp()
        level = sg.fields.local_level(step)
        total = -plan.log_evidence(model.prior(level.transition, level.noise, 0.0, 1e10), y, noise)
        total.backward()
        return total

    optimiser.step(loss)
    noise, step = logs.detach().exp().tolist()
    assert noise == pytest.approx(15_099, abs=1)
    assert step == pytest.approx(1_469, abs=1)


# ---------------------------------------------------------------------- autoregressions


def ar_covariance(phi: Array, variance: float, T: int) -> Array:
    """Stationary autocovariances from the companion form's Lyapunov equation, then by the recursion."""
    p = len(phi)
    F = np.eye(p, k=-1)
    F[0] = phi
    noise = np.zeros((p, p))
    noise[0, 0] = variance
    V = np.linalg.solve(np.eye(p * p) - np.kron(F, F), noise.ravel()).reshape(p, p)
    gamma = list(V[0])
    while len(gamma) < T:
        gamma.append(phi @ np.array(gamma[::-1][:p]))
    lag = abs(np.subtract.outer(np.arange(T), np.arange(T)))
    return np.array(gamma)[lag]


PARTIAL = [[0.9], [-0.3], [0.5, -0.7], [0.2, 0.6, -0.4], [0.9, -0.9, 0.3, 0.1, -0.8]]


@pytest.mark.parametrize("partial", PARTIAL, ids=str)
def test_an_autoregression_has_the_stationary_covariance(partial: list[float]) -> None:
    T, p = 9, len(partial)
    model = sg.fields.Autoregression(T, p)
    phi = model.from_partial(partial)
    g = model.prior(phi, 1.7)
    assert model.topology.factor_pattern.nnz == model.topology.precision_pattern.nnz
    assert_inverse(g, ar_covariance(phi, 1.7, T))


def test_an_ar1_observed_once_agrees_with_gaussian_markov_random_fields_jl() -> None:
    prior = sg.fields.Autoregression(50).prior(0.9, 1.0)
    posterior = prior.observe([10], [0.5], 0.01)
    assert posterior.loc[10] == pytest.approx(0.49905180, abs=5e-9)
    assert posterior.variance[10] == pytest.approx(0.00998104, abs=5e-9)


def test_gradients_of_an_autoregression() -> None:
    model = sg.fields.Autoregression(7, 3)
    x = torch.linspace(-1, 1, 7, dtype=torch.float64)

    def log_prob(theta: torch.Tensor, log_variance: torch.Tensor, loc: torch.Tensor) -> torch.Tensor:
        return model.prior(model.from_partial(theta.tanh()), log_variance.exp(), loc).log_prob(x)

    theta = torch.tensor([[0.3, -0.2, 0.5], [1.0, 0.1, -0.4]], dtype=torch.float64, requires_grad=True)
    rest = torch.tensor([0.1, -0.5]).double().requires_grad_(), torch.tensor(0.3).double().requires_grad_()
    assert torch.autograd.gradcheck(log_prob, (theta, *rest))


# ---------------------------------------------------------------------- mistakes


def test_a_state_without_noise_of_its_own_is_refused_with_a_remedy() -> None:
    model = sg.fields.StateSpace(5, 2)
    F = [[0.5, 0.2], [1.0, 0.0]]
    for noise in ([[1.0, 0.0], [0.0, 0.0]], np.outer([1.0, 0.3], [1.0, 0.3])):
        with pytest.raises(NonPositiveError, match=r"noise must be positive definite.*Autoregression"):
            model.prior(F, noise, 0.0, 1.0)
        with pytest.raises(NonPositiveError, match="noise must be positive definite"):
            model.prior(F, torch.tensor(np.array(noise)), 0.0, 1.0)


def test_what_does_not_fit_is_refused_by_name() -> None:
    model = sg.fields.StateSpace(5, 2)
    eye = np.eye(2)
    with pytest.raises(PatternError, match="covariance must be symmetric"):
        model.prior(eye, eye, 0.0, [[1.0, 0.5], [0.0, 1.0]])
    with pytest.raises(ShapeError, match=r"transition is time, and must be 4 or 1 long"):
        model.prior(np.ones((5, 2, 2)), eye, 0.0, eye)
    with pytest.raises(ShapeError, match=r"noise must be a number or end in \(2, 2\)"):
        model.prior(eye, np.eye(3), 0.0, eye)
    with pytest.raises(ShapeError, match="mean must be a number or end in 2"):
        model.prior(eye, eye, np.zeros(3), eye)
    with pytest.raises(ShapeError, match=r"observation: matrix must be \(p, 2\)"):
        model.observation(np.ones((4, 1, 2)))
    with pytest.raises(NonPositiveError, match="local_level: variance must be positive and finite, got -1"):
        sg.fields.local_level(-1.0)


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
@pytest.mark.parametrize("name", ["transition", "noise", "mean", "covariance", "drift"])
def test_a_parameter_that_is_not_finite_is_named(name: str, wrong: float) -> None:
    given = {"transition": 0.5, "noise": 1.0, "mean": 0.0, "covariance": 1.0, "drift": 0.0} | {name: wrong}
    for kind in (float, torch.tensor):
        with pytest.raises(NonFiniteError, match=f"StateSpace.prior: {name} must be finite"):
            sg.fields.StateSpace(3, 2).prior(**{key: kind(value) for key, value in given.items()})


def test_a_sum_of_no_components_is_refused() -> None:
    for wrong in ((), (3,)):
        with pytest.raises(TypeError, match="structural: needs components"):
            sg.fields.structural(*wrong)  # type: ignore[arg-type]


def test_an_autoregression_near_a_random_walk_keeps_its_digits() -> None:
    for rho in (1 - 1e-9, 1 - 1e-12, 1 - 2.0**-53):
        variance = sg.fields.Autoregression(3).prior(rho, 1.0).variance
        assert variance[0] == pytest.approx(1 / ((1 - rho) * (1 + rho)), rel=1e-14)


def test_a_model_that_is_not_stationary_is_refused() -> None:
    with pytest.raises(NonPositiveError, match="partial autocorrelation 1 of order 1"):
        sg.fields.Autoregression(5).prior(1.0, 1.0)
    with pytest.raises(NonPositiveError, match=r"partial autocorrelation 2 of order 1, batch element \(1,\)"):
        sg.fields.Autoregression(5, 2).prior([[0.1, 0.5], [1.0, 0.5]], 1.0)
    with pytest.raises(NonPositiveError, match=r"partial must be in \(-1, 1\), got 1"):
        sg.fields.Autoregression(5).from_partial(1.0)
    with pytest.raises(PatternError, match="steps must exceed the order 5"):
        sg.fields.Autoregression(5, 5)
