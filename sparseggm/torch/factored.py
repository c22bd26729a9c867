"""`FactoredDistribution`: what the torch Gaussian is made of, and from what it can be made.

Owns the tensors, their checks, and the border between the caller's numbering of nodes and the elimination order of the
packed values: `sparseggm.factored` for tensors. What is asked of a Gaussian is in `distribution`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.distributions import Distribution, constraints

from sparseggm import checks, errors, factored
from sparseggm.errors import DTypeError, NonFiniteError, NonPositiveError, ShapeError
from sparseggm.graphs import product_graph
from sparseggm.pattern import FloatArray, Pattern
from sparseggm.topology import Topology, require_topology
from sparseggm.torch import ops
from sparseggm.torch.errors import NotPositiveDefiniteError
from sparseggm.torch.registration import are_readable, array, batch_of, index
from sparseggm.torch.samples import reordered


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

    def __init__(self, loc: Tensor, *, factor: Tensor, topology: Topology, validate_args: bool | None = None) -> None:
        require_topology(type(self).__name__, topology)
        self._is_from_precision = False
        self._set(loc, factor, topology, topology.factor_pattern, validate_args)

    @classmethod
    def from_precision(
        cls, loc: Tensor, *, precision: Tensor, topology: Topology, validate_args: bool | None = None
    ) -> Self:
        """The Gaussians with precision P: (..., nnz) values on `topology.precision_pattern`. Differentiable.

        Raises:
            NotPositiveDefiniteError: names batch index, node and pivot, and P's Gershgorin slack there; also a
                `torch.linalg.LinAlgError`. Under torch.compile the failure is raised by the operator, by column.
        Cost: one `ops.cholesky`, on `precision_pattern.filled()`.
        """
        function = f"{cls.__name__}.from_precision"
        require_topology(function, topology)
        pattern = topology.precision_pattern
        _check_tensors(function, topology, loc, "precision", precision, pattern.nnz)
        if (cls._validate_args if validate_args is None else validate_args) and are_readable(precision):
            _require_finite_entries(function, "precision", topology, pattern, array(precision))
        factor = factorised(
            pattern, precision, lambda failure: factored.named_by_node(failure, topology, array(precision))
        )
        self = cls.__new__(cls)
        self._is_from_precision = True
        self._set(loc, factor, topology, pattern.filled(), validate_args)
        return self

    @classmethod
    def from_information(
        cls, information: Tensor, *, precision: Tensor, topology: Topology, validate_args: bool | None = None
    ) -> Self:
        """The Gaussians with density ∝ exp(hᵀ z − ½ zᵀ P z): mean P⁻¹ h. Arguments and errors as `from_precision`."""
        centred = cls.from_precision(information, precision=precision, topology=topology, validate_args=validate_args)
        return centred.moved_to(centred.colorize(centred._in_elimination_order(ops.solve, information)))

    def moved_to(self, loc: Tensor) -> Self:
        """The same precision about another mean; the factor is shared."""
        moved = type(self).__new__(type(self))
        moved._is_from_precision = self._is_from_precision
        moved._set(loc, self._factor, self.topology, self.factor_pattern, self._validate_args)
        return moved

    def _set(
        self, loc: Tensor, factor: Tensor, topology: Topology, pattern: Pattern, validate_args: bool | None
    ) -> None:
        name = type(self).__name__
        _check_tensors(name, topology, loc, "factor", factor, pattern.nnz)
        batch_shape = common_batch(name, loc=loc, factor=factor)
        self.topology, self.factor_pattern, self._factor = topology, pattern, factor
        self.loc = loc if loc.shape[:-1] == batch_shape else loc.expand(*batch_shape, topology.n)
        super().__init__(batch_shape, torch.Size([topology.n]), validate_args=False)  # it would not name the node
        self._validate_args = type(self)._validate_args if validate_args is None else validate_args
        if self._validate_args and are_readable(loc, factor):
            _require_valid(name, topology, pattern, array(loc), array(factor))

    def expand(self, batch_shape: Any, _instance: Any = None) -> Self:
        """The same Gaussians under more batch axes; copies nothing."""
        new = self._get_checked_instance(FactoredDistribution, _instance)
        new.topology, new.factor_pattern, new._factor = self.topology, self.factor_pattern, self._factor
        new._is_from_precision = self._is_from_precision
        new.loc = self.loc.expand(*batch_shape, self.topology.n)
        super(FactoredDistribution, new).__init__(torch.Size(batch_shape), self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return cast(Self, new)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.topology}, batch_shape={tuple(self.batch_shape)}, dtype={self.loc.dtype})"

    # ------------------------------------------------------------------ parameters

    @property
    def factor(self) -> Tensor:
        """(batch_shape, nnz) values of L on `factor_pattern`; a view."""
        return self._factor.expand(*self.batch_shape, self._factor.shape[-1])

    @property
    def graph(self) -> Topology:
        """Of P: `topology`; but for an L given on one that is not factor-free, the graph of L Lᵀ in the same order."""
        if self._is_from_precision or self.topology.is_factor_free:
            return self.topology
        return product_graph(self.topology)

    @property
    def precision(self) -> Tensor:
        """(..., nnz) values of P on `graph.precision_pattern`; batch axes of the factor. Cost: one Gram product."""
        on, product = self.graph.precision_pattern, self.factor_pattern.gram()
        values = ops.gram(self.factor_pattern, self._factor)
        return values if on is product else values.index_select(-1, index(on.positions_in(product)))

    @property
    def information(self) -> Tensor:
        """h = P loc, (..., n): with P, the natural parameters."""
        return self._in_elimination_order(ops.matmul, self.whiten(self.loc))

    # ------------------------------------------------------------------ maps

    def whiten(self, d: Tensor) -> Tensor:
        """Lᵀ d for a centred vector d (..., n): white if d has covariance Σ. As in SciPy, no mean is subtracted."""
        self._check_event("whiten", d=d)
        return self._in_elimination_order(ops.matmul_t, d)

    def colorize(self, eps: Tensor) -> Tensor:
        """L⁻ᵀ ε for white noise ε (..., n): covariance Σ. The inverse of `whiten`; no mean is added."""
        self._check_event("colorize", eps=eps)
        return self._in_elimination_order(ops.solve_t, eps)

    def _in_elimination_order(self, verb: Callable[[Pattern, Tensor, Tensor], Tensor], x: Tensor) -> Tensor:
        return self._to_caller(verb(self.factor_pattern, self._factor, reordered(x, self._order)))

    @property
    def _order(self) -> Tensor | None:
        """The order of elimination, None if it is that of the caller."""
        return None if self.topology.is_naturally_ordered else index(self.topology.order)

    def _to_caller(self, x: Tensor) -> Tensor:
        return x if self.topology.is_naturally_ordered else x.index_select(-1, index(self.topology.inverse_order))

    def _check_event(self, function: str, **vectors: Tensor) -> None:
        for name, x in vectors.items():
            if x.shape[-1:] != self.event_shape:
                raise ShapeError(
                    f"{function}: {name} must end in {self.topology.n}, the nodes of {self.topology}, got shape "
                    f"{tuple(x.shape)}."
                )


# ---------------------------------------------------------------------- checks


def common_batch(function: str, **tensors: Tensor) -> torch.Size:
    """The batch axes that broadcasting gives."""
    try:
        return torch.Size(batch_of(*tensors.values()))
    except RuntimeError:
        named = " and ".join(f"{tuple(tensor.shape[:-1])} of {name}" for name, tensor in tensors.items())
        raise ShapeError(f"{function}: batch axes must broadcast, got {named}.") from None


def factorised(
    pattern: Pattern,
    precision: Tensor,
    in_words: Callable[[errors.NotPositiveDefiniteError], errors.NotPositiveDefiniteError],
) -> Tensor:
    """`ops.cholesky`, whose failure is raised in the caller's words; in the operator's where values cannot be read."""
    try:
        return ops.cholesky(pattern, precision)
    except errors.NotPositiveDefiniteError as failure:
        raise NotPositiveDefiniteError.of(in_words(failure) if are_readable(precision) else failure) from None


def _check_tensors(function: str, topology: Topology, loc: Tensor, name: str, values: Tensor, nnz: int) -> None:
    """Shapes, dtypes and devices, before any work."""
    if loc.shape[-1:] != (topology.n,) or values.shape[-1:] != (nnz,):
        raise ShapeError(
            f"{function}: on {topology} loc must end in {topology.n} and {name} in {nnz}, "
            f"got shapes {tuple(loc.shape)} and {tuple(values.shape)}."
        )
    if loc.dtype != values.dtype or loc.dtype not in (torch.float32, torch.float64):
        raise DTypeError(
            f"{function}: loc and {name} must both be float32 or both float64, got {loc.dtype} and {values.dtype}."
        )
    if loc.device != values.device or loc.device.type not in ("cpu", "meta"):
        raise ValueError(
            f"{function}: loc and {name} must be on the CPU, got {loc.device} and {values.device}. Move them with "
            ".cpu(): nothing is copied silently."
        )


def _require_valid(function: str, topology: Topology, pattern: Pattern, loc: FloatArray, factor: FloatArray) -> None:
    """Raise at the first value that is not finite, or not positive on the diagonal of L, by the caller's node."""
    bad_loc = ~np.isfinite(loc)
    if bad_loc.any():
        batch, node, value = _first(bad_loc, loc)
        where = f"{topology.describe(node)}{checks.in_batch(batch)}"
        raise NonFiniteError(f"{function}: loc must be finite, got {value} at {where}.")
    _require_finite_entries(function, "factor", topology, pattern, factor)
    pivots = factor[..., pattern.diagonal]
    bad_pivot = pivots <= 0
    if bad_pivot.any():
        batch, column, value = _first(bad_pivot, pivots)
        where = f"{topology.describe(int(topology.order[column]))}{checks.in_batch(batch)}"
        raise NonPositiveError(
            f"{function}: the diagonal of factor must be positive, got {value:.3g} at {where}. FactorHead and "
            "parametrize.factor guarantee it."
        )


def _require_finite_entries(function: str, name: str, topology: Topology, pattern: Pattern, values: FloatArray) -> None:
    """Raise at the first packed value that is not finite, by the nodes of its row and column."""
    bad = ~np.isfinite(values)
    if bad.any():
        batch, p, value = _first(bad, values)
        ends = dict.fromkeys(int(topology.order[end]) for end in (pattern.rows[p], pattern.cols[p]))
        where = f"{' and '.join(map(topology.describe, ends))}{checks.in_batch(batch)}"
        raise NonFiniteError(f"{function}: {name} must be finite, got {value} at {where}.")


def _first(bad: npt.NDArray[np.bool_], values: FloatArray) -> tuple[tuple[int, ...], int, float]:
    """Batch index, place on the last axis, and value of the first that is bad."""
    *batch, last = (int(axis) for axis in np.argwhere(bad)[0])
    return tuple(batch), last, float(values[(*batch, last)])
