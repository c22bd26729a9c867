"""Many samples of each of several Gaussians with their log-densities, in one pass over the noise.

Vectors are in the caller's numbering of nodes, packed values in that of their pattern.
"""

from __future__ import annotations

import numpy as np

from sparseggm.graph.pattern import FloatArray, IntArray, Pattern
from sparseggm.linalg import checks, memory
from sparseggm.linalg.engines import engine_for
from sparseggm.linalg.primitives import Gaussians


def sample_and_log_prob(
    pattern: Pattern,
    order: IntArray | None,
    loc: FloatArray,
    factor: FloatArray,
    at_mean: FloatArray,
    noise: FloatArray,
) -> tuple[FloatArray, FloatArray]:
    """z = loc + L⁻ᵀ ε, and log q(z) = log q(loc) − ½ ‖ε‖².

    Args:
        pattern: of L.
        order: (n,) the caller's node of each column of L; None if the two numberings agree.
        loc, factor, noise: (..., n), (..., nnz) and (..., n); batch axes broadcast, for which only noise is copied.
        at_mean: (...) log q(loc) in float64, ½ [log det P − n log 2π].
    Returns:
        z (..., n) and log q(z) (...) on the common batch axes; the sum in log q(z) is formed in float64.
    Raises:
        NonPositiveError: a diagonal entry of L is ≤ 0, where that makes z infinite; and the common errors of `linalg`.
    Cost: 2 nnz + 2 n flops a sample, each byte moved once; scratch is a quarter of a megabyte, or one block.
    Error: z − loc as `solve_t`, then one rounding; log q(z) n + 2 roundings in float64 and one in the dtype.
    """
    verb, n = "sample_and_log_prob", pattern.n
    checks.check(verb, pattern, packed={"factor": factor}, loc=loc, noise=noise)
    checks.require_floats(verb, "at_mean", at_mean)
    own = checks.broadcast(verb, factor=factor.shape[:-1], loc=loc.shape[:-1], at_mean=at_mean.shape)
    full = checks.broadcast(verb, noise=noise.shape[:-1], gaussians=own)
    own = own if full[len(full) - len(own) :] == own else full
    z, log_prob = memory.empty((*full, n), noise.dtype), np.empty(full, noise.dtype)
    nodes = np.arange(pattern.n) if order is None else order
    gaussians = Gaussians(
        checks.owners(factor.shape[:-1], own),
        checks.as_rows(factor, factor.shape[:-1]),
        checks.owners(loc.shape[:-1], own),
        checks.as_rows(loc, loc.shape[:-1]),
        checks.as_rows(at_mean[..., None].astype(np.float64, copy=False), own),
    )
    rows = checks.as_rows(noise, full), z.reshape(log_prob.size, n), log_prob.reshape(log_prob.size)
    if engine_for(pattern, log_prob.size, noise.dtype).sample_and_log_prob(pattern, nodes, gaussians, *rows):
        checks.raise_cause(verb, {"factor": (pattern, factor), "loc": (None, loc), "noise": (None, noise)})
    return z, log_prob
