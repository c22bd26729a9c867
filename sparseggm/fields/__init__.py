"""Statistics of Gaussian fields: models by name, observations, constraints, intrinsic priors, evidence: docs/fields.md.

Numbers may be arrays or tensors, Gaussians those of `sparseggm` or of `sparseggm.torch`.
"""

from sparseggm.fields.areal import BYM2, CAR, Improper
from sparseggm.fields.autoregression import Autoregression
from sparseggm.fields.constraints import Constrained, constrain
from sparseggm.fields.elements import Lattice, Mesh
from sparseggm.fields.intrinsic import IntrinsicGaussian
from sparseggm.fields.kronecker import Kronecker
from sparseggm.fields.laplace import Laplace, laplace
from sparseggm.fields.likelihoods import Binomial, CustomLikelihood, NegativeBinomial, Normal, Poisson, Terms
from sparseggm.fields.matern import Matern
from sparseggm.fields.state_space import (
    Component,
    StateSpace,
    local_level,
    local_linear_trend,
    seasonal,
    structural,
)
from sparseggm.gaussian.linear import LinearObservation, Prediction

__all__ = [
    "BYM2",
    "CAR",
    "Autoregression",
    "Binomial",
    "Component",
    "Constrained",
    "CustomLikelihood",
    "Improper",
    "IntrinsicGaussian",
    "Kronecker",
    "Laplace",
    "Lattice",
    "LinearObservation",
    "Matern",
    "Mesh",
    "NegativeBinomial",
    "Normal",
    "Poisson",
    "Prediction",
    "StateSpace",
    "Terms",
    "constrain",
    "laplace",
    "local_level",
    "local_linear_trend",
    "seasonal",
    "structural",
]
