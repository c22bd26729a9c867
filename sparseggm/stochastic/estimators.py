"""Estimates of tr Σ, tr(P_p Σ_q) and diag Σ from random probes, where the exact selected inverse is too expensive.

Σ = (L Lᵀ)⁻¹. Each function says in its name that it estimates, and by which method; each returns an
`Estimate(value, standard_error)`. All are unbiased in exact arithmetic. Patterns, batch axes, dtypes and errors are
those of `linalg`; every batch element has its own probes, which are right-hand sides of one factor, never copied.
Vectors have the dtype of the factor; sums, and the small matrices of Hutch++ and XTrace, are float64.

*Randomness.* `rng=None` is a fresh, unseeded generator. The state of the generator determines the result: the numbers
in a probe depend neither on threads nor on the size of a chunk of probes.

*Costs* count triangular solves with L or Lᵀ, 2 nnz(L) − n flops each; zᵀΣz = ‖L⁻¹z‖² needs one, Σz two. Probes are
processed in chunks of at most `probes.CHUNK_VALUES` numbers (or of one probe of the whole batch); the docstring of a
method states any further memory.

Which method to choose, figures and derivations: docs/stochastic.md.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from sparseggm import linalg
from sparseggm.errors import NonFiniteError, PatternError
from sparseggm.graph.pattern import FloatArray, IntArray, Pattern
from sparseggm.linalg import checks
from sparseggm.positivity.namespace import segment_sum
from sparseggm.stochastic import probes, xtrace
from sparseggm.stochastic.randomness import Seed, generator


class Estimate(NamedTuple):
    """An unbiased estimate and its standard error, arrays of one shape in the dtype of the factor.

    `standard_error` is itself estimated, from the same samples: each estimator states their number and its assumption.
    Its square is unbiased for the variance of `value`, except that of XTrace, which is too large on average.
    """

    value: FloatArray
    standard_error: FloatArray


# ---------------------------------------------------------------------- traces


def estimate_trace_by_hutchinson(pattern: Pattern, factor: FloatArray, num_probes: int, rng: Seed = None) -> Estimate:
    """tr Σ as the mean of zᵀΣz = ‖L⁻¹z‖² over vectors z of random signs, shape (...).

    Args:
        pattern: of L.
        factor: (..., nnz) values of L, diagonal positive.
        num_probes: N, at least 2.
        rng: source of the signs, a generator or a seed.
    Cost: N solves.
    Variance: 2 (‖Σ‖_F² − Σ_i Σ_ii²) / N; the standard error is that of N independent samples.
    Source: [Hutchinson 1990; Girard 1989].
    """
    verb = "estimate_trace_by_hutchinson"
    rng = _checked(verb, pattern, factor, rng, num_probes=(num_probes, 2))

    def forms(z: FloatArray) -> FloatArray:
        return probes.squared(linalg.solve(pattern, factor, z))

    shape = (*factor.shape[:-1], pattern.n)
    return _mean(verb, probes.over_signs(forms, num_probes, shape, factor.dtype, rng), factor.dtype)


def estimate_trace_by_probing(
    pattern: Pattern,
    factor: FloatArray,
    colours: IntArray,
    replicates: int = 2,
    rng: Seed = None,
) -> Estimate:
    """tr Σ as Σ_c ‖L⁻¹z_c‖², z_c random signs on the nodes of colour c and zero elsewhere, shape (...).

    With the colours of `distance_colouring(topology.precision_pattern, k)`, the error comes only from the Σ_ij of nodes
    more than k edges apart. With fixed signs their sum would be a bias that no standard error shows; random signs turn
    it into variance, for any colouring.

    Args:
        pattern, factor, rng: as `estimate_trace_by_hutchinson`.
        colours: (n,) integers, one a node in the pattern's numbering.
        replicates: R independent choices of all signs, at least 2; their spread gives the standard error.
    Cost: R solves a colour.
    Variance: 2 Σ Σ_ij² / R over ordered pairs i ≠ j of equal colour: n C² q^(2k + 2) times the nodes of a colour, as
        |Σ_ij| ≤ C q^d at distance d with q = (√κ − 1)/(√κ + 1), κ = cond P [Demko, Moss & Smith 1984]. The standard
        error has (R − 1) degrees of freedom for each colour that two nodes share.
    Source: [Tang & Saad 2012]; with random signs [Frommer, Schimmel & Schweitzer 2021].
    """
    verb = "estimate_trace_by_probing"
    rng = _checked(verb, pattern, factor, rng, replicates=(replicates, 2))
    labels, members = probes.colour_classes(verb, pattern, colours)
    batch = factor.shape[:-1]
    forms = np.empty((replicates, labels, *batch))
    for replicate in forms:
        for part, z in probes.by_colour(labels, members, (*batch, pattern.n), factor.dtype, rng):
            replicate[part] = probes.squared(linalg.solve(pattern, factor, z))
    variance = forms.var(axis=0, ddof=1).sum(axis=0) / replicates  # signs of different colours are independent
    return _estimate(verb, forms.mean(axis=0).sum(axis=0), np.sqrt(variance), factor.dtype)


def estimate_trace_by_hutchpp(
    pattern: Pattern,
    factor: FloatArray,
    rank: int,
    num_probes: int,
    rng: Seed = None,
) -> Estimate:
    """tr Σ = tr(QᵀΣQ) + tr(ΠΣΠ), Π = I − QQᵀ: the first exactly, the second by Hutchinson's method, shape (...).

    Q is an orthonormal basis of Σ Ω, Ω normal (n, rank): nearly the leading eigenvectors of Σ. Where few eigenvalues
    make up most of ‖Σ‖_F, little is left to estimate; where the spectrum is flat, this is Hutchinson's method at a
    higher cost. Probes are uniform on the unit sphere of the n − rank dimensions that Π leaves, times √(n − rank).

    Args:
        pattern, factor, rng: as `estimate_trace_by_hutchinson`.
        rank: columns of Q, from 0 to n − 1.
        num_probes: N, at least 2.
    Cost: 3 rank + N solves and 4 n rank (rank + N) flops; memory 2 rank vectors a batch element.
    Variance: given Q, with d = n − rank, (2 d / (d + 2)) (‖ΠΣΠ‖_F² − tr(ΠΣΠ)² / d) / N; the standard error is that of N
        independent samples given Q, which is valid because the estimate is unbiased for every Q.
    Source: [Meyer, Musco, Musco & Woodruff 2021, arXiv 2010.09649]; the sphere from [Epperly, Tropp & Webber 2024].
    """
    verb = "estimate_trace_by_hutchpp"
    rng = _checked(verb, pattern, factor, rng, num_probes=(num_probes, 2), rank=(rank, 0))
    if rank >= pattern.n:
        raise ValueError(f"{verb}: rank must be at most n − 1 = {pattern.n - 1}, got {rank}.")
    batch = factor.shape[:-1]
    sketch = probes.normal_columns(rng, rank, batch, pattern.n)
    images = probes.on_columns(
        linalg.solve_t, pattern, factor, probes.on_columns(linalg.solve, pattern, factor, sketch)
    )
    basis = np.linalg.qr(images).Q
    head = np.square(probes.on_columns(linalg.solve, pattern, factor, basis)).sum(axis=(-2, -1))
    rest = np.empty((*batch, num_probes))
    for part in probes.parts(num_probes, math.prod(batch) * pattern.n):
        omega = probes.normal_columns(rng, part.stop - part.start, batch, pattern.n)
        omega -= basis @ (np.swapaxes(basis, -1, -2) @ omega)
        squares = np.square(probes.on_columns(linalg.solve, pattern, factor, omega)).sum(axis=-2)
        rest[..., part] = (pattern.n - rank) * squares / np.square(omega).sum(axis=-2)
    return _mean(verb, head + np.moveaxis(rest, -1, 0), factor.dtype)


def estimate_trace_by_xtrace(pattern: Pattern, factor: FloatArray, num_probes: int, rng: Seed = None) -> Estimate:
    """tr Σ as Hutch++ with every probe used twice: m estimates, each with one probe and the basis of all others.

    With Q_i an orthonormal basis of Σ Ω without its column ω_i, and Π_i = I − Q_i Q_iᵀ,

        t_i = tr(Q_iᵀ Σ Q_i) + (n − m + 1) ω_iᵀ Π_i Σ Π_i ω_i / ‖Π_i ω_i‖²,        value = mean of t_i, shape (...).

    Each t_i is unbiased: Π_i ω_i has a uniform direction in the n − m + 1 dimensions that Π_i leaves. For m = n there
    is only one such direction, and every t_i is tr Σ.

    Args:
        pattern, factor, rng: as `estimate_trace_by_hutchinson`.
        num_probes: m, from 2 to n; normal vectors.
    Cost: 3 m solves and about 18 n m² flops; memory 8 m vectors a batch element, in float64.
    Variance: that of Hutch++ with rank m − 1 and m probes, if the t_i were independent. They are not, so their spread
        over √m is too small. The standard error is the jackknife's, which needs no further solve; its square is on
        average at least the variance of the estimate from m − 1 probes [Efron & Stein 1981]. On grids it is 1.3 to 3
        times the error.
    Raises:
        NonFiniteError: Σ Ω has linearly dependent columns to rounding: Σ has a numerical rank below m.
    Source: [Epperly, Tropp & Webber 2024, arXiv 2301.07825]; jackknife: [Epperly & Tropp 2024, arXiv 2207.06342].
    """
    verb = "estimate_trace_by_xtrace"
    if pattern.n < 2:
        raise ValueError(f"{verb}: needs two nodes or more, got one, whose trace is exactly 1 / L².")
    rng = _checked(verb, pattern, factor, rng, num_probes=(num_probes, 2))
    if num_probes > pattern.n:
        raise ValueError(f"{verb}: num_probes must be at most n = {pattern.n}, got {num_probes}.")
    omega = probes.normal_columns(rng, num_probes, factor.shape[:-1], pattern.n)
    halves = probes.on_columns(linalg.solve, pattern, factor, omega)  # L⁻¹Ω
    Q, R = np.linalg.qr(probes.on_columns(linalg.solve_t, pattern, factor, halves))
    half_basis = probes.on_columns(linalg.solve, pattern, factor, Q)  # L⁻¹Q
    try:
        parts = xtrace.sketch(omega, halves, Q, R, half_basis)
    except np.linalg.LinAlgError:
        raise NonFiniteError(
            f"{verb}: the images of the probes under Σ are linearly dependent to rounding. Take fewer probes, or "
            "estimate_trace_by_hutchpp, which does not need them independent."
        ) from None
    value = xtrace.leave_one_out(parts).mean(axis=-1)
    return _estimate(verb, value, xtrace.jackknife_standard_error(parts), factor.dtype)


def estimate_trace_product(
    pattern: Pattern,
    factor: FloatArray,
    other: Pattern,
    num_probes: int,
    rng: Seed = None,
    *,
    other_factor: FloatArray | None = None,
    other_precision: FloatArray | None = None,
    gather: IntArray | None = None,
) -> Estimate:
    """tr(P_p Σ_q) as the mean of zᵀ P_p z, z = L_q⁻ᵀ ε, ε random signs: the trace of KL(q ‖ p), shape (...).

    Unbiased for any white ε, because E z zᵀ = Σ_q. The cost is linear in nnz(L_q) + nnz of p, while the exact trace
    needs Σ_q on the fill of both patterns together.

    Args:
        pattern, factor: of L_q, as `estimate_trace_by_hutchinson`.
        other: pattern of p's values.
        num_probes: N, at least 2.
        rng: source of the signs, a generator or a seed.
        other_factor, other_precision: (..., nnz of `other`), exactly one: L_p, or P_p. Batch axes broadcast.
        gather: (n,) node of q for each node of p, where the two patterns number them differently: z_p = z[..., gather].
    Cost: N solves, and N products with L_pᵀ or P_p.
    Variance: 2 (‖M‖_F² − Σ_i M_ii²) / N, M = L_q⁻¹ P_p L_q⁻ᵀ: zero for p = q. The standard error is that of N
        independent samples.
    """
    verb = "estimate_trace_product"
    rng = _checked(verb, pattern, factor, rng, num_probes=(num_probes, 2))
    if (other_factor is None) == (other_precision is None):
        raise ValueError(f"{verb}: needs exactly one of other_factor and other_precision.")
    if other.n != pattern.n:
        raise PatternError(f"{verb}: both patterns must have the same n, got {pattern.n} and {other.n}.")
    values = other_precision if other_factor is None else other_factor
    assert values is not None
    checks.check(verb, other, packed={"other_precision" if other_factor is None else "other_factor": values})
    shape = checks.broadcast(verb, factor=factor.shape[:-1], other=values.shape[:-1])

    def forms(noise: FloatArray) -> FloatArray:
        z = linalg.solve_t(pattern, factor, noise)
        z = z if gather is None else z.take(gather, axis=-1)
        if other_factor is None:
            return probes.dot(z, linalg.symmetric_matmul(other, values, z))
        return probes.squared(linalg.matmul_t(other, values, z))

    return _mean(verb, probes.over_signs(forms, num_probes, (*shape, pattern.n), factor.dtype, rng), factor.dtype)


# ---------------------------------------------------------------------- variances


def estimate_variances_by_rao_blackwell(
    pattern: Pattern, factor: FloatArray, num_samples: int, rng: Seed = None
) -> Estimate:
    """diag Σ, (..., n), from exact conditional variances, and samples z = L⁻ᵀ ε, ε ~ N(0, I), for the remainder:

        Σ_ii = Var(z_i) = 1 / P_ii + Var(x_i) / P_ii²,        x_i = Σ_{j≠i} P_ij z_j = (L ε)_i − P_ii z_i.

    1 / P_ii, the variance given all other nodes, is exact; only the contribution of the neighbours is sampled. P itself
    is not needed: P z = L ε, and P_ii = Σ_j L_ij².

    Args:
        pattern, factor: as `estimate_trace_by_hutchinson`.
        num_samples: N, at least 1.
        rng: source of ε, a generator or a seed.
    Cost: N solves and N products with L.
    Variance: 2 (Σ_ii − 1 / P_ii)² / N; for comparison, the mean of z_i² has 2 Σ_ii² / N. x_i is normal with mean zero,
        so the standard error needs no fourth moments: it is √(2 / (N + 2)) times the second term, and its square is
        unbiased. Errors of neighbouring nodes are correlated.
    Source: the simple estimator of [Sidén, Lindgren, Bolin & Villani 2018, arXiv 1705.08656].
    """
    verb = "estimate_variances_by_rao_blackwell"
    rng = _checked(verb, pattern, factor, rng, num_samples=(num_samples, 1))
    shape = (*factor.shape[:-1], pattern.n)
    diagonal = segment_sum(np.square(factor, dtype=np.float64), pattern.rows.astype(np.int64), pattern.n)  # P_ii
    squares = np.zeros(shape)
    for part in probes.parts(num_samples, math.prod(shape)):
        noise = rng.standard_normal((part.stop - part.start, *shape), dtype=factor.dtype.type)
        z = linalg.solve_t(pattern, factor, noise)
        squares += np.square(linalg.matmul(pattern, factor, noise) - diagonal * z).sum(axis=0)
    sampled = squares / num_samples / diagonal**2
    return _estimate(verb, 1.0 / diagonal + sampled, math.sqrt(2.0 / (num_samples + 2)) * sampled, factor.dtype)


def estimate_variances_by_probing(
    pattern: Pattern,
    factor: FloatArray,
    colours: IntArray,
    replicates: int = 2,
    rng: Seed = None,
) -> Estimate:
    """diag Σ, (..., n), as Σ_c z_c ⊙ Σ z_c, z_c random signs on the nodes of colour c and zero elsewhere.

    Args:
        as `estimate_trace_by_probing`.
    Cost: 2 R solves a colour.
    Variance: of node i, Σ_j Σ_ij² / R over the other nodes of its colour. The standard error is the spread of R
        replicates, node by node: R − 1 degrees of freedom. With few replicates, use its mean square over many nodes
        rather than that of one node.
    Source: [Bekas, Kokiopoulou & Saad 2007; Tang & Saad 2012].
    """
    verb = "estimate_variances_by_probing"
    rng = _checked(verb, pattern, factor, rng, replicates=(replicates, 2))
    labels, members = probes.colour_classes(verb, pattern, colours)
    shape = (*factor.shape[:-1], pattern.n)
    mean, deviations = np.zeros(shape), np.zeros(shape)
    for replicate in range(replicates):
        diagonal = np.zeros(shape)
        for _, z in probes.by_colour(labels, members, shape, factor.dtype, rng):
            columns = linalg.solve_t(pattern, factor, linalg.solve(pattern, factor, z))
            diagonal += np.einsum("c...,c...->...", z, columns, dtype=np.float64)
        step = diagonal - mean  # Welford's update: no second pass, no cancellation
        mean += step / (replicate + 1)
        deviations += step * (diagonal - mean)
    standard_error = np.sqrt(deviations / (replicates - 1) / replicates)
    return _estimate(verb, mean, standard_error, factor.dtype)


# ---------------------------------------------------------------------- checks and results


def _checked(
    verb: str, pattern: Pattern, factor: FloatArray, rng: Seed, **counts: tuple[int, int]
) -> np.random.Generator:
    """The generator, after checks of the factor and of each count against its least value."""
    checks.check(verb, pattern, packed={"factor": factor})
    checks.require_finite(verb, "factor", pattern, factor)
    checks.require_positive_diagonal(verb, pattern, factor)
    for name, (count, least) in counts.items():
        if not isinstance(count, int | np.integer):
            raise TypeError(f"{verb}: {name} must be an integer, got {count!r}.")
        if count < least:
            why = ", for a standard error" if least == 2 else ""
            raise ValueError(f"{verb}: {name} must be at least {least}{why}, got {count}.")
    return generator(verb, rng)


def _mean(verb: str, samples: FloatArray, dtype: Any) -> Estimate:
    """The mean of N ≥ 2 samples (N, ...), with their standard deviation over √N as its standard error."""
    return _estimate(verb, samples.mean(axis=0), samples.std(axis=0, ddof=1) / math.sqrt(len(samples)), dtype)


def _estimate(verb: str, value: Any, standard_error: Any, dtype: Any) -> Estimate:
    """An `Estimate` in the dtype of the factor. Raises if it is not finite there."""
    with np.errstate(over="ignore"):
        estimate = Estimate(*(np.asarray(part).astype(dtype) for part in (value, standard_error)))
    if not all(np.isfinite(part).all() for part in estimate):
        raise NonFiniteError(f"{verb}: the factor is finite but the estimate overflows {dtype}: rescale it.")
    return estimate
