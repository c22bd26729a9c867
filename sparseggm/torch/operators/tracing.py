"""What a tracer of torch does at functions that compute facts of patterns and topologies, which are no part of a graph.

torch's own decorators import its compiler, which takes longer than all else that is imported here.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def untraced(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """As `torch.compiler.disable`: a graph breaks at the call, which runs as ordinary Python."""

    @wraps(function)
    def call(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        plain: Callable[Arguments, Result] = _disabled(function) if "torch._dynamo" in sys.modules else function
        return plain(*args, **kwargs)

    call._torchdynamo_disable = True  # type: ignore[attr-defined]
    return call


def _disabled(function: Callable[..., Any]) -> Any:
    if function not in _known:
        _known[function] = torch.compiler.disable(function)
    return _known[function]


_known: dict[Callable[..., Any], Any] = {}  # a tracer warns of `functools.cache`


def constant_in_graphs(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """As `torch.compiler.assume_constant_result`: a tracer calls the function, and keeps its result."""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function
