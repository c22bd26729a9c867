"""Checks that all verbs share: of arguments and batch axes before the work, and of the cause after a kernel failed.

A kernel reports only that something was wrong. The functions here then examine the arguments and name the cause: NaN in
an argument, a diagonal that is not positive, or a result beyond the dtype.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from sparseggm.errors import DTypeError, NonFiniteError, NonPositiveError, PatternError, ShapeError
from sparseggm.errors import in_batch as in_batch  # the verbs say checks.in_batch
from sparseggm.graph.pattern import FloatArray, IntArray, Pattern
from sparseggm.graph.topology import Topology
from sparseggm.promotion import plain as plain

Shape = tuple[int, ...]

REMEDY = "Rescale, or use float64."

_DTYPES = (np.dtype(np.float32), np.dtype(np.float64))
_identity = np.arange(1024)
_thread = threading.local()


# ---------------------------------------------------------------------- before the work


def is_gaussian(value: object) -> bool:
    """Whether it is a `GaussianGraphicalModel`, of arrays or of tensors."""
    return hasattr(value, "is_on_topology")


def require_gaussian(function: str, name: str, value: object, of: type | None = None) -> None:
    """Raise a TypeError unless it is a `GaussianGraphicalModel`: an instance of `of`, or, for None, of either class."""
    if not (is_gaussian(value) if of is None else isinstance(value, of)):
        raise TypeError(f"{function}: {name} must be a GaussianGraphicalModel, got {found_instead(value)}.")


def found_instead(value: object) -> str:
    """What stands in the place of a Gaussian of some kind, in words."""
    if not is_gaussian(value):
        return type(value).__name__
    return "one of tensors: call its numpy()" if hasattr(value, "numpy") else "one of arrays: use from_numpy"


def check(verb: str, pattern: Pattern, *, packed: dict[str, Any] | None = None, **vectors: Any) -> None:
    """Require that packed arrays end in nnz, vectors in n, and all are float32 or all float64, in native byte order."""
    require_pattern(verb, pattern)
    dtypes = set()
    for arrays, size, meaning in ((packed, pattern.nnz, "the nnz"), (vectors, pattern.n, "the size")):
        for name, array in (arrays or {}).items():
            require_floats(verb, name, array)
            if array.shape[-1:] != (size,):
                raise ShapeError(
                    f"{verb}: {name} must end in {size}, {meaning} of the pattern, got shape {array.shape}."
                )
            dtypes.add(array.dtype)
    if len(dtypes) > 1:
        same_dtype(verb, **(packed or {}), **vectors)


def require_floats(verb: str, name: str, array: Any) -> None:
    """Require a plain array of float32 or float64 in native byte order."""
    plain(verb, name, array)
    if array.dtype not in _DTYPES:
        raise DTypeError(
            f"{verb}: {name} must be float32 or float64 in native byte order, got {array.dtype!r}. "
            "Convert it with astype."
        )


def require_pattern(verb: str, pattern: Any, name: str = "pattern") -> None:
    """Require a pattern; a topology has two of them, and only the caller knows which one is meant."""
    if not isinstance(pattern, Pattern):
        raise PatternError(
            f"{verb}: {name} must be a Pattern, got {type(pattern).__name__}. A topology has two: factor_pattern, "
            "of L, and precision_pattern, of P."
        )


def same_dtype(verb: str, **arrays: FloatArray) -> None:
    """Require one dtype of all arrays, since it is also that of the result."""
    dtypes = {array.dtype for array in arrays.values()}
    if len(dtypes) > 1:
        named = " and ".join(f"{array.dtype} for {name}" for name, array in arrays.items())
        raise DTypeError(f"{verb}: all arguments must have one dtype, got {named}. Convert one with astype.")


def broadcast(verb: str, **batch_shapes: Shape) -> Shape:
    """The common batch shape."""
    shapes = set(batch_shapes.values())
    if len(shapes) == 1:
        return shapes.pop()
    try:
        return np.broadcast_shapes(*shapes)
    except ValueError:
        named = " and ".join(f"{shape} of {name}" for name, shape in batch_shapes.items())
        raise ShapeError(f"{verb}: batch axes must broadcast, got {named}.") from None


def closed_superset(verb: str, pattern: Pattern, on: Pattern | None) -> Pattern:
    """The pattern F: `on`, which must be closed and hold the pattern; for None, the pattern's own fill."""
    require_pattern(verb, pattern)
    if on is None or on is pattern.filled():
        return pattern.filled()
    require_pattern(verb, on, "on")
    if not on.is_closed:
        raise PatternError(f"{verb}: `on` must be closed under elimination, {on!r} is not. Use on.filled().")
    pattern.positions_in(on, verb)  # raises where it lacks an entry
    return on


# ---------------------------------------------------------------------- arrays as kernels take them


def read_only_view(array: Any) -> Any:
    """A read-only view. All inputs of kernels are read-only, so that one compiled signature serves all."""
    view = array.view()
    view.flags.writeable = False
    return view


def apart(array: FloatArray, out: FloatArray) -> FloatArray:
    """The array, or a read-only copy where writing to `out` might change it before it has been read."""
    return read_only_view(array.copy()) if np.may_share_memory(array, out) else array


def as_rows(array: FloatArray, batch_shape: Shape) -> FloatArray:
    """(batch, k), C-contiguous and read-only; a copy only where needed to broadcast or to make contiguous."""
    array = np.asarray(array)  # a matrix or a memory map, see `plain`, would keep its class
    if array.shape[:-1] != batch_shape:
        array = np.broadcast_to(array, (*batch_shape, array.shape[-1]))
    if array.ndim != 2 or not array.flags.c_contiguous:
        array = np.ascontiguousarray(array).reshape(math.prod(batch_shape), array.shape[-1])
    return read_only_view(array)  # type: ignore[no-any-return]


def owners(batch_shape: Shape, full: Shape) -> IntArray:
    """For each row of the batch `full`, the row of `batch_shape` that broadcasts to it."""
    global _identity
    count, identity = math.prod(batch_shape), _identity
    if count > len(identity):
        _identity = identity = np.arange(2 * count)  # another thread may replace the global, not this local
    own = identity[:count]
    if batch_shape == full:
        return read_only_view(own)  # type: ignore[no-any-return]
    return read_only_view(np.ascontiguousarray(np.broadcast_to(own.reshape(batch_shape), full)).ravel())  # type: ignore[no-any-return]


# ---------------------------------------------------------------------- after a failure


@contextmanager
def speaking_as(function: str, *inner: str) -> Iterator[None]:
    """Raise errors of the functions `inner`, which begin with their names, under the name of the user's function."""
    try:
        yield
    except (TypeError, ValueError) as error:
        verb, _, rest = str(error).partition(": ")
        if verb in inner:
            error.args = (f"{function}: {rest}",)
        raise


def raise_cause(
    verb: str,
    inputs: dict[str, tuple[Pattern | None, FloatArray]],
    divides: bool = True,
    topology: Topology | None = None,
) -> None:
    """Raise the error that explains why a kernel failed. Within `non_finite_passes`, return instead.

    Args:
        verb: the name in the message.
        inputs: each array with the pattern it is on, None for a vector.
        divides: whether the verb divides by the diagonal of its `factor`, and of its `prior`.
        topology: if given, the message names its nodes in place of entries and columns of the pattern.
    """
    if lets_non_finite_pass():
        return
    for name, (pattern, array) in inputs.items():
        require_finite(verb, name, pattern, array, topology)
    for name in ("factor", "prior") if divides else ():
        if name in inputs:
            pattern, factor = inputs[name]
            assert pattern is not None
            require_positive_diagonal(verb, pattern, factor, topology, name=name)
    dtype = next(iter(inputs.values()))[1].dtype
    raise overflow(verb, dtype)


class non_finite_passes:  # a context, named as those of contextlib, whose generators cost more
    """A context in which verbs of this thread return results that are not finite, as a backward pass must.

    A loss that was scaled too far has infinite cotangents. torch's GradScaler, which scaled it, finds infinity in the
    gradient of a parameter and skips the step; an exception on the way there would end the training.
    """

    def __enter__(self) -> None:
        self._before, _thread.passes = lets_non_finite_pass(), True
        self._warnings = np.errstate(over="ignore", invalid="ignore")
        self._warnings.__enter__()

    def __exit__(self, *failure: object) -> None:
        _thread.passes = self._before
        self._warnings.__exit__(*failure)  # type: ignore[arg-type]


def overflow(verb: str, dtype: Any, given: str = "arguments", made: str = "result") -> NonFiniteError:
    """The error of numbers that are finite and make one that is not; `dtype` is NumPy's or torch's."""
    name = str(dtype).removeprefix("torch.")
    return NonFiniteError(f"{verb}: the {given} are finite but the {made} overflows {name}. {REMEDY}")


def lets_non_finite_pass() -> bool:
    """Whether this thread is within `non_finite_passes`."""
    return getattr(_thread, "passes", False)


def require_representable(verb: str, result: Any, dtype: np.dtype[Any], **arguments: FloatArray) -> FloatArray:
    """A float64 result, converted to dtype. Raises if it is beyond that dtype, or if an argument is not finite."""
    with np.errstate(over="ignore"):
        rounded = np.array(result, dtype=dtype)
    if not np.isfinite(rounded).all():
        for name, array in arguments.items():
            require_finite(verb, name, None, array)
        raise overflow(verb, dtype)
    return rounded


def require_finite(
    verb: str,
    name: str,
    pattern: Pattern | None,
    array: FloatArray,
    topology: Topology | None = None,
    nodes: IntArray | None = None,
) -> None:
    """Raise at the first NaN or infinity; a `topology` makes the message name nodes instead of entries and columns.

    A vector, which has no pattern, is in the caller's numbering then; or over some `nodes` of the caller's.
    """
    bad = ~np.isfinite(array)
    if bad.any():
        *batch_index, p = (int(axis) for axis in np.argwhere(bad)[0])
        if pattern is None:
            where = f"column {p}" if topology is None else topology.describe(p if nodes is None else int(nodes[p]))
        elif topology is None:
            where = f"entry ({pattern.rows[p]}, {pattern.cols[p]})"
        else:
            where = _nodes(topology, pattern.rows[p], pattern.cols[p])
        value = float(array[(*batch_index, p)])
        raise NonFiniteError(f"{verb}: {name} must be finite, got {value} at {where}{in_batch(tuple(batch_index))}.")


def require_positive_diagonal(
    verb: str,
    pattern: Pattern,
    factor: FloatArray,
    topology: Topology | None = None,
    remedy: str = "",
    name: str = "factor",
) -> None:
    """Raise at the first diagonal entry ≤ 0; nodes are named as in `require_finite`, and the remedy stands last."""
    diagonal = factor[..., pattern.diagonal]
    bad = diagonal <= 0
    if bad.any():
        *batch_index, column = (int(axis) for axis in np.argwhere(bad)[0])
        value = float(diagonal[(*batch_index, column)])
        where = f"column {column} of {pattern.n}" if topology is None else _nodes(topology, column)
        where += in_batch(tuple(batch_index))
        message = f"{verb}: the diagonal of {name} must be positive, got {value:.3g} at {where}."
        raise NonPositiveError(f"{message} {remedy}".rstrip())


def _nodes(topology: Topology, *eliminated: int) -> str:
    """Describe the caller's nodes at these places of the elimination order, each once."""
    return " and ".join(map(topology.describe, sorted({int(topology.order[k]) for k in eliminated})))
