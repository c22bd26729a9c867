"""The calculus of the verbs: with these functions, everything in `linalg` can be differentiated, to every order.

All are linear in their last argument, and each pair jvp / vjp is adjoint in the inner product of stored values,
⟨A, B⟩ = Σ_p A[p] B[p]. All values are lower triangles; the two functions of `cholesky` need a closed pattern:

    gram_jvp(A, B) = tril(A Bᵀ + B Aᵀ)                gram_vjp(A, V) = tril((V + Vᵀ) A)
    cholesky_jvp(L, V) = X with X Lᵀ + L Xᵀ = V       cholesky_vjp(L, X) = V with tril((V + Vᵀ) L) = X

so that P = L Lᵀ has dP = gram_jvp(L, dL), L̄ = gram_vjp(L, P̄); L = cholesky(P) has dL = cholesky_jvp(L, dP),
P̄ = cholesky_vjp(L, L̄). Conventions and common errors: see `linalg`. Derivations: docs/math.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from sparseggm.errors import PatternError
from sparseggm.graph.pattern import FloatArray, IndexArray, Pattern
from sparseggm.linalg import checks, memory
from sparseggm.linalg.engines import engine_for
from sparseggm.linalg.primitives import ALL, Engine


def gram_jvp(pattern: Pattern, a: FloatArray, b: FloatArray) -> FloatArray:
    """tril(A Bᵀ + B Aᵀ), (..., nnz of the result) on `pattern.gram()`.

    Cost: 2 Σ_j |S_j|² flops. Error: |Δ| ≤ γ_{2r+1} (|A| |B|ᵀ + |B| |A|ᵀ), r the longest row.
    Reference: `reference.linalg.gram_jvp`.
    """
    checks.check("gram_jvp", pattern, packed={"a": a, "b": b})
    product = pattern.gram()
    return _sweep("gram_jvp", pattern, product, product.nnz, a=(pattern, a), b=(pattern, b))


def gram_vjp(pattern: Pattern, a: FloatArray, v: FloatArray) -> FloatArray:
    """tril((V + Vᵀ) A), (..., nnz) on `pattern`, for V on `pattern.gram()`.

    Cost: 2 Σ_j |S_j|² flops. Error: |Δ| ≤ γ_{c+2} (|V| + |V|ᵀ) |A|, c the longest column.
    Reference: `reference.linalg.gram_vjp`.
    """
    checks.check("gram_vjp", pattern, packed={"a": a})
    product = pattern.gram()
    checks.check("gram_vjp", product, packed={"v": v})
    return _sweep("gram_vjp", pattern, product, pattern.nnz, a=(pattern, a), v=(product, v))


def cholesky_jvp(pattern: Pattern, factor: FloatArray, v: FloatArray) -> FloatArray:
    """X, lower, with X Lᵀ + L Xᵀ = V: the derivative of `cholesky` along V. On a closed pattern.

    Cost: 2 Σ_j |F_j|² flops. Error: the equation holds within γ_{2r+2} (|X| |L|ᵀ + |L| |X|ᵀ), r the longest row.
    Raises: NonPositiveError for a diagonal entry of L ≤ 0. Reference: `reference.linalg.cholesky_jvp`.
    """
    _check_closed("cholesky_jvp", pattern)
    checks.check("cholesky_jvp", pattern, packed={"factor": factor, "v": v})

    def jvp(engine: Engine, *rows: FloatArray) -> int:
        return engine.cholesky_jvp(pattern, *rows)

    return _run("cholesky_jvp", pattern, jvp, pattern.nnz, factor=(pattern, factor), v=(pattern, v))


def cholesky_vjp(pattern: Pattern, factor: FloatArray, x: FloatArray, on: Pattern | None = None) -> FloatArray:
    """V, lower, with tril((V + Vᵀ) L) = X: the reverse mode of `cholesky`, P̄ for L̄ = X. On a closed pattern.

    Args:
        pattern: of L, closed.
        factor, x: (..., nnz).
        on: where V is wanted: the pattern of P. None: all of it.
    Cost: 2 Σ_j |F_j|² flops. Error: the equation holds within γ_{c+2} (|V| + |V|ᵀ) |L|, c the longest column.
    Raises: NonPositiveError for a diagonal entry of L ≤ 0. Reference: `reference.linalg.cholesky_vjp`.
    """
    _check_closed("cholesky_vjp", pattern)
    checks.check("cholesky_vjp", pattern, packed={"factor": factor, "x": x})
    size, chosen = pattern.nnz, ALL
    if on is not None and on is not pattern:
        checks.require_pattern("cholesky_vjp", on, "on")
        is_fill = on.filled() is pattern
        chosen = on.positions_in_fill if is_fill else checks.read_only_view(on.positions_in(pattern).astype(np.int32))
        size = on.nnz
    return _sweep("cholesky_vjp", pattern, pattern, size, chosen, factor=(pattern, factor), x=(pattern, x))


def selected_inverse_vjp(
    pattern: Pattern, factor: FloatArray, sigma_bar: FloatArray, on: Pattern | None = None
) -> FloatArray:
    """L̄ on `pattern` for Σ̄ on F, the result pattern of `selected_inverse(pattern, factor, on)`.

    With X = cholesky_jvp(L, Σ̄ with its diagonal doubled): L̄ = −tril(Σ X) − diag(X_jj / L_jj²). It is computed by the
    reverse sweep of the recursion, which visits the same pairs {i, k} ⊂ F_j and computes Σ again rather than store it.

    Cost: three times `selected_inverse`. Reference: `reference.linalg.selected_inverse_vjp`.
    """
    fill = checks.closed_superset("selected_inverse_vjp", pattern, on)
    checks.check("selected_inverse_vjp", pattern, packed={"factor": factor})
    checks.check("selected_inverse_vjp", fill, packed={"sigma_bar": sigma_bar})
    inputs = (pattern, factor), (fill, sigma_bar)
    return _sweep("selected_inverse_vjp", pattern, fill, pattern.nnz, factor=inputs[0], sigma_bar=inputs[1])


def marginal_variances_vjp(pattern: Pattern, factor: FloatArray, variances_bar: FloatArray) -> FloatArray:
    """L̄ on `pattern` for the adjoint (..., n) of `marginal_variances`; Σ is not stored beyond scratch.

    Cost: three times `marginal_variances`. Reference: `reference.linalg.marginal_variances_vjp`.
    """
    checks.check("marginal_variances_vjp", pattern, packed={"factor": factor}, variances_bar=variances_bar)
    inputs = (pattern, factor), (None, variances_bar)
    wide = pattern.filled()
    return _sweep("marginal_variances_vjp", pattern, wide, pattern.nnz, factor=inputs[0], variances_bar=inputs[1])


def _check_closed(verb: str, pattern: Pattern) -> None:
    checks.require_pattern(verb, pattern)
    if not pattern.is_closed:
        raise PatternError(f"{verb}: the pattern must be closed under elimination, {pattern!r} is not. Use filled().")


def _sweep(
    verb: str,
    pattern: Pattern,
    wide: Pattern,
    size: int,
    chosen: IndexArray = ALL,
    **inputs: tuple[Pattern | None, FloatArray],
) -> FloatArray:
    """`Engine.sweep` for a verb with two arguments."""

    def sweep(engine: Engine, a: FloatArray, b: FloatArray, values: FloatArray) -> int:
        return engine.sweep(verb, pattern, wide, a, b, values, chosen)

    return _run(verb, pattern, sweep, size, **inputs)


def _run(
    verb: str,
    pattern: Pattern,
    primitive: Callable[..., int],
    size: int,
    **inputs: tuple[Pattern | None, FloatArray],
) -> FloatArray:
    """Broadcast the inputs, each with the pattern it is on; run the primitive; if it fails, raise the cause."""
    arrays = {name: array for name, (_, array) in inputs.items()}
    checks.same_dtype(verb, **arrays)
    batch_shape = checks.broadcast(verb, **{name: array.shape[:-1] for name, array in arrays.items()})
    result = memory.empty((*batch_shape, size), next(iter(arrays.values())).dtype)
    rows = [checks.as_rows(array, batch_shape) for array in arrays.values()]
    batch = math.prod(batch_shape)
    if primitive(engine_for(pattern, batch, result.dtype), *rows, result.reshape(batch, size)):
        checks.raise_cause(verb, inputs)
    return result
