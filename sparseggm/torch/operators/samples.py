"""Many samples at once, and their distances from the mean, in memory for the samples and their gradients alone.

Samples, means and their cotangents are in the caller's numbering, factors in that of their pattern; `order` (n,) is
between them, None if the two agree. Sums over the nodes, and over the samples of one factor, are formed in float64.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparseggm import linalg
from sparseggm.graph.pattern import FloatArray, Pattern
from sparseggm.linalg import checks, sampling
from sparseggm.torch.operators import algebra
from sparseggm.torch.operators.addresses import new, run_at, takes_addresses
from sparseggm.torch.operators.blocks import accumulator, aligned, blocks, sum_in_float64, to_tensor
from sparseggm.torch.operators.numbering import inverse_of, reordered, taker
from sparseggm.torch.operators.registration import (
    Shape,
    array,
    key_of,
    may_skip_dispatcher,
    pattern_of,
    register,
    sum_to_shape,
)


def sample(pattern: Pattern, loc: Tensor, factor: Tensor, order: Tensor | None, batch_shape: Shape) -> Tensor:
    """z = loc + L⁻ᵀ ε, (batch_shape, n), with ε what `torch.randn` of that shape would give: drawn in the place of z.

    Args:
        loc, factor: (..., n) and (..., nnz), whose batch axes broadcast to `batch_shape`.
    The backward pass keeps z and not ε: it takes z − loc for L⁻ᵀ ε, which is as exact as z itself.
    """
    if may_skip_dispatcher(loc, factor):
        checks.require_pattern("sample", pattern)
        return _EagerSample.apply(pattern, loc, factor, order, batch_shape)  # type: ignore[no-any-return]
    key = key_of(pattern, "sample", loc, factor)
    return torch.ops.sparseggm.sample(key, loc, factor, order, batch_shape)  # type: ignore[no-any-return]


def sample_and_log_prob(
    pattern: Pattern, loc: Tensor, factor: Tensor, order: Tensor | None, at_mean: Tensor, noise: Tensor
) -> tuple[Tensor, Tensor]:
    """z = loc + L⁻ᵀ ε and log q(z) = at_mean − ½ ‖ε‖², at_mean (...) = log q(loc) in float64; batch axes broadcast."""
    key = key_of(pattern, "sample_and_log_prob", loc, factor, noise)
    operator = torch.ops.sparseggm.sample_and_log_prob
    return operator(key, loc, factor, order, at_mean.unsqueeze(-1), noise)  # type: ignore[no-any-return]


# ---------------------------------------------------------------------- samples


def _sample(pattern: Pattern, loc: Tensor, factor: Tensor, order: Tensor | None, batch_shape: Shape) -> Tensor:
    if loc.shape[:-1] == batch_shape and takes_addresses(pattern, loc, factor):
        return sample_at(pattern, loc, factor, order)
    mean, z = array(loc), loc.new_empty((*batch_shape, pattern.n)).normal_()
    checks.require_finite("sample", "loc", None, mean)
    x = array(z)
    _reorder_in_place(x, order)
    linalg.solve_t(pattern, array(factor), x, out=x)
    _reorder_in_place(x, inverse_of(order))
    x += mean
    return z


def sample_at(pattern: Pattern, loc: Tensor, factor: Tensor, order: Tensor | None) -> Tensor:
    """One sample of each Gaussian, of tensors that `takes_addresses` accepts."""
    z = torch.randn_like(loc, memory_format=torch.contiguous_format)
    if not run_at("sample", pattern, order, (loc, factor), (z,)):
        checks.raise_cause("sample", {"loc": (None, array(loc)), "factor": (pattern, array(factor))})
    return z


def _reorder_in_place(x: FloatArray, order: Tensor | None) -> None:
    if order is not None:
        for block in blocks(x.shape[:-1], x.shape[-1]):
            x[block] = np.take(x[block], array(order), axis=-1)


def _sample_setup(ctx: Any, inputs: tuple[str, Tensor, Tensor, Tensor | None, Shape], output: Tensor) -> None:
    ctx.pattern = pattern_of(inputs[0])
    ctx.save_for_backward(*inputs[1:4], output)


class _EagerSample(torch.autograd.Function):
    """The operator without the dispatcher, whose layers cost as much as the arithmetic of few numbers."""

    @staticmethod
    def forward(ctx: Any, pattern: Pattern, loc: Tensor, factor: Tensor, order: Tensor | None, shape: Shape) -> Tensor:
        z = _sample(pattern, loc, factor, order, shape)
        ctx.pattern = pattern
        ctx.save_for_backward(loc, factor, order, z)
        return z

    @staticmethod
    def backward(ctx: Any, z_bar: Tensor) -> Any:
        with checks.non_finite_passes():
            return _sample_rule(ctx, z_bar)


# z = loc + x, Lᵀ x = ε  ⇒  L̄ = −x (L⁻¹ z̄)ᵀ on the pattern, x = z − loc
def _sample_rule(ctx: Any, z_bar: Tensor) -> tuple[None, Tensor, Tensor, None, None]:
    loc, factor, order, z = ctx.saved_tensors
    return None, *bars(ctx.pattern, loc, factor, order, z, z_bar), None, None


def bars(
    pattern: Pattern, loc: Tensor, factor: Tensor, order: Tensor | None, z: Tensor, z_bar: Tensor
) -> tuple[Tensor, Tensor]:
    if torch.is_grad_enabled():  # the gradient is to be differentiated: write it in verbs that can be
        noise_bar = algebra.solve(pattern, factor, reordered(z_bar, order))
        factor_bar = -algebra.outer(pattern, reordered(z - loc, order), noise_bar, factor.shape[:-1])
        return sum_to_shape(z_bar, loc), factor_bar
    if may_skip_dispatcher(loc, z_bar):
        z_bar = z_bar.resolve_neg()
        if takes_addresses(pattern, loc, factor, z, z_bar):
            factor_bar = new(factor)
            if run_at("sample_vjp", pattern, order, (loc, factor, z, z_bar), (factor_bar,)):
                return z_bar, factor_bar
        with checks.non_finite_passes():
            return _sample_vjp(pattern, loc, factor, order, z, z_bar)
    key = key_of(pattern, "sample_vjp", loc)
    return torch.ops.sparseggm.sample_vjp(key, loc, factor, order, z, z_bar)  # type: ignore[no-any-return]


def _sample_vjp(
    pattern: Pattern, loc: Tensor, factor: Tensor, order: Tensor | None, z: Tensor, z_bar: Tensor
) -> tuple[Tensor, Tensor]:
    take = taker(order)
    mean, values, samples, z_bars = array(loc), array(factor), array(z), array(z_bar)
    full = samples.shape[:-1]
    loc_bar, factor_bar = accumulator(mean, full), accumulator(values, full)
    for block in blocks(full, pattern.n):
        own_mean, own = aligned(mean, block, z.ndim), aligned(values, block, z.ndim)
        noise_bar = linalg.solve(pattern, own, take(z_bars[block]))
        offset = take(samples[block] - own_mean)
        aligned(factor_bar, block, z.ndim)[...] -= linalg.outer(pattern, offset, noise_bar, own.shape[:-1])
        aligned(loc_bar, block, z.ndim)[...] += sum_in_float64(z_bars[block], own_mean.shape)
    return to_tensor(loc_bar, loc), to_tensor(factor_bar, factor)


register(
    "sample(str key, Tensor loc, Tensor factor, Tensor? order, SymInt[] batch_shape) -> Tensor",
    {"CPU": lambda key, *rest: _sample(pattern_of(key), *rest)},
    lambda key, loc, factor, order, batch_shape: loc.new_empty((*batch_shape, pattern_of(key).n)),
    _sample_setup,
    _sample_rule,
    tags=(torch.Tag.nondeterministic_seeded,),
)
register(
    "sample_vjp(str key, Tensor loc, Tensor factor, Tensor? order, Tensor z, Tensor z_bar) -> (Tensor, Tensor)",
    {"CPU": lambda key, *rest: _sample_vjp(pattern_of(key), *rest)},
    lambda key, loc, factor, order, z, z_bar: (loc.new_empty(loc.shape), factor.new_empty(factor.shape)),
    loops=True,
)


# ---------------------------------------------------------------------- samples with their densities


def _sample_and_log_prob(
    key: str, loc: Tensor, factor: Tensor, order: Tensor | None, at_mean: Tensor, noise: Tensor
) -> tuple[Tensor, Tensor]:
    nodes = None if order is None else array(order)
    arrays = (array(tensor) for tensor in (loc, factor, at_mean.squeeze(-1), noise))
    with np.errstate(over="ignore"):  # the border tests log q(z)
        z, log_prob = sampling.sample_and_log_prob(pattern_of(key), nodes, *arrays)
    return torch.from_numpy(z), torch.from_numpy(log_prob)


def _sample_and_log_prob_fake(
    key: str, loc: Tensor, factor: Tensor, order: Tensor | None, at_mean: Tensor, noise: Tensor
) -> tuple[Tensor, Tensor]:
    batch = torch.broadcast_shapes(*(tensor.shape[:-1] for tensor in (loc, factor, at_mean, noise)))
    return noise.new_empty((*batch, pattern_of(key).n)), noise.new_empty(batch)


def _sample_and_log_prob_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.pattern = pattern_of(inputs[0])
    ctx.save_for_backward(*inputs[1:])


# As for a sample; but ε is at hand, so that x = L⁻ᵀ ε itself is, and  ε̄ = L⁻¹ z̄ − ε l̄  for  l = at_mean − ½ ‖ε‖²
def _sample_and_log_prob_rule(
    ctx: Any, z_bar: Tensor, bar: Tensor
) -> tuple[None, Tensor, Tensor, None, Tensor, Tensor | None]:
    loc, factor, order, at_mean, noise = ctx.saved_tensors
    pattern, inverse, noise_bar = ctx.pattern, inverse_of(order), None
    x = reordered(algebra.solve_t(pattern, factor, reordered(noise, order)), inverse)
    x = x.expand_as(z_bar)  # loc alone may have some of the batch axes
    loc_bar, factor_bar = bars(ctx.pattern, torch.zeros_like(loc), factor, order, x, z_bar)
    if ctx.needs_input_grad[-1]:
        whitened = reordered(algebra.solve(pattern, factor, reordered(z_bar, order)), inverse)
        noise_bar = sum_to_shape(whitened - noise * bar.unsqueeze(-1), noise)
    return None, loc_bar, factor_bar, None, sum_to_shape(bar.unsqueeze(-1).double(), at_mean), noise_bar


register(
    "sample_and_log_prob(str key, Tensor loc, Tensor factor, Tensor? order, Tensor at_mean, Tensor noise)"
    " -> (Tensor, Tensor)",
    {"CPU": _sample_and_log_prob},
    _sample_and_log_prob_fake,
    _sample_and_log_prob_setup,
    _sample_and_log_prob_rule,
)
