"""KL between Gaussians whose factors are on one pattern, node by node, as one operator: see `linalg.conditionals`."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparseggm.gaussian.regression import is_one_pass, scale_divergence
from sparseggm.graph.pattern import Pattern
from sparseggm.linalg import checks, conditionals
from sparseggm.positivity.namespace import take
from sparseggm.torch.operators import algebra, second_moments
from sparseggm.torch.operators.addresses import in_one_batch, run_step_at, takes_two_factors, without_dispatcher
from sparseggm.torch.operators.blocks import sum_in_float64, to_tensor
from sparseggm.torch.operators.embedding import diagonal, restrict
from sparseggm.torch.operators.registration import (
    array,
    batch_of,
    have_values,
    key_of,
    may_skip_dispatcher,
    pattern_of,
    register,
    vjp,
)


def kl_terms(pattern: Pattern, d: Tensor, factor: Tensor, prior: Tensor) -> Tensor:
    """The terms of KL(q ‖ p) in nats, d = loc_q − loc_p; see `linalg.conditionals.kl_terms`.

    Args:
        pattern: of both factors, whose numbering all arguments follow.
        d, factor, prior: ending in n, nnz and nnz; batch axes broadcast, by copies.
    Returns:
        (..., n) on the common batch axes.
    """
    key = key_of(pattern, "kl_terms", d, factor, prior)
    if not is_one_pass(pattern, d, factor, prior):
        return finite("kl_terms", _in_verbs(pattern, d, factor, prior))
    if may_skip_dispatcher(d, factor, prior):
        return _eager(pattern, d, factor, prior)  # type: ignore[no-any-return]
    return torch.ops.sparseggm.kl_terms(key, d, factor, prior)  # type: ignore[no-any-return]


def finite(verb: str, result: Tensor) -> Tensor:
    """What verbs gave. Raises where it is beyond its dtype, as a kernel does, if values can be read."""
    if have_values(result) and not checks.lets_non_finite_pass() and not np.isfinite(array(result)).all():
        raise checks.overflow(verb, result.dtype)
    return result


def terms_in_verbs(
    pattern: Pattern, factor: Tensor, pivots: Tensor, white: Tensor, delta: Tensor, change: Tensor
) -> Tensor:
    """h(δ_j) + ½ a_j² + ½ M_jj² Δ_jᵀ Σ_RR Δ_j in verbs: (..., n) in float64, differentiable to every order.

    Args:
        factor: (..., nnz) L, of which Σ is the inverse.
        pivots, white, delta: (..., n) M_jj, a and δ.
        change: (..., nnz) Δ, zero on the diagonal.
    """
    gram, change = pattern.gram(), change.double()
    sigma = restrict(gram, pattern.filled(), second_moments.selected_inverse(pattern, factor)).double()
    pulls = change * algebra.gram_vjp(pattern, change, algebra.diagonal_halved(gram, sigma))
    squares = algebra.matmul_t(pattern, pulls, torch.ones_like(white, dtype=torch.float64)).clamp(min=0.0)
    half_squares = 0.5 * (white.double().square() + pivots.double().square() * squares)
    return scale_divergence(delta.double()) + half_squares  # type: ignore[no-any-return]


def _run(pattern: Pattern, d: Tensor, factor: Tensor, prior: Tensor) -> Tensor:
    if takes_two_factors(pattern, d, factor, prior):
        given = d.contiguous(), factor.contiguous(), prior.contiguous()
        terms = torch.empty_like(given[0])
        if run_step_at("kl_terms", pattern, *given, terms):
            return terms
    return torch.from_numpy(conditionals.kl_terms(pattern, *in_one_batch(d, factor, prior)))


def _fake(key: str, *tensors: Tensor) -> Tensor:
    return tensors[0].new_empty((*batch_of(*tensors), pattern_of(key).n))


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.pattern = pattern_of(inputs[0])
    ctx.save_for_backward(*inputs[1:])


def _rule(ctx: Any, terms_bar: Tensor) -> tuple[Any, ...]:
    pattern, tensors = ctx.pattern, ctx.saved_tensors
    if torch.is_grad_enabled():  # the gradient is to be differentiated: write it in verbs that can be
        with checks.non_finite_passes():
            return None, *vjp(partial(_in_verbs, pattern), tensors, terms_bar)
    if may_skip_dispatcher(*tensors, terms_bar):
        d, factor, prior = tensors
        return None, *_bars(pattern, d, factor, prior, terms_bar)
    key = key_of(pattern, "kl_terms_vjp", *tensors)
    return None, *torch.ops.sparseggm.kl_terms_vjp(key, *tensors, terms_bar)


_eager = without_dispatcher(_run, _rule)


def _in_verbs(pattern: Pattern, d: Tensor, factor: Tensor, prior: Tensor) -> Tensor:
    L, M = factor.double(), prior.double()
    own, pivots = diagonal(pattern, L), diagonal(pattern, M)
    change = M / take(pivots, pattern.cols) - L / take(own, pattern.cols)
    white = algebra.matmul_t(pattern, prior, d)
    return terms_in_verbs(pattern, factor, pivots, white, (pivots / own).log(), change).to(d.dtype)


def _bars(pattern: Pattern, d: Tensor, factor: Tensor, prior: Tensor, terms_bar: Tensor) -> tuple[Tensor, ...]:
    """The cotangents of d, factor and prior."""
    terms_bar = terms_bar.resolve_neg()
    inputs = d, factor, prior, terms_bar
    if takes_two_factors(pattern, d, factor, prior, terms_bar):
        given = [tensor.contiguous() for tensor in inputs]
        bars = tuple(torch.empty_like(tensor) for tensor in given[:3])
        if run_step_at("kl_terms_vjp", pattern, *given, *bars):
            return bars
    with checks.non_finite_passes():
        sums = conditionals.kl_terms_vjp(pattern, *in_one_batch(*inputs))
    pairs = zip(sums, inputs[:3], strict=True)
    return tuple(to_tensor(sum_in_float64(bar, tuple(x.shape)), x) for bar, x in pairs)


def _fake_vjp(key: str, *tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(tensor.new_empty(tensor.shape) for tensor in tensors[:3])


register(
    "kl_terms(str key, Tensor d, Tensor factor, Tensor prior) -> Tensor",
    {"CPU": lambda key, *tensors: _run(pattern_of(key), *tensors)},
    _fake,
    _setup,
    _rule,
)
register(
    "kl_terms_vjp(str key, Tensor d, Tensor factor, Tensor prior, Tensor terms_bar) -> (Tensor, Tensor, Tensor)",
    {"CPU": lambda key, *tensors: _bars(pattern_of(key), *tensors)},
    _fake_vjp,
    loops=True,
)
