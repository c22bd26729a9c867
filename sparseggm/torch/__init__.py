"""The torch adapter: the verbs as differentiable operators, the Gaussian as a distribution, network heads.

It wraps the NumPy verbs and re-implements none of them.
"""

from sparseggm.torch import ops, spectral
from sparseggm.torch.distribution import GaussianGraphicalModel
from sparseggm.torch.divergences import sample_and_kl
from sparseggm.torch.errors import NotPositiveDefiniteError
from sparseggm.torch.heads import FactorHead

__all__ = ["FactorHead", "GaussianGraphicalModel", "NotPositiveDefiniteError", "ops", "sample_and_kl", "spectral"]
