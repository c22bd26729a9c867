"""Random probes in chunks of bounded memory, shared by the estimators of `stochastic`.

Probes are rows (k, ..., n) as arguments of a verb of `linalg`, and columns (..., n, k) of a matrix that is factorised.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from sparseggm.errors import ShapeError
from sparseggm.graph.pattern import FloatArray, IntArray, Pattern
from sparseggm.linalg.checks import Shape

CHUNK_VALUES = 1 << 22
"""Numbers in one array of probes: 32 MiB in float64."""


TRACE_METHODS: dict[str, dict[str, int]] = {
    "hutchinson": {"num_probes": 32},
    "probing": {"distance": 4, "replicates": 2},
    "hutchpp": {"rank": 16, "num_probes": 32},
    "xtrace": {"num_probes": 32},
}
"""The options of each method with their defaults."""


def trace_options(function: str, method: str, n: int, options: dict[str, int]) -> dict[str, Any]:
    """The options of a method: the given ones, else its defaults, reduced where n nodes have fewer directions."""
    if method not in TRACE_METHODS:
        raise ValueError(f"{function}: method must be one of {tuple(TRACE_METHODS)}, got {method!r}.")
    defaults = TRACE_METHODS[method]
    if unknown := sorted(options.keys() - defaults.keys()):
        raise TypeError(f"{function}: method {method!r} takes {' and '.join(defaults)}, got {', '.join(unknown)}.")
    most = {"hutchpp": {"rank": n - 1}, "xtrace": {"num_probes": n}}.get(method, {})
    return {name: min(number, most.get(name, number)) for name, number in defaults.items()} | options


def parts(count: int, values_each: int) -> Iterator[slice]:
    """Slices of range(count), each as long as `CHUNK_VALUES` allows."""
    chunk = max(1, CHUNK_VALUES // max(1, values_each))
    return (slice(first, min(first + chunk, count)) for first in range(0, count, chunk))


def signs(rng: np.random.Generator, shape: Shape, dtype: Any) -> FloatArray:
    """Independent ±1, from 64-bit samples: shorter ones would leave unused bits at the end of a chunk."""
    return np.asarray(2 * rng.integers(0, 2, shape) - 1, dtype=dtype)


def over_signs(
    forms: Callable[[FloatArray], FloatArray], count: int, shape: Shape, dtype: Any, rng: np.random.Generator
) -> FloatArray:
    """(count, ...) values of `forms`, which maps probes (k, ..., n) of random signs to (k, ...)."""
    values = np.empty((count, *shape[:-1]))
    for part in parts(count, math.prod(shape)):
        values[part] = forms(signs(rng, (part.stop - part.start, *shape), dtype))
    return values


def by_colour(
    labels: int, members: IntArray, shape: Shape, dtype: Any, rng: np.random.Generator
) -> Iterator[tuple[slice, FloatArray]]:
    """Slices of the colours, and their probes (k, ..., n): one sample of signs, divided among the colours."""
    sampled = signs(rng, shape, dtype)
    for part in parts(labels, math.prod(shape)):
        chosen = members == np.arange(part.start, part.stop)[:, None]
        yield part, sampled * chosen.reshape(-1, *(1,) * (len(shape) - 1), shape[-1])


def normal_columns(rng: np.random.Generator, count: int, batch: Shape, n: int) -> FloatArray:
    """(..., n, count) normal vectors, sampled one vector after another."""
    return np.moveaxis(rng.standard_normal((count, *batch, n)), 0, -1)


def on_columns(verb: Any, pattern: Pattern, factor: FloatArray, columns: FloatArray) -> FloatArray:
    """`linalg.solve` or another verb on each column of (..., n, k), in the dtype of the factor; returned in float64."""
    rows = np.ascontiguousarray(np.moveaxis(columns, -1, 0), dtype=factor.dtype)
    return np.asarray(np.moveaxis(verb(pattern, factor, rows), 0, -1), dtype=np.float64)


def colour_classes(verb: str, pattern: Pattern, colours: IntArray) -> tuple[int, IntArray]:
    """The number of colours, and the colour of each node, renumbered from 0."""
    colours = np.asarray(colours)
    if colours.shape != (pattern.n,) or not np.issubdtype(colours.dtype, np.integer):
        raise ShapeError(
            f"{verb}: colours must be ({pattern.n},) integers, one a node, got {colours.dtype} of shape "
            f"{colours.shape}. Use distance_colouring(topology.precision_pattern, distance)."
        )
    labels, members = np.unique(colours, return_inverse=True)
    return len(labels), members


def dot(x: FloatArray, y: FloatArray) -> FloatArray:
    """xᵀ y over the last axis, in float64."""
    return np.asarray(np.einsum("...i,...i->...", x, y, dtype=np.float64))


def squared(x: FloatArray) -> FloatArray:
    """‖x‖² over the last axis, in float64."""
    return dot(x, x)
