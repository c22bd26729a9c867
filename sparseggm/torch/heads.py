"""Network heads: the last layer of an encoder or decoder, from features to a Gaussian."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sparseggm import parametrize
from sparseggm.errors import PatternError
from sparseggm.topology import Topology
from sparseggm.torch.distribution import GaussianGraphicalModel


class FactorHead(nn.Module):
    """Features → N(loc, (L Lᵀ)⁻¹): one linear layer emits loc and L, on any factor-free topology.

    The layer starts with zeros where it feeds L, so that at initialisation L = I whatever the features; the
    log-diagonal is bounded (`parametrize.factor`). The pattern's key is part of the state dict: weights for another
    topology or order of elimination do not load.

    Args:
        in_features: size of the last axis of the input.
        topology: `Diagonal`, `Chain`, `BlockChain`, `ExtendedGrid`, … with `is_factor_free`.
    """

    def __init__(self, in_features: int, topology: Topology) -> None:
        super().__init__()
        self.topology = topology
        num_inputs = parametrize.factor.num_inputs(topology)  # raises unless factor-free
        self.linear = nn.Linear(in_features, topology.n + num_inputs)
        with torch.no_grad():
            self.linear.weight[topology.n :].zero_()
            self.linear.bias[topology.n :].zero_()

    def forward(self, features: Tensor) -> GaussianGraphicalModel:
        loc, inputs = self.linear(features).split([self.topology.n, self.topology.factor_pattern.nnz], dim=-1)
        factor = parametrize.factor(self.topology, inputs)
        return GaussianGraphicalModel(loc, factor=factor, topology=self.topology, validate_args=False)

    def extra_repr(self) -> str:
        return str(self.topology)

    def get_extra_state(self) -> dict[str, str]:
        return {"factor_pattern": self.topology.factor_pattern.key}

    def set_extra_state(self, state: Any) -> None:
        if state != self.get_extra_state():
            raise PatternError(
                f"FactorHead: the saved weights are for another topology or order of elimination than {self.topology}."
            )
