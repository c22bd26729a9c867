"""The few array operations that differ between NumPy and torch, so that the backend-agnostic layer serves both.

A tensor can only exist once torch is imported, so its module is found among the loaded ones: nothing here
imports torch.
"""

from __future__ import annotations

import math
import sys
from typing import Any

import numpy as np
import scipy.sparse

from sparseggm.pattern import IntArray

Array = Any  # a NumPy array or a torch tensor


def namespace(array: Array) -> Any:
    """numpy or torch: the module of `abs`, `exp`, `tanh`, `where`."""
    return np if isinstance(array, np.ndarray) else sys.modules["torch"]


def mask(array: Array, condition: Any) -> Array:
    """A boolean NumPy array as a constant beside `array`."""
    return condition if isinstance(array, np.ndarray) else namespace(array).as_tensor(condition, device=array.device)


def segment_sum(terms: Array, segments: IntArray, count: int) -> Array:
    """(..., count): the sum of the terms (..., m) of each segment, `segments` (m,) naming theirs."""
    if isinstance(terms, np.ndarray):
        ones = np.ones(len(segments), terms.dtype)
        incidence = scipy.sparse.csc_array((ones, (segments, np.arange(len(segments)))), shape=(count, len(segments)))
        rows = terms.reshape(math.prod(terms.shape[:-1]), len(segments))
        return (incidence @ rows.T).T.reshape(*terms.shape[:-1], count)
    torch = namespace(terms)
    index = torch.as_tensor(segments, dtype=torch.int64, device=terms.device)
    return terms.new_zeros((*terms.shape[:-1], count)).index_add(-1, index, terms)


def scatter(parts: list[tuple[IntArray, Array]], size: int) -> Array:
    """(..., size): each part's values at its positions; the positions together are 0 … size − 1."""
    order = np.argsort(np.concatenate([positions for positions, _ in parts]))
    values = [array for _, array in parts]
    if isinstance(values[0], np.ndarray):
        return np.concatenate(values, axis=-1)[..., order]
    torch = namespace(values[0])
    return torch.cat(values, dim=-1).index_select(-1, torch.as_tensor(order, device=values[0].device))
