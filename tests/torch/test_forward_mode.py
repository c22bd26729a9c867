"""Operators have no forward mode: wherever a tangent reaches one, it is refused, and never lost without a word."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import forward_ad

from sparseggm import Chain
from tests.torch.operators import FIRST_ORDER, ONCE, floating, name_of, operator, operators

# torch's own import where forward mode is first used
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")

ROWS = operators(Chain(4).factor_pattern)
DIFFERENTIABLE = [row for row in ROWS if name_of(row) not in FIRST_ORDER]
REFUSED = "has no forward mode. Use reverse mode"


def problem(row):
    """An operator as a function of its floating arguments, and these."""
    count, arguments_on = ROWS[row]
    arguments = list(arguments_on(*[()] * count))
    places = floating(row, tuple(arguments))

    def call(*tensors):
        given = list(arguments)
        for place, tensor in zip(places, tensors, strict=True):
            given[place] = tensor
        output = operator(row)(*given)
        outputs = (output,) if isinstance(output, torch.Tensor) else output
        return outputs[:1] if row in ONCE else outputs

    return call, tuple(arguments[place] for place in places)


@pytest.mark.parametrize("row", ROWS)
def test_a_tangent_of_an_argument_is_refused(row):
    call, tensors = problem(row)
    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match=REFUSED):
        call(*(forward_ad.make_dual(tensor, torch.ones_like(tensor)) for tensor in tensors))


@pytest.mark.parametrize("row", DIFFERENTIABLE)
def test_forward_over_reverse_is_refused(row):
    call, tensors = problem(row)

    def total(*own):
        return sum(each.sum() for each in call(*own))

    gradient = torch.func.grad(total, tuple(range(len(tensors))))
    with pytest.raises(NotImplementedError, match=REFUSED):
        torch.func.jvp(gradient, tensors, tuple(map(torch.ones_like, tensors)))


@pytest.mark.parametrize("row", DIFFERENTIABLE)
def test_a_tangent_of_a_cotangent_is_refused_or_passed_on(row):
    call, tensors = problem(row)
    leaves = [tensor.clone().requires_grad_() for tensor in tensors]
    outputs = call(*leaves)
    ones = [torch.ones_like(each) for each in outputs]
    expected = torch.autograd.grad(outputs, leaves, ones, retain_graph=True)
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(each, each) for each in ones]
        try:
            found = torch.autograd.grad(outputs, leaves, duals)
        except NotImplementedError as refusal:
            if REFUSED not in str(refusal):
                raise
            return
        for gradient, linear in zip(found, expected, strict=True):
            assert torch.equal(forward_ad.unpack_dual(gradient).tangent, linear)
