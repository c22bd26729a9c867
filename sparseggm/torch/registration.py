"""How a verb becomes a torch operator: definition, CPU kernel, fake kernel, autograd rule.

An operator takes its pattern by `key`, since the dispatcher knows strings and not our types.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparseggm import checks
from sparseggm.pattern import Pattern

Shape = tuple[int, ...]

_library = torch.library.Library("sparseggm", "FRAGMENT")
_used: dict[str, Pattern] = {}  # a graph holds the key of a pattern, so the pattern must outlive the graph


def key_of(pattern: Pattern, verb: str, *tensors: Tensor) -> str:
    """The key to call operator `verb` with, once its tensors are known to be on the CPU."""
    for tensor in tensors:
        if tensor.device.type not in ("cpu", "meta"):
            raise ValueError(
                f"{verb}: needs tensors on the CPU, got one on {tensor.device}. Move it with .cpu(): nothing is copied "
                "silently."
            )
    checks.require_pattern(verb, pattern)
    return _used.setdefault(pattern.key, pattern).key


def pattern_of(key: str) -> Pattern:
    """The pattern an operator was called with."""
    return _used[key]


def array(tensor: Tensor) -> Any:
    """The tensor's memory as a NumPy array."""
    return tensor.detach().numpy()


def batch_of(*tensors: Tensor) -> Shape:
    """The common batch shape."""
    shapes = [tensor.shape[:-1] for tensor in tensors]
    return tuple(shapes[0] if shapes[0] == shapes[-1] else torch.broadcast_shapes(*shapes))


def summed_to(gradient: Tensor | None, like: Tensor) -> Tensor | None:
    """Summed over the axes that broadcasting added to `like`."""
    return gradient if gradient is None or gradient.shape == like.shape else gradient.sum_to_size(like.shape)


def register(
    signature: str,
    run: Callable[..., Any],
    fake: Callable[..., Any],
    setup: Callable[..., None] | None = None,
    vjp: Callable[..., Any] | None = None,
    *,
    tags: tuple[torch.Tag, ...] = (),
) -> Any:
    """Define an operator, its CPU kernel and its fake kernel; with `setup` and `vjp`, its autograd rule."""
    name = signature.split("(")[0]
    _library.define(signature, tags=tags)
    _library.impl(name, run, "CPU")
    torch.library.register_fake(f"sparseggm::{name}", fake, lib=_library)
    if vjp is not None:
        torch.library.register_autograd(f"sparseggm::{name}", vjp, setup_context=setup, lib=_library)
    return getattr(torch.ops.sparseggm, name).default


def register_pair(
    verb: Callable[..., Any],
    size: Callable[[Pattern], int],
    rule: Callable[[Pattern, tuple[bool, bool], Tensor, Tensor, Tensor, Tensor], tuple[Tensor | None, Tensor | None]],
) -> Callable[[str, Tensor, Tensor], Tensor]:
    """Register a verb of two tensors.

    Args:
        verb: the NumPy function.
        size: of the last axis of the result; its batch axes are those of the arguments, broadcast.
        rule: (pattern, which cotangents are needed, a, b, result, its cotangent) → the cotangents of a and b, which are
            then summed over the axes that broadcasting added.
    """

    def run(key: str, a: Tensor, b: Tensor) -> Tensor:
        return torch.from_numpy(verb(pattern_of(key), array(a), array(b)))

    def fake(key: str, a: Tensor, b: Tensor) -> Tensor:
        return a.new_empty((*batch_of(a, b), size(pattern_of(key))))

    def setup(ctx: Any, inputs: tuple[str, Tensor, Tensor], output: Tensor) -> None:
        ctx.key = inputs[0]
        ctx.save_for_backward(*inputs[1:], output)

    def vjp(ctx: Any, cotangent: Tensor) -> tuple[None, Tensor | None, Tensor | None]:
        a, b, result = ctx.saved_tensors
        a_bar, b_bar = rule(pattern_of(ctx.key), ctx.needs_input_grad[1:], a, b, result, cotangent)
        return None, summed_to(a_bar, a), summed_to(b_bar, b)

    operator: Callable[[str, Tensor, Tensor], Tensor]
    operator = register(f"{verb.__name__}(str key, Tensor a, Tensor b) -> Tensor", run, fake, setup, vjp)
    return operator


def differentiate(function: Callable[..., Any], inputs: tuple[Tensor, ...], cotangents: tuple[Tensor, ...]) -> Any:
    """Cotangents of the inputs of a differentiable function, themselves differentiable if grad mode is on."""
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        views = [
            tensor.view_as(tensor) if tensor.requires_grad else tensor.detach().requires_grad_() for tensor in inputs
        ]
        outputs = function(*views)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        return torch.autograd.grad(outputs, views, cotangents, create_graph=create_graph, materialize_grads=True)


def index(positions: Any) -> Tensor:
    """Packed positions as torch indexes."""
    return torch.from_numpy(positions.astype(np.int64))


def embed(values: Tensor, positions: Any, size: int) -> Tensor:
    """(..., size): zeros but for `values` at `positions`."""
    return values.new_zeros((*values.shape[:-1], size)).index_copy(-1, index(positions), values)
