"""`Potential` for tensors: Gaussian potentials exp(hᵀ z − ½ zᵀ Λ z) on a graph, see `sparseggm.gaussian.potentials`."""

from __future__ import annotations

from copy import copy
from typing import Any, Self

import torch
from torch import Tensor

from sparseggm.gaussian.potentials import added, require_same_nodes
from sparseggm.graph.joint import Gather, joint_graph
from sparseggm.graph.topology import Topology
from sparseggm.kernels.sparse.density import LOG_2PI
from sparseggm.torch import ops
from sparseggm.torch.border import as_tensors, common_batch, on_graph, rounded
from sparseggm.torch.operators.numbering import reordered
from sparseggm.torch.operators.registration import index
from sparseggm.torch.operators.tracing import untraced

_found = untraced(joint_graph)


def joint(first: Topology, second: Topology) -> tuple[Topology, Gather, Gather]:
    """`joint_graph`, which a tracer meets only where there are two graphs."""
    return (first, None, None) if first is second else _found(first, second)


class Potential:
    """Gaussian potentials exp(hᵀ z − ½ zᵀ Λ z), Λ on a graph: factors of a density, in general not normalisable.

    Λ ⪰ 0 is not tested, since that would cost a factorisation: `parametrize.semidefinite_edge` and `parametrize.gram`
    give such a Λ, and a product with a Gaussian tests that its own precision is positive definite. Differentiable.

    Args:
        information: (..., n) h, in the caller's numbering.
        precision: (..., nnz) values of Λ on `topology.precision_pattern`, see `topology.pack`.
        topology: the graph. Keyword-only, as `precision` is.
    Raises:
        ShapeError, DTypeError, ValueError: sizes, dtypes or devices that do not fit.
        NonFiniteError: a value of h or Λ, by batch index and node; where values can be read.
    Batch axes of h and Λ broadcast; neither is copied to do so.
    """

    information: Tensor
    precision: Tensor
    topology: Topology
    batch_shape: torch.Size

    def __init__(self, information: Any, *, precision: Any, topology: Topology) -> None:
        self._set(type(self).__name__, topology, information, precision)

    def _set(self, function: str, topology: Topology, information: Any, precision: Any) -> None:
        given = {"information": information, "precision": precision}
        self.information, self.precision = on_graph(function, topology, **given)
        self.batch_shape = common_batch(function, information=self.information, precision=self.precision)
        self.topology = topology

    def __repr__(self) -> str:
        shape, dtype = tuple(self.batch_shape), self.information.dtype
        return f"{type(self).__name__}({self.topology}, batch_shape={shape}, dtype={dtype})"

    @property
    def n(self) -> int:
        """Number of nodes."""
        return self.topology.n

    @property
    def dtype(self) -> torch.dtype:
        """float32 or float64."""
        return self.precision.dtype

    @property
    def graph(self) -> Topology:
        """The graph of Λ: `topology`."""
        return self.topology

    def product(self, other: Potential) -> Self:
        """The potential h₁ + h₂, Λ₁ + Λ₂ on the union of the graphs: see `GaussianGraphicalModel.product`."""
        require_same_nodes("product", self, other, Potential, "sparseggm.torch.Potential")
        one, two = as_tensors("product", this=self.information, other=other.information)
        own, more = self._in_dtype(one.dtype), other._in_dtype(two.dtype)
        graph, precision = added(own.topology, own.precision, more.topology, more.precision, joint)
        result = copy(self)
        result._set("product", graph, own.information + more.information, precision)
        return result

    def log_normaliser(self) -> Tensor:
        """log ∫ exp(hᵀ z − ½ zᵀ Λ z) dz = ½ [n log 2π − log det Λ + hᵀ Λ⁻¹ h], nats: one `ops.precision_solve`."""
        topology = self.topology
        order = None if topology.is_naturally_ordered else index(topology.order, self.information)
        h = reordered(self.information, order)
        x, logdet = ops.precision_solve(topology.precision_pattern, self.precision, h)
        square = (h * x).sum(-1, dtype=torch.float64)
        return rounded(0.5 * (topology.n * LOG_2PI - logdet.double() + square), h.dtype)

    def _in_dtype(self, dtype: torch.dtype) -> Self:
        """The same numbers in a dtype that is no narrower."""
        if self.information.dtype is dtype:
            return self
        wider = copy(self)
        wider.information, wider.precision = self.information.to(dtype), self.precision.to(dtype)
        return wider

    @property
    def _vector(self) -> Tensor:
        """A tensor with the dtype and device of the potentials."""
        return self.information

    def _gradient_at(self, z: Tensor) -> Tensor:
        """h − Λ z: the gradient of the logarithm."""
        topology, natural = self.topology, self.topology.is_naturally_ordered
        order = None if natural else index(topology.order, z)
        pull = ops.symmetric_matmul(topology.precision_pattern, self.precision, reordered(z, order))
        return self.information - (pull if natural else pull.index_select(-1, index(topology.inverse_order, pull)))
