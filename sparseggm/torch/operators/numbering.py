"""Between the caller's numbering of nodes and an order of elimination (n,), None if the two agree."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from sparseggm.graph.pattern import FloatArray
from sparseggm.torch.operators.registration import array


def reordered(x: Tensor, order: Tensor | None) -> Tensor:
    """x[..., order]."""
    return x if order is None else x.index_select(-1, order)


def inverse_of(order: Tensor | None) -> Tensor | None:
    """The permutation back."""
    return (
        None
        if order is None
        else torch.empty_like(order).index_copy(0, order, torch.arange(len(order), device=order.device))
    )


def taker(order: Tensor | None) -> Callable[[FloatArray], FloatArray]:
    """x ↦ x[..., order] for arrays."""
    return (lambda x: x) if order is None else (lambda x: np.take(x, array(order), axis=-1))
