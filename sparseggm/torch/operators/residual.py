"""A sample of the residual posterior and its KL to the prior, node by node, as one operator: see `linalg.residual`.

Composed of verbs the same takes some thirty operators, and at n = 16 each of them costs as much as its arithmetic.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sparseggm.gaussian.regression import moved
from sparseggm.graph.pattern import Pattern
from sparseggm.linalg import checks, residual
from sparseggm.linalg.conditionals import is_faster
from sparseggm.torch.operators import algebra
from sparseggm.torch.operators.addresses import in_one_batch, run_step_at, takes_two_factors, without_dispatcher
from sparseggm.torch.operators.blocks import sum_in_float64, to_tensor
from sparseggm.torch.operators.conditionals import finite, terms_in_verbs
from sparseggm.torch.operators.embedding import diagonal, on_diagonal
from sparseggm.torch.operators.registration import (
    batch_of,
    key_of,
    may_skip_dispatcher,
    pattern_of,
    register,
    sum_to_shape,
    vjp,
)


def sample_and_kl_terms(
    pattern: Pattern, loc: Tensor, factor: Tensor, shift: Tensor, moves: Tensor, noise: Tensor
) -> tuple[Tensor, Tensor]:
    """z = loc + M⁻ᵀ a + L⁻ᵀ ε, and the terms of KL(q ‖ p) in nats; see `linalg.residual.sample_and_kl_terms`.

    Args:
        pattern: of both factors, whose numbering all arguments follow.
        loc, factor, shift, moves, noise: ending in n, nnz, n, nnz and n; batch axes broadcast, by copies.
    Returns:
        z and the terms, (..., n) on the common batch axes.
    """
    tensors = loc, factor, shift, moves, noise
    key = key_of(pattern, "sample_and_kl_terms", *tensors)
    if not is_faster(pattern, math.prod(batch_of(factor, moves)), math.prod(batch_of(*tensors))):
        z, terms = _in_verbs(pattern, *tensors)
        return finite("sample_and_kl_terms", z), finite("sample_and_kl_terms", terms)
    if may_skip_dispatcher(*tensors):
        return _eager(pattern, *tensors)  # type: ignore[no-any-return]
    return torch.ops.sparseggm.sample_and_kl_terms(key, *tensors)  # type: ignore[no-any-return]


# ---------------------------------------------------------------------- values


def _run(pattern: Pattern, *tensors: Tensor) -> tuple[Tensor, Tensor]:
    loc, factor, shift, moves, noise = tensors
    if takes_two_factors(pattern, loc, factor, moves, shift, noise):
        given = [tensor.contiguous() for tensor in tensors]
        z, terms = torch.empty_like(given[0]), torch.empty_like(given[0])
        if run_step_at("sample_and_kl_terms", pattern, *given, z, terms):
            return z, terms
    z_and_terms = residual.sample_and_kl_terms(pattern, *in_one_batch(*tensors))
    return torch.from_numpy(z_and_terms[0]), torch.from_numpy(z_and_terms[1])


def _fake(key: str, *tensors: Tensor) -> tuple[Tensor, Tensor]:
    shape = (*batch_of(*tensors), pattern_of(key).n)
    return tensors[0].new_empty(shape), tensors[0].new_empty(shape)


# ---------------------------------------------------------------------- cotangents


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.pattern = pattern_of(inputs[0])
    ctx.save_for_backward(*inputs[1:])


def _rule(ctx: Any, z_bar: Tensor, terms_bar: Tensor) -> tuple[Any, ...]:
    pattern, tensors = ctx.pattern, ctx.saved_tensors
    if torch.is_grad_enabled():  # the gradient is to be differentiated: write it in verbs that can be
        with checks.non_finite_passes():
            return None, *vjp(partial(_in_verbs, pattern), tensors, (z_bar, terms_bar))
    loc, *others = tensors
    inputs, needs_noise = (*others, z_bar, terms_bar), ctx.needs_input_grad[-1]
    if may_skip_dispatcher(*inputs):
        bars = _bars(pattern, *inputs, needs_noise)
    else:
        key = key_of(pattern, "sample_and_kl_terms_vjp", loc)
        bars = torch.ops.sparseggm.sample_and_kl_terms_vjp(key, *inputs, needs_noise)
    return None, sum_to_shape(z_bar, loc), *bars[:3], bars[3] if needs_noise else None


_eager = without_dispatcher(_run, _rule)


def _in_verbs(
    pattern: Pattern, loc: Tensor, factor: Tensor, shift: Tensor, moves: Tensor, noise: Tensor
) -> tuple[Tensor, Tensor]:
    lower, delta = moved(pattern, factor, moves), diagonal(pattern, moves)
    z = loc + algebra.solve_t(pattern, factor, shift) + algebra.solve_t(pattern, lower, noise)
    change = moves - on_diagonal(pattern, delta)
    terms = terms_in_verbs(pattern, lower, diagonal(pattern, factor), shift, delta, change).to(z.dtype)
    return z, terms if terms.shape == z.shape else terms.expand(z.shape)


def _bars(pattern: Pattern, *arguments: Any) -> tuple[Any, ...]:
    """The cotangents of factor, shift, moves and noise, given these, z̄, t̄, and whether that of the noise is wanted."""
    factor, shift, moves, noise, z_bar, terms_bar, needs_noise = arguments
    inputs = [factor, shift, moves, noise, z_bar.resolve_neg(), terms_bar.resolve_neg()]
    if takes_two_factors(pattern, z_bar, factor, moves, shift, noise, terms_bar):
        given = [tensor.contiguous() for tensor in inputs]
        noise_bar = torch.empty_like(given[3]) if needs_noise else None
        bars = *(torch.empty_like(tensor) for tensor in given[:3]), noise_bar
        if run_step_at("sample_and_kl_terms_vjp", pattern, *given, *bars):
            return bars
    arrays = in_one_batch(*inputs)
    with checks.non_finite_passes():
        sums = residual.sample_and_kl_terms_vjp(pattern, *arrays, needs_noise)  # type: ignore[call-arg]
    pairs = zip(sums, inputs[:4], strict=True)
    return tuple(None if bar is None else to_tensor(sum_in_float64(bar, tuple(x.shape)), x) for bar, x in pairs)


def _run_vjp(key: str, *arguments: Any) -> tuple[Tensor, ...]:
    """An operator has no optional results: noise that is not wanted has no entries."""
    *bars, noise_bar = _bars(pattern_of(key), *arguments)
    noise = arguments[3]
    return *bars, noise.new_empty((*noise.shape[:-1], 0)) if noise_bar is None else noise_bar


def _fake_vjp(key: str, *arguments: Any) -> tuple[Tensor, ...]:
    *inputs, noise, _, _, needs_noise = arguments
    noise_bar = noise.new_empty(noise.shape if needs_noise else (*noise.shape[:-1], 0))
    return *(tensor.new_empty(tensor.shape) for tensor in inputs), noise_bar


register(
    "sample_and_kl_terms(str key, Tensor loc, Tensor factor, Tensor shift, Tensor moves, Tensor noise)"
    " -> (Tensor, Tensor)",
    {"CPU": lambda key, *tensors: _run(pattern_of(key), *tensors)},
    _fake,
    _setup,
    _rule,
)
register(
    "sample_and_kl_terms_vjp(str key, Tensor factor, Tensor shift, Tensor moves, Tensor noise, Tensor z_bar, "
    "Tensor terms_bar, bool needs_noise) -> (Tensor, Tensor, Tensor, Tensor)",
    {"CPU": _run_vjp},
    _fake_vjp,
    loops=True,
)
