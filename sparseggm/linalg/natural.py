"""The natural gradient on a chain, of which `geometry` makes that of any pattern: two passes over L."""

from __future__ import annotations

from typing import cast

import numpy as np

from sparseggm.graph.pattern import FloatArray, Pattern
from sparseggm.linalg import checks, memory, products
from sparseggm.linalg.engines import engine_for
from sparseggm.linalg.primitives import ChainEngine


def natural_gradient(
    pattern: Pattern, factor: FloatArray, vector: FloatArray | None, values: FloatArray, by_regression: bool
) -> tuple[FloatArray | None, FloatArray, bool]:
    """Σ x, and F_j⁻¹ u_Sj for each column j of L, where F_j is that of the column: docs/math.md, section 10.

    Args:
        pattern: that of L on a chain.
        factor: (..., 2n − 1), with a positive diagonal.
        vector: x (..., n), or None where it is not wanted.
        values: u (..., 2n − 1), the gradient by L, or `by_regression` that by log σ_j = −log L_jj on the diagonal and
            by β_ij = −L_ij / L_jj below. Batch axes broadcast.
    Returns:
        Σ x or None, and the natural gradient, both of the joint batch shape; and whether they are known to be finite,
        without which there is an error outside of `checks.non_finite_passes`.
    Raises:
        NonFiniteError, NonPositiveError: see the common errors of `linalg`.
    Cost: `solve`, and one pass that reads L, u and L⁻¹ x, and writes the results.
    """
    given = (factor, values) if vector is None else (factor, values, vector)
    batch = np.broadcast_shapes(*(array.shape[:-1] for array in given))
    half = factor[..., :0] if vector is None else products.solve(pattern, factor, vector)
    x, natural = (memory.empty((*batch, array.shape[-1]), factor.dtype) for array in (half, values))
    L, b, u = (checks.as_rows(array, batch) for array in (factor, half, values))
    results = x.reshape(b.shape), natural.reshape(u.shape)
    engine = cast(ChainEngine, engine_for(pattern, len(L), factor.dtype))
    failed = engine.natural_gradient(pattern, L, b, u, by_regression, *results)
    if failed:
        vectors = {} if vector is None else {"vector": (None, vector)}
        checks.raise_cause("natural_gradient", {"factor": (pattern, factor), "values": (pattern, values), **vectors})
    return None if vector is None else x, natural, not failed
