"""Exceptions of the library. Each message names the function, the need, the value it got, and a remedy.

A caller's mistake raises a `ValueError`; a matrix that has no Cholesky factor raises a
`numpy.linalg.LinAlgError`, as in NumPy and SciPy.
"""

from __future__ import annotations

from typing import Self

import numpy as np


class ShapeError(ValueError):
    """An array's shape does not fit the pattern, the topology or the other arguments."""


class PatternError(ValueError):
    """A pattern or topology is malformed, or is not the one an operation needs."""


class DTypeError(ValueError):
    """An array is not float32 or float64 in native byte order, or two arrays differ in dtype."""


class NonFiniteError(ValueError):
    """An argument holds NaN or infinity, or the result overflows the dtype."""


class NonPositiveError(ValueError):
    """A number that must be positive, such as a diagonal entry of a factor, is not."""


class ImproperError(ValueError):
    """Nothing determines some direction, so that a density has no finite integral."""


class NotPositiveDefiniteError(np.linalg.LinAlgError):
    """A Cholesky pivot was not positive, or no larger than its own rounding error.

    Attributes:
        batch_index: of the first failing matrix; () without batch axes.
        column: of the failing pivot, in the numbering of the pattern (elimination order).
        pivot: its value; NaN or ≤ 0, or positive where P is singular to working precision.
    """

    def __init__(self, message: str, *, batch_index: tuple[int, ...], column: int, pivot: float) -> None:
        super().__init__(message)
        self.batch_index = batch_index
        self.column = column
        self.pivot = pivot

    def saying(self, message: str) -> Self:
        """The same failure, of the same class, in other words."""
        return type(self)(message, batch_index=self.batch_index, column=self.column, pivot=self.pivot)


class NotConvergedError(ArithmeticError):
    """An iteration ended before its result was as exact as promised; the message says how far it came."""


def in_batch(batch_index: tuple[int, ...]) -> str:
    """The end of a message that names the batch element; empty without batch axes."""
    return f", batch element {batch_index}" if batch_index else ""
