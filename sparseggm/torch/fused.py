"""The training step of a variational autoencoder as one operator: a draw from q and KL(q ‖ N(0, I)).

At n = 16 a step costs as much as its number of operators, not its arithmetic; so the verbs run inside one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparseggm import adjoints, linalg
from sparseggm.gaussian import kl_to_standard_normal
from sparseggm.pattern import Pattern
from sparseggm.torch import ops
from sparseggm.torch.blocks import sum_to
from sparseggm.torch.registration import array, batch_of, differentiate, key_of, pattern_of, register


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
    z, kl, _ = torch.ops.sparseggm.sample_and_kl(key, loc, factor, noise)
    return z, kl


def _run(key: str, loc: Tensor, factor: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    pattern = pattern_of(key)
    offset = linalg.solve_t(pattern, array(factor), array(noise))
    kl = kl_to_standard_normal(pattern, array(loc), array(factor))
    z = array(loc) + offset
    return torch.from_numpy(z), torch.from_numpy(kl), torch.from_numpy(np.broadcast_to(offset, z.shape).copy())


def _fake(key: str, loc: Tensor, factor: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    shape = (*torch.broadcast_shapes(batch_of(loc, factor), noise.shape[:-1]), pattern_of(key).n)
    return loc.new_empty(shape), loc.new_empty(batch_of(loc, factor)), loc.new_empty(shape)


def _setup(ctx: Any, inputs: tuple[str, Tensor, Tensor, Tensor], output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.key = inputs[0]
    ctx.save_for_backward(*inputs[1:], output[2])


def _rule(ctx: Any, z_bar: Tensor, kl_bar: Tensor, offset_bar: Tensor) -> tuple[None, Tensor, Tensor, Tensor]:
    loc, factor, noise, offset = ctx.saved_tensors
    if torch.is_grad_enabled():  # the gradient is to be differentiated: write it in verbs that can be
        pattern = pattern_of(ctx.key)
        return None, *differentiate(lambda *inputs: _in_verbs(pattern, *inputs), (loc, factor, noise), (z_bar, kl_bar))
    return None, *torch.ops.sparseggm.sample_and_kl_vjp(ctx.key, loc, factor, noise, offset, z_bar, kl_bar)


def _in_verbs(pattern: Pattern, loc: Tensor, factor: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    kl = ops.trace_inverse(pattern, factor) + loc.square().sum(-1) - pattern.n + ops.logdet(pattern, factor)
    return loc + ops.solve_t(pattern, factor, noise), 0.5 * kl


# z = loc + x, Lᵀ x = ε  ⇒  ε̄ = L⁻¹ z̄ ,  L̄ = −x ε̄ᵀ ;   KL adds  k̄ loc to loc̄,  k̄ (½ ∂tr Σ/∂L + diag(1/L_jj)) to L̄
def _run_vjp(
    key: str, loc: Tensor, factor: Tensor, noise: Tensor, offset: Tensor, z_bar: Tensor, kl_bar: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    pattern, mean, values, bar = pattern_of(key), array(loc), array(factor), array(kl_bar)[..., None]
    noise_bar = linalg.solve(pattern, values, array(z_bar))
    factor_bar = linalg.outer(pattern, -array(offset), noise_bar, values.shape[:-1])
    shared_bar = sum_to(bar, (*values.shape[:-1], 1))
    variances_bar = np.broadcast_to(0.5 * shared_bar, (*values.shape[:-1], pattern.n)).astype(values.dtype)
    factor_bar += adjoints.marginal_variances_vjp(pattern, values, variances_bar)
    factor_bar[..., pattern.diagonal] += shared_bar / values[..., pattern.diagonal]
    loc_bar = sum_to(array(z_bar), mean.shape) + sum_to(bar * mean, mean.shape)
    return (
        torch.from_numpy(loc_bar.astype(mean.dtype, copy=False)),
        torch.from_numpy(factor_bar),
        torch.from_numpy(sum_to(noise_bar, tuple(noise.shape)).astype(mean.dtype)),
    )


def _fake_vjp(
    key: str, loc: Tensor, factor: Tensor, noise: Tensor, offset: Tensor, z_bar: Tensor, kl_bar: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return loc.new_empty(loc.shape), factor.new_empty(factor.shape), noise.new_empty(noise.shape)


register(
    "sample_and_kl(str key, Tensor loc, Tensor factor, Tensor noise) -> (Tensor, Tensor, Tensor)",
    _run,
    _fake,
    _setup,
    _rule,
)
register(
    "sample_and_kl_vjp(str key, Tensor loc, Tensor factor, Tensor noise, Tensor offset, Tensor z_bar, Tensor kl_bar)"
    " -> (Tensor, Tensor, Tensor)",
    _run_vjp,
    _fake_vjp,
)
