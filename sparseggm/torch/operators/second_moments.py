"""Second moments as torch operators: Σ on a pattern, diag Σ, tr Σ, and log det P, whose gradient Σ is.

First derivatives are kernels of their own, which compute Σ again rather than store it; those of first derivatives are
written in the closed verbs of `algebra`. Bars are cotangents; the derivations are in docs/math.md.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparseggm import linalg
from sparseggm.graph.pattern import Pattern
from sparseggm.linalg import calculus
from sparseggm.torch.operators.algebra import (
    cholesky,
    cholesky_jvp,
    cholesky_vjp,
    diagonal_halved,
    gram_jvp,
    gram_vjp,
    outer,
    save_factor,
    solve,
    solve_t,
)
from sparseggm.torch.operators.embedding import diagonal, extend, on_diagonal, restrict
from sparseggm.torch.operators.registration import (
    array,
    batch_of,
    key_of,
    may_skip_dispatcher,
    pattern_of,
    register,
    register_pair,
    sum_to_shape,
)


def selected_inverse(pattern: Pattern, factor: Tensor, on: Pattern | None = None) -> Tensor:
    """Σ on `on`, by default `pattern.filled()`; see `linalg.selected_inverse`. Its backward computes Σ again."""
    key = key_of(pattern, "selected_inverse", factor)
    return torch.ops.sparseggm.selected_inverse(key, _key_of_fill("selected_inverse", on), factor)  # type: ignore[no-any-return]


def selected_inverse_vjp(pattern: Pattern, factor: Tensor, sigma_bar: Tensor, on: Pattern | None = None) -> Tensor:
    """L̄ for the cotangent of `selected_inverse(pattern, factor, on)`; see `adjoints.selected_inverse_vjp`."""
    key, key_on = key_of(pattern, "selected_inverse_vjp", factor, sigma_bar), _key_of_fill("selected_inverse_vjp", on)
    return torch.ops.sparseggm.selected_inverse_vjp(key, key_on, factor, sigma_bar)  # type: ignore[no-any-return]


def _key_of_fill(verb: str, on: Pattern | None) -> str:
    """The key of `on`, or none: the fill is then found inside the operator, where torch.compile does not trace."""
    return "" if on is None else key_of(on, verb)


def marginal_variances(pattern: Pattern, factor: Tensor) -> Tensor:
    """diag Σ; see `linalg.marginal_variances`. Its backward computes Σ again rather than store it."""
    key = key_of(pattern, "marginal_variances", factor)
    return torch.ops.sparseggm.marginal_variances(key, factor)  # type: ignore[no-any-return]


def marginal_variances_vjp(pattern: Pattern, factor: Tensor, variances_bar: Tensor) -> Tensor:
    """L̄ for the cotangent of diag Σ; see `adjoints.marginal_variances_vjp`."""
    key = key_of(pattern, "marginal_variances_vjp", factor, variances_bar)
    return _marginal_variances_vjp(key, factor, variances_bar)


def trace_inverse(pattern: Pattern, factor: Tensor) -> Tensor:
    """tr Σ, summed in float64; see `linalg.trace_inverse`."""
    return marginal_variances(pattern, factor).sum(-1, dtype=torch.float64).to(factor.dtype)


def precision_logdet(pattern: Pattern, precision: Tensor) -> Tensor:
    """log det P given P; see `linalg.precision_logdet`. Its backward factorises again rather than store L."""
    key = key_of(pattern, "precision_logdet", precision)
    return torch.ops.sparseggm.precision_logdet(key, precision)  # type: ignore[no-any-return]


def precision_solve(pattern: Pattern, precision: Tensor, rhs: Tensor) -> tuple[Tensor, Tensor]:
    """P⁻¹ b and log det P given P; see `linalg.precision_solve`. Its backward factorises again rather than store L."""
    key = key_of(pattern, "precision_solve", precision, rhs)
    return torch.ops.sparseggm.precision_solve(key, precision, rhs)  # type: ignore[no-any-return]


# ---------------------------------------------------------------------- rules


# diag Σ is Σ on its pattern, with a cotangent that is zero off the diagonal
def _variances_vjp_rule(
    pattern: Pattern, needs: Any, factor: Tensor, bar: Tensor, result: Tensor, cotangent: Tensor
) -> Any:
    filled = pattern.filled()
    factor_bar, sigma_bar = _inverse_vjp_rule(pattern, filled, factor, on_diagonal(filled, bar), cotangent)
    return factor_bar, diagonal(filled, sigma_bar)


# The gradient of a gradient of Σ, in the closed verbs on F (math.md, eq. 21): with V, X of
# L̄ = −gram_vjp(X, V) − diag(X_jj / L_jj²) and the cotangent C of L̄,
#     W = cholesky_vjp(L, −gram_vjp(C, V) − diag(C_jj / L_jj²)) ,  Z = cholesky_jvp(L, −gram_jvp(X, C)) ,
#     Σ̄ gets W with its diagonal doubled,
#     L gets −gram_vjp(X, W) − gram_vjp(Z, V) + diag((2 C_jj X_jj / L_jj − Z_jj) / L_jj²)
def _inverse_vjp_rule(
    pattern: Pattern, fill: Pattern, factor: Tensor, sigma_bar: Tensor, cotangent: Tensor
) -> tuple[Tensor, Tensor]:
    lower, c, pivots = extend(pattern, fill, factor), extend(pattern, fill, cotangent), diagonal(pattern, factor)
    v = cholesky_vjp(fill, lower, on_diagonal(fill, 1.0 / pivots))
    x = cholesky_jvp(fill, lower, _diagonal_doubled(fill, sigma_bar))
    w = cholesky_vjp(fill, lower, -gram_vjp(fill, c, v) - on_diagonal(fill, diagonal(fill, c) / pivots**2))
    z = cholesky_jvp(fill, lower, -gram_jvp(fill, x, c))
    pivots_bar = (2.0 * diagonal(fill, c) * diagonal(fill, x) / pivots - diagonal(fill, z)) / pivots**2
    lower_bar = on_diagonal(fill, pivots_bar) - gram_vjp(fill, x, w) - gram_vjp(fill, z, v)
    return restrict(pattern, fill, lower_bar), _diagonal_doubled(fill, w)


def _diagonal_doubled(pattern: Pattern, values: Tensor) -> Tensor:
    return values + on_diagonal(pattern, diagonal(pattern, values))


_marginal_variances_vjp = register_pair(
    calculus.marginal_variances_vjp, lambda pattern: pattern.nnz, _variances_vjp_rule
)


def _variances_rule(ctx: Any, bar: Tensor) -> tuple[None, Tensor]:
    return None, marginal_variances_vjp(ctx.pattern, ctx.saved_tensors[0], bar)


register(
    "marginal_variances(str key, Tensor factor) -> Tensor",
    {"CPU": lambda key, factor: torch.from_numpy(linalg.marginal_variances(pattern_of(key), array(factor)))},
    lambda key, factor: factor.new_empty((*factor.shape[:-1], pattern_of(key).n)),
    save_factor,
    _variances_rule,
)


def _save_with_patterns(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.patterns = _pattern_and_fill(*inputs[:2])
    ctx.save_for_backward(*inputs[2:])


def _pattern_and_fill(key: str, on: str) -> tuple[Pattern, Pattern]:
    return pattern_of(key), pattern_of(on) if on else pattern_of(key).filled()


def _run_inverse(key: str, on: str, factor: Tensor) -> Tensor:
    pattern, fill = _pattern_and_fill(key, on)
    return torch.from_numpy(linalg.selected_inverse(pattern, array(factor), fill))


def _inverse_rule(ctx: Any, bar: Tensor) -> tuple[None, None, Tensor]:
    pattern, fill = ctx.patterns
    return None, None, selected_inverse_vjp(pattern, ctx.saved_tensors[0], bar, fill)


register(
    "selected_inverse(str key, str on, Tensor factor) -> Tensor",
    {"CPU": _run_inverse},
    lambda key, on, factor: factor.new_empty((*factor.shape[:-1], _pattern_and_fill(key, on)[1].nnz)),
    _save_with_patterns,
    _inverse_rule,
)


def _run_inverse_vjp(key: str, on: str, factor: Tensor, sigma_bar: Tensor) -> Tensor:
    pattern, fill = _pattern_and_fill(key, on)
    return torch.from_numpy(calculus.selected_inverse_vjp(pattern, array(factor), array(sigma_bar), fill))


def _inverse_vjp_vjp(ctx: Any, bar: Tensor) -> tuple[None, None, Tensor | None, Tensor | None]:
    (pattern, fill), (factor, sigma_bar) = ctx.patterns, ctx.saved_tensors
    bars = _inverse_vjp_rule(pattern, fill, factor, sigma_bar, bar)
    return None, None, sum_to_shape(bars[0], factor), sum_to_shape(bars[1], sigma_bar)


register(
    "selected_inverse_vjp(str key, str on, Tensor factor, Tensor sigma_bar) -> Tensor",
    {"CPU": _run_inverse_vjp},
    lambda key, on, factor, sigma_bar: factor.new_empty((*batch_of(factor, sigma_bar), pattern_of(key).nnz)),
    _save_with_patterns,
    _inverse_vjp_vjp,
)


# d log det P = tr(Σ dP): of a stored off-diagonal entry, which stands for two, 2 Σ_ij
def _precision_logdet_rule(ctx: Any, bar: Tensor) -> tuple[None, Tensor]:
    pattern, (precision, _) = ctx.pattern, ctx.saved_tensors
    filled = pattern.filled()
    if not torch.is_grad_enabled() and may_skip_dispatcher(precision, bar):
        sigma = linalg.selected_inverse(filled, linalg.cholesky(pattern, array(precision)))
        on_graph = sigma.take(pattern.positions_in_fill, axis=-1)
        on_graph *= pattern.multiplicity
        on_graph *= array(bar)[..., None]
        return None, torch.from_numpy(on_graph)
    entries = restrict(pattern, filled, selected_inverse(filled, cholesky(pattern, precision)))
    return None, 2.0 * bar[..., None] * diagonal_halved(pattern, entries)


register(
    "precision_logdet(str key, Tensor precision) -> Tensor",
    {
        "CPU": lambda key, precision: torch.from_numpy(
            np.asarray(linalg.precision_logdet(pattern_of(key), array(precision)))
        )
    },
    lambda key, precision: precision.new_empty(precision.shape[:-1]),
    save_factor,
    _precision_logdet_rule,
)


# x = P⁻¹ b, l = log det P  ⇒  b̄ = P⁻¹ x̄ ,  P̄ = 2 l̄ Σ − b̄ xᵀ − x b̄ᵀ with its diagonal halved: stored values
def _precision_solve_rule(ctx: Any, x_bar: Tensor, logdet_bar: Tensor) -> tuple[None, Tensor, Tensor]:
    pattern, (precision, rhs, x) = ctx.pattern, ctx.saved_tensors
    filled, factor = pattern.filled(), cholesky(pattern, precision)
    rhs_bar, batch = solve_t(filled, factor, solve(filled, factor, x_bar)), precision.shape[:-1]
    both = outer(pattern, rhs_bar, x, batch) + outer(pattern, x, rhs_bar, batch)
    sigma = restrict(pattern, filled, selected_inverse(filled, factor))
    return None, diagonal_halved(pattern, 2.0 * logdet_bar[..., None] * sigma - both), sum_to_shape(rhs_bar, rhs)


def _save_solution(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.pattern = pattern_of(inputs[0])
    ctx.save_for_backward(*inputs[1:], output[0])


def _run_precision_solve(key: str, precision: Tensor, rhs: Tensor) -> tuple[Tensor, Tensor]:
    x, logdet = linalg.precision_solve(pattern_of(key), array(precision), array(rhs))
    return torch.from_numpy(x), torch.from_numpy(np.asarray(logdet))


register(
    "precision_solve(str key, Tensor precision, Tensor rhs) -> (Tensor, Tensor)",
    {"CPU": _run_precision_solve},
    lambda key, precision, rhs: (
        rhs.new_empty((*batch_of(precision, rhs), pattern_of(key).n)),
        precision.new_empty(precision.shape[:-1]),
    ),
    _save_solution,
    _precision_solve_rule,
)
