"""Statistics of Gaussian fields: observations through a matrix, evidence, predictions: docs/math.md, section 14.

Numbers may be arrays or tensors, Gaussians those of `sparseggm` or of `sparseggm.torch`.
"""

from sparseggm.gaussian.linear import LinearObservation, Prediction

__all__ = [
    "LinearObservation",
    "Prediction",
]
