"""What rounding allows: the theorems' bounds, and WIDE, the arithmetic in which tests evaluate both sides.

A bound here is a theorem about the operation, never a number that happened to pass. Each holds for any order of
summation, so it does not depend on how a kernel is written [Higham, Accuracy and Stability of Numerical Algorithms,
2nd ed. 2002]. Two things are added to the textbook form:

* underflow: with gradual underflow a product or quotient errs by up to η/2 besides its relative error (1 + δ), η the
  smallest subnormal number; sums do not underflow [Higham 2002, §2.1, eq. 2.8]. η rather than η/2 below covers the
  factor 1 + γ that later roundings put on it;
* evaluation: residuals are formed in WIDE, whose own γ is added to that of the dtype under test (`rounding`). Where
  `numpy.longdouble` is no wider than float64 the tests remain valid, with twice the tolerance.

Matrices are dense (..., n, n) WIDE arrays here, vectors (..., n).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

import reference.linalg

Array = npt.NDArray[Any]
WIDE = np.longdouble


def unit_roundoff(dtype: Any) -> Any:
    """u: the largest relative error of rounding to nearest."""
    return WIDE(np.finfo(dtype).eps) / 2


def smallest(dtype: Any) -> Any:
    """η: the smallest positive subnormal number."""
    return WIDE(np.finfo(dtype).smallest_subnormal)


def negligible(dtype: Any) -> Any:
    """√tiny: `cholesky` and `selected_inverse` set scaled entries below it to zero."""
    return np.sqrt(WIDE(np.finfo(dtype).tiny))


def dropped(dtype: Any) -> Any:
    """√tiny (1 + γ_4): how large a scaled entry set to zero can be, its comparison being rounded four times."""
    return negligible(dtype) * (1 + gamma(4, dtype))


def gamma(k: int, dtype: Any) -> Any:
    """γ_k = k u / (1 − k u): the relative error of k roundings [Higham 2002, Lemma 3.1]."""
    ku = k * unit_roundoff(dtype)
    assert ku < 1, f"γ_{k} needs k u < 1"
    return ku / (1 - ku)


def rounding(k: int, dtype: Any) -> Any:
    """γ_k of the dtype under test, and γ_{k+3} for forming the residual of such a result in WIDE."""
    return gamma(k, dtype) + gamma(k + 3, WIDE)


def underflow(dtype: Any) -> Any:
    """η of the dtype under test, and that of WIDE."""
    return smallest(dtype) + smallest(WIDE)


# ---------------------------------------------------------------------- products and solves


def product_bound(a: Array, x: Array, k: int, dtype: Any) -> Array:
    """|fl(A x) − A x| ≤ γ_k |A| |x| + k η, k terms a sum [Higham 2002, §3.5, eq. 3.11]."""
    return rounding(k, dtype) * apply(abs(a), abs(x)) + k * underflow(dtype)


def solve_bound(a: Array, x: Array, k: int, dtype: Any) -> Array:
    """Residual of a triangular solve, |A x − b| ≤ γ_k |A| |x| + η (k + |A_ii|) [Higham 2002, Thm 8.5].

    The theorem gives (A + ΔA) x = b with |ΔA| ≤ γ_k |A| for k entries a row. Each of the products may underflow; the
    quotient's underflow appears in the residual times A_ii.
    """
    diagonal = np.diagonal(abs(a), axis1=-2, axis2=-1)
    return rounding(k, dtype) * apply(abs(a), abs(x)) + underflow(dtype) * (k + diagonal)


def gram_bound(a: Array, b: Array, k: int, dtype: Any) -> Array:
    """|fl(A Bᵀ + B Aᵀ) − …| ≤ γ_k (|A| |B|ᵀ + |B| |A|ᵀ) + η k [Higham 2002, §3.5]."""
    half = abs(a) @ transpose(abs(b))
    return rounding(k, dtype) * (half + transpose(half)) + k * underflow(dtype)


def halving_bound(factor: Array, dtype: Any) -> Array:
    """What (½ L) costs where ½ L is subnormal and loses its last bit: η/2 times the other factor, both ways."""
    reach = np.broadcast_to(abs(factor).sum(axis=-1)[..., None], factor.shape)
    return underflow(dtype) * (reach + transpose(reach))


# ---------------------------------------------------------------------- Cholesky and its calculus


def cholesky_bound(precision: Array, factor: Array, r: int, dtype: Any) -> Array:
    """|L Lᵀ − P| ≤ γ_{r+1} |L| |L|ᵀ + 2 r √tiny √(P_ii P_jj) + η (r + L_jj), r the longest row of L.

    First term: [Higham 2002, Thm 10.3], r for n: sums run over stored entries. Second: an entry that `cholesky` sets to
    zero is below √tiny √P_ii and stands, times L_jj ≤ √P_jj (1 + γ), in one equation; the docstring claims 2 r such
    terms. Third: underflow of products and of the quotient, as in `solve_bound`.
    """
    root = np.sqrt(np.diagonal(precision, axis1=-2, axis2=-1))
    scale = root[..., :, None] * root[..., None, :]
    column = np.diagonal(factor, axis1=-2, axis2=-1)[..., None, :]
    backward = rounding(r + 1, dtype) * (abs(factor) @ transpose(abs(factor)))
    return backward + 2 * r * negligible(dtype) * scale + underflow(dtype) * (r + column)


def cholesky_jvp_bound(factor: Array, x: Array, r: int, dtype: Any) -> Array:
    """|X Lᵀ + L Xᵀ − V| ≤ γ_{2r+2} (|X| |L|ᵀ + |L| |X|ᵀ) + η (2r + 2 L_jj): a substitution, column by column.

    X_ij is a quotient by L_jj (the diagonal by 2 L_jj) of V_ij less at most 2r − 1 products [Higham 2002, Lemma 8.4].
    """
    column = np.diagonal(factor, axis1=-2, axis2=-1)[..., None, :]
    return gram_bound(x, factor, 2 * r + 2, dtype) + 2 * column * underflow(dtype)


def cholesky_vjp_bound(factor: Array, v: Array, c: int, dtype: Any) -> Array:
    """|tril((V + Vᵀ) L) − X| ≤ γ_{c+2} (|V| + |V|ᵀ) |L| + η (c + 2 L_jj + |L_ij|) [Higham 2002, Lemma 8.4].

    V_ij is a quotient by L_jj of X_ij less at most c − 1 products; halving a subnormal V_ii loses a bit.
    """
    column = np.diagonal(factor, axis1=-2, axis2=-1)[..., None, :]
    terms = (abs(v) + transpose(abs(v))) @ abs(factor)
    return rounding(c + 2, dtype) * terms + underflow(dtype) * (c + 2 * column + abs(factor))


def failure_margin(n: int, dtype: Any) -> Any:
    """m of failure agreement: with H = D⁻¹ P D⁻¹, D² = diag P, Cholesky must succeed if λ_min(H) > m, fail if < −m.

    n γ_{n+1} / (1 − γ_{n+1}) [Higham 2002, Thm 10.7], and n √tiny for entries set to zero.
    """
    backward = gamma(n + 1, dtype)
    return n * (backward / (1 - backward) + negligible(dtype))


# ---------------------------------------------------------------------- selected inverse


def inverse_residual(factor: Array, sigma: Array) -> Array:
    """Σ_ij L_jj + Σ_{k>j} Σ_ik L_kj − δ_ij / L_jj, lower triangle: zero for Σ = (L Lᵀ)⁻¹ [Takahashi et al. 1973]."""
    return np.tril(sigma @ factor - reciprocal_diagonal(factor))


def inverse_bound(factor: Array, sigma: Array, c: int, dtype: Any) -> Array:
    """|residual| ≤ γ_{c+2} (|Σ| |L| + diag 1/L) + √tiny √Σ_ii + η (c + L_jj + 1), c the longest column of L.

    Column j of the recursion is a substitution with pivot L_jj (at most c − 1 products, one right side, two quotients),
    so [Higham 2002, Lemma 8.4] bounds its residual as in Thm 8.5. An entry set to zero has
    |Σ_ij| L_jj < √tiny √Σ_ii, see `dropped`. The last term is underflow, of 1/L_jj too.
    """
    root = np.sqrt(np.maximum(np.diagonal(sigma, axis1=-2, axis2=-1), 0))[..., :, None]
    column = np.diagonal(factor, axis1=-2, axis2=-1)[..., None, :]
    terms = abs(sigma) @ abs(factor) + reciprocal_diagonal(factor)
    return rounding(c + 2, dtype) * terms + dropped(dtype) * root + underflow(dtype) * (c + column + 1)


def inverse_forward_bound(factor: Array, sigma: Array, c: int, dtype: Any) -> Array:
    """|Σ̂ − Σ|, all entries, by the recursion on absolute values, given the exact Σ.

    The error E = Σ̂ − Σ satisfies the recursion with the residual ρ of `inverse_bound` as its right side:
        L_jj |E_ij| ≤ ρ_ij + Σ_{k>j} |E_ik| |L_kj|,
    where ρ is taken at |Σ| + |E|, an upper bound of |Σ̂|. The diagonal comes last in a column: it reads E_jk.
    """
    n = factor.shape[-1]
    size, bound = abs(factor), np.zeros_like(sigma)
    drop, floor = dropped(dtype), underflow(dtype) * (c + 1)
    level = rounding(c + 2, dtype)
    for j in reversed(range(n)):
        pivot = size[..., j, j][..., None]
        for rows in (slice(j + 1, n), slice(j, j + 1)):
            known = abs(sigma[..., rows, j + 1 :]) + bound[..., rows, j + 1 :]
            exact = abs(sigma[..., rows, j]) * pivot
            right = (np.arange(n)[rows] == j) / pivot
            root = np.sqrt(np.diagonal(sigma + bound, axis1=-2, axis2=-1)[..., rows])
            local = level * (apply(known, size[..., j + 1 :, j]) + exact + right) + drop * root + floor
            spread = apply(bound[..., rows, j + 1 :], size[..., j + 1 :, j])
            bound[..., rows, j] = (local + spread) / (pivot * (1 - level)) + underflow(dtype)
            bound[..., j, rows] = bound[..., rows, j]
    return bound


def inverse_vjp_bound(factor: Array, sigma_bar: Array, dtype: Any) -> Array:
    """|L̄ˆ − L̄| for the reverse sweep of the recursion, by the same sweep on absolute values.

    With h_i = G_ij / L_jj, column j (ascending) does G_jj first:  G_kj −= h_j L_kj,  then for all i, k > j
        L̄_kj −= h_i Σ_ik,   G_ik −= h_i L_kj,   L̄_jj −= h_i Σ_ij,   and   L̄_jj −= h_j (Σ_jj + 1/L_jj²).
    Carried along: G in WIDE, `size`, the sum of the magnitudes of its terms, and `error`, what their errors add up to.
    A value of at most k terms then errs by error + γ_k size [Higham 2002, §3.1 and §3.3: running error analysis].
    """
    n = factor.shape[-1]
    sigma = reference.linalg.inverse(factor)
    sigma_error = inverse_forward_bound(factor, sigma, n, dtype)
    magnitude = abs(sigma) + sigma_error
    level, floor = rounding(2 * n + 4, dtype), underflow(dtype) * (2 * n + 4)
    G, size = np.tril(sigma_bar), abs(np.tril(sigma_bar))
    error, bound = np.zeros_like(G), np.zeros_like(G)

    def quotient(rows: slice, j: int) -> tuple[Array, Array]:
        pivot = factor[..., j, j][..., None]
        h = G[..., rows, j] / pivot
        return h, (error[..., rows, j] + level * size[..., rows, j] + floor) / pivot + level * abs(h) + floor

    for j in range(n):
        column, below, own = factor[..., j + 1 :, j], slice(j + 1, n), slice(j, j + 1)
        h_own, e_own = quotient(own, j)
        G[..., below, j] -= h_own * column
        size[..., below, j] += (abs(h_own) + e_own) * abs(column)
        error[..., below, j] += e_own * abs(column)
        h, e = quotient(below, j)
        G[..., below, below] -= stored_once(h[..., :, None] * column[..., None, :])
        size[..., below, below] += stored_once((abs(h) + e)[..., :, None] * abs(column)[..., None, :])
        error[..., below, below] += stored_once(e[..., :, None] * abs(column)[..., None, :])
        h, e = np.concatenate([h_own, h], -1), np.concatenate([e_own, e], -1)
        rows = slice(j, n)
        terms = apply(magnitude[..., rows, rows], abs(h) + e)
        spread = apply(transpose(magnitude[..., rows, rows]), e) + apply(
            transpose(sigma_error[..., rows, rows]), abs(h)
        )
        pivot = factor[..., j, j]
        terms[..., 0] += (abs(h) + e)[..., 0] / pivot**2
        spread[..., 0] += e[..., 0] / pivot**2
        bound[..., rows, j] = spread + level * terms + floor * (1 + (abs(h) + e).sum(axis=-1))[..., None]
    return bound


def stored_once(pairs: Array) -> Array:
    """What the terms of entries (i, k), all i and k, add to the stored lower triangle; a diagonal one counts once."""
    return np.tril(pairs) + np.tril(transpose(pairs), -1)


def chain_variance_bound(factor: Array, variances: Array, dtype: Any) -> Array:
    """Relative error of a chain's variances given L: 10 min(n, 1/(1 − ρ²)) u, ρ the largest neighbour correlation.

    Σ_jj = 1/L_jj² + (L_{j+1,j}/L_jj)² Σ_{j+1,j+1} has positive terms only, so the relative error of Σ_{j+1,j+1} enters
    that of Σ_jj times its share of the sum, which is the squared correlation ρ_j² of j and j + 1; at most 5 roundings
    are added. So e_j ≤ 5 u (1 + O(u)) + ρ_j² e_{j+1}, whatever the condition number.
    """
    ratio = np.diagonal(factor, -1, -2, -1) / np.diagonal(factor, axis1=-2, axis2=-1)[..., :-1]
    share = ratio**2 * variances[..., 1:] / variances[..., :-1]
    steps = np.minimum(factor.shape[-1], 1 / np.maximum(1 - share.max(axis=-1, initial=0), unit_roundoff(dtype)))
    return 10 * steps[..., None] * unit_roundoff(dtype) * variances


# ---------------------------------------------------------------------- scalars


def logdet_bound(factor: Array, dtype: Any) -> Array:
    """As `logdet_bound_of`, for a matrix."""
    return logdet_bound_of(np.diagonal(factor, axis1=-2, axis2=-1), dtype)


def logdet_bound_of(diagonal: Array, dtype: Any) -> Array:
    """|Δ| ≤ γ_{n+1} Σ 2 |log L_jj| + 2 γ_n in float64, and u |log det P| for the rounding to dtype [Higham 2002, §4.2].

    Each logarithm is taken to be within one unit in the last place. 2 γ_n: pivots are multiplied by eights, less than
    n products each off by u relatively, its logarithm by u.
    """
    n, logs = diagonal.shape[-1], 2 * np.log(diagonal)
    size = abs(logs).sum(axis=-1)
    return rounding(n + 1, np.float64) * size + 2 * rounding(n, np.float64) + stored(logs.sum(axis=-1), dtype)


def stored(value: Array, dtype: Any) -> Array:
    """The rounding of a float64 scalar to dtype: u |value| (none for float64), and η."""
    return abs(value) * (unit_roundoff(dtype) if dtype != np.float64 else 0) + underflow(dtype)


# ---------------------------------------------------------------------- small words


def apply(a: Array, x: Array) -> Array:
    """A x on batches."""
    return np.asarray((a @ x[..., None])[..., 0])


def transpose(a: Array) -> Array:
    """Aᵀ on batches."""
    return np.swapaxes(a, -1, -2)


def reciprocal_diagonal(factor: Array) -> Array:
    """diag(1 / L_jj) as a matrix."""
    return np.eye(factor.shape[-1]) / np.diagonal(factor, axis1=-2, axis2=-1)[..., None, :]
