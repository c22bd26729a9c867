"""`Potential`: Gaussian potentials exp(hᵀ z − ½ zᵀ Λ z) on a graph, in NumPy, and sums of precisions on two graphs.

A potential is what a likelihood, or a network, says about z: a product with it adds h and Λ to the natural parameters
P loc and P of a Gaussian. It need not be normalisable. Products of Gaussians are in `factored`.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from sparseggm import linalg
from sparseggm.errors import ShapeError
from sparseggm.graph.joint import Gather, joint_graph
from sparseggm.graph.pattern import FloatArray
from sparseggm.graph.topology import Topology, require_topology
from sparseggm.kernels.sparse.density import LOG_2PI
from sparseggm.linalg import checks
from sparseggm.linalg.checks import Shape
from sparseggm.positivity.namespace import Array, array_namespace, take
from sparseggm.promotion import constant, promoted

JointGraph = Callable[[Topology, Topology], tuple[Topology, Gather, Gather]]


class Potential:
    """Gaussian potentials exp(hᵀ z − ½ zᵀ Λ z), Λ on a graph: factors of a density, in general not normalisable.

    Λ ⪰ 0 is not tested, since that would cost a factorisation: `parametrize.semidefinite_edge` and `parametrize.gram`
    give such a Λ, and a product with a Gaussian tests that its own precision is positive definite.

    Args:
        information: (..., n) h, in the caller's numbering.
        precision: (..., nnz) values of Λ on `topology.precision_pattern`, see `topology.pack`.
        topology: the graph. Keyword-only, as `precision` is.
    Raises:
        ShapeError, DTypeError: sizes or dtypes that do not fit.
        NonFiniteError: a value of h or Λ, by batch index and node.
    Batch axes of h and Λ broadcast; neither is copied to do so.
    """

    information: FloatArray
    precision: FloatArray
    topology: Topology
    batch_shape: Shape

    def __init__(self, information: npt.ArrayLike, *, precision: npt.ArrayLike, topology: Topology) -> None:
        function = type(self).__name__
        require_topology(function, topology)
        information, precision = promoted(function, information=information, precision=precision)
        self._set(function, constant(information), constant(precision), topology)

    def _set(self, function: str, information: FloatArray, precision: FloatArray, topology: Topology) -> None:
        pattern = topology.precision_pattern
        checks.check(function, pattern, packed={"precision": precision}, information=information)
        batches = {"information": information.shape[:-1], "precision": precision.shape[:-1]}
        self.batch_shape = checks.broadcast(function, **batches)
        checks.require_finite(function, "information", None, information, topology)
        checks.require_finite(function, "precision", pattern, precision, topology)
        information.flags.writeable = precision.flags.writeable = False
        self.information, self.precision, self.topology = information, precision, topology

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.topology}, batch_shape={self.batch_shape}, dtype={self.dtype})"

    @property
    def n(self) -> int:
        """Number of nodes."""
        return self.topology.n

    @property
    def graph(self) -> Topology:
        """The graph of Λ: `topology`."""
        return self.topology

    @property
    def dtype(self) -> np.dtype[Any]:
        """float32 or float64."""
        return self.precision.dtype

    def product(self, other: Potential) -> Self:
        """The potential h₁ + h₂, Λ₁ + Λ₂ on the union of the graphs: see `GaussianGraphicalModel.product`."""
        function = "product"
        require_same_nodes(function, self, other, Potential, "sparseggm.Potential")
        dtype = np.promote_types(self.dtype, other.dtype)
        one, two = self._in_dtype(dtype), other._in_dtype(dtype)
        with np.errstate(over="ignore"):  # `_set` tests for infinity
            graph, precision = added(one.topology, one.precision, two.topology, two.precision)
            information = one.information + two.information
        result = copy(self)
        result._set(function, information, precision, graph)
        return result

    def log_normaliser(self) -> FloatArray:
        """log ∫ exp(hᵀ z − ½ zᵀ Λ z) dz = ½ [n log 2π − log det Λ + hᵀ Λ⁻¹ h], nats.

        Raises:
            NotPositiveDefiniteError: the integral is infinite.
        Cost: one `linalg.precision_solve`.
        """
        function, topology = "log_normaliser", self.topology
        h = self.information.take(topology.order, axis=-1)
        with checks.speaking_as(function, "precision_solve", "cholesky"):
            x, logdet = linalg.precision_solve(topology.precision_pattern, self.precision, h)
        square = np.einsum("...i,...i->...", h, x, dtype=np.float64)
        total = 0.5 * (self.n * LOG_2PI - logdet.astype(np.float64) + square)
        return checks.require_representable(function, total, self.dtype)

    def _in_dtype(self, dtype: np.dtype[Any]) -> Self:
        """The same numbers in a dtype at least as wide."""
        if dtype == self.dtype:
            return self
        wider = copy(self)
        wider.information, wider.precision = self.information.astype(dtype), self.precision.astype(dtype)
        return wider

    def _gradient_at(self, function: str, loc: FloatArray) -> FloatArray:
        """h − Λ z at z = loc: the gradient of the logarithm."""
        topology = self.topology
        with checks.speaking_as(function, "symmetric_matmul"):
            pull = linalg.symmetric_matmul(
                topology.precision_pattern, self.precision, loc.take(topology.order, axis=-1)
            )
        with np.errstate(over="ignore"):
            return self.information - pull.take(topology.inverse_order, axis=-1)


def require_same_nodes(function: str, own: Any, other: Any, kinds: Any, needed: str) -> None:
    """Raise unless `other` is of one of the classes, on as many nodes as `own`, and their batch axes broadcast."""
    if not isinstance(other, kinds):
        found = f"{type(other).__module__}.{type(other).__name__}".removeprefix("builtins.")
        raise TypeError(f"{function}: other must be a {needed}, got {found}.")
    if other.topology.n != own.topology.n:
        raise ShapeError(f"{function}: other must be on {own.topology.n} nodes, as {own.topology}, got {other}.")
    checks.broadcast(function, this=tuple(own.batch_shape), other=tuple(other.batch_shape))


def added(
    first: Topology, values: Array, second: Topology, others: Array, find: JointGraph = joint_graph
) -> tuple[Topology, Array]:
    """The graph of a sum of two precisions, and its packed values; arrays or tensors.

    Args:
        first, values: a graph, and values on its precision pattern; so `second` and `others`.
        find: `joint_graph`, or the same as a tracer of torch may call it.
    """
    graph, of_first, of_second = find(first, second)
    return graph, gathered(values, of_first) + gathered(others, of_second)


def gathered(values: Array, gather: Gather) -> Array:
    """The values at these places; zero at the place after the last."""
    if gather is None:
        return values
    xp = array_namespace(values)
    return take(xp.concatenate([values, xp.zeros_like(values[..., :1])], -1), gather)
