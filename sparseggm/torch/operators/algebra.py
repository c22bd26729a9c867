"""Products, solves, factorisation and their calculus as torch operators, with autograd to every order.

Every derivative is made of the verbs, so that it can be differentiated again. Bars are cotangents; the derivations are
in docs/math.md.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparseggm import linalg
from sparseggm.graph.pattern import Pattern
from sparseggm.linalg import calculus
from sparseggm.positivity import families
from sparseggm.torch.operators.embedding import diagonal, on_diagonal, restrict
from sparseggm.torch.operators.registration import (
    Shape,
    array,
    batch_of,
    key_of,
    may_skip_dispatcher,
    pattern_of,
    register,
    register_pair,
    sum_to_shape,
)

# ---------------------------------------------------------------------- triangular products and solves


def solve(pattern: Pattern, factor: Tensor, rhs: Tensor) -> Tensor:
    """L x = rhs; see `linalg.solve`."""
    return _solve(key_of(pattern, "solve", factor, rhs), factor, rhs)


def solve_t(pattern: Pattern, factor: Tensor, rhs: Tensor) -> Tensor:
    """Lᵀ x = rhs; see `linalg.solve_t`."""
    return _solve_t(key_of(pattern, "solve_t", factor, rhs), factor, rhs)


def matmul(pattern: Pattern, factor: Tensor, x: Tensor) -> Tensor:
    """L x; see `linalg.matmul`."""
    return _matmul(key_of(pattern, "matmul", factor, x), factor, x)


def matmul_t(pattern: Pattern, factor: Tensor, x: Tensor) -> Tensor:
    """Lᵀ x; see `linalg.matmul_t`."""
    return _matmul_t(key_of(pattern, "matmul_t", factor, x), factor, x)


def symmetric_matmul(pattern: Pattern, precision: Tensor, x: Tensor) -> Tensor:
    """P x; see `linalg.symmetric_matmul`."""
    return _symmetric_matmul(key_of(pattern, "symmetric_matmul", precision, x), precision, x)


def outer(pattern: Pattern, x: Tensor, y: Tensor, batch_shape: Shape | None = None) -> Tensor:
    """x yᵀ on the pattern, summed to `batch_shape` inside the kernel; see `linalg.outer`."""
    batch_shape = batch_of(x, y) if batch_shape is None else batch_shape
    return torch.ops.sparseggm.outer(key_of(pattern, "outer", x, y), x, y, batch_shape)  # type: ignore[no-any-return]


# ---------------------------------------------------------------------- factorisation and its calculus


def cholesky(pattern: Pattern, precision: Tensor) -> Tensor:
    """L with P = L Lᵀ, on `pattern.filled()`; see `linalg.cholesky`."""
    return torch.ops.sparseggm.cholesky(key_of(pattern, "cholesky", precision), precision)  # type: ignore[no-any-return]


def gram(pattern: Pattern, factor: Tensor) -> Tensor:
    """L Lᵀ on `pattern.gram()`; see `linalg.gram`."""
    return gram_jvp(pattern, factor, 0.5 * factor)


@families.gram_rules.register(Tensor)
def _gram_of_tensor(factor: Tensor, pattern: Pattern) -> Tensor:
    return gram(pattern, factor)


def gram_jvp(pattern: Pattern, a: Tensor, b: Tensor) -> Tensor:
    """tril(A Bᵀ + B Aᵀ); see `adjoints.gram_jvp`."""
    return _gram_jvp(key_of(pattern, "gram_jvp", a, b), a, b)


def gram_vjp(pattern: Pattern, a: Tensor, v: Tensor) -> Tensor:
    """tril((V + Vᵀ) A); see `adjoints.gram_vjp`."""
    return _gram_vjp(key_of(pattern, "gram_vjp", a, v), a, v)


def cholesky_jvp(pattern: Pattern, factor: Tensor, v: Tensor) -> Tensor:
    """X with X Lᵀ + L Xᵀ = V; see `adjoints.cholesky_jvp`."""
    return _cholesky_jvp(key_of(pattern, "cholesky_jvp", factor, v), factor, v)


def cholesky_vjp(pattern: Pattern, factor: Tensor, x: Tensor) -> Tensor:
    """V with tril((V + Vᵀ) L) = X; see `adjoints.cholesky_vjp`."""
    return _cholesky_vjp(key_of(pattern, "cholesky_vjp", factor, x), factor, x)


# ---------------------------------------------------------------------- log det P


def logdet(pattern: Pattern, factor: Tensor, in_float64: bool = False) -> Tensor:
    """log det P = 2 Σ log L_jj; see `linalg.logdet`. The sum in float64, or rounded to the dtype of the factor."""
    key = key_of(pattern, "logdet", factor)
    return torch.ops.sparseggm.logdet(key, factor, in_float64)  # type: ignore[no-any-return]


# ---------------------------------------------------------------------- rules


# L x = b  ⇒  b̄ = L⁻ᵀ x̄ ,  L̄ = −b̄ xᵀ on the pattern, summed over the right-hand sides of one factor
def _solve_rule(pattern: Pattern, needs: Any, factor: Tensor, rhs: Tensor, x: Tensor, x_bar: Tensor) -> Any:
    rhs_bar = solve_t(pattern, factor, x_bar)
    return (-outer(pattern, rhs_bar, x, factor.shape[:-1]) if needs[0] else None), rhs_bar


# Lᵀ x = b  ⇒  b̄ = L⁻¹ x̄ ,  L̄ = −x b̄ᵀ
def _solve_t_rule(pattern: Pattern, needs: Any, factor: Tensor, rhs: Tensor, x: Tensor, x_bar: Tensor) -> Any:
    rhs_bar = solve(pattern, factor, x_bar)
    return (-outer(pattern, x, rhs_bar, factor.shape[:-1]) if needs[0] else None), rhs_bar


# y = L x  ⇒  x̄ = Lᵀ ȳ ,  L̄ = ȳ xᵀ
def _matmul_rule(pattern: Pattern, needs: Any, factor: Tensor, x: Tensor, y: Tensor, y_bar: Tensor) -> Any:
    return (
        outer(pattern, y_bar, x, factor.shape[:-1]) if needs[0] else None,
        matmul_t(pattern, factor, y_bar) if needs[1] else None,
    )


# y = Lᵀ x  ⇒  x̄ = L ȳ ,  L̄ = x ȳᵀ
def _matmul_t_rule(pattern: Pattern, needs: Any, factor: Tensor, x: Tensor, y: Tensor, y_bar: Tensor) -> Any:
    return (
        outer(pattern, x, y_bar, factor.shape[:-1]) if needs[0] else None,
        matmul(pattern, factor, y_bar) if needs[1] else None,
    )


# y = P x  ⇒  x̄ = P ȳ ,  P̄ = ȳ xᵀ + x ȳᵀ with its diagonal halved: stored values
def _symmetric_rule(pattern: Pattern, needs: Any, precision: Tensor, x: Tensor, y: Tensor, y_bar: Tensor) -> Any:
    batch = precision.shape[:-1]
    both = outer(pattern, y_bar, x, batch) + outer(pattern, x, y_bar, batch) if needs[0] else None
    return (
        None if both is None else diagonal_halved(pattern, both),
        symmetric_matmul(pattern, precision, y_bar) if needs[1] else None,
    )


# V = A Bᵀ + B Aᵀ  ⇒  Ā = gram_vjp(B, V̄) ,  B̄ = gram_vjp(A, V̄)
def _gram_jvp_rule(pattern: Pattern, needs: Any, a: Tensor, b: Tensor, v: Tensor, v_bar: Tensor) -> Any:
    return gram_vjp(pattern, b, v_bar) if needs[0] else None, gram_vjp(pattern, a, v_bar) if needs[1] else None


# X = tril((V + Vᵀ) A)  ⇒  Ā = gram_vjp(X̄, V) ,  V̄ = gram_jvp(A, X̄)
def _gram_vjp_rule(pattern: Pattern, needs: Any, a: Tensor, v: Tensor, x: Tensor, x_bar: Tensor) -> Any:
    return gram_vjp(pattern, x_bar, v) if needs[0] else None, gram_jvp(pattern, a, x_bar) if needs[1] else None


# X Lᵀ + L Xᵀ = V  ⇒  V̄ = W = cholesky_vjp(L, X̄) ,  L̄ = −gram_vjp(X, W)
def _cholesky_jvp_rule(pattern: Pattern, needs: Any, factor: Tensor, v: Tensor, x: Tensor, x_bar: Tensor) -> Any:
    v_bar = cholesky_vjp(pattern, factor, x_bar)
    return (-gram_vjp(pattern, x, v_bar) if needs[0] else None), v_bar


# tril((V + Vᵀ) L) = X  ⇒  X̄ = Z = cholesky_jvp(L, V̄) ,  L̄ = −gram_vjp(Z, V)
def _cholesky_vjp_rule(pattern: Pattern, needs: Any, factor: Tensor, x: Tensor, v: Tensor, v_bar: Tensor) -> Any:
    x_bar = cholesky_jvp(pattern, factor, v_bar)
    return (-gram_vjp(pattern, x_bar, v) if needs[0] else None), x_bar


def diagonal_halved(pattern: Pattern, values: Tensor) -> Tensor:
    """The stored gradient of a symmetric matrix, whose diagonal the sum of both triangles counted twice."""
    return values - on_diagonal(pattern, 0.5 * diagonal(pattern, values))


_solve = register_pair(linalg.solve, lambda pattern: pattern.n, _solve_rule)
_solve_t = register_pair(linalg.solve_t, lambda pattern: pattern.n, _solve_t_rule)
_matmul = register_pair(linalg.matmul, lambda pattern: pattern.n, _matmul_rule)
_matmul_t = register_pair(linalg.matmul_t, lambda pattern: pattern.n, _matmul_t_rule)
_symmetric_matmul = register_pair(linalg.symmetric_matmul, lambda pattern: pattern.n, _symmetric_rule)
_gram_jvp = register_pair(calculus.gram_jvp, lambda pattern: pattern.gram().nnz, _gram_jvp_rule)
_gram_vjp = register_pair(calculus.gram_vjp, lambda pattern: pattern.nnz, _gram_vjp_rule)
_cholesky_jvp = register_pair(calculus.cholesky_jvp, lambda pattern: pattern.nnz, _cholesky_jvp_rule)
_cholesky_vjp = register_pair(calculus.cholesky_vjp, lambda pattern: pattern.nnz, _cholesky_vjp_rule)
# ---------------------------------------------------------------------- verbs of other signatures


def save_factor(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.pattern = pattern_of(inputs[0])
    ctx.save_for_backward(inputs[1], output)


# G = x yᵀ on the pattern, summed  ⇒  x̄ = Ḡ y ,  ȳ = Ḡᵀ x
def _outer_vjp(ctx: Any, bar: Tensor) -> tuple[None, Tensor | None, Tensor | None, None]:
    pattern = ctx.pattern
    x, y = ctx.saved_tensors
    terms = (*batch_of(x, y), pattern.n)  # every term of a sum has the same cotangent
    x_bar, y_bar = matmul(pattern, bar, y).expand(terms), matmul_t(pattern, bar, x).expand(terms)
    return None, sum_to_shape(x_bar, x), sum_to_shape(y_bar, y), None


def _outer_setup(ctx: Any, inputs: tuple[str, Tensor, Tensor, Shape], output: Tensor) -> None:
    ctx.pattern = pattern_of(inputs[0])
    ctx.save_for_backward(*inputs[1:3])


register(
    "outer(str key, Tensor x, Tensor y, SymInt[] batch_shape) -> Tensor",
    {"CPU": lambda key, x, y, batch: torch.from_numpy(linalg.outer(pattern_of(key), array(x), array(y), tuple(batch)))},
    lambda key, x, y, batch: x.new_empty((*batch, pattern_of(key).nnz)),
    _outer_setup,
    _outer_vjp,
)


# P = L Lᵀ  ⇒  P̄ = cholesky_vjp(L, L̄), restricted from the filled pattern to that of P
def _cholesky_rule(ctx: Any, bar: Tensor) -> tuple[None, Tensor]:
    pattern, (_, factor) = ctx.pattern, ctx.saved_tensors
    filled = pattern.filled()
    if not torch.is_grad_enabled() and may_skip_dispatcher(
        factor, bar
    ):  # no derivative to come, which would need all of V
        precision_bar = calculus.cholesky_vjp(filled, array(factor), array(bar), on=pattern)
        return None, torch.from_numpy(precision_bar)
    return None, restrict(pattern, filled, cholesky_vjp(filled, factor, bar))


register(
    "cholesky(str key, Tensor precision) -> Tensor",
    {"CPU": lambda key, precision: torch.from_numpy(linalg.cholesky(pattern_of(key), array(precision)))},
    lambda key, precision: precision.new_empty((*precision.shape[:-1], pattern_of(key).filled().nnz)),
    save_factor,
    _cholesky_rule,
)


def _run_logdet(key: str, factor: Tensor, in_float64: bool) -> Tensor:
    dtype = np.float64 if in_float64 else None
    return torch.from_numpy(np.asarray(linalg.logdet(pattern_of(key), array(factor), dtype)))


def _logdet_rule(ctx: Any, bar: Tensor) -> tuple[None, Tensor, None]:
    pattern, (factor, _) = ctx.pattern, ctx.saved_tensors
    pivots = diagonal(pattern, factor)
    if not torch.is_grad_enabled() and may_skip_dispatcher(
        factor, bar
    ):  # torch's threads would spin on after the division
        quotients = 2.0 * array(bar)[..., None] / array(pivots)
        entries = torch.from_numpy(quotients.astype(array(pivots).dtype, copy=False))
    else:
        entries = (2.0 * bar[..., None] / pivots).to(factor.dtype)
    return None, on_diagonal(pattern, entries), None


register(
    "logdet(str key, Tensor factor, bool in_float64) -> Tensor",
    {"CPU": _run_logdet},
    lambda key, factor, in_float64: factor.new_empty(factor.shape[:-1], dtype=torch.float64 if in_float64 else None),
    save_factor,
    _logdet_rule,
)
