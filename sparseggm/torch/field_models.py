"""The models of `sparseggm.fields` for tensors: how their parameters are taken, and the Gaussians that they become."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from sparseggm.fields import parameters
from sparseggm.graph.topology import Topology
from sparseggm.torch import ops
from sparseggm.torch.border import as_tensors
from sparseggm.torch.distribution import GaussianGraphicalModel
from sparseggm.torch.operators.registration import index


@parameters.tensors_beside.register(Tensor)
def _tensors_beside(tensor: Tensor, function: str, given: dict[str, Any]) -> list[Tensor]:
    return list(as_tensors(function, **given))


@parameters.gaussian_of_factor.register(Tensor)
def _gaussian_of_factor(factor: Tensor, loc: Any, topology: Topology) -> GaussianGraphicalModel:
    return GaussianGraphicalModel(loc, factor=factor, topology=topology)


@parameters.gaussian_of_precision.register(Tensor)
def _gaussian_of_precision(precision: Tensor, loc: Any, topology: Topology) -> GaussianGraphicalModel:
    return GaussianGraphicalModel.from_precision(loc, precision=precision, topology=topology)


@parameters.precision_matmul.register(Tensor)
def _precision_matmul(precision: Tensor, topology: Topology, x: Tensor) -> Tensor:
    ordered = x.index_select(-1, index(topology.order, x))
    product = ops.symmetric_matmul(topology.precision_pattern, precision, ordered)
    return product.index_select(-1, index(topology.inverse_order, product))
