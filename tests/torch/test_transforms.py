"""`torch.func` and `vmap` on the operators: what they give is what a loop, or autograd, gives."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.func import grad, jacrev, vjp, vmap

import sparseggm as sg
from sparseggm.torch import ops
from sparseggm.torch.operators import step as fused
from tests.torch.problems import calls, factor, vectors

TOPOLOGIES = [sg.ExtendedGrid(2, 3), sg.Grid(3, 3)]
NAMES = list(calls(sg.Chain(4)))

every_operator = pytest.mark.parametrize("name", NAMES)
every_topology = pytest.mark.parametrize("topology", TOPOLOGIES, ids=str)
either_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


def arguments_of(call, dtype=torch.float64):
    return tuple(argument.detach().to(dtype) for argument in call.arguments)


def copies(tensor, count, axis):
    """`count` multiples of a tensor, which keep a factor positive and a precision definite, along a new axis."""
    scales = torch.linspace(1.0, 1.5, count, dtype=tensor.dtype)
    return torch.stack([scale * tensor for scale in scales], axis) if count else tensor.new_empty((0, *tensor.shape))


def squared(function):
    return lambda *arguments: function(*arguments).square().sum()


@every_operator
@every_topology
@either_dtype
def test_vmap_equals_the_loop_to_the_bit(topology, name, dtype):
    """Whichever arguments are mapped, and along whichever axis."""
    call = calls(topology)[name]
    arguments = arguments_of(call, dtype)
    for mapped in itertools.product((True, False), repeat=len(arguments)):
        if not any(mapped):
            continue
        for axis in (0, -1):
            in_dims = tuple(axis if is_mapped else None for is_mapped in mapped)
            stacked = [copies(a, 2, axis) if is_mapped else a for a, is_mapped in zip(arguments, mapped, strict=True)]
            found = vmap(call.operator, in_dims)(*stacked)
            for i in range(2):
                each = [a.select(axis, i) if is_mapped else a for a, is_mapped in zip(stacked, mapped, strict=True)]
                # The kernels do the same arithmetic whatever the batch.
                assert torch.equal(found[i], call.operator(*each))


@every_operator
def test_vmap_nests(name):
    call = calls(sg.ExtendedGrid(2, 3))[name]
    first, *others = arguments_of(call)
    stacked = copies(copies(first, 2, 0), 3, 0)
    in_dims = (0, *(None for _ in others))
    found = vmap(vmap(call.operator, in_dims), in_dims)(stacked, *others)
    looped = torch.stack([torch.stack([call.operator(each, *others) for each in row]) for row in stacked])
    assert torch.equal(found, looped)


@every_operator
@pytest.mark.parametrize("count", [0, 1])
def test_vmap_over_none_and_over_one(name, count):
    call = calls(sg.ExtendedGrid(2, 3))[name]
    arguments = arguments_of(call)
    one = call.operator(*arguments)
    found = vmap(call.operator)(*(copies(argument, count, 0) for argument in arguments))
    assert found.shape == (count, *one.shape)
    assert all(torch.equal(element, one) for element in found)


@every_operator
@every_topology
@either_dtype
def test_vmap_of_a_gradient_equals_the_loop(topology, name, dtype):
    """The first argument shared: its gradient, too, is one for each mapped element."""
    call = calls(topology)[name]
    first, *others = arguments_of(call, dtype)
    arguments = [copies(first, 2, 0)] if not others else [first, *(copies(other, 2, 0) for other in others)]
    in_dims = (None if others else 0, *(0 for _ in others))
    found = vmap(grad(squared(call.operator)), in_dims)(*arguments)
    for i in range(2):
        argument, *rest = (a if dim is None else a[i] for a, dim in zip(arguments, in_dims, strict=True))
        argument = argument.clone().requires_grad_()
        (expected,) = torch.autograd.grad(squared(call.operator)(argument, *rest), argument)
        torch.testing.assert_close(found[i], expected)


@pytest.mark.parametrize("name", [name for name, call in calls(sg.Chain(4)).items() if len(call.arguments) > 1])
def test_the_gradient_of_vmap_is_the_sum_of_gradients(name):
    call = calls(sg.ExtendedGrid(2, 3))[name]
    first, *others = arguments_of(call)
    stacked = [copies(other, 3, 0) for other in others]
    in_dims = (None, *(0 for _ in others))
    found = grad(lambda shared: vmap(squared(call.operator), in_dims)(shared, *stacked).sum())(first)
    parts = [grad(squared(call.operator))(first, *(other[i] for other in stacked)) for i in range(3)]
    torch.testing.assert_close(found, sum(parts))


@every_operator
def test_jacrev_and_vjp_give_the_jacobian_of_autograd(name):
    call = calls(sg.ExtendedGrid(2, 3))[name]
    arguments = arguments_of(call)
    everything = tuple(range(len(arguments)))
    expected = torch.autograd.functional.jacobian(call.operator, arguments)
    for found, row in zip(jacrev(call.operator, everything)(*arguments), expected, strict=True):
        torch.testing.assert_close(found, row)
    result, pullback = vjp(call.operator, *arguments)
    for found, row in zip(pullback(torch.ones_like(result)), expected, strict=True):
        torch.testing.assert_close(found, row.sum(tuple(range(result.ndim))))


@every_operator
@every_topology
def test_jacrev_of_jacrev_gives_the_hessian_of_autograd(topology, name):
    call = calls(topology)[name]
    first, *others = (argument[0] if argument.ndim == 2 else argument[0, 0] for argument in arguments_of(call))

    def scalar(x):
        verb = ops.outer if name.startswith("outer") else None
        return squared(lambda a: verb(topology.factor_pattern, a, *others) if verb else call.operator(a, *others))(x)

    expected = torch.autograd.functional.hessian(scalar, first)
    torch.testing.assert_close(jacrev(jacrev(scalar))(first), expected)
    torch.testing.assert_close(
        grad(lambda x: grad(scalar)(x).square().sum())(first), 2 * expected @ grad(scalar)(first)
    )


@every_topology
@pytest.mark.parametrize(
    "mapped", [m for m in itertools.product((0, None), repeat=3) if any(x == 0 for x in m)], ids=str
)
def test_the_training_step_maps_any_of_its_arguments(topology, mapped):
    pattern, n = topology.factor_pattern, topology.n
    arguments = [vectors(n, 2).detach(), factor(pattern, 2).detach(), vectors(n, 3, 2, seed=1).detach()]
    stacked = [copies(a, 2, 0) if dim == 0 else a for a, dim in zip(arguments, mapped, strict=True)]

    def step(*inputs):
        return fused.sample_and_kl(pattern, *inputs)

    def loss(*inputs):
        z, kl = step(*inputs)
        return z.square().sum() + kl.square().sum()

    def looped(function):
        each = [[a[i] if dim == 0 else a for a, dim in zip(stacked, mapped, strict=True)] for i in range(2)]
        return map(torch.stack, zip(*(function(*inputs) for inputs in each), strict=True))

    for function in (step, grad(loss, (0, 1, 2))):
        for found, expected in zip(vmap(function, mapped)(*stacked), looped(function), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-13)


def test_batched_cotangents_pass_the_backward_of_the_training_step():
    """`is_grads_batched` maps the first-order gradient operator, which sums over what broadcasting added."""
    pattern = sg.ExtendedGrid(2, 3).factor_pattern
    inputs = (vectors(6, 2), factor(pattern), vectors(6, 3, 2, seed=1))
    z, kl = fused.sample_and_kl(pattern, *inputs)
    cotangents = (copies(torch.ones_like(z), 4, 0), copies(torch.ones_like(kl), 4, 0))
    found = torch.autograd.grad((z, kl), inputs, cotangents, is_grads_batched=True, retain_graph=True)
    for i in range(4):
        each = torch.autograd.grad((z, kl), inputs, (cotangents[0][i], cotangents[1][i]), retain_graph=True)
        for of_batch, of_one in zip(found, each, strict=True):
            torch.testing.assert_close(of_batch[i], of_one, rtol=1e-13, atol=1e-13)


def test_an_error_inside_vmap_names_the_batch_element():
    pattern = sg.Chain(4).factor_pattern
    lower = copies(factor(pattern).detach(), 3, 0)
    lower[2, 0] = -1.0
    with pytest.raises(sg.NonPositiveError, match=r"batch element \(2,\)"):
        vmap(lambda values: ops.logdet(pattern, values))(lower)
