"""The inverse Fisher matrix against the Hessian of KL, and natural steps against posteriors in closed form."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

import sparseggm as sg
from sparseggm.errors import NonFiniteError, PatternError, ShapeError
from sparseggm.torch import GaussianGraphicalModel, elbo_gradient, fisher_solve, natural_step, precondition
from tests.torch.gaussians import Kind
from tests.torch.problems import vectors

U = torch.finfo(torch.float64).eps

CLOSED = [
    sg.Diagonal(4),
    sg.Chain(1),
    sg.Chain(6),
    sg.Chain(6, order=range(6)[::-1]),
    sg.BlockChain(3, 2),
    sg.Tree((1, 4, 4, 4, -1)),
    sg.Band(5, 4),  # every edge
]
FACTOR_FREE = [*CLOSED, sg.ExtendedGrid(3, 3), sg.Stencil(3, 2, 1)]


def dense_factor(topology: sg.Topology, values: Tensor) -> Tensor:
    """L with rows and columns in the caller's numbering, so that P = L Lᵀ is."""
    pattern = topology.factor_pattern
    places = torch.from_numpy(topology.order[pattern.rows] * topology.n + topology.order[pattern.cols])
    dense = values.new_zeros(*values.shape[:-1], topology.n**2).index_copy(-1, places, values)
    return dense.unflatten(-1, (topology.n, topology.n))


def log_determinant(factor: Tensor) -> Tensor:
    """log det of P = L Lᵀ."""
    return torch.logdet(factor @ factor.mT)


def fisher_matrix(topology: sg.Topology, loc: Tensor, factor: Tensor) -> Tensor:
    """The Hessian of KL(q ‖ q′) in the parameters (loc, L) of q′, at q."""
    n, covariance = topology.n, torch.linalg.inv(dense_factor(topology, factor) @ dense_factor(topology, factor).mT)

    def kl(parameters: Tensor) -> Tensor:
        lower, shift = dense_factor(topology, parameters[n:]), parameters[:n] - loc
        precision = lower @ lower.mT
        return 0.5 * ((precision * covariance).sum() + shift @ precision @ shift - log_determinant(lower))

    return torch.autograd.functional.hessian(kl, torch.cat([loc, factor]))


def some(topology: sg.Topology, *batch: int, seed: int = 0) -> GaussianGraphicalModel:
    q = Kind(topology, "factor").example(*batch, seed=seed)
    return GaussianGraphicalModel(q.loc.detach(), factor=q.factor.detach(), topology=topology)


@pytest.mark.parametrize("topology", FACTOR_FREE, ids=str)
def test_the_fisher_matrix_times_the_natural_gradient_is_the_gradient(topology: sg.Topology) -> None:
    q = some(topology)
    given = vectors(topology.n, seed=5).detach(), vectors(topology.factor_pattern.nnz, seed=6).detach()
    natural = torch.cat(fisher_solve(q, *given))
    fisher = fisher_matrix(topology, q.loc, q.factor)
    bound = 8 * len(natural) * U * torch.linalg.cond(fisher)  # a Hessian by products of n terms, and its inverse
    residual = fisher @ natural - torch.cat(given)
    assert residual.norm() <= bound * torch.cat(given).norm()


def some_quadratic(topology: sg.Topology, batch: int) -> tuple[Callable[[Tensor], Tensor], Tensor, Tensor]:
    """log N(z; mean, P⁻¹) + 1 of every element of a batch, with P and mean."""
    target = some(topology, batch, seed=9)
    return lambda z: target.log_prob(z) + 1.0, target.precision_matrix, target.loc


@pytest.mark.parametrize("topology", FACTOR_FREE, ids=str)
def test_the_gradient_of_the_elbo_is_that_of_its_closed_form(topology: sg.Topology) -> None:
    """At the points ±√n e_i, whose mean of a quadratic function is its expectation."""
    q, (log_joint, precision, mean) = some(topology, 2), some_quadratic(topology, 2)
    half = math.sqrt(topology.n) * torch.eye(topology.n, dtype=torch.float64)
    points = torch.cat([half, -half]).unsqueeze(1).expand(-1, 2, -1)
    values, *found = elbo_gradient(q, log_joint, points)
    loc, factor = parameters(q)
    elbo = expected_log_p(precision, mean, topology, loc, factor)
    elbo.sum().backward()
    for ours, expected in zip(found, (loc.grad, factor.grad), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-11, atol=1e-11)
    constants = values.mean(0) - elbo  # of n and det P alone
    torch.testing.assert_close(constants, 1.0 + 0.5 * (torch.logdet(precision) + topology.n), rtol=1e-11, atol=1e-11)


def test_where_q_is_p_no_sample_has_a_gradient_and_all_have_one_value() -> None:
    topology = sg.ExtendedGrid(2, 3)
    q, (log_joint, _, _) = some(topology, 2, seed=9), some_quadratic(topology, 2)
    values, *gradients = elbo_gradient(q, log_joint, vectors(6, 3, 2, seed=4).detach())
    torch.testing.assert_close(values, torch.ones(3, 2, dtype=torch.float64), rtol=1e-12, atol=1e-12)
    assert all(gradient.abs().max() < 1e-12 for gradient in gradients)


@pytest.mark.parametrize("topology", CLOSED, ids=str)
def test_one_step_of_rate_1_is_exact_on_a_quadratic_with_the_same_graph(topology: sg.Topology) -> None:
    start, target = some(topology, 3), some(topology, 3, seed=9)
    exact = dense_factor(topology, target.factor)
    precision, loc, factor = exact @ exact.mT, *parameters(start)
    expected_log_p(precision, target.loc, topology, loc, factor).sum().backward()
    new, made = natural_step(start, loc.grad, factor.grad)
    assert made.all()
    lower = dense_factor(topology, new.factor)
    conditions = torch.linalg.cond(precision) * torch.linalg.cond(dense_factor(topology, start.factor)) ** 2
    bound = 8 * topology.n * U * conditions[:, None]
    assert ((lower @ lower.mT - precision).flatten(1).abs() <= bound * precision.flatten(1).norm(dim=1)[:, None]).all()
    assert ((new.loc - target.loc).abs() <= bound * (start.loc - target.loc).norm(dim=1)[:, None]).all()


def test_with_fill_the_exact_posterior_stays_and_steps_near_it_double_their_digits() -> None:
    topology = sg.ExtendedGrid(3, 4)
    target, other = some(topology), some(topology, seed=9)
    exact = dense_factor(topology, target.factor)
    q = GaussianGraphicalModel(
        target.loc, factor=target.factor + 0.05 * (other.factor - target.factor), topology=topology
    )
    errors = []
    for _ in range(4):
        loc, factor = parameters(q)
        expected_log_p(exact @ exact.mT, target.loc, topology, loc, factor).backward()
        errors.append(float((q.factor - target.factor).norm()))
        q, _ = natural_step(q, loc.grad, factor.grad)
    constant = 2 * errors[1] / errors[0] ** 2
    assert errors[1] < errors[0] / 4
    assert errors[2] <= constant * errors[1] ** 2
    assert errors[3] <= max(constant * errors[2] ** 2, 1e3 * U)


def test_a_gaussian_whose_step_would_leave_the_cone_stays_alone() -> None:
    q = some(sg.Chain(3), 2)
    gradient = torch.zeros_like(q.factor)
    gradient[:, 0] = -1.0
    rates = torch.tensor([0.1, 100.0], dtype=torch.float64)
    new, made = natural_step(q, torch.ones_like(q.loc), gradient, rates)
    assert made.tolist() == [True, False]
    assert (new.factor[0] != q.factor[0]).any()
    assert torch.equal(new.factor[1], q.factor[1])
    assert torch.equal(new.loc[1], q.loc[1])


def test_a_step_of_rate_0_changes_nothing_and_rates_are_of_each_gaussian() -> None:
    q = some(sg.ExtendedGrid(2, 3), 2)
    gradients = 0.1 * torch.ones_like(q.loc), 0.1 * torch.ones_like(q.factor)
    still, _ = natural_step(q, *gradients, rate=0.0)
    torch.testing.assert_close(still.factor, q.factor, rtol=16 * U, atol=16 * U)
    assert torch.equal(still.loc, q.loc)
    both, _ = natural_step(q, *gradients, rate=torch.tensor([0.5, 0.25], dtype=torch.float64))
    for index, rate in enumerate((0.5, 0.25)):
        alone, _ = natural_step(q, *gradients, rate=rate)
        torch.testing.assert_close(both.factor[index], alone.factor[index], rtol=16 * U, atol=16 * U)
        torch.testing.assert_close(both.loc[index], alone.loc[index], rtol=16 * U, atol=16 * U)


def test_float32_stays_float32() -> None:
    q = some(sg.BlockChain(2, 3), 2)
    single = GaussianGraphicalModel(q.loc.float(), factor=q.factor.float(), topology=q.topology)
    new, _ = natural_step(single, torch.zeros_like(single.loc), torch.zeros_like(single.factor))
    assert new.loc.dtype == new.factor.dtype == torch.float32
    assert fisher_solve(single, single.loc, single.factor)[1].dtype == torch.float32


def test_a_topology_that_is_not_factor_free_is_refused() -> None:
    q = Kind(sg.Grid(3, 3), "precision").example()
    with pytest.raises(PatternError, match=r"fisher_solve: needs an L that is free .* on Grid\(3, 3\)"):
        fisher_solve(q, q.loc, q.factor)
    with pytest.raises(PatternError, match="natural_step: needs an L that is free on its pattern"):
        natural_step(q, q.loc, q.factor)


def test_a_gradient_that_is_not_finite_is_named() -> None:
    q = some(sg.Chain(3))
    with pytest.raises(NonFiniteError, match="fisher_solve: vector must be finite"):
        fisher_solve(q, q.loc * np.nan, q.factor)
    with pytest.raises(NonFiniteError, match="natural_step: factor_gradient"):
        natural_step(q, q.loc, q.factor * np.nan)


def test_sizes_and_dtypes_are_those_of_the_gaussians() -> None:
    q = some(sg.Chain(3), 2)
    with pytest.raises(ShapeError, match="vector must end in 3 and values in 5, got shapes"):
        fisher_solve(q, q.loc, q.loc)
    with pytest.raises(ShapeError, match="loc_gradient must end in 3 and factor_gradient in 5, got shapes"):
        natural_step(q, q.loc, q.loc)
    with pytest.raises(ShapeError):
        natural_step(q, torch.zeros(4, 3), torch.zeros(5))
    assert fisher_solve(q, [1.0, 2.0, 3.0], np.ones(5, np.float32))[1].shape == (2, 5)


# ---------------------------------------------------------------------- preconditioned gradients


@pytest.mark.parametrize("topology", FACTOR_FREE, ids=str)
def test_preconditioned_gradients_are_natural_ones_of_each_gaussian(topology: sg.Topology) -> None:
    q = some(topology, 3)
    log_joint, _, _ = some_quadratic(topology, 3)
    found, plain = [], []
    for gradients, change in ((plain, lambda q: q), (found, precondition)):
        loc, factor = parameters(q)
        own = change(GaussianGraphicalModel(loc, factor=factor, topology=topology))
        z = own.loc + own.colorize(vectors(topology.n, 3, seed=8).detach())
        (log_joint(z) + own.entropy()).mean().backward()
        gradients += [loc.grad, factor.grad]
    for ours, expected in zip(found, fisher_solve(q, *plain), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("topology", CLOSED, ids=str)
def test_a_preconditioned_step_of_rate_1_is_the_posterior_of_a_linear_gaussian_model(topology: sg.Topology) -> None:
    """P + L dLᵀ + dL Lᵀ with the gradient dL that arrives is the posterior's precision; its mean is one Newton step."""
    start, target = some(topology, 3), some(topology, 3, seed=9)
    exact = dense_factor(topology, target.factor)
    loc, factor = parameters(start)
    q = precondition(GaussianGraphicalModel(loc, factor=factor, topology=topology))
    expected_log_p(exact @ exact.mT, target.loc, topology, q.loc, q.factor).sum().backward()
    lower, change = dense_factor(topology, start.factor), dense_factor(topology, factor.grad)
    made = (lower + change) @ lower.mT + lower @ change.mT
    torch.testing.assert_close(made, exact @ exact.mT, rtol=1e-9, atol=1e-9)
    pull = (lower @ lower.mT @ loc.grad.unsqueeze(-1)).squeeze(-1)  # the plain gradient of loc
    mean = start.loc + torch.linalg.solve(made, pull)
    torch.testing.assert_close(mean, target.loc, rtol=1e-9, atol=1e-9)


def test_preconditioned_steps_do_not_depend_on_the_units_of_the_nodes() -> None:
    """z ↦ D z takes L to D⁻¹ L. Steps of (loc, log σ, β) from F⁻¹ g are the same Gaussians in other units."""
    topology = sg.ExtendedGrid(3, 3)
    q, (log_joint, _, _) = some(topology), some_quadratic(topology, 1)
    units = torch.exp(vectors(9, seed=3).detach())
    rows = torch.from_numpy(topology.order[topology.factor_pattern.rows])
    eps, stepped = vectors(9, seed=8).detach(), []
    for scale in (torch.ones(9).double(), units):
        loc, factor = (x.detach().requires_grad_() for x in (q.loc * scale, q.factor / scale[rows]))
        own = precondition(GaussianGraphicalModel(loc, factor=factor, topology=topology))
        z = (own.loc + own.colorize(eps)) / scale
        (log_joint(z) + own.entropy()).sum().backward()
        vector, values = loc + 0.1 * loc.grad, factor + 0.1 * factor.grad
        stepped.append((vector / scale, values * scale[rows]))
    for one, other in zip(*stepped, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)


def test_preconditioning_lets_infinite_gradients_pass_and_refuses_a_second_derivative() -> None:
    q = some(sg.Chain(3), 2)
    loc, factor = parameters(q)
    own = precondition(GaussianGraphicalModel(loc, factor=factor, topology=q.topology))
    (own.loc * np.inf).sum().backward()
    assert not loc.grad.isfinite().any()
    loss = own.moved_to(own.loc).entropy().sum() + own.loc.square().sum()
    (gradient,) = torch.autograd.grad(loss, loc, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()
    with pytest.raises(PatternError, match="precondition: needs an L that is free on its pattern"):
        precondition(Kind(sg.Grid(3, 3), "precision").example())


def parameters(q: GaussianGraphicalModel) -> tuple[Tensor, Tensor]:
    return q.loc.clone().requires_grad_(), q.factor.clone().requires_grad_()


def expected_log_p(precision: Tensor, mean: Tensor, topology: sg.Topology, loc: Tensor, factor: Tensor) -> Tensor:
    """E_q[log N(z; mean, precision⁻¹)] + entropy of q, but for constants."""
    lower, shift = dense_factor(topology, factor), (loc - mean).unsqueeze(-1)
    inverse = torch.linalg.inv(lower @ lower.mT)
    quadratic = (precision * (inverse + shift @ shift.mT)).sum((-2, -1))
    return -0.5 * (quadratic + log_determinant(lower))
