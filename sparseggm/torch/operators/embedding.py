"""Packed values moved between patterns: two linear operators, each the other's adjoint.

The autograd rules take diagonals and embed factors in their fill with these, so that no rule builds an index tensor.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparseggm.graph.pattern import Pattern
from sparseggm.torch.operators.registration import array, key_of, pattern_of, register


def restrict(pattern: Pattern, on: Pattern, values: Tensor) -> Tensor:
    """(..., nnz) on `pattern`, those of the values (..., nnz of `on`) that stand on it.

    Raises:
        PatternError: `on` lacks an entry of `pattern`.
    """
    key = key_of(pattern, "restrict", values)
    return torch.ops.sparseggm.restrict(key, key_of(on, "restrict"), values)  # type: ignore[no-any-return]


def extend(pattern: Pattern, on: Pattern, values: Tensor) -> Tensor:
    """(..., nnz of `on`): the values (..., nnz) on `pattern`, zero elsewhere. Raises as `restrict`."""
    key = key_of(pattern, "extend", values)
    return torch.ops.sparseggm.extend(key, key_of(on, "extend"), values)  # type: ignore[no-any-return]


def diagonal(pattern: Pattern, values: Tensor) -> Tensor:
    """(..., n) diagonal of packed values."""
    return restrict(pattern.diagonal_part(), pattern, values)


def on_diagonal(pattern: Pattern, entries: Tensor) -> Tensor:
    """(..., nnz): a diagonal matrix with these entries (..., n)."""
    return extend(pattern.diagonal_part(), pattern, entries)


def _run_restrict(key: str, on: str, values: Tensor) -> Tensor:
    return torch.from_numpy(np.take(array(values), pattern_of(key).positions_in(pattern_of(on)), axis=-1))


def _run_extend(key: str, on: str, values: Tensor) -> Tensor:
    pattern, wider = pattern_of(key), pattern_of(on)
    extended = np.zeros((*values.shape[:-1], wider.nnz), array(values).dtype)
    extended[..., pattern.positions_in(wider)] = array(values)
    return torch.from_numpy(extended)


def _setup(ctx: Any, inputs: tuple[str, str, Tensor], output: Tensor) -> None:
    ctx.patterns = tuple(map(pattern_of, inputs[:2]))


def _adjoint(operator: Callable[..., Tensor]) -> Callable[..., tuple[None, None, Tensor]]:
    return lambda ctx, bar: (None, None, operator(*ctx.patterns, bar))


register(
    "restrict(str key, str on, Tensor values) -> Tensor",
    {"CPU": _run_restrict},
    lambda key, on, values: values.new_empty((*values.shape[:-1], pattern_of(key).nnz)),
    _setup,
    _adjoint(extend),
)
register(
    "extend(str key, str on, Tensor values) -> Tensor",
    {"CPU": _run_extend},
    lambda key, on, values: values.new_empty((*values.shape[:-1], pattern_of(on).nnz)),
    _setup,
    _adjoint(restrict),
)
