"""Samples, divergences from independent normals and log-densities of a batch of Gaussians, in one pass each way.

Vectors are in the caller's numbering of nodes, packed values in that of their pattern. All arguments have one batch
shape, so that each kernel reads every number once; where batch axes broadcast, compose the verbs of `linalg`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from sparseggm.errors import NonPositiveError
from sparseggm.graph.pattern import FloatArray, IntArray, Pattern
from sparseggm.kernels.sparse import density
from sparseggm.linalg import checks, factorisation, memory
from sparseggm.linalg.engines import engine_of
from sparseggm.linalg.primitives import Step
from sparseggm.linalg.step import LIKE, require_one_batch


def is_valid(pattern: Pattern, loc: FloatArray, factor: FloatArray) -> bool:
    """Whether all numbers of loc (..., n) and factor (..., nnz) are finite, and all diagonal entries positive."""
    checks.check("is_valid", pattern, packed={"factor": factor}, loc=loc)
    arrays = [np.ascontiguousarray(array) for array in (loc, factor)]
    if not loc.size:
        return True
    places = arrays[0].ctypes.data, loc.size, arrays[1].ctypes.data, factor.size // pattern.nnz
    return is_valid_at(pattern, LIKE[loc.dtype], *places)


def is_valid_at(pattern: Pattern, like: Any, loc_at: int, loc_size: int, factor_at: int, rows: int) -> bool:
    """`is_valid` of loc_size numbers of loc and of factors (rows, nnz), at addresses."""
    return not density.invalid(like, pattern.structure[0], loc_at, loc_size, factor_at, rows, pattern.nnz)


# ---------------------------------------------------------------------- samples


def sample(
    pattern: Pattern, order: IntArray | None, loc: FloatArray, factor: FloatArray, noise: FloatArray
) -> FloatArray:
    """z = loc + L⁻ᵀ ε.

    Args:
        pattern: of L.
        order: (n,) the caller's node of each column of L; None if the two numberings agree; so in all verbs here.
        loc, factor, noise: (..., n), (..., nnz) and (..., n), of one batch shape.
    Returns:
        (..., n).
    Raises:
        NonPositiveError: a diagonal entry of L is ≤ 0, where that makes z infinite; and the common errors of `linalg`.
    Cost: 2 nnz flops, each byte moved once. Error: z − loc as `linalg.solve_t`, then one rounding.
    """
    _check("sample", pattern, factor, loc=loc, noise=noise)
    z = memory.empty(noise.shape, noise.dtype)
    z[...] = noise
    _run("sample", pattern, order, {"loc": loc, "factor": factor}, z, also={"noise": noise})
    return z


def sample_vjp(
    pattern: Pattern, order: IntArray | None, loc: FloatArray, factor: FloatArray, z: FloatArray, z_bar: FloatArray
) -> FloatArray:
    """The cotangent of the factor, L̄ = −(z − loc) (L⁻¹ z̄)ᵀ on the pattern, for that of z = `sample`; loc̄ is z̄.

    Cost: 4 nnz flops. Error: as `linalg.solve` with the relative error of z − loc.
    """
    _check("sample_vjp", pattern, factor, loc=loc, z=z, z_bar=z_bar)
    factor_bar = memory.empty(factor.shape, factor.dtype)
    given = {"loc": loc, "factor": factor, "z": z, "z_bar": z_bar}
    _run("sample_vjp", pattern, order, given, factor_bar)
    return factor_bar


# ---------------------------------------------------------------------- KL to independent normals


def kl_to_normal(
    pattern: Pattern,
    order: IntArray | None,
    loc: FloatArray,
    factor: FloatArray,
    mean: FloatArray,
    scale: FloatArray,
) -> FloatArray:
    """KL(N(loc, P⁻¹) ‖ N(m, diag s²)) = ½ [Σ (Σ_ii + (loc_i − m_i)²) / s_i² + 2 Σ log s_i − n + log det P], nats.

    Args:
        loc, factor, mean, scale: (..., n), (..., nnz), (..., n) and (..., n), of one batch shape; scales positive.
    Returns:
        (...), whose sum is formed in float64.
    Raises:
        NonPositiveError: a diagonal entry of L or a scale is ≤ 0; and the common errors of `linalg`.
    Cost: the marginal variances, each byte moved once.
    Error: that of the variances; 1/s is rounded once, and each term to a few roundings in float64.
    """
    return _numbers("kl_to_normal", pattern, order, loc=loc, factor=factor, mean=mean, scale=scale)


def kl_to_normal_vjp(
    pattern: Pattern,
    order: IntArray | None,
    loc: FloatArray,
    factor: FloatArray,
    mean: FloatArray,
    scale: FloatArray,
    kl_bar: FloatArray,
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """The cotangents of loc, factor and scale for that of `kl_to_normal` (...); that of the mean is −loc̄.

        loc̄ = k̄ (loc − m) / s²,   L̄ = k̄ (½ Σ s_i⁻² ∂Σ_ii/∂L + diag(1/L_jj)),   s̄ = k̄ (1/s − (Σ_ii + (loc − m)²) / s³)

    Cost: three times `kl_to_normal`.
    """
    given = {"loc": loc, "factor": factor, "mean": mean, "scale": scale}
    return _bars("kl_to_normal_vjp", pattern, order, given, kl_bar=kl_bar)  # type: ignore[no-any-return]


def sample_and_kl_to_normal_vjp(
    pattern: Pattern,
    order: IntArray | None,
    loc: FloatArray,
    factor: FloatArray,
    mean: FloatArray,
    scale: FloatArray,
    z: FloatArray,
    z_bar: FloatArray,
    kl_bar: FloatArray,
) -> tuple[FloatArray, FloatArray]:
    """The cotangents of loc and factor for those of z = `sample` (..., n) and of `kl_to_normal` (...), summed.

    Cost: that of `kl_to_normal_vjp` and one solve, each byte moved once. Error: as both, with one rounding more.
    """
    given = {"loc": loc, "factor": factor, "mean": mean, "scale": scale, "z": z, "z_bar": z_bar}
    return _bars("sample_and_kl_to_normal_vjp", pattern, order, given, ("loc", "factor"), kl_bar=kl_bar)  # type: ignore[no-any-return]


# ---------------------------------------------------------------------- log-densities, KL from independent normals


def log_prob(
    pattern: Pattern, order: IntArray | None, loc: FloatArray, factor: FloatArray, value: FloatArray
) -> FloatArray:
    """½ [log det P − ‖Lᵀ (x − loc)‖² − n log 2π], nats.

    Args:
        loc, factor, value: (..., n), (..., nnz) and (..., n), of one batch shape.
    Returns, Raises: as `kl_to_normal`. Cost: 2 nnz flops, each byte moved once.
    Error: Lᵀ (x − loc) as `linalg.matmul_t` with one rounding more, log det P as `linalg.logdet`.
    """
    return _numbers("log_prob", pattern, order, loc=loc, factor=factor, value=value)


def log_prob_vjp(
    pattern: Pattern,
    order: IntArray | None,
    loc: FloatArray,
    factor: FloatArray,
    value: FloatArray,
    log_prob_bar: FloatArray,
) -> tuple[FloatArray, FloatArray]:
    """The cotangents of loc and factor for that of `log_prob` (...); that of the value is −loc̄.

    loc̄ = l̄ L r,   L̄ = l̄ (diag(1/L_jj) − (x − loc) rᵀ),   r = Lᵀ (x − loc)
    """
    given = {"loc": loc, "factor": factor, "value": value}
    return _bars("log_prob_vjp", pattern, order, given, log_prob_bar=log_prob_bar)  # type: ignore[no-any-return]


def kl_from_normal(
    pattern: Pattern,
    order: IntArray | None,
    loc: FloatArray,
    factor: FloatArray,
    mean: FloatArray,
    scale: FloatArray,
) -> FloatArray:
    """KL(N(m, diag s²) ‖ N(loc, P⁻¹)) = ½ [Σ L_ij² s_i² + ‖Lᵀ (m − loc)‖² − 2 Σ log s_i − n − log det P], nats.

    Args, Returns, Raises: as `kl_to_normal`. Cost: 4 nnz flops, each byte moved once. Error: as `log_prob`.
    """
    return _numbers("kl_from_normal", pattern, order, loc=loc, factor=factor, mean=mean, scale=scale)


def kl_from_normal_vjp(
    pattern: Pattern,
    order: IntArray | None,
    loc: FloatArray,
    factor: FloatArray,
    mean: FloatArray,
    scale: FloatArray,
    kl_bar: FloatArray,
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """The cotangents of loc, factor and scale for that of `kl_from_normal` (...); that of the mean is −loc̄.

    loc̄ = −k̄ L r,   L̄ = k̄ ((m − loc) rᵀ + diag(s²) L − diag(1/L_jj)),   s̄_i = k̄ (s_i Σ_j L_ij² − 1/s_i)
    """
    given = {"loc": loc, "factor": factor, "mean": mean, "scale": scale}
    return _bars("kl_from_normal_vjp", pattern, order, given, kl_bar=kl_bar)  # type: ignore[no-any-return]


# ---------------------------------------------------------------------- entropy


def entropy(pattern: Pattern, factor: FloatArray) -> FloatArray:
    """½ [n (1 + log 2π) − log det P], nats, shape (...).

    Raises, Cost, Error: as `linalg.logdet`, summed in float64 and rounded once.
    """
    with checks.speaking_as("entropy", "logdet"):
        logdet = factorisation.logdet(pattern, factor, np.float64)
    total = 0.5 * (pattern.n * (1.0 + density.LOG_2PI) - logdet)
    return np.asarray(total, factor.dtype)


def entropy_vjp(pattern: Pattern, factor: FloatArray, entropy_bar: FloatArray) -> FloatArray:
    """The cotangent of the factor for that of `entropy` (...): L̄ = −H̄ diag(1/L_jj)."""
    factor_bar = np.zeros_like(factor, order="C")
    with np.errstate(all="ignore"):
        factor_bar[..., pattern.diagonal] = -entropy_bar[..., None] / factor[..., pattern.diagonal]
    return factor_bar


# ---------------------------------------------------------------------- small words


def _check(verb: str, pattern: Pattern, factor: FloatArray, **vectors: FloatArray) -> None:
    checks.check(verb, pattern, packed={"factor": factor}, **vectors)
    require_one_batch(verb, factor, **vectors)


def _run(
    verb: str,
    pattern: Pattern,
    order: IntArray | None,
    given: dict[str, FloatArray],
    *results: FloatArray,
    also: dict[str, FloatArray] | None = None,
) -> None:
    """Run the verb on arrays of one batch shape; one number for each batch element has shape (..., 1).

    `also` holds arguments that results overwrite.
    """
    batch_shape = given["factor"].shape[:-1]
    rows = [checks.as_rows(array, batch_shape) for array in given.values()]
    addresses = [array.ctypes.data if array.size else 0 for array in (*rows, *results)]
    task = Step(LIKE[given["factor"].dtype], len(rows[0]), addresses, order=order, stride=pattern.n)
    if task.batch and engine_of(pattern, task).density(verb, pattern, task):
        _raise_cause(verb, pattern, given | (also or {}))


def _numbers(verb: str, pattern: Pattern, order: IntArray | None, **given: FloatArray) -> FloatArray:
    """The verb's number for each batch element."""
    _check(verb, pattern, **given)
    result = np.empty(given["loc"].shape[:-1], given["loc"].dtype)
    _run(verb, pattern, order, given, result)
    return result


def _bars(
    verb: str,
    pattern: Pattern,
    order: IntArray | None,
    given: dict[str, FloatArray],
    wanted: tuple[str, ...] = ("loc", "factor", "scale"),
    **cotangent: FloatArray,
) -> Any:
    """The cotangents of those arguments that are wanted."""
    ((name, bar),) = cotangent.items()
    _check(verb, pattern, **given)
    checks.require_floats(verb, name, bar)
    checks.same_dtype(verb, factor=given["factor"], **cotangent)
    inputs = {**given, name: bar[..., None]}
    require_one_batch(verb, given["factor"], **{name: inputs[name]})
    results = [memory.empty(given[of].shape, bar.dtype) for of in wanted if of in given]
    _run(verb, pattern, order, inputs, *results)
    return tuple(results)


def _raise_cause(verb: str, pattern: Pattern, given: dict[str, FloatArray]) -> None:
    """`checks.raise_cause`, with a test of scales."""
    scale = given.get("scale")
    if scale is not None and not checks.lets_non_finite_pass() and np.isfinite(scale).all() and (scale <= 0).any():
        least = float(scale.min())
        raise NonPositiveError(f"{verb}: scale must be positive, got {least:.3g}.")
    checks.raise_cause(verb, {name: (pattern if name == "factor" else None, given[name]) for name in given})
