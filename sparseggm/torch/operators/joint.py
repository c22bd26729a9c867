"""A sample and KL to independent normals as two outputs of one autograd node.

    z = q.rsample()             makes the node: z, and memory for one KL of each batch element
    kl = kl_divergence(q, p)    writes KL into that memory and returns it as the node's second output
    loss.backward()             brings both cotangents to the node, where one kernel makes the gradients of both

Two nodes would read loc and L twice on the way back, and autograd would add two gradients of each. An output without a
cotangent costs nothing. Where the node cannot serve, KL has one of its own, that of `density`. As any node does, this
one forgets z, loc and L after a backward pass without `retain_graph`.
"""

from __future__ import annotations

from threading import get_ident
from typing import Any, NamedTuple

import torch
from torch import Tensor

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
            return z, Pending(kl, loc, factor, (_state_of(loc), _state_of(factor)), get_ident())
    return samples.sample(pattern, loc, factor, order, batch_shape), None


class Pending(NamedTuple):
    """The second output of the node of a sample, before KL is computed. It can be asked once."""

    kl: Tensor
    loc: Tensor
    factor: Tensor
    states: tuple[State, State]
    """Those of loc and factor when the sample was made."""
    thread: int
    """That made the sample. Of two threads with one Gaussian, each has its own backward pass."""

    def kl_to_normal(
        self, pattern: Pattern, loc: Tensor, factor: Tensor, order: Tensor | None, mean: Tensor, scale: Tensor
    ) -> Tensor | None:
        """`density.kl_to_normal`; None where it needs a node of its own.

        It does where the parameters or their place in the graph are others than at the sample, where a backward pass
        has been at the node, in another thread, where no gradients are wanted, or those of the prior are, and where
        values are not finite.
        """
        node: Any = self.kl.grad_fn
        if (
            self.thread != get_ident()
            or not torch.is_grad_enabled()
            or node.is_spent
            or mean.requires_grad
            or scale.requires_grad
        ):
            return None
        if loc is not self.loc or factor is not self.factor or (_state_of(loc), _state_of(factor)) != self.states:
            return None
        stride = stride_of(loc, mean, scale)
        if stride is None or not may_skip_dispatcher(mean, scale):
            return None
        if not run_at("kl_to_normal", pattern, order, (loc, factor, mean, scale), (self.kl,), stride):
            return None
        node.prior, node.stride = (mean.clone(), scale.clone()), stride  # whatever happens to p later
        return self.kl


def _state_of(tensor: Tensor) -> State:
    """Changes with the tensor's values, and with its place in the graph of autograd."""
    return tensor._version, tensor.requires_grad, tensor.grad_fn


class _SampleAndKL(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pattern: Pattern, loc: Tensor, factor: Tensor, order: Tensor | None) -> tuple[Tensor, Tensor]:
        z = samples.sample_at(pattern, loc, factor, order)
        ctx.pattern, ctx.prior, ctx.is_spent = pattern, None, False
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(loc, factor, order, z)
        return z, torch.empty(loc.shape[:-1], dtype=loc.dtype, device=loc.device)

    @staticmethod
    def backward(ctx: Any, z_bar: Tensor | None, kl_bar: Tensor | None) -> Any:
        ctx.is_spent = True
        if kl_bar is None and z_bar is not None:
            with checks.non_finite_passes():
                loc, factor, order, z = ctx.saved_tensors
                return None, *samples.bars(ctx.pattern, loc, factor, order, z, z_bar), None
        bars = None if z_bar is None or kl_bar is None else _bars_of_both(ctx, z_bar, kl_bar)
        return None, *(_bars_of_each(ctx, z_bar, kl_bar) if bars is None else bars), None


def _bars_of_both(ctx: Any, z_bar: Tensor, kl_bar: Tensor) -> tuple[Tensor, Tensor] | None:
    """The cotangents of loc and factor in one pass; None if they are to be differentiated, or are not finite."""
    if torch.is_grad_enabled() or not may_skip_dispatcher(z_bar, kl_bar):
        return None
    loc, factor, order, z = ctx.saved_tensors
    inputs, results = (loc, factor, *ctx.prior, z, z_bar.resolve_neg(), kl_bar.resolve_neg()), (new(loc), new(factor))
    is_finite = run_at("sample_and_kl_to_normal_vjp", ctx.pattern, order, inputs, results, ctx.stride)
    return results if is_finite else None


def _bars_of_each(ctx: Any, z_bar: Tensor | None, kl_bar: Tensor | None) -> list[Tensor | None]:
    """The cotangents of loc and factor, summed over the outputs that have one."""
    loc, factor, order, z = ctx.saved_tensors
    given = ctx.pattern, loc, factor, order
    with checks.non_finite_passes():
        of_sample = (None, None) if z_bar is None else samples.bars(*given, z, z_bar)
        of_kl = (None, None) if kl_bar is None else density.kl_to_normal.bars(*given, ctx.prior, kl_bar, False)[:2]
        return [a if b is None else b if a is None else a + b for a, b in zip(of_sample, of_kl, strict=True)]
