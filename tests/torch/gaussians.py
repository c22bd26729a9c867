"""Gaussians that the torch tests share: made from a factor or from a precision, and their dense and NumPy twins."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

import sparseggm as sg
from sparseggm.torch import GaussianGraphicalModel
from tests.torch.problems import TOPOLOGIES, factor, vectors


@dataclass(frozen=True)
class Kind:
    """A topology, and what its Gaussians are made from."""

    topology: sg.Topology
    made_from: str

    def __str__(self) -> str:
        return f"{self.topology}, from {self.made_from}"

    def make(self, loc: Tensor, values: Tensor, **options: Any) -> GaussianGraphicalModel:
        if self.made_from == "factor":
            return GaussianGraphicalModel(loc, factor=values, topology=self.topology, **options)
        return GaussianGraphicalModel.from_precision(loc, precision=values, topology=self.topology, **options)

    def values(self, *batch: int, seed: int = 0) -> Tensor:
        """Of L or of P, float64, that ask for gradients."""
        if self.made_from == "factor":
            return factor(self.topology.factor_pattern, *batch, seed=seed)
        pattern = self.topology.precision_pattern
        couplings = 0.3 * np.random.default_rng(seed).standard_normal((*batch, pattern.nnz))
        couplings[..., pattern.diagonal] = 0.3 + sg.gershgorin.discs(pattern, couplings)[1]
        return torch.from_numpy(couplings).requires_grad_()

    def example(self, *batch: int, seed: int = 0) -> GaussianGraphicalModel:
        return self.make(vectors(self.topology.n, *batch, seed=seed + 3), self.values(*batch, seed=seed))


KINDS = [
    *(Kind(topology, "factor") for topology in TOPOLOGIES),
    *(Kind(topology, "precision") for topology in (sg.Chain(4), sg.ExtendedGrid(2, 3), sg.Grid(3, 3), sg.Cycle(5))),
    Kind(sg.Chain(4, order=range(4)[::-1]), "factor"),
    Kind(sg.BlockChain(3, 2, order=[2, 3, 0, 1, 4, 5]), "precision"),  # has fill
]


def gaussian(topology: sg.Topology, *batch: int) -> GaussianGraphicalModel:
    return Kind(topology, "factor").example(*batch)


def dense_precision(q: GaussianGraphicalModel) -> np.ndarray:
    """P in the caller's numbering, from L by dense algebra."""
    inverse = q.topology.inverse_order
    lower = q.factor_pattern.to_dense(q.factor.detach().numpy())
    return (lower @ lower.swapaxes(-1, -2))[..., inverse[:, None], inverse]


def dense(q: GaussianGraphicalModel) -> MultivariateNormal:
    return MultivariateNormal(q.loc.detach(), precision_matrix=torch.from_numpy(dense_precision(q)))


def in_numpy(q: GaussianGraphicalModel) -> sg.GaussianGraphicalModel:
    loc, lower = q.loc.detach().numpy(), q._factor.detach().numpy()
    is_by_factor = q.factor_pattern is q.topology.factor_pattern and q.topology.is_factor_free
    if is_by_factor or not q.is_on_topology:
        return sg.GaussianGraphicalModel(loc, factor=lower, topology=q.topology)
    return sg.GaussianGraphicalModel.from_precision(loc, precision=q.precision.detach().numpy(), topology=q.topology)
