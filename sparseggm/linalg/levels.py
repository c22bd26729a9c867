"""The probability that a Gaussian falls into given intervals, by sequential truncated samples; and its gradients.

A level k stands for the interval edges[k] … edges[k + 1], whose ends may be infinite. Numbering: that of the pattern.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from sparseggm.errors import DTypeError, ShapeError
from sparseggm.graph.pattern import FloatArray, Pattern
from sparseggm.kernels.sparse.levels import Observed
from sparseggm.linalg import checks, memory
from sparseggm.linalg.checks import Shape
from sparseggm.linalg.engines import engine_for

Levels = npt.NDArray[np.integer]


def levels_log_prob(
    pattern: Pattern, loc: FloatArray, factor: FloatArray, levels: Levels, edges: FloatArray, uniform: FloatArray
) -> FloatArray:
    """Σ_j log D_j, where Π_j D_j is an unbiased estimate of P(edges[levels] ≤ z < edges[levels + 1]), z ~ N(loc, P⁻¹).

    From the last node to the first, z_j given those after it is normal; D_j is the probability of its interval, and
    z_j is sampled in it by its quantile at uniform_j (the simulator of Geweke, Hajivassiliou and Keane).

    Args:
        pattern: of L.
        loc, factor: (..., n) and (..., nnz), batch axes broadcast.
        levels: (..., n) integers of 0 … K − 1.
        edges: (K + 1,) float64, edges[k] < edges[k + 1] for every level k that occurs; −∞ and ∞ are edges too.
        uniform: (..., n) in (0, 1): an estimate for each of its rows. On a diagonal pattern it does not matter.
    Returns:
        (...) float64, on the common batch axes.
    Raises:
        NonPositiveError: a diagonal entry of L is ≤ 0; ShapeError for a level outside 0 … K − 1, or another shape.
    Cost: 2 nnz flops and two logarithms of tails, a quantile, four exponentials a node; float64 inside.
    Error: of log D_j some 10 u |log D_j|, and 4 u (|α_j| + |β_j|) times the rates φ(α_j)/D_j, φ(β_j)/D_j.
    Source: [Geweke 1991; Hajivassiliou & McFadden 1998; Cao & Katzfuss 2023].
    Reference: `reference.levels.log_prob`.
    """
    return _sampled("levels_log_prob", False, pattern, loc, factor, levels, edges, uniform)[1]


def sample_in_levels(
    pattern: Pattern, loc: FloatArray, factor: FloatArray, levels: Levels, edges: FloatArray, uniform: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """z (..., n), sampled in the intervals of the levels from the last node to the first, and `levels_log_prob`.

    Weighted by exp(log_prob), z is a sample of N(loc, P⁻¹) given its levels. Args, Raises, Cost: as `levels_log_prob`.
    """
    return _sampled("sample_in_levels", True, pattern, loc, factor, levels, edges, uniform)


def _sampled(
    verb: str,
    wanted: bool,
    pattern: Pattern,
    loc: FloatArray,
    factor: FloatArray,
    levels: Levels,
    edges: FloatArray,
    uniform: FloatArray,
) -> tuple[FloatArray, FloatArray]:
    """z, which is empty unless wanted, and log_prob."""
    full, observed = _observed(verb, pattern, loc, factor, levels, edges, uniform)
    log_prob, z = np.empty(full), memory.empty((*full, pattern.n) if wanted else (0, pattern.n), loc.dtype)
    rows = log_prob.reshape(log_prob.size), z.reshape(-1, pattern.n)
    if engine_for(pattern, log_prob.size, uniform.dtype).levels_log_prob(pattern, observed, *rows):
        checks.raise_cause(verb, {"factor": (pattern, factor), "loc": (None, loc), "uniform": (None, uniform)})
    return z, log_prob


def levels_log_prob_and_gradients(
    pattern: Pattern, loc: FloatArray, factor: FloatArray, levels: Levels, edges: FloatArray, uniform: FloatArray
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """`levels_log_prob` (...), and its gradients with respect to loc and L: (..., n) and (..., nnz), uniform given.

    They are those of each row of `uniform`, on the common batch axes, not summed. One beyond the dtype is infinite.
    Args, Raises: as `levels_log_prob`. Cost: 1.2 times that.
    """
    verb = "levels_log_prob_and_gradients"
    full, observed = _observed(verb, pattern, loc, factor, levels, edges, uniform)
    log_prob, by_loc, by_factor = (
        np.empty(full),
        memory.empty((*full, pattern.n), loc.dtype),
        memory.empty((*full, pattern.nnz), loc.dtype),
    )
    batch = log_prob.size
    results = log_prob.reshape(batch), by_loc.reshape(batch, pattern.n), by_factor.reshape(batch, pattern.nnz)
    if engine_for(pattern, batch, loc.dtype).levels_log_prob_and_gradients(pattern, observed, *results):
        checks.raise_cause(verb, {"factor": (pattern, factor), "loc": (None, loc), "uniform": (None, uniform)})
    return log_prob, by_loc, by_factor


def _observed(
    verb: str,
    pattern: Pattern,
    loc: FloatArray,
    factor: FloatArray,
    levels: Levels,
    edges: FloatArray,
    uniform: FloatArray,
) -> tuple[Shape, Observed]:
    """The common batch axes, and the arguments as kernels take them."""
    checks.check(verb, pattern, packed={"factor": factor}, loc=loc, uniform=uniform)
    levels = np.asarray(levels)
    if edges.ndim != 1:
        raise ShapeError(f"{verb}: edges must have one axis, the same for all, got shape {edges.shape}.")
    if not np.issubdtype(levels.dtype, np.integer):
        raise DTypeError(f"{verb}: levels must be integers, got {levels.dtype}.")
    if levels.shape[-1:] != (pattern.n,):
        raise ShapeError(f"{verb}: levels must end in {pattern.n}, the size of the pattern, got shape {levels.shape}.")
    if levels.size and (levels.min() < 0 or levels.max() >= len(edges) - 1):
        raise ShapeError(f"{verb}: levels must be in 0 … {len(edges) - 2}, got {levels.min()} … {levels.max()}.")
    batches = {"loc": loc.shape[:-1], "factor": factor.shape[:-1], "levels": levels.shape[:-1]}
    full = checks.broadcast(verb, **batches, uniform=uniform.shape[:-1])
    flat = np.ascontiguousarray(levels, np.int32).reshape(math.prod(levels.shape[:-1]), pattern.n)
    return full, Observed(
        checks.owners(factor.shape[:-1], full),
        checks.as_rows(factor, factor.shape[:-1]),
        checks.owners(loc.shape[:-1], full),
        checks.as_rows(loc, loc.shape[:-1]),
        checks.owners(levels.shape[:-1], full),
        checks.read_only_view(flat),
        checks.read_only_view(np.ascontiguousarray(edges, np.float64)),
        checks.as_rows(uniform, full),
    )
