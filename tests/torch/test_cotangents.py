"""Infinite and NaN cotangents pass through every backward: the gradients tell, as torch's GradScaler needs."""

from __future__ import annotations

import pytest
import torch

import sparseggm as sg
from sparseggm.torch import FactorHead, GaussianGraphicalModel, PrecisionHead, ops, sample_and_kl
from tests.torch.support import OPERATIONS
from tests.torch.test_heads import FAMILIES

TOPOLOGIES = [sg.Chain(4), sg.ExtendedGrid(2, 3)]
COMPILED = [
    *("ops.solve", "ops.cholesky", "ops.precision_logdet", "ops.marginal_variances"),
    *("fused.sample_and_kl", "log_prob"),
]
"""Each kind of backward: a compilation takes seconds."""

every_operation = pytest.mark.parametrize("name", OPERATIONS)
every_topology = pytest.mark.parametrize("topology", TOPOLOGIES, ids=str)


def gradients(function, arguments, value, *, create_graph=False):
    """Of all results, each with this number as every entry of its cotangent."""
    results = function(*arguments)
    results = results if isinstance(results, tuple) else (results,)
    cotangents = [torch.full_like(result, value) for result in results]
    return torch.autograd.grad(results, arguments, cotangents, create_graph=create_graph, allow_unused=True)


def are_told(found):
    return all(not bar.isfinite().all() for bar in found if bar is not None and bar.numel())


@every_operation
@every_topology
@pytest.mark.parametrize(("value", "create_graph"), [(torch.inf, False), (torch.nan, True)])
def test_a_cotangent_that_is_not_finite_reaches_every_gradient(name, topology, value, create_graph):
    problem = OPERATIONS[name](topology)
    assert are_told(gradients(problem, problem.arguments, value, create_graph=create_graph))


@pytest.mark.parametrize("name", COMPILED)
def test_so_it_does_in_a_compiled_backward(name):
    torch._dynamo.reset()
    problem = OPERATIONS[name](sg.ExtendedGrid(2, 3))
    problem(*problem.arguments)  # patterns must exist before torch.compile traces, see docs/limits.md
    compiled = torch.compile(problem.function, fullgraph=True, backend="aot_eager")
    assert are_told(gradients(compiled, problem.arguments, torch.inf))


@pytest.mark.parametrize("call", [ops.solve_t, lambda p, a, b: sample_and_kl(of(p, a), noise=b)], ids=["op", "step"])
def test_so_it_does_along_a_chain_that_is_done_in_parts(call):
    topology = sg.Chain(20_000)
    lower = torch.full((topology.factor_pattern.nnz,), 0.3).requires_grad_()
    with torch.no_grad():
        lower[torch.from_numpy(topology.node_positions.astype("int64"))] = 1.0
    noise = torch.randn(topology.n).requires_grad_()
    assert are_told(gradients(lambda *pair: call(topology.factor_pattern, *pair), (lower, noise), torch.nan))


def of(pattern, lower):
    return GaussianGraphicalModel(torch.zeros(pattern.n), factor=lower, topology=sg.Chain(pattern.n))


def test_other_batch_elements_keep_their_gradients():
    topology = sg.ExtendedGrid(2, 3)
    lower = torch.ones(2, topology.factor_pattern.nnz).requires_grad_()
    loc = torch.zeros(2, 6).requires_grad_()
    bar = torch.ones(2, 6)

    def found():
        z, kl = sample_and_kl(GaussianGraphicalModel(loc, factor=lower, topology=topology), noise=torch.ones(2, 6))
        return torch.autograd.grad((z, kl), (loc, lower), (bar, torch.ones(2)))

    expected = found()
    bar[1, 2] = torch.inf
    for before, after in zip(expected, found(), strict=True):
        assert torch.equal(before[0], after[0])
        assert not after[1].isfinite().all()


def test_a_forward_pass_stays_strict_after_a_backward_pass():
    lower, noise = torch.ones(7).requires_grad_(), torch.ones(4)
    gradients(lambda x: ops.solve_t(sg.Chain(4).factor_pattern, x, noise), (lower,), torch.nan)
    with pytest.raises(sg.NonFiniteError, match="solve_t: rhs must be finite, got inf"):
        ops.solve_t(sg.Chain(4).factor_pattern, lower, noise * torch.inf)


SCALED = {
    "factor": lambda: FactorHead(3, sg.ExtendedGrid(2, 3)),
    **{name: lambda family=family: PrecisionHead(3, sg.Grid(2, 3), family) for name, family in FAMILIES.items()},
}


@pytest.mark.parametrize(("name", "compiled"), [*((name, False) for name in SCALED), ("factor", True)])
def test_a_gradient_scaler_skips_the_step_that_overflowed_and_takes_the_next(name, compiled):
    torch.manual_seed(0)
    torch._dynamo.reset()
    head, features = SCALED[name](), torch.randn(8, 3)
    optimiser = torch.optim.SGD(head.parameters(), 1e-3)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127, backoff_factor=2.0**-100)

    def loss(features):
        z, kl = sample_and_kl(head(features), noise=torch.ones(8, 6))
        return (kl + 100.0 * (z - 1.0).square().sum(-1) + head(features).entropy()).mean()

    objective = torch.compile(loss, backend="aot_eager") if compiled else loss
    for scale_after, moves in ((2.0**27, False), (2.0**27, True)):
        before = [parameter.detach().clone() for parameter in head.parameters()]
        optimiser.zero_grad()
        scaler.scale(objective(features)).backward()
        scaler.step(optimiser)
        scaler.update()
        assert scaler.get_scale() == scale_after
        same = [torch.equal(old, new) for old, new in zip(before, head.parameters(), strict=True)]
        assert not any(same) if moves else all(same)
