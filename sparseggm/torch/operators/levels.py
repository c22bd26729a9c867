"""Probabilities of levels by sequential truncated samples: see `linalg.levels`. Numbering: that of the pattern.

The kernel has the gradients of loc and L for a fifth more than the value, and would need all of it again in a backward
pass. So they are formed with the value where a gradient will be asked for, and the backward pass scales them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sparseggm.graph.pattern import Pattern
from sparseggm.linalg import levels as verbs
from sparseggm.torch.operators.registration import (
    Shape,
    array,
    batch_of,
    key_of,
    pattern_of,
    register,
)


def levels_log_prob(
    pattern: Pattern, loc: Tensor, factor: Tensor, levels: Tensor, edges: Tensor, uniform: Tensor
) -> Tensor:
    """Σ_j log D_j, float64, on the common batch axes: see `linalg.levels.levels_log_prob`.

    Differentiable once, with respect to loc and factor: the sample moves with them, its uniform numbers stay.
    """
    key = key_of(pattern, "levels_log_prob", loc, factor, levels, edges, uniform)
    return torch.ops.sparseggm.levels_log_prob(key, loc, factor, levels, edges, uniform)  # type: ignore[no-any-return]


def sample_in_levels(
    pattern: Pattern, loc: Tensor, factor: Tensor, levels: Tensor, edges: Tensor, uniform: Tensor
) -> tuple[Tensor, Tensor]:
    """z (..., n) in the intervals of the levels, and `levels_log_prob`; without gradients."""
    key = key_of(pattern, "sample_in_levels", loc, factor, levels, edges, uniform)
    return torch.ops.sparseggm.sample_in_levels(key, loc, factor, levels, edges, uniform)  # type: ignore[no-any-return]


def _batch(*tensors: Tensor) -> Shape:
    loc, factor, levels, _, uniform = tensors
    return batch_of(uniform, loc, factor, levels)


def _run(key: str, *tensors: Tensor) -> Tensor:
    return torch.from_numpy(verbs.levels_log_prob(pattern_of(key), *map(array, tensors)))


def _fake(key: str, *tensors: Tensor) -> Tensor:
    return tensors[0].new_empty(_batch(*tensors), dtype=torch.float64)


def _gradients_run(key: str, *tensors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    results = verbs.levels_log_prob_and_gradients(pattern_of(key), *map(array, tensors))
    log_prob, by_loc, by_factor = map(torch.from_numpy, results)
    return log_prob, by_loc, by_factor


def _gradients_fake(key: str, *tensors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    loc, batch, pattern = tensors[0], _batch(*tensors), pattern_of(key)
    return _fake(key, *tensors), loc.new_empty((*batch, pattern.n)), loc.new_empty((*batch, pattern.nnz))


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    *_, edges_need, uniform_needs = ctx.needs_input_grad
    if edges_need or uniform_needs:
        raise NotImplementedError(
            "levels_log_prob: is not differentiated with respect to edges and uniform, of which one asks for a "
            "gradient. Detach it."
        )
    ctx.set_materialize_grads(False)
    ctx.shapes = inputs[1].shape, inputs[2].shape
    ctx.save_for_backward(*output[1:])


def _rule(ctx: Any, bar: Tensor | None, *of_gradients: Tensor | None) -> tuple[Any, ...]:
    if any(each is not None for each in of_gradients):
        raise NotImplementedError(
            "levels_log_prob: can be differentiated once; a second derivative is not there. Use a first-order method, "
            "or the density of LogitNormal."
        )
    if bar is None:
        return (None,) * 6
    scaled = (_scaled(rows, bar, shape) for rows, shape in zip(ctx.saved_tensors, ctx.shapes, strict=True))
    return None, *scaled, None, None, None


def _scaled(rows: Tensor, bar: Tensor, shape: Shape) -> Tensor:
    """A cotangent from those of the rows, summed in float64 over the axes that broadcasting added."""
    terms = rows * bar.to(rows.dtype).unsqueeze(-1)
    if terms.shape == shape:
        return terms
    extra = terms.ndim - len(shape)
    stretched = (axis + extra for axis, size in enumerate(shape) if size == 1 and terms.shape[axis + extra] != 1)
    return terms.sum((*range(extra), *stretched), dtype=torch.float64).reshape(shape).to(rows.dtype)


def _sample_run(key: str, *tensors: Tensor) -> tuple[Tensor, Tensor]:
    z, log_prob = verbs.sample_in_levels(pattern_of(key), *map(array, tensors))
    return torch.from_numpy(z), torch.from_numpy(log_prob)


def _sample_fake(key: str, *tensors: Tensor) -> tuple[Tensor, Tensor]:
    log_prob = _fake(key, *tensors)
    return tensors[0].new_empty((*log_prob.shape, pattern_of(key).n)), log_prob


def _sample_rule(ctx: Any, *cotangents: Tensor) -> tuple[Any, ...]:
    raise NotImplementedError("sample_in_levels: has no gradient. Use levels_log_prob, or torch.no_grad().")


_ARGUMENTS = "str key, Tensor loc, Tensor factor, Tensor levels, Tensor edges, Tensor uniform"

register(
    f"levels_log_prob_and_gradients({_ARGUMENTS}) -> (Tensor, Tensor, Tensor)",
    {"CPU": _gradients_run},
    _gradients_fake,
    _setup,
    _rule,
)
register(
    f"levels_log_prob({_ARGUMENTS}) -> Tensor",
    {"CPU": _run},
    _fake,
    recorded=lambda *arguments: torch.ops.sparseggm.levels_log_prob_and_gradients(*arguments)[0],
)
register(
    f"sample_in_levels({_ARGUMENTS}) -> (Tensor, Tensor)",
    {"CPU": _sample_run},
    _sample_fake,
    lambda ctx, inputs, output: None,
    _sample_rule,
)
