"""How much work a verb is, which `threads` weighs, and the arguments that the kernels of several verbs share."""

from __future__ import annotations

from typing import Any

import numpy as np

from sparseggm.graph.pattern import Pattern
from sparseggm.linalg import checks

ALL = checks.frozen(np.empty(0, np.int32))
"""For `inverse.derive`: no choice among the entries of its result."""


def wide(pattern: Pattern) -> tuple[Any, ...]:
    """The wide pattern of `inverse.derive`, by columns and by rows."""
    return pattern.indptr, pattern.rows, *pattern.row_structure


def column_pairs(pattern: Pattern, fill: Pattern) -> int:
    """2 Σ_j |S_j| |F_j|: multiply-adds of the selected inverse, the work that `threads` weighs."""
    return 2 * pattern.column_pairs(fill)


def squared_columns(pattern: Pattern) -> int:
    """Σ_j |S_j|²: multiply-adds, twice over, of a factorisation or a Gram product."""
    return column_pairs(pattern, pattern) // 2
