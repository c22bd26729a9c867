"""Numba kernels: loops on raw arrays, no checks, no exceptions, status by return value.

`symbolic` works on patterns (orders, fill), the others on values. `compilation` keeps what was compiled, and compiles
all of it again when any file of this package has changed.
"""

from typing import Any

from sparseggm.kernels.compilation import njit

__all__ = ["INLINED", "INNER", "KERNEL", "njit"]

KERNEL: dict[str, Any] = {"nogil": True, "error_model": "numpy", "no_cfunc_wrapper": True}
"""Options of what Python calls, and C does not."""

INNER: dict[str, Any] = KERNEL | {"no_cpython_wrapper": True}
"""Options of what only kernels call: without the code by which Python would, a tenth less to compile."""

INLINED: dict[str, Any] = INNER | {"forceinline": True}
"""Options of what is called for each block or column, where a call costs as much as what it does."""
