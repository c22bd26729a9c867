"""Conversion of a caller's values to arrays of one dtype, by one rule for all methods of a Gaussian.

    a number, a list, a tuple; integers, booleans    take the dtype of the others, float64 if there are none
    arrays, data frames, whatever has `__array__`    take the wider of float32 and float64; halves count as float32

So no digit of a floating-point array is lost. The verbs of `linalg` stay strict: with `plain`, they accept only arrays
of one dtype.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from sparseggm.errors import DTypeError

FloatArray = npt.NDArray[Any]

_HONOURED = (np.memmap, np.matrix, np.ma.MaskedArray)
_NATIVE = (np.dtype(np.float64), np.dtype(np.float32))
_WIDENED = {"float16": np.float32, "bfloat16": np.float32, "float32": np.float32, "float64": np.float64}


def plain(function: str, name: str, array: Any) -> npt.NDArray[Any]:
    """The same numbers, on the same memory, as an array of NumPy's own class; a NumPy scalar becomes one without axes.

    Raises:
        DTypeError: not an array, or a subclass whose meaning would be lost: masked entries, units, labels.
    """
    if type(array) is np.ndarray:
        return array
    if isinstance(array, np.generic):  # NumPy turns an array without axes into a scalar
        return np.asarray(array)
    if not isinstance(array, np.ndarray):
        raise DTypeError(f"{function}: {name} must be a NumPy array, got {type(array).__name__}.")
    if np.ma.is_masked(array):
        raise DTypeError(
            f"{function}: {name} must have a value in every place, got a masked array with masked entries. "
            "Choose the rows without, or write .filled(np.nan) where NaN is allowed."
        )
    if not isinstance(array, _HONOURED):
        raise DTypeError(
            f"{function}: {name} must be a plain NumPy array, got {type(array).__name__}, whose meaning would be lost. "
            "Convert it with numpy.asarray."
        )
    return np.asarray(array)


def promoted(function: str, *dtypes: np.dtype[Any], **values: Any) -> list[FloatArray]:
    """The values as arrays in the widest of their dtypes and `dtypes`; an array of that dtype is returned as it is.

    Raises:
        DTypeError: a value is not an array of real numbers in at most float64.
    """
    arrays, own = zip(*(as_numbers(function, name, value) for name, value in values.items()), strict=True)
    dtype = widest(*dtypes, *own)
    return [array if array.dtype is dtype else _converted(array, dtype) for array in arrays]


def widest(*dtypes: np.dtype[Any] | None) -> np.dtype[Any]:
    """The wider of these dtypes, float32 or float64; float64 if all are None."""
    asked = [dtype for dtype in dtypes if dtype is not None]
    return np.result_type(*asked) if asked else np.dtype(np.float64)


def as_numbers(function: str, name: str, value: Any) -> tuple[npt.NDArray[Any], np.dtype[Any] | None]:
    """The value as an array, and the dtype that it asks for; None if the other values decide."""
    if type(value) is np.ndarray and value.dtype in _NATIVE:
        return value, value.dtype
    for part in value if isinstance(value, list | tuple) else (value,):
        if isinstance(part, np.ndarray):
            plain(function, name, part)  # NumPy would silently drop the masks of arrays in a list
    try:
        array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:  # lists of unequal lengths, tensors that need a gradient
        kind = type(value).__name__
        raise DTypeError(f"{function}: {name} must be an array of real numbers, got {kind}: {error}.") from error
    if array.dtype.kind in "iub":
        return array, None
    dtype = _WIDENED.get(array.dtype.name)
    if dtype is None:
        raise DTypeError(
            f"{function}: {name} must hold real numbers in at most float64, got {array.dtype}. Convert it with astype."
        )
    is_array = hasattr(value, "__array__") and not isinstance(value, np.generic)
    return array, np.dtype(dtype) if is_array else None


def _converted(array: npt.NDArray[Any], dtype: np.dtype[Any]) -> FloatArray:
    with np.errstate(over="ignore"):  # the checks of values find infinity
        return array.astype(dtype, copy=False)


def _is_constant(array: FloatArray) -> bool:
    """Whether it is read-only down to what owns its memory: an array, bytes, or a file mapped to be read."""
    owner: Any = array
    while isinstance(owner, np.ndarray):
        if owner.flags.writeable:
            return False
        owner = owner.base
    if owner is None:
        return True
    try:
        return memoryview(owner).readonly
    except TypeError:  # what gives an address alone, as a sliding window or a tensor, does not say who else may write
        return False


def constant(array: FloatArray) -> FloatArray:
    """The array, if nobody can write into its memory through NumPy; else a read-only copy that keeps broadcast axes."""
    if _is_constant(array):
        return array
    once = tuple(slice(0, 1) if stride == 0 else slice(None) for stride in array.strides)
    copy = array[(*once, ...)].copy()  # the dots keep an array without axes from becoming a scalar
    copy.flags.writeable = False
    return copy if copy.shape == array.shape else np.broadcast_to(copy, array.shape)
