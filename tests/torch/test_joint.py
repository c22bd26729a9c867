"""A sample and KL of one Gaussian share a node of autograd where they can; numbers are those of nodes of their own."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.distributions import Independent, Normal, kl_divergence
from torch.utils.checkpoint import checkpoint

import sparseggm as sg
from sparseggm.torch import GaussianGraphicalModel
from tests.torch.gaussians import Kind
from tests.torch.problems import vectors

TOPOLOGIES = [sg.Chain(5), sg.ExtendedGrid(2, 3), sg.Grid(3, 3), sg.Chain(4, order=range(4)[::-1])]
CLOSE = {"rtol": 1e-12, "atol": 1e-12}  # float64: each gradient is a sum of two, whose order of addition differs

every_topology = pytest.mark.parametrize("topology", TOPOLOGIES, ids=str)


def normal(n: int, *batch: int) -> Independent:
    return Independent(Normal(vectors(n, *batch, seed=5).detach(), vectors(n, *batch, seed=6).detach().exp()), 1)


def leaves(topology: sg.Topology, *batch: int) -> tuple[Tensor, Tensor]:
    return vectors(topology.n, *batch, seed=3), Kind(topology, "factor").values(*batch)


def made(topology: sg.Topology, pair: tuple[Tensor, Tensor]) -> GaussianGraphicalModel:
    return GaussianGraphicalModel(pair[0], factor=pair[1], topology=topology)


def share_a_node(z: Tensor, kl: Tensor) -> bool:
    return z.grad_fn is kl.grad_fn


def apart(q: GaussianGraphicalModel, p: Independent) -> Tensor:
    """KL with a node of its own."""
    return kl_divergence(q.moved_to(q.loc), p)


def cotangents(*tensors: Tensor) -> list[Tensor]:
    return [torch.linspace(-1.0, 2.0, tensor.numel(), dtype=tensor.dtype).reshape(tensor.shape) for tensor in tensors]


@every_topology
@pytest.mark.parametrize("batch", [(), (1,), (3, 2)], ids=str)
@pytest.mark.parametrize("prior_batch", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_value_and_gradients_are_those_of_two_nodes(topology, batch, prior_batch, dtype):
    pair = tuple(leaf.detach().to(dtype).requires_grad_() for leaf in leaves(topology, *batch))
    p = normal(topology.n, *(batch if prior_batch else ()))
    p = Independent(Normal(p.base_dist.loc.to(dtype), p.base_dist.scale.to(dtype)), 1)
    q = made(topology, pair)
    z, kl = q.rsample(), kl_divergence(q, p)
    other = apart(q, p)
    assert share_a_node(z, kl)
    assert not share_a_node(z, other)
    torch.testing.assert_close(kl, other, rtol=0, atol=0)
    bars = cotangents(z, kl)
    found = torch.autograd.grad((z, kl), pair, bars, retain_graph=True)
    of_z, of_kl = torch.autograd.grad(z, pair, bars[0]), torch.autograd.grad(other, pair, bars[1])
    close = CLOSE if dtype is torch.float64 else {"rtol": 1e-5, "atol": 1e-5}
    for one, a, b in zip(found, of_z, of_kl, strict=True):
        torch.testing.assert_close(one, a + b, **close)


@every_topology
def test_each_output_alone_has_its_own_gradient_and_a_second_pass_needs_retain_graph(topology):
    pair, p = leaves(topology, 3), normal(topology.n)
    q = made(topology, pair)
    z, kl = q.rsample(), kl_divergence(q, p)
    bars = cotangents(z, kl)
    both = torch.autograd.grad((z, kl), pair, bars, retain_graph=True)
    of_z = torch.autograd.grad(z, pair, bars[0], retain_graph=True)
    of_kl = torch.autograd.grad(kl, pair, bars[1])
    for one, a, b in zip(both, of_z, of_kl, strict=True):
        torch.testing.assert_close(one, a + b, **CLOSE)
    with pytest.raises(RuntimeError, match="retain_graph=True"):
        torch.autograd.grad(z, pair, bars[0])


def test_a_second_kl_and_a_kl_after_a_backward_pass_have_nodes_of_their_own():
    topology = sg.Chain(5)
    pair, p = leaves(topology, 3), normal(5)
    q = made(topology, pair)
    z = q.rsample()
    first, second = kl_divergence(q, p), kl_divergence(q, normal(5, 3))
    assert share_a_node(z, first)
    assert not share_a_node(z, second)
    z = q.rsample()
    z.sum().backward()
    late = kl_divergence(q, p)
    assert not share_a_node(z, late)
    late.sum().backward()


def test_kl_belongs_to_the_last_of_several_samples():
    topology = sg.ExtendedGrid(2, 3)
    pair, p = leaves(topology, 3), normal(6)
    q = made(topology, pair)
    first, last, many = q.rsample(), q.rsample(), q.rsample((4,))
    kl = kl_divergence(q, p)
    assert share_a_node(last, kl)
    total = first.sum() + last.square().sum() + many.sum() + kl.sum()
    found = torch.autograd.grad(total, pair, retain_graph=True)
    parts = (first.sum(), last.square().sum(), many.sum(), apart(q, p).sum())
    each = [torch.autograd.grad(part, pair, retain_graph=True) for part in parts]
    for one, *terms in zip(found, *each, strict=True):
        torch.testing.assert_close(one, sum(terms), **CLOSE)


@pytest.mark.parametrize("which", [0, 1], ids=["loc", "factor"])
def test_kl_is_of_the_values_at_its_own_call_and_no_gradient_is_of_changed_ones(which):
    topology = sg.Chain(5)
    pair, p = leaves(topology, 3), normal(5)
    q = made(topology, pair)
    z = q.rsample()
    with torch.no_grad():
        pair[which].mul_(1.5)
    kl = kl_divergence(q, p)
    assert not share_a_node(z, kl)
    torch.testing.assert_close(kl, apart(made(topology, pair), p), rtol=0, atol=0)
    kl.sum().backward()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        z.sum().backward()


@pytest.mark.parametrize("which", [0, 1], ids=["loc", "factor"])
def test_a_change_after_kl_is_found_by_the_backward_pass(which):
    topology = sg.Chain(5)
    pair = leaves(topology, 3)
    q = made(topology, pair)
    z, kl = q.rsample(), kl_divergence(q, normal(5))
    with torch.no_grad():
        pair[which].mul_(1.5)
    for output in (kl.sum(), z.sum() + kl.sum()):
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            output.backward(retain_graph=True)


def test_a_prior_changed_after_kl_changes_no_gradient():
    topology = sg.Chain(5)
    pair, p = leaves(topology, 3), normal(5)
    q = made(topology, pair)
    z, kl = q.rsample(), kl_divergence(q, p)
    before = torch.autograd.grad(z.sum() + kl.sum(), pair, retain_graph=True)
    p.base_dist.loc.add_(1.0)
    p.base_dist.scale.mul_(2.0)
    after = torch.autograd.grad(z.sum() + kl.sum(), pair)
    assert all(map(torch.equal, before, after))


def test_a_parameter_that_joins_or_changes_its_place_in_the_graph_is_seen():
    topology = sg.Chain(5)
    loc, L = (leaf.detach() for leaf in leaves(topology, 3))
    q = made(topology, (loc.requires_grad_(), L))
    z = q.rsample()
    L.requires_grad_()
    kl = kl_divergence(q, normal(5))
    assert not share_a_node(z, kl)
    assert torch.autograd.grad(kl.sum(), L)[0].abs().sum() > 0
    moved = loc * 1.0
    q = made(topology, (moved, L))
    z = q.rsample()
    moved.detach_().requires_grad_()
    kl = kl_divergence(q, normal(5))
    assert not share_a_node(z, kl)
    assert torch.autograd.grad(kl.sum(), moved)[0].abs().sum() > 0


def test_gradients_are_those_that_are_wanted_at_each_call():
    topology = sg.Chain(5)
    pair, p = leaves(topology, 3), normal(5)
    q = made(topology, pair)
    with torch.no_grad():
        z = q.rsample()
    kl = kl_divergence(q, p)
    assert not z.requires_grad
    assert kl.requires_grad
    z = q.rsample()
    with torch.no_grad():
        assert not kl_divergence(q, p).requires_grad
    with torch.inference_mode():
        assert not kl_divergence(made(topology, pair), p).requires_grad
    mean = torch.zeros(5, dtype=torch.float64, requires_grad=True)
    q.rsample()
    kl = kl_divergence(q, Independent(Normal(mean, torch.ones_like(mean)), 1))
    assert torch.autograd.grad(kl.sum(), mean)[0].abs().sum() > 0


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")  # torch's own call
def test_tangents_of_a_prior_are_refused_not_lost():
    topology = sg.Chain(5)
    q = made(topology, leaves(topology, 3))
    q.rsample()
    with forward_ad.dual_level():
        mean = forward_ad.make_dual(torch.zeros(5, dtype=torch.float64), torch.ones(5, dtype=torch.float64))
        with pytest.raises((NotImplementedError, RuntimeError)):
            kl_divergence(q, Independent(Normal(mean, torch.ones(5, dtype=torch.float64), validate_args=False), 1))


@every_topology
def test_gradients_of_gradients_are_those_of_two_nodes(topology):
    pair, p = leaves(topology, 2), normal(topology.n)

    def second(kl_of) -> tuple[Tensor, ...]:
        torch.manual_seed(0)
        q = made(topology, pair)
        z = q.rsample()
        loss = z.pow(3).sum() + kl_of(q, p).square().sum()
        first = torch.autograd.grad(loss, pair, create_graph=True)
        return torch.autograd.grad(sum(each.square().sum() for each in first), pair)

    for one, other in zip(second(kl_divergence), second(apart), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_batched_cotangents_are_those_in_turn():
    topology = sg.ExtendedGrid(2, 3)
    pair, p = leaves(topology, 2), normal(6)
    q = made(topology, pair)
    z, kl = q.rsample(), kl_divergence(q, p)
    bars = torch.randn(3, *z.shape, dtype=z.dtype), torch.randn(3, *kl.shape, dtype=kl.dtype)
    found = torch.autograd.grad((z, kl), pair, bars, retain_graph=True, is_grads_batched=True)
    for i in range(3):
        each = torch.autograd.grad((z, kl), pair, [bar[i] for bar in bars], retain_graph=True)
        for one, batched in zip(each, found, strict=True):
            torch.testing.assert_close(batched[i], one, **CLOSE)


def test_infinite_cotangents_pass_as_through_two_nodes():
    topology = sg.Chain(5)
    pair, p = leaves(topology, 2), normal(5)
    q = made(topology, pair)
    z, kl = q.rsample(), kl_divergence(q, p)
    bars = torch.full_like(z, float("inf")), torch.ones_like(kl)
    found = torch.autograd.grad((z, kl), pair, bars, retain_graph=True)
    of_z, of_kl = torch.autograd.grad(z, pair, bars[0]), torch.autograd.grad(apart(q, p), pair, bars[1])
    for one, a, b in zip(found, of_z, of_kl, strict=True):
        torch.testing.assert_close(one, a + b, equal_nan=True, **CLOSE)
        assert not one.isfinite().all()


def test_lazily_negative_cotangents_keep_their_sign():
    topology = sg.Chain(5)
    pair, p = leaves(topology, 2), normal(5)
    q = made(topology, pair)
    z, kl = q.rsample(), kl_divergence(q, p)
    bars = cotangents(z, kl)
    plain = torch.autograd.grad((z, kl), pair, [-bar for bar in bars], retain_graph=True)
    alone = torch.autograd.grad(apart(q, p), pair, -bars[1])
    lazy = [torch._neg_view(bar) for bar in bars]
    for one, other in zip(torch.autograd.grad((z, kl), pair, lazy), plain, strict=True):
        torch.testing.assert_close(one, other, **CLOSE)
    for one, other in zip(torch.autograd.grad(apart(q, p), pair, lazy[1]), alone, strict=True):
        torch.testing.assert_close(one, other, **CLOSE)


def test_a_checkpointed_step_has_the_gradients_of_a_plain_one():
    topology = sg.Chain(5)
    pair, p = leaves(topology, 3), normal(5)

    def loss(loc: Tensor, L: Tensor) -> Tensor:
        q = made(topology, (loc * 1.0, L * 1.0))
        z = q.rsample()
        return z.square().sum() + kl_divergence(q, p).sum()

    torch.manual_seed(0)
    expected = torch.autograd.grad(loss(*pair), pair)
    torch.manual_seed(0)
    found = torch.autograd.grad(checkpoint(loss, *pair, use_reentrant=False), pair)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, **CLOSE)


def test_kl_in_a_checkpoint_is_computed_again_as_it_was_though_its_sample_stands_outside():
    pair, p = leaves(sg.Chain(5), 3), normal(5)
    weight = torch.ones(3, dtype=torch.float64, requires_grad=True)

    def gradients(kl_of):
        torch.manual_seed(0)
        q = made(sg.Chain(5), pair)
        return torch.autograd.grad(q.rsample().square().sum() + kl_of(q).sum(), [*pair, weight])

    expected = gradients(lambda q: kl_divergence(q, p) * weight)
    found = gradients(lambda q: checkpoint(lambda w: kl_divergence(q, p) * w, weight, use_reentrant=False))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, **CLOSE)


def test_other_gaussians_of_the_same_tensors_do_not_take_the_node():
    topology = sg.Chain(5)
    pair, p = leaves(topology, 3), normal(5)
    q = made(topology, pair)
    z = q.rsample()
    wide = Independent(Normal(p.base_dist.loc.float(), p.base_dist.scale.float()), 1)
    others = [q.expand((3,)), q.moved_to(q.loc), copy.copy(q), copy.deepcopy(q), pickle.loads(pickle.dumps(q))]
    assert not any(share_a_node(z, kl_divergence(other, p)) for other in others)
    assert share_a_node(z, kl_divergence(q, wide))  # float32 is no other dtype once it is float64
    narrow = made(topology, tuple(leaf.detach().float().requires_grad_() for leaf in pair))
    z = narrow.rsample()
    kl = kl_divergence(narrow, p)
    assert kl.dtype is torch.float64
    assert not share_a_node(z, kl)


def test_nothing_is_kept_alive_by_a_cycle():
    topology = sg.Chain(5)
    q = made(topology, leaves(topology, 3))
    gc.disable()
    try:
        z, kl = q.rsample(), kl_divergence(q, normal(5))
        node = weakref.ref(z.grad_fn)
        (z.sum() + kl.sum()).backward()
        del z, kl
        assert node() is None
        node = weakref.ref(q.rsample().grad_fn)
        assert node() is not None  # q waits for its KL
        q.rsample()
        assert node() is None
    finally:
        gc.enable()
