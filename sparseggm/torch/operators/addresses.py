"""Operators of few numbers without the dispatcher and without arrays: at n = 16 these cost more than the arithmetic.

What is amiss at addresses is for arrays to say, and to raise.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparseggm.graph.pattern import Pattern
from sparseggm.linalg import memory
from sparseggm.linalg.engines import engine_for, engine_of
from sparseggm.linalg.primitives import Step
from sparseggm.torch.operators.registration import array, batch_of

LIKE: dict[torch.dtype, Any] = {torch.float32: np.float32(0), torch.float64: np.float64(0)}
"""A number of each dtype."""

FEW = 1 << 20
"""Numbers of a result up to which torch's memory serves; larger ones are kept for the next, see `memory`."""

_SMALL, _LANES = 1 << 14, 4
"""A batch of fewer than so many lanes wastes those that are left, which matters from so many entries of L on."""


def takes_addresses(pattern: Pattern, loc: Tensor, factor: Tensor, *vectors: Tensor) -> bool:
    """Whether tensors have the one batch shape and the one type that a kernel takes, and fill its lanes."""
    shape, dtype, n = loc.shape, loc.dtype, pattern.n
    if shape[-1:] != (n,) or loc.numel() == 0:
        return False
    if dtype not in LIKE or factor.shape != (*shape[:-1], pattern.nnz):
        return False
    if loc.numel() < _LANES * n and pattern.nnz > _SMALL:
        return False
    for vector in vectors:
        if vector.shape != shape or vector.dtype is not dtype or vector.is_neg():
            return False
    if factor.dtype is not dtype or loc.is_neg() or factor.is_neg():
        return False
    return engine_for(pattern, loc.numel() // n, LIKE[dtype].dtype).fuses


def takes_two_factors(pattern: Pattern, loc: Tensor, factor: Tensor, other: Tensor, *vectors: Tensor) -> bool:
    """`takes_addresses`, of so few numbers that arrays would cost as much as the arithmetic, for two packed tensors."""
    if loc.numel() > FEW or other.shape != factor.shape or other.dtype is not factor.dtype or other.is_neg():
        return False
    return takes_addresses(pattern, loc, factor, *vectors)


def run_step_at(verb: str, pattern: Pattern, *tensors: Tensor | None) -> bool:
    """Run a verb of a `Step`, at its contiguous arguments and results, None for one unwanted; whether all is finite.

    Args:
        tensors: of which the first has one batch element a row.
    """
    addresses = [0 if tensor is None else tensor.data_ptr() for tensor in tensors]
    first: Any = tensors[0]
    task = Step(LIKE[first.dtype], first.shape[:-1].numel(), addresses)
    return not getattr(engine_of(pattern, task), verb)(pattern, task)


def without_dispatcher(run: Callable[..., Any], rule: Callable[..., Any]) -> Callable[..., Any]:
    """A function of a pattern and tensors as a plain node of autograd; a small step costs no more than the dispatcher.

    Args:
        run: (pattern, *tensors) → results.
        rule: (ctx, *cotangents) → None and those of the tensors, which are `ctx.saved_tensors` beside `ctx.pattern`.
    """

    class Eager(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, pattern: Pattern, *tensors: Tensor) -> Any:
            ctx.pattern = pattern
            ctx.save_for_backward(*tensors)
            return run(pattern, *tensors)

        @staticmethod
        def backward(ctx: Any, *cotangents: Tensor) -> Any:
            return rule(ctx, *cotangents)

    return Eager.apply


def in_one_batch(*tensors: Tensor) -> list[Any]:
    """Tensors that a kernel does not take, as arrays on their common batch axes."""
    batch = batch_of(*tensors)
    return [array(tensor.expand(*batch, tensor.shape[-1])) for tensor in tensors]


def stride_of(loc: Tensor, *vectors: Tensor) -> int | None:
    """Numbers from row to row of vectors: n where each has the shape of loc, 0 where each is a row; else None."""
    shape, n = vectors[0].shape, loc.shape[-1]
    if shape != loc.shape and shape != (n,):
        return None
    for vector in vectors:
        if vector.shape != shape or vector.dtype is not loc.dtype or vector.is_neg():
            return None
    return n if shape == loc.shape else 0


def run_at(
    verb: str,
    pattern: Pattern,
    order: Tensor | None,
    inputs: tuple[Tensor, ...],
    results: tuple[Tensor | None, ...],
    stride: int = 0,
) -> bool:
    """Run a verb of `linalg.density`, None for a result that is not wanted; whether all numbers are finite.

    Args:
        inputs: of which the first is loc.
        stride: see `stride_of`.
    """
    given = [tensor.contiguous() for tensor in inputs]
    addresses = [0 if tensor is None else tensor.data_ptr() for tensor in (*given, *results)]
    loc = given[0]
    nodes = None if order is None else array(order)
    task = Step(LIKE[loc.dtype], loc.numel() // pattern.n, addresses, order=nodes, stride=stride)
    return not engine_of(pattern, task).density(verb, pattern, task)


def new(like: Tensor) -> Tensor:
    """Memory of the shape and dtype of a tensor."""
    if like.numel() <= FEW:
        return torch.empty_like(like if like.is_contiguous() else like.contiguous())
    return torch.from_numpy(memory.empty(tuple(like.shape), array(like).dtype))
