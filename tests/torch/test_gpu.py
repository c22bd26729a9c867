"""Beside a GPU: nothing goes there, or comes back, unless the caller says so, and every call on its tensors says so.

That answers do not depend on a GPU by default is tested in test_border.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Independent, Normal, kl_divergence

import sparseggm as sg
from sparseggm.torch import GaussianGraphicalModel as Q
from sparseggm.torch import ops, sample_and_kl
from tests.torch.operators import OPERATORS, operator
from tests.torch.test_border import HEADS, TOPOLOGY

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="no GPU here: test_border and test_distribution test the messages without one"
)


def gaussian(topology: sg.Topology = TOPOLOGY) -> Q:
    return Q(torch.zeros(topology.n), factor=torch.ones(topology.factor_pattern.nnz), topology=topology)


def moved(arguments: tuple[Any, ...], which: int | None) -> tuple[Any, ...]:
    """The arguments with all tensors on the GPU, or one of them."""
    places = [i for i, value in enumerate(arguments) if isinstance(value, Tensor)]
    chosen = places if which is None else places[which : which + 1]
    return tuple(value.cuda() if i in chosen else value for i, value in enumerate(arguments))


@pytest.mark.parametrize("row", OPERATORS)
def test_no_operator_takes_a_tensor_of_the_gpu(row):
    shapes, arguments = OPERATORS[row]
    given = arguments(*[(2,)] * shapes)
    for which in (None, *range(sum(isinstance(value, Tensor) for value in given))):
        with pytest.raises((NotImplementedError, RuntimeError, ValueError)):
            operator(row)(*moved(given, which))


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("name", ["log_prob", "whiten", "colorize"])
def test_a_value_of_the_gpu_is_refused_with_the_remedy(name, compiled):
    q, x = gaussian(), torch.zeros(TOPOLOGY.n, device="cuda")
    call = getattr(q, name)
    call = torch.compile(call, backend="aot_eager") if compiled else call
    with pytest.raises(Exception, match="on the CPU"):
        call(x)


def test_the_verbs_refuse_with_the_remedy():
    pattern = sg.Chain(4).factor_pattern
    with pytest.raises(ValueError, match=r"solve_t: needs tensors on the CPU, got one on cuda:0\. Move it with"):
        ops.solve_t(pattern, torch.ones(pattern.nnz), torch.ones(4, device="cuda"))


def test_parameters_of_the_gpu_are_refused():
    loc, factor = torch.zeros(4), torch.ones(7)
    for given in ((loc.cuda(), factor.cuda()), (loc.cuda(), factor), (loc, factor.cuda())):
        with pytest.raises(ValueError, match="must be on the CPU, got"):
            Q(given[0], factor=given[1], topology=sg.Chain(4))
    with pytest.raises(ValueError, match="must be on the CPU, got"):
        Q.from_precision(loc.cuda(), precision=factor, topology=sg.Chain(4))


def test_a_prior_of_the_gpu_is_refused():
    q, loc = gaussian(), torch.zeros(TOPOLOGY.n, device="cuda")
    prior = Independent(Normal(loc, torch.ones_like(loc)), 1)
    for one, other in ((q, prior), (prior, q)):
        with pytest.raises((ValueError, RuntimeError), match="cuda"):
            kl_divergence(one, other)
    with pytest.raises((ValueError, RuntimeError), match="cuda"):
        sample_and_kl(q, prior)


@pytest.mark.parametrize("name", HEADS)
def test_a_head_moved_to_the_gpu_says_what_to_do(name):
    make, features = HEADS[name]
    with pytest.raises(ValueError, match="on the CPU"):
        make().cuda()(features.cuda())


@pytest.mark.parametrize("name", HEADS)
def test_networks_on_the_gpu_train_a_head_on_the_cpu(name):
    """The lines of the tutorial: features come to the head, and samples go to the decoder."""
    make, features = HEADS[name]
    head, features = make(), features.cuda().requires_grad_()
    decoder = torch.nn.Linear(head(features.cpu()).topology.n, 3).cuda()
    z, kl = sample_and_kl(head(features.cpu()))
    (decoder(z.cuda()).square().sum() + kl.sum().cuda()).backward()
    assert features.grad.is_cuda
    assert features.grad.isfinite().all()
    assert all(p.grad.isfinite().all() for p in (*head.parameters(), *decoder.parameters()))
