"""Natural-gradient variational inference of free-standing Gaussians, and refinement of those that were given."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor

import sparseggm as sg
from sparseggm.errors import NonFiniteError, NonPositiveError, PatternError, ShapeError
from sparseggm.torch import GaussianGraphicalModel, NaturalGradient, elbo_gradient, natural_step, precondition, refine
from tests.torch.problems import vectors
from tests.torch.test_natural_gradients import CLOSED, dense_factor, expected_log_p, parameters, some


def minus_elbo(topology: sg.Topology, loc: Tensor, factor: Tensor, target: GaussianGraphicalModel) -> Tensor:
    exact = dense_factor(topology, target.factor)
    return -expected_log_p(exact @ exact.mT, target.loc, topology, loc, factor).sum()


@pytest.mark.parametrize("topology", CLOSED, ids=str)
def test_one_step_of_rate_1_is_the_exact_posterior(topology: sg.Topology) -> None:
    target, (loc, factor) = some(topology, 3, seed=9), parameters(some(topology, 3))
    optimiser = NaturalGradient(loc, factor, topology, lr=1.0)

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = minus_elbo(topology, loc, factor, target)
        loss.backward()
        return loss

    loss = optimiser.step(closure)
    assert loss > minus_elbo(topology, loc, factor, target)
    torch.testing.assert_close(loc.detach(), target.loc, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(factor.detach(), target.factor, rtol=1e-9, atol=1e-9)
    assert not optimiser.shortened.any()


def test_a_step_that_would_leave_the_cone_is_halved_until_it_stays_and_counted() -> None:
    topology = sg.Chain(3)
    loc, factor = parameters(some(topology, 2))
    optimiser = NaturalGradient(loc, factor, topology, lr=1.0)
    loc.grad, factor.grad = torch.zeros_like(loc), torch.zeros_like(factor)
    factor.grad[0, 0] = 100.0  # L_00 falls, and P_00 with it
    before = factor.detach().clone()
    optimiser.step()
    assert optimiser.shortened[0] > 3
    assert optimiser.shortened[1] == 0
    assert (factor[:, topology.factor_pattern.diagonal.copy()] > 0).all()
    assert not torch.equal(factor[0], before[0])
    torch.testing.assert_close(factor[1].detach(), before[1], rtol=1e-14, atol=1e-14)


def test_schedulers_and_state_of_torch_work() -> None:
    topology, (loc, factor) = sg.Chain(4), parameters(some(sg.Chain(4)))
    target, optimiser = some(topology, seed=9), NaturalGradient(loc, factor, topology, lr=0.5)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimiser, 0.5)
    for rate in (0.5, 0.25):
        assert optimiser.state_dict()["param_groups"][0]["lr"] == rate
        optimiser.zero_grad()
        minus_elbo(topology, loc, factor, target).backward()
        optimiser.step()
        scheduler.step()


def test_what_has_no_natural_gradient_is_refused() -> None:
    topology, (loc, factor) = sg.Chain(3), parameters(some(sg.Chain(3)))
    with pytest.raises(PatternError, match=r"^NaturalGradient: needs a factor-free topology, got Grid\(3, 3\)"):
        NaturalGradient(loc, factor, sg.Grid(3, 3))
    with pytest.raises(ShapeError, match=r"^NaturalGradient: loc and factor must have the same batch axes"):
        NaturalGradient(vectors(3, 2), factor, topology)
    with pytest.raises(ValueError, match=r"^NaturalGradient: lr must be finite and > 0, got 0\.0"):
        NaturalGradient(loc, factor, topology, lr=0.0)
    with pytest.raises(NonPositiveError):
        NaturalGradient(loc, -factor.detach(), topology)
    optimiser = NaturalGradient(loc, factor, topology)
    with pytest.raises(ValueError, match=r"^NaturalGradient: loc and factor need gradients"):
        optimiser.step()
    loc.grad, factor.grad = torch.full_like(loc, torch.nan), torch.zeros_like(factor)
    with pytest.raises(NonFiniteError, match="natural_step: loc_gradient"):
        optimiser.step()


# ---------------------------------------------------------------------- refinement


def test_refined_gaussians_have_the_nodes_and_the_class_of_what_was_given() -> None:
    class Own(GaussianGraphicalModel):
        pass

    q = Own(torch.zeros(4), factor=torch.ones(7), topology=sg.Chain(4)).marginal([2, 3])
    refined = refine(q, lambda z: -z.square().sum(-1), 1).gaussian
    assert refined.nodes.tolist() == [2, 3]
    assert type(refined) is Own


def test_refinement_counts_the_steps_that_were_taken_and_those_outside_of_the_cone() -> None:
    """A log p that is convex pushes P out of the cone; a quadratic one takes every step."""
    q, target = some(sg.Chain(4), 2), some(sg.Chain(4), 2, seed=9)

    def log_joint(z: Tensor) -> Tensor:
        convex = 1e3 * z[..., 1, :].square().sum(-1)
        return torch.stack([target.log_prob(z)[..., 0], convex], -1)

    half = 2.0 * torch.eye(4, dtype=torch.float64)
    noise = torch.cat([half, -half]).unsqueeze(1).expand(-1, 2, -1).repeat(4, 1, 1)  # exact for quadratics
    refined = refine(q, log_joint, 3, noise=lambda _: noise, rate=1.0)
    assert refined.outside.tolist() == [0, 3]
    assert refined.taken[0] >= 1
    assert refined.taken[1] == 0
    torch.testing.assert_close(refined.gaussian.loc[0], target.loc[0], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(refined.gaussian.factor[1], q.factor[1])
    assert not refined.gaussian.loc.requires_grad


def test_without_noise_refinement_draws_its_own() -> None:
    q, target = some(sg.Chain(4), 2), some(sg.Chain(4), 2, seed=9)
    torch.manual_seed(0)
    refined = refine(q, target.log_prob, 20)
    kl = [float(torch.distributions.kl_divergence(each, target).sum()) for each in (q, refined.gaussian)]
    assert kl[1] < 0.2 * kl[0]
    with pytest.raises(ValueError, match=r"^refine: needs four samples or more, got noise of shape \(3, 2, 4\)"):
        refine(q, target.log_prob, 1, noise=lambda _: torch.zeros(3, 2, 4))


@pytest.mark.parametrize(
    ("log_joint", "error", "message"),
    [
        (
            lambda z: -(z**2),
            ShapeError,
            r"log_joint must give \(8, 2\), a number for each sample, got shape \(8, 2, 4\)",
        ),
        (lambda z: -(z**2).sum(), ShapeError, r"log_joint must give \(8, 2\), .*, got shape \(\)"),
        (lambda z: torch.zeros(z.shape[:-1]), TypeError, "log_joint must give a tensor that depends on z"),
        (lambda z: 0.0, TypeError, "log_joint must give a tensor that depends on z"),
    ],
)
def test_a_log_density_that_is_none_is_refused(log_joint: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        refine(some(sg.Chain(4), 2), log_joint, 2)


def test_noise_rates_and_gaussians_that_do_not_fit_are_refused() -> None:
    q, target = some(sg.Chain(4), 2), some(sg.Chain(4), 2, seed=9)
    for shape in ((2, 4), (4,), (0, 2, 4), (5, 3, 2, 4)):  # their first axis would be taken for samples
        with pytest.raises(ShapeError, match=r"noise must be \(K, \.\.\., 4\), K ≥ 1 samples of batch axes \(2,\)"):
            elbo_gradient(q, target.log_prob, torch.zeros(shape))
    for rate in (math.nan, -1.0, 0.0, math.inf):
        with pytest.raises(NonPositiveError, match="rate must be positive and finite"):
            refine(q, target.log_prob, 2, rate=rate)
    for steps in (-1, "3", 2.0):
        with pytest.raises(PatternError, match="steps must be"):
            refine(q, target.log_prob, steps)  # type: ignore[arg-type]
    arrays: Any = sg.GaussianGraphicalModel([0.0], factor=[1.0], topology=sg.Chain(1))
    for call in (
        lambda: refine(arrays, target.log_prob, 2),
        lambda: precondition(arrays),
        lambda: natural_step(arrays, [0.0], [0.0]),
        lambda: elbo_gradient(arrays, target.log_prob, torch.zeros(3, 1)),
    ):
        with pytest.raises(TypeError, match=r"needs a GaussianGraphicalModel of sparseggm\.torch"):
            call()


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda made: pickle.loads(pickle.dumps(made))], ids=["copy", "pickle"]
)
def test_a_copy_of_the_optimiser_steps_as_it_does(copied: Any) -> None:
    loc, factor = torch.ones(4, requires_grad=True), torch.ones(7, requires_grad=True)
    optimiser = NaturalGradient(loc, factor, sg.Chain(4), lr=0.3)
    other = copied(optimiser)
    parameters = other.param_groups[0]["params"]
    for made, (one, two) in ((optimiser, (loc, factor)), (other, parameters)):
        one.grad, two.grad = torch.full((4,), 0.1), torch.full((7,), 0.1)
        made.step()
    assert torch.equal(parameters[0], loc)
    assert torch.equal(parameters[1], factor)
    assert torch.equal(other.shortened, optimiser.shortened)


def test_a_second_group_of_parameters_is_refused() -> None:
    loc, factor = torch.ones(4, requires_grad=True), torch.ones(7, requires_grad=True)
    optimiser = NaturalGradient(loc, factor, sg.Chain(4))
    with pytest.raises(ValueError, match="NaturalGradient: has one loc and factor already"):
        optimiser.add_param_group({"params": [loc]})


def test_rates_that_do_not_fit_are_refused() -> None:
    q = GaussianGraphicalModel(torch.zeros(3, 4), factor=torch.ones(3, 7), topology=sg.Chain(4))
    with pytest.raises(ShapeError, match=r"natural_step: rate must broadcast to \(3,\), got shape \(2,\)"):
        natural_step(q, torch.zeros(3, 4), torch.zeros(3, 7), rate=torch.ones(2))
    with pytest.raises(NonPositiveError, match="refine: rate must be positive and finite"):
        refine(q, lambda z: -z.square().sum(-1), 1, rate=torch.ones(3))  # type: ignore[arg-type]
