"""Parameters of a model, and the Gaussians made of its values: arrays here, tensors by rules of `sparseggm.torch`.

A parameter is a number, an array with batch axes, or a tensor, which may need a gradient. Models are written once, on
`positivity.namespace`; what differs by kind is in the functions below, for which `sparseggm.torch` adds its rules.
"""

from __future__ import annotations

import sys
from functools import singledispatch
from typing import Any

import numpy as np
import numpy.typing as npt

from sparseggm import linalg
from sparseggm.errors import DTypeError, NonPositiveError, ShapeError
from sparseggm.gaussian.linear import representable
from sparseggm.gaussian.model import GaussianGraphicalModel
from sparseggm.graph.topology import Topology
from sparseggm.linalg import checks
from sparseggm.positivity.namespace import Array, array_namespace, as_array, constant_like, known_to_fail
from sparseggm.promotion import constant, promoted


def parameters(function: str, **given: Any) -> list[Array]:
    """What a caller gave, as arrays of one dtype; as tensors, on their device, if one of them is a tensor.

    Of arrays these are constants, whatever the caller writes into theirs later. Tensors stay the caller's own, as in
    torch's distributions: an optimiser that moves one moves the model.
    """
    tensor = next((value for value in given.values() if is_tensor(value)), None)
    if tensor is not None:
        return tensors_beside(tensor, function, given)
    return [constant(array) for array in promoted(function, **given)]


def own(array: Array) -> Array:
    """A copy that nobody else can write into: an array that is read-only, or a tensor with the same gradient."""
    return constant(array) if isinstance(array, np.ndarray) else array.clone()


def constants(function: str, **given: Any) -> list[npt.NDArray[np.float64]]:
    """What a caller gave that is no parameter, as counts or coordinates: arrays of float64 that nobody else can change.

    Raises:
        DTypeError: no real numbers; a masked array; a tensor that needs a gradient, which would be lost.
    """
    return [np.array(array, np.float64) for array in promoted(function, **given)]


def is_tensor(value: Any) -> bool:
    """Whether it is a tensor of torch, which then is among the loaded modules."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def require_between(function: str, name: str, value: Array, low: float, high: float) -> None:
    """Raise a NonPositiveError where a number is known not to be in the open interval (low, high)."""
    inside = (value > low) & (value < high)
    if known_to_fail(inside):
        found = as_array(value)
        bad = np.argwhere(~((found > low) & (found < high)))[0]
        index = tuple(int(axis) for axis in bad)
        need = "positive and finite" if (low, high) == (0.0, np.inf) else f"in ({low:g}, {high:g})"
        raise NonPositiveError(
            f"{function}: {name} must be {need}, got {float(found[index]):.6g}{checks.in_batch(index)}."
        )


def require_positive(function: str, **values: Array) -> None:
    """Raise a NonPositiveError where a number is known not to be positive and finite."""
    for name, value in values.items():
        require_between(function, name, value, 0.0, np.inf)


def require_broadcast(function: str, **values: Array) -> None:
    """Raise a ShapeError unless the shapes broadcast."""
    try:
        np.broadcast_shapes(*(tuple(value.shape) for value in values.values()))
    except ValueError:
        shapes = " and ".join(f"{tuple(value.shape)} of {name}" for name, value in values.items())
        raise ShapeError(f"{function}: shapes must broadcast, got {shapes}.") from None


def common_batch(function: str, **batches: tuple[int, ...]) -> tuple[int, ...]:
    """The common batch shape."""
    return checks.broadcast(function, **{name: tuple(shape) for name, shape in batches.items()})


def expanded(array: Array, shape: tuple[int, ...]) -> Array:
    """The array under more axes."""
    return array if tuple(array.shape) == shape else array_namespace(array).broadcast_to(array, shape)


def combined(coefficients: list[Array], matrices: list[npt.NDArray[np.float64]]) -> Array:
    """Σ_k c_k M_k, (..., nnz), of coefficients (...) and packed matrices (nnz,)."""
    total = 0
    for coefficient, matrix in zip(coefficients, matrices, strict=True):
        total = total + coefficient[..., None] * constant_like(coefficient, matrix)
    return total


def representable_precision(function: str, precision: Array) -> Array:
    """The precision of finite parameters. Raises where it is known to be beyond its dtype."""
    return representable(function, precision, "parameters", "precision")


# ---------------------------------------------------------------------- what differs by kind


@singledispatch
def tensors_beside(tensor: Any, function: str, given: dict[str, Any]) -> list[Array]:
    """The values as tensors of one dtype, on one device."""
    raise DTypeError(f"{function}: got a tensor. Import sparseggm.torch first, which has the rules for tensors.")


@singledispatch
def gaussian_of_factor(factor: Any, loc: Any, topology: Topology) -> Any:
    """N(loc, (L Lᵀ)⁻¹), L on `topology.factor_pattern`."""
    return GaussianGraphicalModel(loc, factor=factor, topology=topology)


@singledispatch
def gaussian_of_precision(precision: Any, loc: Any, topology: Topology) -> Any:
    """N(loc, P⁻¹), P on `topology.precision_pattern`."""
    return GaussianGraphicalModel.from_precision(loc, precision=precision, topology=topology)


@singledispatch
def precision_matmul(precision: Any, topology: Topology, x: Any) -> Any:
    """P x, (..., n), in the caller's numbering."""
    product = linalg.symmetric_matmul(topology.precision_pattern, precision, x.take(topology.order, axis=-1))
    return product.take(topology.inverse_order, axis=-1)


def gaussian_about(precision: Array, loc: Any, topology: Topology, function: str) -> Any:
    """N(loc, P⁻¹) where loc is a number for all nodes, or (..., n)."""
    precision, loc = parameters(function, precision=precision, loc=loc)
    if loc.ndim == 0:
        loc = expanded(loc, (topology.n,))
    if tuple(loc.shape[-1:]) != (topology.n,):
        raise ShapeError(f"{function}: loc must be a number or end in {topology.n}, got shape {tuple(loc.shape)}.")
    return gaussian_of_precision(precision, loc, topology)
