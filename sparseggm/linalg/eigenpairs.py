"""The largest eigenvalue of dense symmetric matrices and its eigenvector, where the eigenvalue stands alone."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from sparseggm import threads
from sparseggm.graph.pattern import FloatArray
from sparseggm.kernels import eigenpairs
from sparseggm.linalg import memory


def leading_pairs(matrix: FloatArray) -> tuple[FloatArray, FloatArray, npt.NDArray[np.bool_]]:
    """λ_max of R (batch, n, n); its unit eigenvector v; and whether these are to be used.

    They are where every other eigenvalue is further off than 1.5e-5 of the largest sum of a row of |R|, ‖R‖∞, and the
    last iterations show an eigenpair; elsewhere λ and v are arbitrary.

    Cost: 2 n³ multiply-adds, in lanes of the batch, and 14 sweeps over a tridiagonal matrix.
    Error: of λ a few n u ‖R‖∞, that of the reduction to tridiagonal form [Golub & Van Loan 2013, §8.3.1]; of v that
        over the distance of the next eigenvalue.
    """
    count, n = matrix.shape[:2]
    if n == 1:
        return matrix[:, 0, 0].copy(), np.ones((count, 1)), np.ones(count, bool)
    with np.errstate(over="ignore", invalid="ignore"):
        size = abs(matrix).sum(axis=-1).max(axis=-1)
        usable = (size > 0) & np.isfinite(size)
        scaled = matrix / np.where(usable, size, 1.0)[:, None, None]
    results = memory.empty((count, n + eigenpairs.QUALITY), np.dtype(np.float64))
    threads.over_batch(eigenpairs.leading, 2 * n**3, scaled.reshape(count, n * n), results, batch=count)
    value, pivot, near, residual = results[:, n:].T
    usable &= (pivot > 0) & (near > 0.999) & (near < 1.4) & (residual < (32 * n * eigenpairs.UNIT) ** 2)
    return value * size, results[:, :n], usable
