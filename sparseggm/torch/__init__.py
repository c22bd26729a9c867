"""The torch adapter: the verbs as differentiable operators, the Gaussian as a distribution, network heads.

It wraps the NumPy verbs and re-implements none of them.
"""

try:
    import torch  # noqa: F401
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise
    raise ModuleNotFoundError(
        "sparseggm.torch: needs the package torch, which is not installed. Get it by: pip install 'sparseggm[torch]'",
        name="torch",
    ) from None

from sparseggm.torch import (  # noqa: F401  field_models and packing add rules
    field_models,
    fields,
    geometry,
    ops,
    packing,
)
from sparseggm.torch.distribution import GaussianGraphicalModel
from sparseggm.torch.divergences import kl_terms, sample_and_kl
from sparseggm.torch.errors import NotPositiveDefiniteError
from sparseggm.torch.geometry import fisher_solve
from sparseggm.torch.grey_levels import GreyLevels
from sparseggm.torch.heads import ConvHead, FactorHead, PotentialHead, PrecisionHead
from sparseggm.torch.natural_gradients import elbo_gradient, natural_step, precondition
from sparseggm.torch.observed import LogitNormal
from sparseggm.torch.operators import spectral
from sparseggm.torch.optimisers import NaturalGradient
from sparseggm.torch.potentials import Potential
from sparseggm.torch.refinement import Refinement, refine
from sparseggm.torch.residual import Residual, ResidualHead

__all__ = [
    "ConvHead",
    "FactorHead",
    "GaussianGraphicalModel",
    "GreyLevels",
    "LogitNormal",
    "NaturalGradient",
    "NotPositiveDefiniteError",
    "Potential",
    "PotentialHead",
    "PrecisionHead",
    "Refinement",
    "Residual",
    "ResidualHead",
    "elbo_gradient",
    "fields",
    "fisher_solve",
    "geometry",
    "kl_terms",
    "natural_step",
    "ops",
    "precondition",
    "refine",
    "sample_and_kl",
    "spectral",
]
