"""Many samples at once, and their distances from the mean, in memory for the samples and their gradients alone.

Samples, means and their cotangents are in the caller's numbering, factors in that of their pattern; `order` (n,) is
between them, None if the two agree. Sums over the nodes, and over the samples of one factor, are formed in float64.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparseggm import linalg
from sparseggm.errors import NonFiniteError
from sparseggm.gaussian import model
from sparseggm.graph.pattern import FloatArray, Pattern
from sparseggm.linalg import checks, sampling
from sparseggm.torch.operators import algebra
from sparseggm.torch.operators.addresses import new, run_at, takes_addresses
from sparseggm.torch.operators.blocks import accumulator, aligned, blocks, sum_in_float64
from sparseggm.torch.operators.registration import (
    Shape,
    array,
    batch_of,
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


def square_distance(pattern: Pattern, loc: Tensor, factor: Tensor, order: Tensor | None, x: Tensor) -> Tensor:
    """(x − loc)ᵀ P (x − loc) = ‖Lᵀ (x − loc)‖², in float64 whatever the dtype; batch axes broadcast."""
    key = key_of(pattern, "square_distance", loc, factor, x)
    return torch.ops.sparseggm.square_distance(key, loc, factor, order, x)  # type: ignore[no-any-return]


def square_norm(x: Tensor) -> Tensor:
    """‖x‖² over the last axis, in float64 whatever the dtype, without a copy of x."""
    return torch.ops.sparseggm.square_norm(x)  # type: ignore[no-any-return]


def reordered(x: Tensor, order: Tensor | None) -> Tensor:
    """x[..., order]."""
    return x if order is None else x.index_select(-1, order)


# ---------------------------------------------------------------------- samples


def _sample(pattern: Pattern, loc: Tensor, factor: Tensor, order: Tensor | None, batch_shape: Shape) -> Tensor:
    mean, z = array(loc), loc.new_empty((*batch_shape, pattern.n)).normal_()
    if z.shape == loc.shape and takes_addresses(pattern, loc, factor):
        if not run_at("sample", pattern, order, (loc, factor), (z,)):
            inputs = {"loc": (None, mean), "factor": (pattern, array(factor))}
            checks.raise_cause("sample", inputs)
        return z
    checks.require_finite("sample", "loc", None, mean)
    x = array(z)
    _reorder_in_place(x, order)
    linalg.solve_t(pattern, array(factor), x, out=x)
    _reorder_in_place(x, inverse_of(order))
    x += mean
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
    return None, *_sample_bars(ctx.pattern, loc, factor, order, z, z_bar), None, None


def _sample_bars(
    pattern: Pattern, loc: Tensor, factor: Tensor, order: Tensor | None, z: Tensor, z_bar: Tensor
) -> tuple[Tensor, Tensor]:
    if torch.is_grad_enabled():  # the gradient is to be differentiated: write it in verbs that can be
        noise_bar = algebra.solve(pattern, factor, reordered(z_bar, order))
        factor_bar = -algebra.outer(pattern, reordered(z - loc, order), noise_bar, factor.shape[:-1])
        return sum_to_shape(z_bar, loc), factor_bar
    if may_skip_dispatcher(loc, z_bar):
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
    mean, values, samples, bars = array(loc), array(factor), array(z), array(z_bar)
    full = samples.shape[:-1]
    loc_bar, factor_bar = accumulator(mean, full), accumulator(values, full)
    for block in blocks(full, pattern.n):
        own_mean, own = aligned(mean, block, z.ndim), aligned(values, block, z.ndim)
        noise_bar = linalg.solve(pattern, own, take(bars[block]))
        offset = take(samples[block] - own_mean)
        aligned(factor_bar, block, z.ndim)[...] -= linalg.outer(pattern, offset, noise_bar, own.shape[:-1])
        aligned(loc_bar, block, z.ndim)[...] += sum_in_float64(bars[block], own_mean.shape)
    return _as(loc_bar, loc), _as(factor_bar, factor)


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
    loc_bar, factor_bar = _sample_bars(ctx.pattern, torch.zeros_like(loc), factor, order, x, z_bar)
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


# ---------------------------------------------------------------------- distances


def _square_distance(key: str, loc: Tensor, factor: Tensor, order: Tensor | None, x: Tensor) -> Tensor:
    return torch.from_numpy(square_distances(pattern_of(key), array(loc), array(factor), order, array(x)))


def square_distances(
    pattern: Pattern, loc: FloatArray, factor: FloatArray, order: Tensor | None, x: FloatArray
) -> FloatArray:
    """`square_distance` of arrays."""
    take = taker(order)
    checks.check("square_distance", pattern, packed={"factor": factor}, value=x, loc=loc)
    shapes = {"value": x.shape[:-1], "loc": loc.shape[:-1], "factor": factor.shape[:-1]}
    full = checks.broadcast("square_distance", **shapes)
    square = np.empty(full)
    ndim = len(full) + 1
    try:
        with np.errstate(over="ignore"):  # infinity is for the verb to find
            for block in blocks(full, pattern.n):
                offset = take(aligned(x, block, ndim) - aligned(loc, block, ndim))
                white = linalg.matmul_t(pattern, aligned(factor, block, ndim), offset)
                square[block] = model.square_norm(white)
    except NonFiniteError:
        inputs = {"factor": (pattern, factor), "value": (None, x), "loc": (None, loc)}
        checks.raise_cause("square_distance", inputs, divides=False)
    return square


def _square_distance_setup(ctx: Any, inputs: tuple[str, Tensor, Tensor, Tensor | None, Tensor], output: Tensor) -> None:
    ctx.pattern = pattern_of(inputs[0])
    ctx.save_for_backward(*inputs[1:])


# s = ‖r‖², r = Lᵀ y, y = x − loc  ⇒  ȳ = 2 s̄ L r ,  L̄ = 2 s̄ y rᵀ on the pattern
def _square_distance_rule(ctx: Any, bar: Tensor) -> tuple[None, Tensor | None, Tensor | None, None, Tensor | None]:
    pattern, (loc, factor, order, x) = ctx.pattern, ctx.saved_tensors
    if torch.is_grad_enabled():  # the gradient is to be differentiated: write it in verbs that can be
        inverse = inverse_of(order)
        offset = reordered(x - loc, order)
        white_bar = algebra.matmul_t(pattern, factor, offset) * (2.0 * bar[..., None]).to(x.dtype)
        x_bar = reordered(algebra.matmul(pattern, factor, white_bar), inverse)
        factor_bar = algebra.outer(pattern, offset, white_bar, factor.shape[:-1])
        return None, -sum_to_shape(x_bar, loc), factor_bar, None, sum_to_shape(x_bar, x)
    needs_x = ctx.needs_input_grad[-1]
    key = key_of(pattern, "square_distance_vjp", loc)
    bars = torch.ops.sparseggm.square_distance_vjp(key, loc, factor, order, x, bar, needs_x)
    return None, bars[0], bars[1], None, bars[2] if needs_x else None


def _square_distance_vjp(
    key: str, loc: Tensor, factor: Tensor, order: Tensor | None, x: Tensor, bar: Tensor, needs_x: bool
) -> tuple[Tensor, Tensor, Tensor]:
    arrays = array(loc), array(factor), order, array(x), array(bar)
    loc_bar, factor_bar, x_bar = square_distances_vjp(pattern_of(key), *arrays, needs_x)
    return _as(loc_bar, loc), _as(factor_bar, factor), _as(x_bar, x)


def square_distances_vjp(
    pattern: Pattern,
    loc: FloatArray,
    factor: FloatArray,
    order: Tensor | None,
    x: FloatArray,
    bar: FloatArray,
    needs_x: bool = True,
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """The cotangents of loc, factor and x, in float64 where they are sums; no entries in that of x unless needed."""
    take, back, twice = taker(order), taker(inverse_of(order)), 2.0 * bar[..., None]
    full = twice.shape[:-1]
    loc_bar, factor_bar = accumulator(loc, full), accumulator(factor, full)
    x_bar = accumulator(x if needs_x else x[..., :0], full)
    for block in blocks(full, pattern.n):
        own_loc, own, own_x = (aligned(part, block, twice.ndim) for part in (loc, factor, x))
        offset = take(own_x - own_loc)
        white_bar = linalg.matmul_t(pattern, own, offset)
        white_bar *= twice[block]
        own_bar = back(linalg.matmul(pattern, own, white_bar))
        aligned(factor_bar, block, twice.ndim)[...] += linalg.outer(pattern, offset, white_bar, own.shape[:-1])
        aligned(loc_bar, block, twice.ndim)[...] -= sum_in_float64(own_bar, own_loc.shape)
        if needs_x:
            aligned(x_bar, block, twice.ndim)[...] += sum_in_float64(own_bar, own_x.shape)
    return loc_bar, factor_bar, x_bar


register(
    "square_distance(str key, Tensor loc, Tensor factor, Tensor? order, Tensor x) -> Tensor",
    {"CPU": _square_distance},
    lambda key, loc, factor, order, x: loc.new_empty(batch_of(x, loc, factor), dtype=torch.float64),
    _square_distance_setup,
    _square_distance_rule,
)
register(
    "square_distance_vjp(str key, Tensor loc, Tensor factor, Tensor? order, Tensor x, Tensor bar, bool needs_x)"
    " -> (Tensor, Tensor, Tensor)",
    {"CPU": _square_distance_vjp},
    lambda key, loc, factor, order, x, bar, needs_x: (
        loc.new_empty(loc.shape),
        factor.new_empty(factor.shape),
        x.new_empty(x.shape if needs_x else (*x.shape[:-1], 0)),
    ),
    loops=True,
)


def _square_norm_setup(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _square_norm_rule(ctx: Any, bar: Tensor) -> tuple[Tensor]:
    (x,) = ctx.saved_tensors
    return ((2.0 * bar[..., None]).to(x.dtype) * x,)


register(
    "square_norm(Tensor x) -> Tensor",
    {"CPU": lambda x: torch.from_numpy(np.asarray(model.square_norm(array(x))))},
    lambda x: x.new_empty(x.shape[:-1], dtype=torch.float64),
    _square_norm_setup,
    _square_norm_rule,
)


# ---------------------------------------------------------------------- small words


def inverse_of(order: Tensor | None) -> Tensor | None:
    """The permutation back."""
    return (
        None
        if order is None
        else torch.empty_like(order).index_copy(0, order, torch.arange(len(order), device=order.device))
    )


def taker(order: Tensor | None) -> Callable[[FloatArray], FloatArray]:
    """x ↦ x[..., order] for arrays."""
    return (lambda x: x) if order is None else (lambda x: np.take(x, array(order), axis=-1))


def _as(total: FloatArray, like: Tensor) -> Tensor:
    """A sum in the dtype of its tensor."""
    return torch.from_numpy(total).to(like.dtype)
