"""Gaussians of arrays and of tensors: what the geometry asks of either kind, so that one code serves both.

`sparseggm.torch.geometry` adds the kind of tensors. Nothing here imports torch.
"""

from __future__ import annotations

from functools import singledispatch
from typing import Any, Protocol, TypeVar

import numpy as np

from sparseggm import linalg
from sparseggm.errors import PatternError, ShapeError
from sparseggm.gaussian import selection
from sparseggm.gaussian.fitting import Words
from sparseggm.gaussian.model import GaussianGraphicalModel
from sparseggm.graph.joint import Gather, joint_graph
from sparseggm.graph.pattern import FloatArray, Pattern
from sparseggm.graph.topology import Topology
from sparseggm.linalg import calculus, checks
from sparseggm.positivity.namespace import Array, readable
from sparseggm.promotion import constant, promoted

Gaussian = TypeVar("Gaussian", bound=Any)
"""A `GaussianGraphicalModel`, of NumPy or of torch."""


class Kind(Protocol):
    """What Gaussians of one kind can do; errors speak as `function`."""

    @property
    def verbs(self) -> Any:
        """The verbs of `linalg` and `adjoints`, and `diagonal` and `on_diagonal`, by their names."""

    @property
    def gaussian(self) -> Any:
        """The class."""

    def numbers(self, function: str, like: Array | None, **values: Any) -> list[Array]:
        """A caller's values, in the widest of their dtypes and that of `like`."""

    def rounded(self, function: str, total: Array, like: Array) -> Array:
        """A float64 result in the dtype of `like`; raises where it is beyond it."""

    def factor(self, g: Any) -> Array:
        """L, on batch axes of its own."""

    def selected_inverse(self, function: str, g: Any, on: Pattern) -> Array:
        """Σ on a closed pattern."""

    def square_distance(self, function: str, g: Any, loc: Array) -> Array:
        """(loc − loc_g)ᵀ P (loc − loc_g), in float64."""

    def gradient_at(self, function: str, g: Any, loc: Array) -> Array:
        """P (loc_g − loc)."""

    def of_information(self, function: str, vector: Array, precision: Array, graph: Topology, loc: Array) -> Any:
        """The Gaussian with precision P and mean loc + P⁻¹ h."""

    def of_factor(self, function: str, loc: Array, factor: Array, graph: Topology, pattern: Pattern) -> Any:
        """The Gaussian with L on a pattern and P on the graph."""

    def factor_of_moments(self, topology: Topology, covariance: Array, words: Words) -> Array:
        """`selection.factor_of_moments`."""

    def joint_graph(self, first: Topology, second: Topology) -> tuple[Topology, Gather, Gather]:
        """`graph.joint.joint_graph`."""


class _ArrayVerbs:
    """The verbs for arrays."""

    solve = staticmethod(linalg.solve)
    solve_t = staticmethod(linalg.solve_t)
    matmul = staticmethod(linalg.matmul)
    matmul_t = staticmethod(linalg.matmul_t)
    symmetric_matmul = staticmethod(linalg.symmetric_matmul)
    selected_inverse = staticmethod(linalg.selected_inverse)
    marginal_variances = staticmethod(linalg.marginal_variances)
    gram_jvp = staticmethod(calculus.gram_jvp)
    gram_vjp = staticmethod(calculus.gram_vjp)
    cholesky_jvp = staticmethod(calculus.cholesky_jvp)
    cholesky_vjp = staticmethod(calculus.cholesky_vjp)

    @staticmethod
    def diagonal(pattern: Pattern, values: FloatArray) -> FloatArray:
        return values.take(pattern.diagonal, axis=-1)

    @staticmethod
    def on_diagonal(pattern: Pattern, entries: FloatArray) -> FloatArray:
        values = np.zeros((*entries.shape[:-1], pattern.nnz), entries.dtype)
        values[..., pattern.diagonal] = entries
        return values


class _Arrays:
    """Gaussians of arrays."""

    verbs = _ArrayVerbs
    gaussian = GaussianGraphicalModel
    joint_graph = staticmethod(joint_graph)
    factor_of_moments = staticmethod(selection.factor_of_moments)

    def numbers(self, function: str, like: FloatArray | None, **values: Any) -> list[FloatArray]:
        return promoted(function, *([] if like is None else [like.dtype]), **values)

    def rounded(self, function: str, total: FloatArray, like: FloatArray) -> FloatArray:
        return checks.require_representable(function, total, like.dtype)

    def factor(self, g: GaussianGraphicalModel) -> FloatArray:
        return g.factor

    def selected_inverse(self, function: str, g: GaussianGraphicalModel, on: Pattern) -> FloatArray:
        return g._of_factor(function, linalg.selected_inverse, on=on)

    def square_distance(self, function: str, g: GaussianGraphicalModel, loc: FloatArray) -> FloatArray:
        return g._square_distance(function, loc=loc, other_loc=g.loc)

    def gradient_at(self, function: str, g: GaussianGraphicalModel, loc: FloatArray) -> FloatArray:
        return g._gradient_at(function, loc)

    def of_information(
        self, function: str, vector: FloatArray, precision: FloatArray, graph: Topology, loc: FloatArray
    ) -> GaussianGraphicalModel:
        return GaussianGraphicalModel._from_information(function, vector, precision, graph, loc)

    def of_factor(
        self, function: str, loc: FloatArray, factor: FloatArray, graph: Topology, pattern: Pattern
    ) -> GaussianGraphicalModel:
        return GaussianGraphicalModel._made(function, constant(loc), factor, graph, pattern)


_ARRAYS = _Arrays()


@singledispatch
def kind_of(values: object) -> Kind:
    """The kind of Gaussians that have such values: arrays, or whatever NumPy makes arrays of."""
    return _ARRAYS


def require_gaussians(function: str, *given: object) -> None:
    """Raise a TypeError unless each is a Gaussian, and all are of one kind."""
    for each in given:
        if not checks.is_gaussian(each):
            raise TypeError(f"{function}: needs a GaussianGraphicalModel, got {type(each).__name__}.")
    modules = {kind_of(each.loc).gaussian.__module__: None for each in given}  # type: ignore[attr-defined]
    if len(modules) > 1:
        raise TypeError(f"{function}: needs Gaussians of one kind, got {' and '.join(modules)}.")


def require_free_factor(function: str, g: Any) -> None:
    """Raise unless every L on its pattern is that of some P on its graph, so that L may be moved freely."""
    if g.factor_pattern.gram() is not g.graph.precision_pattern:
        raise PatternError(
            f"{function}: needs an L that is free on its pattern, got one with fill on {g.topology}. On a factor-free "
            "topology give L in the place of P."
        )


def together(function: str, *gaussians: Gaussian) -> list[Gaussian]:
    """Gaussians in the widest dtype among them. Raises unless they have the same nodes, and batch axes fit."""
    require_gaussians(function, *gaussians)
    first = gaussians[0]
    for other in gaussians[1:]:
        if other.topology.n != first.topology.n:
            raise ShapeError(
                f"{function}: needs two Gaussians of {first.topology.n} nodes, got one of {other.topology.n}."
            )
        checks.broadcast(function, this=tuple(first.batch_shape), other=tuple(other.batch_shape))
    widest = max((g.loc for g in gaussians), key=lambda loc: int(loc.dtype.itemsize))
    return [g._in_dtype(widest.dtype) for g in gaussians]


def require_finite(
    function: str, name: str, array: Array, pattern: Pattern | None = None, topology: Topology | None = None
) -> None:
    """Raise at the first value that is not finite, where values can be read: see `checks.require_finite`."""
    values = None if is_surely_finite(array) else readable(array)
    if values is not None:
        checks.require_finite(function, name, pattern, values, topology)


def is_surely_finite(array: Array) -> bool:
    """Whether the sum is known to be finite, and so all values: a pass without memory. False says nothing."""
    values = readable(array)
    with np.errstate(over="ignore", invalid="ignore"):
        return values is not None and bool(np.isfinite(values.sum()))
