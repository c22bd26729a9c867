"""What is compiled in this process: every kernel with the types that it is compiled for."""

from __future__ import annotations

import importlib
import pkgutil

from numba.core.dispatcher import Dispatcher

from sparseggm import kernels

NAMES = [module.name for module in pkgutil.walk_packages(kernels.__path__, f"{kernels.__name__}.")]


def compiled() -> set[str]:
    """A line for each kernel and signature, whether compiled here or loaded from the cache."""
    found = (kernel for name in NAMES for kernel in vars(importlib.import_module(name)).values())
    return {f"{k.__qualname__} {types}" for k in found if isinstance(k, Dispatcher) for types in k.signatures}
