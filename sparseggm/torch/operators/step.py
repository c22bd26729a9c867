"""The training step of a variational autoencoder as one operator: a sample from q and KL(q ‖ N(0, I)).

At n = 16 a step costs as much as its number of operators, not its arithmetic; so the verbs run inside one.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparseggm import linalg
from sparseggm.gaussian.model import kl_to_standard_normal
from sparseggm.graph.pattern import FloatArray, Pattern
from sparseggm.linalg import calculus, checks, step
from sparseggm.linalg.engines import engine_of
from sparseggm.linalg.primitives import Step
from sparseggm.torch.operators import algebra, second_moments
from sparseggm.torch.operators.addresses import FEW, LIKE, takes_addresses
from sparseggm.torch.operators.blocks import add_logdet_vjp, sum_in_float64
from sparseggm.torch.operators.registration import (
    array,
    batch_of,
    key_of,
    may_skip_dispatcher,
    pattern_of,
    register,
    vjp,
)


def sample_and_kl(pattern: Pattern, loc: Tensor, factor: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """z = loc + L⁻ᵀ ε, and KL(N(loc, P⁻¹) ‖ N(0, I)) = ½ [tr Σ + |loc|² − n + log det P] in nats.

    Args:
        pattern: of L, whose numbering all arguments follow.
        loc, factor: (..., n) and (..., nnz).
        noise: (..., n) ε, whose batch axes may lead those of loc and factor.
    Returns:
        z, on the common batch axes; KL on those of loc and factor.
    """
    key = key_of(pattern, "sample_and_kl", loc, factor, noise)
    if may_skip_dispatcher(loc, factor, noise):
        return _EagerStep.apply(pattern, loc, factor, noise)  # type: ignore[no-any-return]
    return torch.ops.sparseggm.sample_and_kl(key, loc, factor, noise)  # type: ignore[no-any-return]


def _step(
    pattern: Pattern, loc: Tensor, factor: Tensor, noise: Tensor, seam_states: list[FloatArray] | None = None
) -> tuple[Tensor, Tensor]:
    if loc.numel() <= FEW and takes_addresses(pattern, loc, factor, noise):
        loc, factor, noise = loc.contiguous(), factor.contiguous(), noise.contiguous()
        z, kl = torch.empty_like(loc), loc.new_empty(loc.shape[:-1])
        addresses = [tensor.data_ptr() for tensor in (loc, factor, noise, z, kl)]
        task = Step(LIKE[loc.dtype], kl.numel(), addresses, seam_states)
        if 0 not in addresses and not engine_of(pattern, task).sample_and_kl(pattern, task):
            return z, kl
    arrays = array(loc), array(factor), array(noise)
    of_arrays = (
        step.sample_and_kl(pattern, *arrays, seam_states) if _have_one_shape(*arrays) else _by_verbs(pattern, *arrays)
    )
    return torch.from_numpy(of_arrays[0]), torch.from_numpy(of_arrays[1])


def _have_one_shape(loc: FloatArray, factor: FloatArray, noise: FloatArray) -> bool:
    """Whether nothing is shared, so that the kernels of a step apply."""
    return loc.shape == noise.shape and loc.shape[:-1] == factor.shape[:-1]


def _by_verbs(
    pattern: Pattern, loc: FloatArray, factor: FloatArray, noise: FloatArray
) -> tuple[FloatArray, FloatArray]:
    return loc + linalg.solve_t(pattern, factor, noise), kl_to_standard_normal(pattern, loc, factor)


def _fake(key: str, loc: Tensor, factor: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    batch = batch_of(loc, factor)
    return loc.new_empty((*torch.broadcast_shapes(batch, noise.shape[:-1]), pattern_of(key).n)), loc.new_empty(batch)


def _setup(ctx: Any, inputs: tuple[str, Tensor, Tensor, Tensor], output: tuple[Tensor, Tensor]) -> None:
    ctx.pattern, ctx.seam_states = pattern_of(inputs[0]), None
    ctx.save_for_backward(*inputs[1:])


def _rule(ctx: Any, z_bar: Tensor, kl_bar: Tensor) -> tuple[None, Tensor, Tensor, Tensor | None]:
    pattern, (loc, factor, noise) = ctx.pattern, ctx.saved_tensors
    if torch.is_grad_enabled():  # the gradient is to be differentiated: write it in verbs that can be
        with checks.non_finite_passes():
            by_verbs = partial(_in_verbs, pattern)
            return None, *vjp(by_verbs, (loc, factor, noise), (z_bar, kl_bar))
    inputs = loc, factor, noise, z_bar, kl_bar, ctx.needs_input_grad[-1]
    if may_skip_dispatcher(loc, z_bar, kl_bar):
        return None, *_bars(pattern, *inputs, ctx.seam_states)
    key = key_of(pattern, "sample_and_kl_vjp", loc)
    loc_bar, factor_bar, noise_bar = torch.ops.sparseggm.sample_and_kl_vjp(key, *inputs)
    return None, loc_bar, factor_bar, noise_bar if ctx.needs_input_grad[-1] else None


class _EagerStep(torch.autograd.Function):
    """The operator without the dispatcher, whose layers cost as much as the arithmetic of a small step."""

    @staticmethod
    def forward(ctx: Any, pattern: Pattern, loc: Tensor, factor: Tensor, noise: Tensor) -> Any:
        ctx.pattern, ctx.seam_states = pattern, []
        ctx.save_for_backward(loc, factor, noise)
        return _step(pattern, loc, factor, noise, ctx.seam_states)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Any:
        return _rule(ctx, *cotangents)


def _in_verbs(pattern: Pattern, loc: Tensor, factor: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    kl = (
        second_moments.trace_inverse(pattern, factor)
        + loc.square().sum(-1)
        - pattern.n
        + algebra.logdet(pattern, factor)
    )
    return loc + algebra.solve_t(pattern, factor, noise), 0.5 * kl


def _bars(
    pattern: Pattern,
    loc: Tensor,
    factor: Tensor,
    noise: Tensor,
    z_bar: Tensor,
    kl_bar: Tensor,
    needs_noise: bool,
    seam_states: list[FloatArray] | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    z_bar, kl_bar = z_bar.resolve_neg(), kl_bar.resolve_neg()
    if (
        loc.numel() <= FEW
        and takes_addresses(pattern, loc, factor, noise, z_bar)
        and kl_bar.shape == loc.shape[:-1]
        and kl_bar.dtype is loc.dtype
    ):
        inputs = [tensor.contiguous() for tensor in (loc, factor, noise, z_bar, kl_bar)]
        bars = (
            torch.empty_like(inputs[0]),
            torch.empty_like(inputs[1]),
            torch.empty_like(inputs[2]) if needs_noise else None,
        )
        results = bars if needs_noise else bars[:2]
        addresses = [tensor.data_ptr() for tensor in (*inputs, *results)]
        unwanted = [] if needs_noise else [0]
        task = Step(LIKE[loc.dtype], kl_bar.numel(), [*addresses, *unwanted], seam_states)
        if 0 not in addresses and not engine_of(pattern, task).sample_and_kl_vjp(pattern, task):
            return bars
    arrays = array(loc), array(factor), array(noise), array(z_bar), array(kl_bar)
    with checks.non_finite_passes():
        if _have_one_shape(*arrays[:3]):
            loc_bar, factor_bar, noise_bar = step.sample_and_kl_vjp(pattern, *arrays, needs_noise, seam_states)
        else:
            loc_bar, factor_bar, noise_bar = _vjp_by_verbs(pattern, *arrays, needs_noise)
    given = None if noise_bar is None else torch.from_numpy(noise_bar)
    return torch.from_numpy(loc_bar), torch.from_numpy(factor_bar), given


def _run_vjp(
    key: str, loc: Tensor, factor: Tensor, noise: Tensor, z_bar: Tensor, kl_bar: Tensor, needs_noise: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """An operator has no optional results: noise that is not wanted has no entries."""
    loc_bar, factor_bar, noise_bar = _bars(pattern_of(key), loc, factor, noise, z_bar, kl_bar, needs_noise)
    return loc_bar, factor_bar, noise.new_empty((*noise.shape[:-1], 0)) if noise_bar is None else noise_bar


# z = loc + y, Lᵀ y = ε  ⇒  ε̄ = L⁻¹ z̄ ,  L̄ = −y ε̄ᵀ ;   KL adds  k̄ loc to loc̄,  k̄ (½ ∂tr Σ/∂L + diag(1/L_jj)) to L̄
def _vjp_by_verbs(
    pattern: Pattern,
    loc: FloatArray,
    factor: FloatArray,
    noise: FloatArray,
    z_bar: FloatArray,
    kl_bar: FloatArray,
    needs_noise: bool,
) -> tuple[FloatArray, FloatArray, FloatArray | None]:
    bar, batch = kl_bar[..., None], factor.shape[:-1]
    noise_bar = linalg.solve(pattern, factor, z_bar)
    factor_bar = linalg.outer(pattern, -linalg.solve_t(pattern, factor, noise), noise_bar, batch)
    shared_bar = sum_in_float64(bar, (*batch, 1))
    variances_bar = np.broadcast_to(0.5 * shared_bar, (*batch, pattern.n)).astype(factor.dtype)
    factor_bar += calculus.marginal_variances_vjp(pattern, factor, variances_bar)
    add_logdet_vjp(factor_bar, pattern, factor, kl_bar)
    loc_bar = (sum_in_float64(z_bar, loc.shape) + sum_in_float64(bar * loc, loc.shape)).astype(loc.dtype, copy=False)
    return loc_bar, factor_bar, sum_in_float64(noise_bar, noise.shape).astype(noise.dtype) if needs_noise else None


def _fake_vjp(
    key: str, loc: Tensor, factor: Tensor, noise: Tensor, z_bar: Tensor, kl_bar: Tensor, needs_noise: bool
) -> tuple[Tensor, Tensor, Tensor]:
    noise_bar = noise.new_empty(noise.shape if needs_noise else (*noise.shape[:-1], 0))
    return loc.new_empty(loc.shape), factor.new_empty(factor.shape), noise_bar


register(
    "sample_and_kl(str key, Tensor loc, Tensor factor, Tensor noise) -> (Tensor, Tensor)",
    {"CPU": lambda key, loc, factor, noise: _step(pattern_of(key), loc, factor, noise)},
    _fake,
    _setup,
    _rule,
)
register(
    "sample_and_kl_vjp(str key, Tensor loc, Tensor factor, Tensor noise, Tensor z_bar, Tensor kl_bar, bool needs_noise)"
    " -> (Tensor, Tensor, Tensor)",
    {"CPU": _run_vjp},
    _fake_vjp,
    loops=True,
)
