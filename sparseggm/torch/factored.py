"""`FactoredDistribution`: what the torch Gaussian is made of, and from what it can be made.

Owns the tensors, and crosses between the caller's numbering of nodes and the elimination order of the packed values:
`sparseggm.gaussian.factored` for tensors. What a caller gives and is told is in `border`, what is asked of a Gaussian
in `distribution`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self, cast

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution, constraints

from sparseggm import errors
from sparseggm.errors import ShapeError
from sparseggm.gaussian import factored
from sparseggm.gaussian.potentials import added, require_same_nodes
from sparseggm.graph.derived import make_read_only
from sparseggm.graph.graphs import product_graph
from sparseggm.graph.pattern import IntArray, Pattern
from sparseggm.graph.topology import Topology, require_topology
from sparseggm.torch import ops
from sparseggm.torch.border import (
    as_tensors,
    common_batch,
    is_valid,
    on_graph,
    require_sizes,
    require_valid,
    tells,
)
from sparseggm.torch.errors import NotPositiveDefiniteError
from sparseggm.torch.operators.numbering import reordered
from sparseggm.torch.operators.registration import array, have_values, index
from sparseggm.torch.operators.tracing import untraced
from sparseggm.torch.potentials import Potential, joint

_product_graph = untraced(product_graph)


class FactoredDistribution(Distribution):
    """A mean and a sparse factor on a topology: see `GaussianGraphicalModel`."""

    arg_constraints = {  # noqa: RUF012  torch's own protocol
        "loc": constraints.real_vector,
        "factor": constraints.dependent(is_discrete=False, event_dim=1),  # a positive diagonal, wherever that is packed
    }
    support = constraints.real_vector
    has_rsample = True

    loc: Tensor
    """(batch_shape, n), a view."""
    topology: Topology
    factor_pattern: Pattern
    """Of L: the topology's, or `precision_pattern.filled()` for a Gaussian made from its precision."""
    _given: Tensor | None = None
    """P, where that was given in this dtype. In a wider one the Gaussian is that of its L, which was rounded."""
    is_on_topology: bool
    """Whether P is on `topology`: unless L was given on a topology that is not factor-free. See `graph`."""
    _nodes: IntArray | None = None

    @classmethod
    def from_precision(cls, loc: Any, *, precision: Any, topology: Topology, validate_args: bool | None = None) -> Self:
        """The Gaussians with precision P: (..., nnz) values on `topology.precision_pattern`. Differentiable.

        Raises:
            NotPositiveDefiniteError: names batch index, node and pivot, and P's Gershgorin slack there; also a
                `torch.linalg.LinAlgError`. Under torch.compile the failure is raised by the operator, by column.
        Cost: one `ops.cholesky`, on `precision_pattern.filled()`.
        """
        return cls._from("from_precision", topology, validate_args, loc=loc, precision=precision)

    @classmethod
    def from_information(
        cls, information: Any, *, precision: Any, topology: Topology, validate_args: bool | None = None
    ) -> Self:
        """The Gaussians with density ∝ exp(hᵀ z − ½ zᵀ P z): mean P⁻¹ h. Arguments and errors as `from_precision`."""
        given = {"information": information, "precision": precision}
        centred = cls._from("from_information", topology, validate_args, **given)
        return centred.moved_to(centred._solved())

    @classmethod
    def _from(cls, method: str, topology: Topology, validate_args: bool | None, **given: Any) -> Self:
        """The Gaussians whose loc is the first of what is given to a method, and whose precision is the second."""
        function = f"{cls.__name__}.{method}"
        validates = cls._validate_args if validate_args is None else validate_args
        vector, precision = on_graph(function, topology, validates, **given)
        return cls._of_precision(function, vector, precision, topology, validate_args)

    @classmethod
    def _of_precision(
        cls, function: str, loc: Tensor, precision: Tensor, topology: Topology, validate_args: bool | None
    ) -> Self:
        pattern = topology.precision_pattern
        factor = factorised(
            pattern, precision, lambda failure: factored.named_by_node(failure, topology, array(precision), function)
        )
        made = cls._of(function, loc, factor, topology, pattern.filled(), validate_args, is_on_topology=True)
        made._given = precision.clone()  # the caller may write into its own
        return made

    def _solved(self) -> Tensor:
        """P⁻¹ loc: the mean, if loc was the information vector."""
        return self.colorize(self._in_elimination_order(ops.solve, self.loc))

    @classmethod
    def from_factor(
        cls, loc: Any, *, factor: Any, topology: Topology, pattern: Pattern, validate_args: bool | None = None
    ) -> Self:
        """Gaussians given by L on an explicit pattern, such as one with fill.

        `pattern.gram()` must hold `topology.precision_pattern`, and L Lᵀ must vanish off it.
        """
        function = f"{cls.__name__}.from_factor"
        require_topology(function, topology)
        factored.require_graph(function, topology, pattern)
        loc, factor = as_tensors(function, loc=loc, factor=factor)
        return cls._of(function, loc, factor, topology, pattern, validate_args, is_on_topology=True)

    @tells()
    def product(self, other: FactoredDistribution | Potential) -> Self:
        """The Gaussians with density ∝ the product of both: P = P₁ + P₂ and h = h₁ + h₂, on the union of the graphs.

        The graph is that of one of the two, in its order, if it has all edges of the other: then no fill is added to
        that of a P on it. The mean is loc₁ + P⁻¹ (h₂ − P₂ loc₁), which keeps the digits of a mean far from zero.

        Args:
            other: Gaussians or a `Potential` on the same nodes; batch axes broadcast, the wider dtype is kept.
        Raises:
            NotPositiveDefiniteError: P₁ + P₂ is not positive definite to working precision.
            NonFiniteError: a sum is beyond the dtype.
        Cost: one `ops.cholesky`. Under torch.compile two graphs are united outside of the compiled code, one is not.
        """
        kinds = FactoredDistribution, Potential
        needed = "sparseggm.torch.GaussianGraphicalModel or sparseggm.torch.Potential"
        require_same_nodes("product", self, other, kinds, needed)
        loc, _ = as_tensors("product", this=self.loc, other=other._vector)
        own, more = self._in_dtype(loc.dtype), other._in_dtype(loc.dtype)
        graph, precision = added(own.graph, own.precision, more.graph, more.precision, joint)
        return own._updated("product", more._gradient_at(own.loc), precision, graph)[0]

    def _updated(self, function: str, pull: Tensor, precision: Tensor, graph: Topology) -> tuple[Self, Tensor]:
        """The Gaussians with another precision and mean loc + P⁻¹ pull, and P⁻¹ pull."""
        centred = type(self)._of_precision(function, pull, precision, graph, False)
        move = centred._solved()
        moved = centred._with(function, self.loc + move, centred._factor, centred._given, self._validate_args)
        return moved._numbered(self._nodes), move

    @property
    def _vector(self) -> Tensor:
        """A tensor with the dtype, device and batch axes of the Gaussians."""
        return self.loc

    def _gradient_at(self, z: Tensor) -> Tensor:
        """h − P z = P (loc − z): the gradient of the log-density."""
        return self._in_elimination_order(ops.matmul, self.whiten(self.loc - z))

    def moved_to(self, loc: Any) -> Self:
        """The same precision about another mean; the factor is shared."""
        loc, factor = as_tensors("moved_to", loc=loc, factor=self._factor)
        return self._with("moved_to", loc, factor, self._given_in(factor.dtype), self._validate_args)

    def _given_in(self, dtype: torch.dtype) -> Tensor | None:
        return self._given if dtype is self._factor.dtype else None

    def detach(self) -> Self:
        """The same Gaussians, held fixed: no gradient reaches loc and L."""
        given = None if self._given is None else self._given.detach()
        return self._with("detach", self.loc.detach(), self._factor.detach(), given, False)

    def _with(
        self, function: str, loc: Tensor, factor: Tensor, given: Tensor | None, validate_args: bool | None
    ) -> Self:
        """Gaussians of the same topology and pattern, with this L, and this P where that is `given`."""
        alike = self.topology, self.factor_pattern, validate_args
        made = type(self)._of(function, loc, factor, *alike, is_on_topology=self.is_on_topology)
        made._given = given
        return made._numbered(self._nodes)

    @classmethod
    def _of(
        cls,
        function: str,
        loc: Tensor,
        factor: Tensor,
        topology: Topology,
        pattern: Pattern,
        validate_args: bool | None,
        *,
        is_on_topology: bool,
    ) -> Self:
        self = cls.__new__(cls)
        self.is_on_topology = is_on_topology
        self._set(function, loc, factor, topology, pattern, validate_args)
        return self

    def _set(
        self,
        function: str,
        loc: Tensor,
        factor: Tensor,
        topology: Topology,
        pattern: Pattern,
        validate_args: bool | None,
    ) -> None:
        batch_shape = require_sizes(function, topology, pattern, loc=loc, factor=factor)
        self.topology, self.factor_pattern, self._factor = topology, pattern, factor
        self.loc = loc if loc.shape[:-1] == batch_shape else loc.expand(*batch_shape, topology.n)
        super().__init__(batch_shape, torch.Size([topology.n]), validate_args=False)  # it would not name the node
        self._validate_args = type(self)._validate_args if validate_args is None else validate_args
        if self._validate_args and have_values(loc, factor) and not is_valid(pattern, loc, factor):
            require_valid(function, topology, pattern, array(loc), array(factor))

    def _in_dtype(self, dtype: torch.dtype) -> Self:
        """The same Gaussians, their numbers in a dtype that is no narrower."""
        if self.loc.dtype is dtype:
            return self
        return self._with(type(self).__name__, self.loc.to(dtype), self._factor.to(dtype), None, False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Self:
        """The same Gaussians under more batch axes; copies nothing."""
        new: FactoredDistribution = type(self).__new__(type(self)) if _instance is None else _instance
        new.topology, new.factor_pattern, new._factor = self.topology, self.factor_pattern, self._factor
        new.is_on_topology, new._given, new._nodes = self.is_on_topology, self._given, self._nodes
        new.loc = self.loc.expand(*batch_shape, self.topology.n)
        super(FactoredDistribution, new).__init__(torch.Size(batch_shape), self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return cast(Self, new)

    def __getstate__(self) -> dict[str, Any]:
        """Without the node of a sample, see `operators.joint`: copies have no place in the graph of autograd."""
        return {name: value for name, value in self.__dict__.items() if name != "_pending"}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.topology}, batch_shape={tuple(self.batch_shape)}, dtype={self.loc.dtype})"

    # ------------------------------------------------------------------ parameters

    @property
    def n(self) -> int:
        """Number of nodes."""
        return self.topology.n

    @property
    def dtype(self) -> torch.dtype:
        """float32 or float64."""
        return self.loc.dtype

    @property
    def factor(self) -> Tensor:
        """(batch_shape, nnz) values of L on `factor_pattern`; a view."""
        return self._factor.expand(*self.batch_shape, self._factor.shape[-1])

    @property
    def nodes(self) -> IntArray:
        """(n,) the numbers that these nodes had before `condition` or `marginal` left some out; else 0 … n − 1."""
        return np.arange(self.topology.n) if self._nodes is None else self._nodes

    def _numbered(self, nodes: IntArray | None) -> Self:
        """The same Gaussians, whose nodes had these numbers."""
        self._nodes = None if nodes is None else make_read_only(nodes)
        return self

    @property
    def graph(self) -> Topology:
        """Of P: `topology`; but for an L given on one that is not factor-free, the graph of L Lᵀ in the same order."""
        return self.topology if self.is_on_topology else _product_graph(self.topology)

    @property
    @tells()
    def precision(self) -> Tensor:
        """(..., nnz) values of P on `graph.precision_pattern`; batch axes of the factor.

        As given to `from_precision` and the like; else L Lᵀ, at the cost of a Gram product, which has dense columns
        where L has fill.
        """
        if self._given is not None:
            return self._given.clone()
        on, product = self.graph.precision_pattern, self.factor_pattern.gram()
        values = ops.gram(self.factor_pattern, self._factor)
        return values if on is product else values.index_select(-1, index(on.positions_in(product), values))

    @property
    @tells()
    def information_vector(self) -> Tensor:
        """h = P loc, (..., n): with P, the natural parameters."""
        return self._in_elimination_order(ops.matmul, self.whiten(self.loc))

    # ------------------------------------------------------------------ maps

    @tells("d")
    def whiten(self, d: Any) -> Tensor:
        """Lᵀ d for a centred vector d (..., n): white if d has covariance Σ. As in SciPy, no mean is subtracted."""
        own, vectors = self._beside("whiten", d=d)
        return own._in_elimination_order(ops.matmul_t, vectors)

    @tells("eps")
    def colorize(self, eps: Any) -> Tensor:
        """L⁻ᵀ ε for white noise ε (..., n): covariance Σ. The inverse of `whiten`; no mean is added."""
        own, noise = self._beside("colorize", eps=eps)
        return own._in_elimination_order(ops.solve_t, noise)

    def _beside(self, function: str, **vector: Any) -> tuple[Self, Tensor]:
        """The Gaussians, and a caller's vectors (..., n) in the same dtype and on the same device."""
        ((name, x),) = vector.items()
        loc = self.loc
        if type(x) is Tensor and x.dtype is loc.dtype and x.shape == loc.shape and x.device == loc.device:
            return self, x
        loc, x = as_tensors(function, loc=loc, **vector)
        if x.shape != loc.shape:
            if x.shape[-1:] != self.event_shape:
                raise ShapeError(
                    f"{function}: {name} must end in {self.topology.n}, the nodes of {self.topology}, got shape "
                    f"{tuple(x.shape)}."
                )
            common_batch(function, loc=loc, **{name: x})
        return self._in_dtype(loc.dtype), x

    def _promoted(self, function: str, **values: Any) -> tuple[Self, list[Tensor]]:
        """The Gaussians and numbers of any shape, all in the widest of their dtypes."""
        loc, *tensors = as_tensors(function, loc=self.loc, **values)
        return self._in_dtype(loc.dtype), tensors

    def _in_elimination_order(self, verb: Callable[[Pattern, Tensor, Tensor], Tensor], x: Tensor) -> Tensor:
        return self._to_caller(verb(self.factor_pattern, self._factor, reordered(x, self._order)))

    @property
    def _order(self) -> Tensor | None:
        """The order of elimination, None if it is that of the caller."""
        return None if self.topology.is_naturally_ordered else index(self.topology.order, self.loc)

    def _to_caller(self, x: Tensor) -> Tensor:
        return x if self.topology.is_naturally_ordered else x.index_select(-1, index(self.topology.inverse_order, x))


def factorised(
    pattern: Pattern,
    precision: Tensor,
    in_words: Callable[[errors.NotPositiveDefiniteError], errors.NotPositiveDefiniteError],
) -> Tensor:
    """`ops.cholesky`, whose failure is raised in the caller's words; in the operator's where values cannot be read."""
    try:
        return ops.cholesky(pattern, precision)
    except errors.NotPositiveDefiniteError as failure:
        raise NotPositiveDefiniteError.of(in_words(failure) if have_values(precision) else failure) from None
