"""The names of `sparseggm.fields` for tensors: the same functions, which take Gaussians of either kind.

Posterior, evidence, predictions and constraints can be differentiated twice with respect to means, factors or
precisions, values of A, observations and variances.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sparseggm import fields
from sparseggm.fields import Constrained, LinearObservation, Prediction, constrain
from sparseggm.graph.pattern import Pattern
from sparseggm.graph.topology import Topology
from sparseggm.positivity.namespace import refuse_transforms
from sparseggm.torch import ops
from sparseggm.torch.border import as_tensors
from sparseggm.torch.distribution import GaussianGraphicalModel
from sparseggm.torch.operators.registration import array

__all__ = ["Constrained", "IntrinsicGaussian", "LinearObservation", "Prediction", "constrain"]


class IntrinsicGaussian(fields.IntrinsicGaussian):
    """`sparseggm.fields.IntrinsicGaussian` of tensors: differentiable with respect to P, which must have values."""

    precision: Any

    def __init__(self, precision: Any, *, topology: Topology, null: Any | None = None) -> None:
        name = type(self).__name__
        (values,) = as_tensors(name, precision=precision)
        refuse_transforms(name, values)
        super().__init__(array(values), topology=topology, null=null)
        self.precision = values.clone()  # the caller may write into its own
        self._logdeterminant = self._relative_logdet(name)

    @property
    def loc(self) -> Tensor:
        """(n,) zero, a mode, as all of the null space is."""
        return torch.zeros(self.n, dtype=self.precision.dtype, device=self.precision.device)

    def _promoted(self, function: str, **values: Any) -> tuple[fields.IntrinsicGaussian, list[Tensor]]:
        precision, *tensors = as_tensors(function, precision=self.precision, **values)
        return self._with_precision(precision), tensors

    def _updated(self, function: str, pull: Tensor, precision: Tensor, graph: Topology) -> tuple[Any, Tensor]:
        refuse_transforms(function, precision)
        self._require_proper(function, array(precision), graph)
        centred = GaussianGraphicalModel._of_precision(function, pull, precision, graph, None)
        move = centred._solved()
        return centred.moved_to(move), move

    def _precision_matmul(self, x: Tensor) -> Tensor:
        return ops.symmetric_matmul(self.topology.precision_pattern, self.precision.double(), x)

    def _precision_logdet(self, pattern: Pattern, values: Any) -> Any:
        if isinstance(values, Tensor):
            return ops.precision_logdet(pattern, values)
        return super()._precision_logdet(pattern, values)
