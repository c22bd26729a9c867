"""A sample and KL to independent normals as two outputs of one autograd node.

    z = q.rsample()             makes the node: z, and memory for one KL of each batch element
    kl = kl_divergence(q, p)    writes KL into that memory and returns it as the node's second output
    loss.backward()             brings both cotangents to the node, where one kernel makes the gradients of both

Two nodes would read loc and L twice on the way back, and autograd would add two gradients of each. A cotangent that is
missing costs nothing. Nodes, densities and samples of other modules serve wherever `Pending.kl_to_normal` returns None.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from sparseggm.graph.pattern import Pattern
from sparseggm.linalg import checks
from sparseggm.torch.operators import density, samples
from sparseggm.torch.operators.addresses import new, run_at, stride_of, takes_addresses
from sparseggm.torch.operators.registration import Shape, may_skip_dispatcher

State = tuple[int, bool, Any]


def sample(
    pattern: Pattern, loc: Tensor, factor: Tensor, order: Tensor | None, batch_shape: Shape
) -> tuple[Tensor, Pending | None]:
    """`samples.sample`, and the output for a KL: for one sample of each Gaussian, if gradients are wanted."""
    is_one_each = loc.shape[:-1] == batch_shape and torch.is_grad_enabled()
    if is_one_each and (loc.requires_grad or factor.requires_grad) and may_skip_dispatcher(loc, factor):
        checks.require_pattern("sample", pattern)
        if takes_addresses(pattern, loc, factor):
            z, kl = _SampleAndKL.apply(pattern, loc, factor, order)
            return z, Pending(kl, loc, factor, (_state_of(loc), _state_of(factor)))
    return samples.sample(pattern, loc, factor, order, batch_shape), None


@dataclass(frozen=True, eq=False)
class Pending:
    """The second output of the node of a sample, before KL is computed. It can be asked once."""

    kl: Tensor
    loc: Tensor
    factor: Tensor
    states: tuple[State, State]
    """Those of loc and factor when the sample was made."""

    def kl_to_normal(
        self, pattern: Pattern, loc: Tensor, factor: Tensor, order: Tensor | None, mean: Tensor, scale: Tensor
    ) -> Tensor | None:
        """`density.kl_to_normal`; None where it needs a node of its own.

        It does where the parameters or their place in the graph are others than at the sample, where a backward pass
        has been at the node, where no gradients are wanted, or those of the prior are, and where values are not finite.
        """
        node: Any = self.kl.grad_fn
        if not torch.is_grad_enabled() or node.is_spent or mean.requires_grad or scale.requires_grad:
            return None
        if loc is not self.loc or factor is not self.factor or (_state_of(loc), _state_of(factor)) != self.states:
            return None
        stride = stride_of(loc, mean, scale)
        if stride is None or not may_skip_dispatcher(loc, factor, mean, scale) or _has_tangent(mean, scale):
            return None
        if not run_at("kl_to_normal", pattern, order, (loc, factor, mean, scale), (self.kl,), stride):
            return None
        node.prior = mean.clone(), scale.clone()  # what happens to p later does not change KL
        return self.kl


def _state_of(tensor: Tensor) -> State:
    """Changes with the tensor's values, and with its place in the graph of autograd."""
    return tensor._version, tensor.requires_grad, tensor.grad_fn


def _has_tangent(*tensors: Tensor) -> bool:
    return any(forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors)


class _SampleAndKL(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pattern: Pattern, loc: Tensor, factor: Tensor, order: Tensor | None) -> tuple[Tensor, Tensor]:
        z = samples.sample_at(pattern, loc, factor, order)
        ctx.pattern, ctx.prior, ctx.is_spent = pattern, None, False
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(loc, factor, order, z)
        return z, loc.new_empty(loc.shape[:-1])

    @staticmethod
    def backward(ctx: Any, z_bar: Tensor | None, kl_bar: Tensor | None) -> Any:
        ctx.is_spent = True
        with checks.non_finite_passes():
            return None, *_bars(ctx.pattern, *ctx.saved_tensors, ctx.prior, z_bar, kl_bar), None


def _bars(
    pattern: Pattern,
    loc: Tensor,
    factor: Tensor,
    order: Tensor | None,
    z: Tensor,
    prior: tuple[Tensor, Tensor],
    z_bar: Tensor | None,
    kl_bar: Tensor | None,
) -> tuple[Tensor | None, Tensor | None]:
    """The cotangents of loc and factor."""
    of_sample, of_kl = (None, None), (None, None)
    if z_bar is not None and kl_bar is not None:
        joint = _joint_bars(pattern, loc, factor, order, z, prior, z_bar, kl_bar)
        if joint is not None:
            return joint
    if z_bar is not None:
        of_sample = samples.bars(pattern, loc, factor, order, z, z_bar)
    if kl_bar is not None:
        of_kl = density.kl_to_normal.bars(pattern, loc, factor, order, prior, kl_bar, False)[:2]
    return _sum(of_sample[0], of_kl[0]), _sum(of_sample[1], of_kl[1])


def _joint_bars(
    pattern: Pattern,
    loc: Tensor,
    factor: Tensor,
    order: Tensor | None,
    z: Tensor,
    prior: tuple[Tensor, Tensor],
    z_bar: Tensor,
    kl_bar: Tensor,
) -> tuple[Tensor, Tensor] | None:
    """Both in one pass; None if the gradient is itself to be differentiated, or is not finite."""
    stride = stride_of(loc, *prior)
    if torch.is_grad_enabled() or stride is None or not may_skip_dispatcher(loc, z_bar, kl_bar):
        return None
    if kl_bar.is_neg() or not takes_addresses(pattern, loc, factor, z, z_bar):
        return None
    results = new(loc), new(factor)
    inputs = loc, factor, *prior, z, z_bar, kl_bar
    return results if run_at("sample_and_kl_to_normal_vjp", pattern, order, inputs, results, stride) else None


def _sum(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return a if b is None else b if a is None else a + b
