"""Squared distances of many points from a mean, and squared norms, in memory for the points and their gradients alone.

Points, means and their cotangents are in the caller's numbering, factors in that of their pattern; `order` (n,) is
between them, None if the two agree. Sums over the nodes, and over the points of one factor, are formed in float64.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparseggm import linalg
from sparseggm.errors import NonFiniteError
from sparseggm.gaussian import model
from sparseggm.graph.pattern import FloatArray, Pattern
from sparseggm.linalg import checks
from sparseggm.torch.operators import algebra
from sparseggm.torch.operators.blocks import accumulator, aligned, blocks, sum_in_float64, to_tensor
from sparseggm.torch.operators.numbering import inverse_of, reordered, taker
from sparseggm.torch.operators.registration import (
    array,
    batch_of,
    key_of,
    pattern_of,
    register,
    sum_to_shape,
)


def square_distance(pattern: Pattern, loc: Tensor, factor: Tensor, order: Tensor | None, x: Tensor) -> Tensor:
    """(x − loc)ᵀ P (x − loc) = ‖Lᵀ (x − loc)‖², in float64 whatever the dtype; batch axes broadcast."""
    key = key_of(pattern, "square_distance", loc, factor, x)
    return torch.ops.sparseggm.square_distance(key, loc, factor, order, x)  # type: ignore[no-any-return]


def square_norm(x: Tensor) -> Tensor:
    """‖x‖² over the last axis, in float64 whatever the dtype, without a copy of x."""
    return torch.ops.sparseggm.square_norm(x)  # type: ignore[no-any-return]


def _square_distance(key: str, loc: Tensor, factor: Tensor, order: Tensor | None, x: Tensor) -> Tensor:
    return torch.from_numpy(square_distances(pattern_of(key), array(loc), array(factor), order, array(x)))


def square_distances(
    pattern: Pattern, loc: FloatArray, factor: FloatArray, order: Tensor | None, x: FloatArray
) -> FloatArray:
    """`square_distance` of arrays."""
    take = taker(order)
    checks.check("square_distance", pattern, packed={"factor": factor}, value=x, loc=loc)
    shapes = {"value": x.shape[:-1], "loc": loc.shape[:-1], "factor": factor.shape[:-1]}
    full = checks.broadcast("square_distance", **shapes)
    square = np.empty(full)
    ndim = len(full) + 1
    try:
        with np.errstate(over="ignore"):  # infinity is for the verb to find
            for block in blocks(full, pattern.n):
                offset = take(aligned(x, block, ndim) - aligned(loc, block, ndim))
                white = linalg.matmul_t(pattern, aligned(factor, block, ndim), offset)
                square[block] = model.square_norm(white)
    except NonFiniteError:
        inputs = {"factor": (pattern, factor), "value": (None, x), "loc": (None, loc)}
        checks.raise_cause("square_distance", inputs, divides=False)
    return square


def _square_distance_setup(ctx: Any, inputs: tuple[str, Tensor, Tensor, Tensor | None, Tensor], output: Tensor) -> None:
    ctx.pattern = pattern_of(inputs[0])
    ctx.save_for_backward(*inputs[1:])


# s = ‖r‖², r = Lᵀ y, y = x − loc  ⇒  ȳ = 2 s̄ L r ,  L̄ = 2 s̄ y rᵀ on the pattern
def _square_distance_rule(ctx: Any, bar: Tensor) -> tuple[None, Tensor | None, Tensor | None, None, Tensor | None]:
    pattern, (loc, factor, order, x) = ctx.pattern, ctx.saved_tensors
    if torch.is_grad_enabled():  # the gradient is to be differentiated: write it in verbs that can be
        inverse = inverse_of(order)
        offset = reordered(x - loc, order)
        white_bar = algebra.matmul_t(pattern, factor, offset) * (2.0 * bar[..., None]).to(x.dtype)
        x_bar = reordered(algebra.matmul(pattern, factor, white_bar), inverse)
        factor_bar = algebra.outer(pattern, offset, white_bar, factor.shape[:-1])
        return None, -sum_to_shape(x_bar, loc), factor_bar, None, sum_to_shape(x_bar, x)
    needs_x = ctx.needs_input_grad[-1]
    key = key_of(pattern, "square_distance_vjp", loc)
    bars = torch.ops.sparseggm.square_distance_vjp(key, loc, factor, order, x, bar, needs_x)
    return None, bars[0], bars[1], None, bars[2] if needs_x else None


def _square_distance_vjp(
    key: str, loc: Tensor, factor: Tensor, order: Tensor | None, x: Tensor, bar: Tensor, needs_x: bool
) -> tuple[Tensor, Tensor, Tensor]:
    arrays = array(loc), array(factor), order, array(x), array(bar)
    loc_bar, factor_bar, x_bar = square_distances_vjp(pattern_of(key), *arrays, needs_x)
    return to_tensor(loc_bar, loc), to_tensor(factor_bar, factor), to_tensor(x_bar, x)


def square_distances_vjp(
    pattern: Pattern,
    loc: FloatArray,
    factor: FloatArray,
    order: Tensor | None,
    x: FloatArray,
    bar: FloatArray,
    needs_x: bool = True,
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """The cotangents of loc, factor and x, in float64 where they are sums; no entries in that of x unless needed."""
    take, back, twice = taker(order), taker(inverse_of(order)), 2.0 * bar[..., None]
    full = twice.shape[:-1]
    loc_bar, factor_bar = accumulator(loc, full), accumulator(factor, full)
    x_bar = accumulator(x if needs_x else x[..., :0], full)
    for block in blocks(full, pattern.n):
        own_loc, own, own_x = (aligned(part, block, twice.ndim) for part in (loc, factor, x))
        offset = take(own_x - own_loc)
        white_bar = linalg.matmul_t(pattern, own, offset)
        white_bar *= twice[block]
        own_bar = back(linalg.matmul(pattern, own, white_bar))
        aligned(factor_bar, block, twice.ndim)[...] += linalg.outer(pattern, offset, white_bar, own.shape[:-1])
        aligned(loc_bar, block, twice.ndim)[...] -= sum_in_float64(own_bar, own_loc.shape)
        if needs_x:
            aligned(x_bar, block, twice.ndim)[...] += sum_in_float64(own_bar, own_x.shape)
    return loc_bar, factor_bar, x_bar


register(
    "square_distance(str key, Tensor loc, Tensor factor, Tensor? order, Tensor x) -> Tensor",
    {"CPU": _square_distance},
    lambda key, loc, factor, order, x: loc.new_empty(batch_of(x, loc, factor), dtype=torch.float64),
    _square_distance_setup,
    _square_distance_rule,
)
register(
    "square_distance_vjp(str key, Tensor loc, Tensor factor, Tensor? order, Tensor x, Tensor bar, bool needs_x)"
    " -> (Tensor, Tensor, Tensor)",
    {"CPU": _square_distance_vjp},
    lambda key, loc, factor, order, x, bar, needs_x: (
        loc.new_empty(loc.shape),
        factor.new_empty(factor.shape),
        x.new_empty(x.shape if needs_x else (*x.shape[:-1], 0)),
    ),
    loops=True,
)


def _square_norm_setup(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _square_norm_rule(ctx: Any, bar: Tensor) -> tuple[Tensor]:
    (x,) = ctx.saved_tensors
    return ((2.0 * bar[..., None]).to(x.dtype) * x,)


register(
    "square_norm(Tensor x) -> Tensor",
    {"CPU": lambda x: torch.from_numpy(np.asarray(model.square_norm(array(x))))},
    lambda x: x.new_empty(x.shape[:-1], dtype=torch.float64),
    _square_norm_setup,
    _square_norm_rule,
)
