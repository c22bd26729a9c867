"""Fake kernels tell the truth: what tracing believes of a result is what the kernel returns, on every batch shape.

A fake kernel with a wrong shape gives compiled code wrong gradients, silently, and vmap a wrong shape.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import sparseggm as sg
from sparseggm.torch import GaussianGraphicalModel
from tests.torch.operators import (
    FIRST_ORDER,
    ONCE,
    OPERATORS,
    batches,
    floating,
    name_of,
    operator,
    pairwise,
    registered,
)

every_operator = pytest.mark.parametrize("row", OPERATORS)


def is_floating(argument):
    return isinstance(argument, Tensor) and argument.is_floating_point()


def results(output):
    return output if isinstance(output, tuple) else (output,)


def described(output):
    return [(tuple(result.shape), result.dtype, result.is_contiguous()) for result in results(output)]


def test_no_operator_is_forgotten():
    assert set(map(name_of, OPERATORS)) == registered()


@every_operator
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_fake_kernel_describes_what_the_kernel_returns(row, dtype):
    """Shape, dtype and layout, on batch shapes that broadcast."""
    count, arguments_on = OPERATORS[row]
    wrong = {}
    for shapes in batches(count):
        arguments = [a.to(dtype) if is_floating(a) else a for a in arguments_on(*shapes)]
        on_meta = [a.to("meta") if isinstance(a, Tensor) else a for a in arguments]
        found, believed = described(operator(row)(*arguments)), described(operator(row)(*on_meta))
        if found != believed:
            wrong[shapes] = found, believed
    assert not wrong


@every_operator
def test_vmap_gives_what_the_loop_gives_on_every_batch_shape(row):
    """All arguments mapped, or one alone. Kernels for one batch element and for many may round in another order."""
    count, arguments_on = OPERATORS[row]
    for shapes in dict.fromkeys(pairwise([(), (2,), (3, 1)], count)):
        arguments = arguments_on(*shapes)
        tensors = floating(row, arguments)
        for mapped in ({*tensors}, *({i} for i in tensors)):
            stacked = [torch.stack([a, 1.25 * a]) if i in mapped else a for i, a in enumerate(arguments)]
            in_dims = tuple(0 if i in mapped else None for i in range(len(arguments)))
            found = results(torch.func.vmap(operator(row), in_dims, randomness="different")(*stacked))
            for k in range(2):
                each = results(operator(row)(*(a[k] if i in mapped else a for i, a in enumerate(stacked))))
                for of_map, of_loop in zip(found, each, strict=True):
                    assert of_map[k].shape == of_loop.shape
                    if row != "sample":  # noise of its own for each element
                        torch.testing.assert_close(of_map[k], of_loop, rtol=1e-13, atol=1e-13)


def value_and_gradients(function, arguments, places):
    inputs = [arguments[i].detach().clone().requires_grad_() for i in places]
    given = dict(zip(places, inputs, strict=True))
    torch.manual_seed(0)
    value = function(*(given.get(i, a) for i, a in enumerate(arguments)))
    return value.detach(), *torch.autograd.grad(value, inputs, allow_unused=True)


@pytest.mark.parametrize("row", [row for row in OPERATORS if name_of(row) not in FIRST_ORDER])
def test_compiled_means_have_the_gradients_of_eager_ones(row):
    """Each argument in turn is the only one with a batch: a mean divides by the number that tracing believes in."""
    count, arguments_on = OPERATORS[row]

    def mean(*arguments):
        output = results(operator(row)(*arguments))
        return sum(result.mean() for result in (output[:1] if row in ONCE else output))

    torch._dynamo.reset()
    compiled = torch.compile(mean, fullgraph=True, backend="aot_eager", dynamic=False)
    for alone in range(count):
        arguments = arguments_on(*((3,) if k == alone else () for k in range(count)))
        found, expected = (value_and_gradients(f, arguments, floating(row, arguments)) for f in (compiled, mean))
        torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-13)


def test_a_compiled_log_prob_of_many_means_and_one_point_has_the_gradient_of_eager():
    topology = sg.Chain(4)
    lower = torch.tensor([1.0, 0.2, 1.5, 0.1, 1.0, 0.3, 2.0])
    q = GaussianGraphicalModel(torch.arange(12.0).reshape(3, 4), factor=lower, topology=topology)

    def mean(x):
        return q.log_prob(x).mean()

    mean(torch.ones(4))  # derives what the topology needs
    torch._dynamo.reset()
    compiled = torch.compile(mean, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(*(value_and_gradients(function, [torch.ones(4)], [0]) for function in (compiled, mean)))
    mapped = torch.func.vmap(q.log_prob)
    points = torch.linspace(-1.0, 1.0, 8).reshape(2, 4)
    found = torch.compile(mapped, fullgraph=True, backend="aot_eager")(points)
    torch.testing.assert_close(found, torch.stack([q.log_prob(point) for point in points]))
