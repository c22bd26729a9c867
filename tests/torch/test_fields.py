"""Observations, evidence and constraints of tensors: the values of arrays, derivatives of both orders, and errors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import sparseggm as sg
from sparseggm.fields import LinearObservation, constrain
from sparseggm.torch import GaussianGraphicalModel, Potential, fields
from tests.torch.problems import gradgradcheck

TOPOLOGIES = [sg.Diagonal(4), sg.Chain(4), sg.Grid(2, 2), sg.Star(4), sg.Graph(4, [(0, 3)], [3, 1, 0, 2])]
MATRIX = np.array([[1.0, 0, 0, -2], [0, 0.5, 1, 0], [0, 0, 0, 0], [1, 1, 0, 0]])
EVERY = pytest.mark.parametrize("topology", TOPOLOGIES, ids=str)


def arguments(topology: sg.Topology) -> tuple[Tensor, ...]:
    """loc, P, y, variance and the entries of A; batches broadcast."""
    rng = np.random.default_rng(0)
    P = sg.parametrize.dominant(topology, rng.standard_normal(sg.parametrize.dominant.num_inputs(topology)))
    entries = MATRIX[MATRIX != 0]
    arrays = rng.standard_normal((2, 1, 4)), P, rng.standard_normal((3, 4)), rng.uniform(0.5, 2, 4), entries
    return tuple(torch.from_numpy(np.array(array)).requires_grad_() for array in arrays)


def prior_of(topology: sg.Topology, loc: Any, precision: Any) -> Any:
    kind = GaussianGraphicalModel if isinstance(loc, Tensor) else sg.GaussianGraphicalModel
    return kind.from_precision(loc, precision=precision, topology=topology)


def everything(topology: sg.Topology) -> Callable[..., tuple[Any, ...]]:
    """Evidence, posterior and predictions, of arrays or tensors."""
    plan = LinearObservation(topology, MATRIX)

    def run(loc: Any, P: Any, y: Any, variance: Any, entries: Any) -> tuple[Any, ...]:
        prior = prior_of(topology, loc, P)
        posterior = plan.posterior(prior, y, variance, entries=entries)
        mean, spread = plan.predictive(posterior, entries=entries)
        covariance = plan.predictive_covariance(posterior, [[0, 3], [1, 1]], entries=entries)
        evidence = plan.log_evidence(prior, y, variance, entries=entries)
        return evidence, posterior.loc, posterior.precision, mean, spread, covariance

    return run


@EVERY
def test_tensors_have_the_values_of_arrays(topology: sg.Topology) -> None:
    given = arguments(topology)
    found = everything(topology)(*given)
    expected = everything(topology)(*(tensor.detach().numpy() for tensor in given))
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == torch.float64
        np.testing.assert_allclose(one.detach().numpy(), other, rtol=1e-12, atol=1e-14)


@EVERY
def test_everything_has_derivatives_of_both_orders(topology: sg.Topology) -> None:
    assert torch.autograd.gradcheck(everything(topology), arguments(topology))
    assert gradgradcheck(everything(topology), arguments(topology))


def test_missing_observations_have_no_gradient() -> None:
    topology = sg.Chain(4)
    plan, (loc, P, _, variance, _) = LinearObservation(topology, MATRIX), arguments(topology)
    y = torch.tensor([1.0, float("nan"), 2.0, float("nan")], dtype=torch.float64, requires_grad=True)
    variance = torch.where(y.isnan(), torch.inf, variance.detach()).requires_grad_()
    plan.log_evidence(prior_of(topology, loc, P), y, variance).sum().backward()
    for gradient in (loc.grad, P.grad, y.grad, variance.grad):
        assert gradient.isfinite().all()
    assert (y.grad[1], y.grad[3], variance.grad[1], variance.grad[3]) == (0, 0, 0, 0)
    masked = plan.log_evidence(prior_of(topology, loc, P), y, 1.0, missing=y.isnan())
    other = plan.log_evidence(prior_of(topology, loc, P), y, torch.where(y.isnan(), torch.inf, 1.0))
    torch.testing.assert_close(masked, other, rtol=0, atol=0)


@EVERY
def test_correlated_noise_can_be_differentiated(topology: sg.Topology) -> None:
    noise, (loc, P, y, _, entries) = sg.Cycle(4), arguments(topology)
    plan = LinearObservation(topology, MATRIX, noise)
    W = torch.from_numpy(noise.pack((np.full(4, 3.0), np.array([0.5, -0.7, 0.3, 1.0])))).requires_grad_()

    def evidence(loc: Tensor, P: Tensor, y: Tensor, W: Tensor, entries: Tensor) -> Tensor:
        prior, e = prior_of(topology, loc, P), prior_of(noise, torch.zeros_like(y[0]), W)
        return plan.log_evidence(prior, y, e, entries=entries)

    given = loc, P, y, W, entries
    assert torch.autograd.gradcheck(evidence, given)
    assert gradgradcheck(evidence, given)


@EVERY
def test_constraints_can_be_differentiated(topology: sg.Topology) -> None:
    loc, P, *_ = arguments(topology)
    e = torch.tensor([[1.0], [2.0]], dtype=torch.float64, requires_grad=True)

    def moments(loc: Tensor, P: Tensor, e: Tensor) -> tuple[Tensor, ...]:
        found = constrain(prior_of(topology, loc, P), np.ones((1, 4)), e)
        return found.mean, found.variance, found.log_density, found.log_prob(found.mean)

    assert torch.autograd.gradcheck(moments, (loc, P, e))
    assert gradgradcheck(moments, (loc, P, e))
    arrays = (tensor.detach().numpy() for tensor in (loc, P))
    expected = constrain(prior_of(topology, *arrays), np.ones((1, 4)), e.detach().numpy())
    found = constrain(prior_of(topology, loc, P), np.ones((1, 4)), e)
    np.testing.assert_allclose(found.mean.detach().numpy(), expected.mean, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(found.variance.detach().numpy(), expected.variance, rtol=1e-12, atol=1e-14)
    z = found.project(found.gaussian.rsample((5,)))
    torch.testing.assert_close(z.sum(-1), e[:, 0].expand(5, 2, 2), rtol=1e-13, atol=1e-13)


def walk(variance: Any) -> Any:
    """A random walk of ten steps, and its evidence of three observations."""
    topology, steps = sg.Chain(10), np.diff(np.eye(10), axis=0)
    P = topology.pack(steps.T @ steps)
    if isinstance(variance, Tensor):
        return fields.IntrinsicGaussian(torch.from_numpy(P) / variance[..., None], topology=topology)
    return sg.fields.IntrinsicGaussian(P / variance, topology=topology)


def test_an_intrinsic_prior_can_be_differentiated() -> None:
    """Evidence, density and posterior of a random walk with respect to its variance, data and noise."""
    given = tuple(
        torch.tensor(numbers, dtype=torch.float64, requires_grad=True)
        for numbers in (0.7, [1.0, 3.0, 2.0], [0.5, 0.2, 1])
    )

    def everything(variance: Tensor, y: Tensor, noise: Tensor) -> tuple[Tensor, ...]:
        prior = walk(variance)
        posterior = prior.observe([1, 4, 8], y, noise)
        x = torch.cat([y, y, y, y[:1]])
        return prior.log_evidence([1, 4, 8], y, noise), posterior.loc, posterior.variance, prior.log_prob(x)

    assert torch.autograd.gradcheck(everything, given)
    assert gradgradcheck(everything, given)
    variance, y, noise = (tensor.detach().numpy() for tensor in given)
    expected = walk(float(variance)), y, noise
    np.testing.assert_allclose(everything(*given)[0].item(), expected[0].log_evidence([1, 4, 8], y, noise), rtol=1e-13)
    np.testing.assert_allclose(everything(*given)[1].detach(), expected[0].observe([1, 4, 8], y, noise).loc, rtol=1e-12)


def test_an_improper_posterior_of_tensors_is_refused() -> None:
    with pytest.raises(sg.ImproperError, match=r"^observe: nothing determines the direction 1 at node 0, 1 at node 1"):
        walk(torch.tensor(1.0)).observe([1], [1.0], torch.inf)


def test_a_posterior_may_be_mapped() -> None:
    topology = sg.Chain(4)
    plan, (loc, P, y, variance, _) = LinearObservation(topology, MATRIX), arguments(topology)
    prior = prior_of(topology, loc[0, 0], P)
    mapped = torch.func.vmap(lambda row: plan.log_evidence(prior, row, variance))(y)
    torch.testing.assert_close(mapped, plan.log_evidence(prior, y, variance), rtol=1e-13, atol=0)


@pytest.mark.filterwarnings("ignore:.torch.jit.* is deprecated:DeprecationWarning")  # torch's own calls
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # torch's own, where a graph breaks
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork:DeprecationWarning")
def test_a_compiled_evidence_is_the_eager_one() -> None:
    topology = sg.Chain(4)
    plan, (loc, P, y, variance, _) = LinearObservation(topology, MATRIX), arguments(topology)
    prior = prior_of(topology, loc.detach(), P.detach())

    def evidence(y: Tensor) -> Tensor:
        return plan.log_evidence(prior, y, variance.detach())

    torch.testing.assert_close(
        torch.compile(evidence, backend="aot_eager")(y.detach()), evidence(y.detach()), rtol=1e-13, atol=0
    )


def test_the_short_forms_are_those_of_the_plan() -> None:
    topology = sg.Chain(4)
    loc, P, y, variance, _ = arguments(topology)
    prior, plan = prior_of(topology, loc, P), fields.LinearObservation(topology, MATRIX)
    posterior = plan.posterior(prior, y, variance)
    torch.testing.assert_close(prior.observe(plan, y, variance).loc, posterior.loc, rtol=0, atol=0)
    evidence = plan.log_evidence(prior, y, variance)
    torch.testing.assert_close(prior.log_evidence(plan, y, variance), evidence, rtol=0, atol=0)
    arrays = prior_of(topology, loc.detach().numpy(), P.detach().numpy())
    of_nodes = prior.observe([2, 0], [1.0, 2.0], 0.5)
    np.testing.assert_allclose(of_nodes.loc.detach().numpy(), arrays.observe([2, 0], [1, 2], 0.5).loc, rtol=1e-13)


def test_both_log_normalisers_agree() -> None:
    topology = sg.Grid(2, 2)
    loc, P, *_ = arguments(topology)
    q = prior_of(topology, loc, P)
    h = q.information_vector
    found = Potential(h, precision=P, topology=topology).log_normaliser()
    torch.testing.assert_close(found, q.log_normaliser(), rtol=1e-13, atol=0)
    expected = sg.Potential(h.detach().numpy(), precision=P.detach().numpy(), topology=topology).log_normaliser()
    np.testing.assert_allclose(found.detach().numpy(), expected, rtol=1e-13)

    def normaliser(h: Tensor, P: Tensor) -> Tensor:
        return Potential(h, precision=P, topology=topology).log_normaliser()

    inputs = h.detach().requires_grad_(), P.detach().requires_grad_()
    assert torch.autograd.gradcheck(normaliser, inputs)
    assert gradgradcheck(normaliser, inputs)
    mean = torch.autograd.grad(normaliser(*inputs).sum(), inputs[0])[0]
    torch.testing.assert_close(mean, loc.detach())


@pytest.mark.parametrize(
    ("values", "variance", "error", "message"),
    [
        (torch.ones(3), 1.0, sg.ShapeError, "values must broadcast to"),
        (
            torch.tensor([1.0, torch.nan, 1, 1]),
            1.0,
            sg.NonFiniteError,
            "values must be finite, got nan at observation 1",
        ),
        (torch.ones(4), torch.zeros(4), sg.NonPositiveError, "variance must be positive"),
    ],
)
def test_observations_that_mean_nothing_are_refused(values: Any, variance: Any, error: Any, message: str) -> None:
    topology = sg.Chain(4)
    loc, P, *_ = arguments(topology)
    with pytest.raises(error, match=f"^LinearObservation.posterior: {message}"):
        LinearObservation(topology, MATRIX).posterior(prior_of(topology, loc, P), values, variance)


def test_tensors_have_an_intrinsic_gaussian_of_their_own() -> None:
    given = {"topology": sg.Chain(3)}
    with pytest.raises(
        sg.DTypeError, match=r"needs arrays, got a tensor. Use sparseggm.torch.fields.IntrinsicGaussian"
    ):
        sg.fields.IntrinsicGaussian(torch.tensor([1.0, -1, 2, -1, 1]), **given)
