"""A `scipy.stats.Covariance`, so that `scipy.stats.multivariate_normal` accepts a sparse precision.

SciPy lets a subclass define private hooks; these are the ones of SciPy 1.12 to 1.18, and a test calls each of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.stats

from sparseggm import linalg
from sparseggm.errors import ShapeError
from sparseggm.gaussian.model import GaussianGraphicalModel
from sparseggm.graph.pattern import FloatArray


class SparsePrecisionCovariance(scipy.stats.Covariance):  # type: ignore[misc]  # SciPy is untyped
    """Σ = P⁻¹ of one Gaussian, which is not formed unless `covariance` is read.

    scipy.stats.multivariate_normal(g.loc, SparsePrecisionCovariance(g)) has the logpdf, entropy and samples of g.

    Args:
        gaussian: without batch axes; its mean is not used.
    """

    def __init__(self, gaussian: GaussianGraphicalModel) -> None:
        if gaussian.batch_shape:
            raise ShapeError(f"SparsePrecisionCovariance: needs one Gaussian, got batch shape {gaussian.batch_shape}.")
        self._gaussian = gaussian
        self._rank = gaussian.n
        self._shape = (gaussian.n, gaussian.n)
        self._log_pdet = -float(linalg.logdet(gaussian.factor_pattern, gaussian.factor.astype(np.float64)))
        self._allow_singular = False

    def _whiten(self, x: Any) -> Any:
        return _by_row(self._gaussian.whiten, x)

    def _colorize(self, x: Any) -> Any:
        return _by_row(self._gaussian.colorize, x)

    @property
    def _covariance(self) -> Any:
        """The dense Σ; SciPy calls this only if the user reads `covariance`."""
        root = self._gaussian.colorize(np.eye(self._gaussian.n, dtype=self._gaussian.dtype))
        return root.T @ root


def _by_row(linear: Callable[[FloatArray], FloatArray], x: FloatArray) -> FloatArray:
    """Apply a linear map to each row; a row with a NaN gives only NaN, as with SciPy's own matrices."""
    missing = np.asarray(np.isnan(x).any(axis=-1))
    if not missing.any():
        return linear(x)
    mapped = linear(np.where(missing[..., None], 0.0, x))
    mapped[missing] = np.nan
    return mapped
