"""Operators: the value of the NumPy verb, gradients of first and second order, the dispatcher's contract."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.autograd import forward_ad

import sparseggm as sg
from sparseggm import linalg
from sparseggm.torch import ops
from sparseggm.torch.operators import step as fused
from sparseggm.torch.operators.registration import key_of
from tests.torch.problems import CALLS, TOPOLOGIES, calls, factor, gradgradcheck, vectors

every_call = pytest.mark.parametrize(("topology", "name"), CALLS, ids=str)
every_topology = pytest.mark.parametrize("topology", TOPOLOGIES, ids=str)


@every_call
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_an_operator_has_the_value_of_its_verb(topology, name, dtype):
    call = calls(topology)[name]
    arguments = [argument.detach().to(dtype) for argument in call.arguments]
    found, expected = call.operator(*arguments), call.verb(*(argument.numpy() for argument in arguments))
    assert found.dtype == dtype
    # To the bit, but for the sum over n ≤ 9 terms that torch forms in an order of its own.
    np.testing.assert_array_max_ulp(found.numpy(), expected, maxulp=8 if name == "trace_inverse" else 0)


@every_call
def test_gradients_in_float32_are_those_of_float64_rounded(topology, name):
    """At the same numbers; the problems are well conditioned, some tens of operations deep."""
    call = calls(topology)[name]
    arguments = [argument.detach().float() for argument in call.arguments]

    def gradients(dtype):
        inputs = [argument.to(dtype).requires_grad_() for argument in arguments]
        return torch.autograd.grad(call.operator(*inputs).square().sum(), inputs)

    for single, double in zip(gradients(torch.float32), gradients(torch.float64), strict=True):
        assert single.dtype == torch.float32
        torch.testing.assert_close(single.double(), double, rtol=0, atol=100 * 2.0**-24 * double.abs().max().item())


@every_call
def test_gradients_agree_with_differences(topology, name):
    call = calls(topology)[name]
    assert torch.autograd.gradcheck(call.operator, call.arguments)


@every_call
def test_gradients_of_gradients_agree_with_differences(topology, name):
    call = calls(topology)[name]
    assert gradgradcheck(call.operator, call.arguments)


@pytest.mark.parametrize("name", calls(sg.ExtendedGrid(2, 3)))
def test_an_operator_keeps_the_contract_of_the_dispatcher(name):
    call = calls(sg.ExtendedGrid(2, 3))[name]
    qualified = {"gram": "gram_jvp", "trace_inverse": "marginal_variances"}.get(name, name.split(",")[0])
    overload = getattr(torch.ops.sparseggm, qualified).default
    recorded = _record(overload, call)
    torch.library.opcheck(overload, recorded)


def test_the_training_step_keeps_the_contract_of_the_dispatcher():
    pattern = sg.ExtendedGrid(2, 3).factor_pattern
    key, tensors = key_of(pattern, "test"), (vectors(6, 2), factor(pattern, 2), vectors(6, 3, 2, seed=1))
    torch.library.opcheck(torch.ops.sparseggm.sample_and_kl.default, (key, *tensors))
    plain = [tensor.detach() for tensor in tensors]
    z, kl = torch.ops.sparseggm.sample_and_kl(key, *plain)
    backward = torch.ops.sparseggm.sample_and_kl_vjp.default
    for needs_noise in (True, False):
        torch.library.opcheck(backward, (key, *plain, torch.ones_like(z), torch.ones_like(kl), needs_noise))


def _record(overload, call):
    """The arguments with which a call reaches the dispatcher."""
    recorded = []

    class Recorder(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if function is overload:
                recorded.append(args)
            return function(*args, **(kwargs or {}))

    with torch.no_grad(), Recorder():
        call.operator(*call.arguments)
    return tuple(
        argument.detach().clone().requires_grad_() if isinstance(argument, torch.Tensor) else argument
        for argument in recorded[0]
    )


@every_topology
@pytest.mark.parametrize("batches", [((2,), (2,), (2,)), ((2,), (1,), (3, 2)), ((), (), (4,)), ((2,), (), ())], ids=str)
def test_the_training_step_agrees_with_its_parts_and_with_differences(topology, batches):
    pattern, n = topology.factor_pattern, topology.n
    loc, lower = vectors(n, *batches[0]), factor(pattern, *batches[1])
    noise = vectors(n, *batches[2], seed=1)
    z, kl = fused.sample_and_kl(pattern, loc, lower, noise)
    assert torch.allclose(z, loc + ops.solve_t(pattern, lower, noise), rtol=1e-15)
    by_parts = 0.5 * (ops.trace_inverse(pattern, lower) + loc.square().sum(-1) - n + ops.logdet(pattern, lower))
    assert torch.allclose(kl, by_parts, rtol=1e-13, atol=1e-13)

    def step(*inputs):
        return fused.sample_and_kl(pattern, *inputs)

    assert torch.autograd.gradcheck(step, (loc, lower, noise))
    assert gradgradcheck(step, (loc, lower, noise))


def test_a_gradient_is_with_respect_to_stored_values():
    """d log det P / d P_ij = 2 Σ_ij off the diagonal, Σ_jj on it."""
    pattern = sg.Grid(3, 3).precision_pattern
    precision = torch.from_numpy(np.where(pattern.rows == pattern.cols, 5.0, -1.0)).requires_grad_()
    ops.logdet(pattern.filled(), ops.cholesky(pattern, precision)).backward()
    covariance = np.linalg.inv(pattern.to_dense(precision.detach().numpy(), symmetric=True))
    expected = covariance[pattern.rows, pattern.cols] * np.where(pattern.rows == pattern.cols, 1.0, 2.0)
    assert precision.grad.numpy() == pytest.approx(expected, rel=1e-13)


def test_a_tensor_elsewhere_is_refused_and_told_what_to_do():
    pattern = sg.Chain(4).factor_pattern

    class Elsewhere:  # no accelerator is needed to test a message
        device = torch.device("cuda:0")

    with pytest.raises(
        ValueError, match=r"solve_t: needs tensors on the CPU, got one on cuda:0\. Move it with \.cpu\(\)"
    ):
        ops.solve_t(pattern, factor(pattern), Elsewhere())


def test_errors_of_the_verbs_reach_the_caller():
    pattern = sg.Chain(4).factor_pattern
    lower = factor(pattern, 2).detach()
    lower[1, 3] = float("nan")
    with pytest.raises(
        sg.NonFiniteError, match=r"solve_t: factor must be finite, got nan at entry \(2, 1\), batch element \(1,\)"
    ):
        ops.solve_t(pattern, lower, torch.zeros(2, 4, dtype=torch.float64))


def test_a_factor_that_needs_no_gradient_gets_none():
    pattern = sg.Chain(4).factor_pattern
    rhs = vectors(4, 2)
    ops.solve_t(pattern, factor(pattern, 2).detach(), rhs).sum().backward()
    assert rhs.grad is not None


@every_call
def test_results_are_new_memory(topology, name):
    """Neither an alias of an argument, nor of one another."""
    call = calls(topology)[name]
    arguments = [argument.detach() for argument in call.arguments]
    before = [argument.clone() for argument in arguments]
    call.operator(*arguments).fill_(float("nan"))
    assert all(torch.equal(argument, copy) for argument, copy in zip(arguments, before, strict=True))


def test_the_results_of_several_are_new_memory():
    pattern = sg.Chain(4).factor_pattern
    tensors = [vectors(4, 2).detach(), factor(pattern, 2).detach(), vectors(4, 2, seed=1).detach()]
    key = key_of(pattern, "test")
    of_step = torch.ops.sparseggm.sample_and_kl(key, *tensors)
    z, kl = of_step
    of_vjp = torch.ops.sparseggm.sample_and_kl_vjp(key, *tensors, z, kl, True)
    couplings = torch.from_numpy(np.tile(pattern.rows != pattern.cols, (2, 1)).astype(np.float64))
    of_eigenpair = torch.ops.sparseggm.leading_eigenpair(key, couplings)
    memory = [tensor.untyped_storage().data_ptr() for tensor in (*tensors, *of_step, *of_vjp, *of_eigenpair)]
    assert len(set(memory)) == len(memory)


@every_topology
def test_a_pattern_restricted_to_itself_is_a_copy(topology):
    pattern = topology.factor_pattern
    lower = factor(pattern, 2).detach()
    for moved in (ops.restrict(pattern, pattern, lower), ops.extend(pattern, pattern, lower)):
        assert torch.equal(moved, lower)
        assert moved.data_ptr() != lower.data_ptr()


def test_the_selected_inverse_takes_a_larger_pattern():
    pattern = sg.Chain(4).factor_pattern
    on = sg.Band(4, 2).factor_pattern
    lower = factor(pattern, 2)
    sigma = ops.selected_inverse(pattern, lower, on)
    np.testing.assert_array_equal(sigma.detach(), linalg.selected_inverse(pattern, lower.detach().numpy(), on))
    assert torch.autograd.gradcheck(lambda values: ops.selected_inverse(pattern, values, on), lower)
    assert gradgradcheck(lambda values: ops.selected_inverse(pattern, values, on), lower)


@pytest.mark.parametrize("name", ["selected_inverse", "marginal_variances", "cholesky", "solve_t", "gram"])
def test_derivatives_of_third_order_agree_with_differences(name):
    call = calls(sg.ExtendedGrid(2, 2))[name]
    arguments = tuple(argument.detach().requires_grad_() for argument in call.arguments)

    def gradient(*inputs):
        return torch.autograd.grad(call.operator(*inputs).square().sum(), inputs, create_graph=True)

    assert gradgradcheck(gradient, arguments)


def test_a_pattern_lives_as_long_as_its_graph():
    pattern = sg.Pattern.from_edges(5, [(0, 4), (1, 3)])
    lower = factor(pattern)
    loss = ops.logdet(pattern, lower)
    del pattern
    loss.backward()
    assert lower.grad is not None


@pytest.mark.parametrize("name", ["solve_t", "logdet", "restrict"])
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")  # torch.func.jvp's own import
def test_forward_mode_is_refused_not_ignored(name):
    call = calls(sg.Chain(4))[name]
    arguments = tuple(argument.detach() for argument in call.arguments)
    tangents = tuple(map(torch.ones_like, arguments))
    with pytest.raises(NotImplementedError, match=rf"{name}: has no forward mode. Use reverse mode"):
        torch.func.jvp(call.operator, arguments, tangents)
    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match="has no forward mode"):
        call.operator(*map(forward_ad.make_dual, arguments, tangents))
