"""`GaussianGraphicalModel` as a sample site of Pyro, which is optional: pip install pyro-ppl."""

from __future__ import annotations

from sparseggm import torch

try:
    from pyro.distributions.torch_distribution import TorchDistributionMixin
except ImportError:
    raise ImportError("sparseggm.pyro: needs Pyro, which is not installed. Try: pip install pyro-ppl") from None


class GaussianGraphicalModel(torch.GaussianGraphicalModel, TorchDistributionMixin):  # type: ignore[misc]
    """`sparseggm.torch.GaussianGraphicalModel` with Pyro's mixin: `pyro.sample("z", GaussianGraphicalModel(…))`.

    It has the same arguments and constructors. For the Gaussian q of a head, write `GaussianGraphicalModel.of(q)`.
    """

    @classmethod
    def of(cls, q: torch.GaussianGraphicalModel) -> GaussianGraphicalModel:
        """The Gaussians of q, which a head made for instance, as a sample site that shares their tensors."""
        site = cls.__new__(cls)
        site.__dict__.update(q.__dict__)
        return site
