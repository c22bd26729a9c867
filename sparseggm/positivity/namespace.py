"""The few array operations that differ between NumPy and torch, so that the backend-agnostic layer serves both.

A tensor can only exist once torch is imported, so torch is found among the loaded modules: nothing here
imports it.
"""

from __future__ import annotations

import math
import sys
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse

from sparseggm.errors import DTypeError
from sparseggm.graph.pattern import IntArray, Pattern
from sparseggm.promotion import plain

Array = Any  # a NumPy array or a torch tensor


def array_namespace(array: Array) -> Any:
    """numpy or torch: the module of `abs`, `exp`, `tanh`, `where`, `sign`, `concatenate`."""
    return np if _is_numpy(array) else sys.modules["torch"]


def known(function: str, name: str, array: Array) -> Array:
    """Return a tensor as it is, and an array as one of NumPy's own class.

    Raises:
        DTypeError: neither, or a subclass of NumPy's array whose meaning would be lost, see `promotion.plain`.
    """
    if _is_numpy(array):
        return plain(function, name, array)
    if not hasattr(array, "index_select"):
        raise DTypeError(f"{function}: {name} must be a NumPy array or a tensor, got {type(array).__name__}.")
    return array


def has_floats(array: Array) -> bool:
    """Whether the numbers are floating-point numbers; constants beside integers would lose their fractions."""
    return array.dtype.kind == "f" if _is_numpy(array) else bool(array.is_floating_point())


def mask(array: Array, condition: Any) -> Array:
    """A boolean NumPy array as a constant of the kind of `array`, on its device."""
    return condition if _is_numpy(array) else _beside(array, condition)


def constant_like(array: Array, numbers: Any) -> Array:
    """Numbers as a constant of the kind and dtype of an array, on its device; a tensor beside a tensor stays one."""
    if _is_numpy(array):
        return np.asarray(numbers, array.dtype)
    if not _is_numpy(numbers) and hasattr(numbers, "index_select"):
        return numbers.to(array.dtype)
    return _beside(array, np.array(numbers, np.float64)).to(array.dtype)  # a copy: torch warns of read-only memory


def known_to_fail(condition: Array) -> bool:
    """Whether some of the booleans are known to be false; a tensor's are unknown under a transform or a trace."""
    if not _is_numpy(condition):
        torch = array_namespace(condition)
        if torch.compiler.is_compiling() or type(condition) is not torch.Tensor or condition.device.type == "meta":
            return False
        if is_transformed():
            return False
    return not condition.all()


def is_transformed() -> bool:
    """Whether the code runs under a transform of torch.func, as `vmap`, when torch is loaded."""
    return sys.modules["torch"]._C._functorch.peek_interpreter_stack() is not None


def refuse_transforms(function: str, array: Array) -> None:
    """Raise under a transform of torch.func, where a function must read the numbers of a tensor."""
    if not _is_numpy(array) and is_transformed():
        raise TypeError(f"{function}: runs under no transform of torch.func. Give batch axes instead of vmap.")


def readable(array: Array) -> npt.NDArray[Any] | None:
    """The numbers as an array of NumPy; None for a tensor under a transform or a trace, whose numbers are unknown."""
    if _is_numpy(array):
        return np.asarray(array)
    torch = array_namespace(array)
    if torch.compiler.is_compiling() or is_transformed():
        return None
    plain_tensor = array.detach()
    is_known = type(plain_tensor) is torch.Tensor and plain_tensor.is_cpu
    return plain_tensor.numpy(force=True) if is_known else None


def as_array(array: Array) -> npt.NDArray[Any]:
    """The numbers of a tensor without its gradient, or those of an array, as an array of NumPy."""
    return np.asarray(array.detach() if hasattr(array, "detach") else array)


def unit_roundoff(array: Array) -> float:
    """u of its dtype: half the distance from 1 to the next number."""
    return float(array_namespace(array).finfo(array.dtype).eps) / 2


def where_diagonal(pattern: Pattern, there: Array, elsewhere: Array | float) -> Array:
    """Packed values (..., nnz), some for the diagonal and others for the rest."""
    return array_namespace(there).where(mask(there, pattern.rows == pattern.cols), there, elsewhere)


def segment_sum(terms: Array, segments: IntArray, count: int) -> Array:
    """(..., count): for each segment the sum of its terms (..., m); term t belongs to segment segments[t]."""
    if _is_numpy(terms):
        ones = np.ones(len(segments), terms.dtype)
        incidence = scipy.sparse.csc_array((ones, (segments, np.arange(len(segments)))), shape=(count, len(segments)))
        rows = terms.reshape(math.prod(terms.shape[:-1]), len(segments))  # −1 could not be inferred without segments
        return (incidence @ rows.T).T.reshape(*terms.shape[:-1], count)
    return terms.new_zeros((*terms.shape[:-1], count)).index_add(-1, _index(segments, terms), terms)


def softplus(array: Array) -> Array:
    """log(1 + eˣ) without overflow. Every derivative is finite: torch's own `softplus` loses digits beyond x = 20."""
    return np.logaddexp(array, 0) if _is_numpy(array) else -sys.modules["torch"].nn.functional.logsigmoid(-array)


def take(array: Array, positions: npt.NDArray[Any]) -> Array:
    """array[..., positions] (..., k), but C-contiguous, which indexing by an array of positions (k,) does not give.

    Positions of several axes, (k, l), give (..., k, l).
    """
    if _is_numpy(array):
        return array.take(positions, axis=-1)
    taken = array.index_select(-1, _index(positions.ravel(), array))
    return taken if positions.ndim == 1 else taken.reshape(*array.shape[:-1], *positions.shape)


def scatter(parts: list[tuple[IntArray, Array]], size: int) -> Array:
    """(..., size): each part's values at its positions; the positions together are 0 … size − 1."""
    order = np.argsort(np.concatenate([positions for positions, _ in parts]))
    values = [array for _, array in parts]
    return take(array_namespace(values[0]).concatenate(values, -1), order)


def in_float64(array: Array) -> Array:
    """The numbers in float64."""
    return array.astype(np.float64) if _is_numpy(array) else array.double()


def total(terms: Array) -> Array:
    """The sum over the last axis, in float64."""
    return in_float64(terms).sum(-1)


def in_dtype_of(array: Array, like: Array) -> Array:
    """The numbers in the dtype of `like`."""
    return array.astype(like.dtype) if _is_numpy(array) else array.to(like.dtype)


def _is_numpy(array: Array) -> bool:
    """Whether it is an array, or the scalar that NumPy makes of an array without axes."""
    return isinstance(array, (np.ndarray, np.generic))  # a tuple, which torch.compile can trace


def _index(positions: npt.NDArray[Any], beside: Array) -> Array:
    """Positions as an index tensor: a copy, because torch warns of read-only memory."""
    return _beside(beside, positions.astype(np.int64))


def _beside(tensor: Array, facts: npt.NDArray[Any]) -> Array:
    """An array of indexes or masks as a tensor on the device of another; a constant in a program of torch.export."""
    is_exporting = array_namespace(tensor).compiler.is_exporting()
    return (constant if is_exporting else array_namespace(tensor).from_numpy)(facts).to(tensor.device)


def constant(facts: npt.NDArray[Any]) -> Array:
    """An array as a tensor. `sparseggm.torch` marks this function, so that a tracer calls it and keeps its result.

    A tracer that traced its code instead would keep a tensor without numbers.
    """
    return sys.modules["torch"].as_tensor(facts)
