"""The border between a caller and the torch Gaussian: numbers of any kind come in, failures go out in their words.

Behind the border all tensors have one float dtype and one device, and operators are strict. Operators name themselves
and columns of a pattern; a caller knows methods, their arguments, and nodes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import wraps
from inspect import signature
from typing import Any, ParamSpec, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution, Independent

from sparseggm.errors import DTypeError, NonFiniteError, NonPositiveError, ShapeError
from sparseggm.gaussian.conditioning import distinct_nodes
from sparseggm.graph.pattern import FloatArray, Pattern
from sparseggm.graph.topology import Topology, require_topology
from sparseggm.linalg import checks, density
from sparseggm.torch.operators.addresses import LIKE
from sparseggm.torch.operators.registration import array, batch_of, have_values

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

_COUNTS_AS = {
    torch.float16: torch.float32,
    torch.bfloat16: torch.float32,
    torch.float32: torch.float32,
    torch.float64: torch.float64,
}
_WEAK = {torch.bool, torch.int8, torch.int16, torch.int32, torch.int64}
_WEAK |= {torch.uint8, torch.uint16, torch.uint32, torch.uint64}

# ---------------------------------------------------------------------- numbers come in


def as_tensors(function: str, **given: Any) -> tuple[Tensor, ...]:
    """What a caller gave, as tensors of one dtype on one device.

    Tensors and arrays of floats have the widest of their dtypes, where float16 and bfloat16 count as float32. Lists,
    numbers, and tensors of integers or booleans take the dtype of the others, or else torch's default. Whatever is no
    tensor goes where the tensors are.

    Raises:
        DTypeError: numbers that are not real, or no numbers; sparse tensors.
        ValueError: tensors on two devices, or not on the CPU.
    """
    values = tuple(given.values())
    if not are_uniform(values):
        values = tuple(_as_arrays(value) for value in values)
        _require_dense(function, given)
        dtype = _common_dtype(function, given, values)
        device = _common_device(function, given)
        values = tuple(_tensor(function, *pair, dtype, device) for pair in zip(given, values, strict=True))
    return values


def are_uniform(values: tuple[Any, ...]) -> bool:
    """Whether there is nothing to convert or to refuse, as there mostly is not."""
    first = values[0]
    if not isinstance(first, Tensor) or first.dtype not in (torch.float32, torch.float64):
        return False
    if not (first.is_cpu or first.is_meta) or first.layout is not torch.strided:
        return False
    for value in values[1:]:
        if not isinstance(value, Tensor) or value.dtype is not first.dtype or value.device != first.device:
            return False
        if value.layout is not torch.strided:
            return False
    return True


def _as_arrays(value: Any) -> Any:
    """Data frames and the like as NumPy arrays; tensors, lists and numbers as they are."""
    if isinstance(value, Tensor) or not hasattr(value, "__array__"):
        return value
    return np.asarray(value)


def _require_dense(function: str, given: dict[str, Any]) -> None:
    for name, value in given.items():
        if isinstance(value, Tensor) and value.layout is not torch.strided:
            raise DTypeError(f"{function}: {name} must be a dense tensor, got {value.layout}. Use to_dense().")


def _common_dtype(function: str, names: Iterable[str], values: tuple[Any, ...]) -> torch.dtype:
    """The widest float among tensors and arrays."""
    dtypes = []
    for name, value in zip(names, values, strict=True):
        if isinstance(value, Tensor | np.ndarray):
            dtype = value.dtype if isinstance(value, Tensor) else getattr(torch, value.dtype.name, value.dtype)
            if dtype in _COUNTS_AS:
                dtypes.append(_COUNTS_AS[dtype])
            elif dtype not in _WEAK:
                raise DTypeError(f"{function}: {name} must hold float32, float64 or integers, got {dtype}.")
    if not dtypes:
        dtypes.append(_COUNTS_AS[torch.get_default_dtype()])
    return torch.float64 if torch.float64 in dtypes else torch.float32


def _common_device(function: str, given: dict[str, Any]) -> torch.device:
    """That of the tensors; the CPU without any."""
    devices = {name: value.device for name, value in given.items() if isinstance(value, Tensor)}
    found = set(devices.values())
    if len(found) > 1 or any(device.type not in ("cpu", "meta") for device in found):
        raise ValueError(
            f"{function}: {' and '.join(devices)} must be on the CPU, got {' and '.join(map(str, devices.values()))}. "
            "Move them with .cpu(): nothing is copied silently."
        )
    return found.pop() if found else torch.device("cpu")


def as_tensor(value: Any, **options: Any) -> Tensor:
    """`torch.as_tensor`, which shares no array: autograd would not see what is written into it between passes.

    So arrays may run backwards, be read-only, or have the bytes of another machine.
    """
    if isinstance(value, np.ndarray):
        value = np.array(value, value.dtype.newbyteorder("="), order="C")
    return torch.as_tensor(value, **options)


def _tensor(function: str, name: str, value: Any, dtype: torch.dtype, device: torch.device) -> Tensor:
    try:
        return as_tensor(value, dtype=dtype, device=device)
    except (TypeError, ValueError, RuntimeError) as failure:
        raise DTypeError(
            f"{function}: {name} must be a tensor, an array or a list of numbers, got {type(value).__name__}: {failure}"
        ) from None


def common_batch(function: str, **tensors: Tensor) -> torch.Size:
    """The batch axes that broadcasting gives."""
    try:
        return torch.Size(batch_of(*tensors.values()))
    except RuntimeError:
        named = " and ".join(f"{tuple(tensor.shape[:-1])} of {name}" for name, tensor in tensors.items())
        raise ShapeError(f"{function}: batch axes must broadcast, got {named}.") from None


def require_sizes(function: str, topology: Topology, pattern: Pattern, **tensors: Tensor) -> torch.Size:
    """The batch axes of a vector and of packed values, whose last axes fit the topology and the pattern."""
    (vector, x), (packed, values) = tensors.items()
    if x.shape[-1:] != (topology.n,) or values.shape[-1:] != (pattern.nnz,):
        raise ShapeError(
            f"{function}: on {topology} {vector} must end in {topology.n} and {packed} in {pattern.nnz}, "
            f"got shapes {tuple(x.shape)} and {tuple(values.shape)}."
        )
    return common_batch(function, **tensors)


def on_graph(function: str, topology: Topology, validates: bool = True, **given: Any) -> tuple[Tensor, Tensor]:
    """A vector (..., n) and a matrix (..., nnz) on `topology.precision_pattern`, as tensors whose batch axes broadcast.

    Args:
        validates: whether the values, where they can be read, must be finite.
    """
    require_topology(function, topology)
    vector, matrix = as_tensors(function, **given)
    pattern, (vector_name, matrix_name) = topology.precision_pattern, given
    require_sizes(function, topology, pattern, **{vector_name: vector, matrix_name: matrix})
    if validates and have_values(vector, matrix):
        checks.require_finite(function, vector_name, None, array(vector), topology)
        checks.require_finite(function, matrix_name, pattern, array(matrix), topology)
    return vector, matrix


# ---------------------------------------------------------------------- results go out


def rounded(total: Tensor, dtype: torch.dtype) -> Tensor:
    """Numbers in a dtype. Raises where one is beyond it, if values can be read."""
    result = total.to(dtype)
    if have_values(result) and not np.isfinite(array(result)).all():
        raise NonFiniteError(f"the result overflows {_short(dtype)}. {checks.REMEDY}")
    return result


def tells(*vectors: str, function: str = "") -> Callable[[Callable[Arguments, Result]], Callable[Arguments, Result]]:
    """Decorate a function of Gaussians: a failure among numbers names it, its argument, and the caller's node.

    Args:
        vectors: names of its arguments over the nodes, or some of the nodes, of its Gaussian.
        function: its name in messages; by default its own.
    Where values cannot be read, the operator's own message stays.
    """

    def decorate(method: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
        @wraps(method)
        def told(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
            try:
                return method(*args, **kwargs)
            except (NonFiniteError, NonPositiveError) as caught:
                failure = caught
            name, given = function or method.__name__, signature(method).bind(*args, **kwargs).arguments
            _explain(name, given, vectors, is_told=str(failure).startswith(f"{name}: "))
            raise failure

        return told

    return decorate


def _explain(function: str, given: dict[str, Any], vectors: tuple[str, ...], is_told: bool) -> None:
    """Raise what was wrong with the vectors or a distribution, or else with the result.

    Return if values cannot be read, and if nothing of that is wrong but the failure `is_told` by the function itself:
    it is then about another argument.
    """
    values = [each for value in given.values() for each in (value if isinstance(value, list | tuple) else [value])]
    own = next((value for value in values if checks.is_gaussian(value)), None)
    if own is None:
        return
    named = {name: given[name] for name in vectors if given.get(name) is not None}
    loc, *tensors = as_tensors(function, loc=own.loc, **named)
    if not have_values(loc, own._factor, *tensors):
        return
    for name, tensor in zip(named, tensors, strict=True):
        some = given.get("nodes")
        nodes = np.arange(own.topology.n) if some is None else distinct_nodes(function, own.topology, some)
        known = own.topology if tensor.shape[-1:] == nodes.shape else None
        checks.require_finite(function, name, None, array(tensor), known, nodes)
    for value in values:
        if isinstance(value, Distribution):
            _require_valid_distribution(function, value)
    if not is_told:
        raise checks.overflow(function, loc.dtype)


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


# ---------------------------------------------------------------------- values that are not what they should be


def _require_valid_distribution(function: str, distribution: Any) -> None:
    """Raise if a parameter is not what its own constraint asks for."""
    if isinstance(distribution, Independent):
        distribution = distribution.base_dist
    if checks.is_gaussian(distribution):
        parameters = array(distribution.loc), array(distribution._factor)
        require_valid(function, distribution.topology, distribution.factor_pattern, *parameters)
        return
    for name, constraint in distribution.arg_constraints.items():
        values = distribution.__dict__.get(name)
        if isinstance(values, Tensor) and not (constraint.check(values).all() and values.isfinite().all()):
            raise NonFiniteError(f"{function}: {name} of {distribution} is not finite, or not {constraint}.")


def is_valid(pattern: Pattern, loc: Tensor, factor: Tensor) -> bool:
    """Whether all numbers are finite and diagonals positive, in one pass; False also where only arrays can tell."""
    if loc.dtype not in LIKE or not (loc.is_contiguous() and factor.is_contiguous()):
        return False
    if loc.numel() == 0 or factor.numel() == 0 or loc.is_neg() or factor.is_neg():
        return False
    places = loc.data_ptr(), loc.numel(), factor.data_ptr(), factor.numel() // pattern.nnz
    return density.is_valid_at(pattern, LIKE[loc.dtype], *places)


def require_valid(function: str, topology: Topology, pattern: Pattern, loc: FloatArray, factor: FloatArray) -> None:
    """Raise at the first value that is not finite, or not positive on the diagonal of L, by the caller's node."""
    checks.require_finite(function, "loc", None, loc, topology)
    checks.require_finite(function, "factor", pattern, factor, topology)
    guarantee = "FactorHead and parametrize.factor guarantee it."
    checks.require_positive_diagonal(function, pattern, factor, topology, guarantee)
