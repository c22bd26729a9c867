"""Statistics of Gaussian fields: observations, constraints and intrinsic priors: docs/math.md, section 14.

Numbers of observations and constraints may be arrays or tensors, Gaussians those of `sparseggm` or `sparseggm.torch`.
"""

from sparseggm.fields.constraints import Constrained, constrain
from sparseggm.fields.intrinsic import IntrinsicGaussian
from sparseggm.gaussian.linear import LinearObservation, Prediction

__all__ = [
    "Constrained",
    "IntrinsicGaussian",
    "LinearObservation",
    "Prediction",
    "constrain",
]
