"""How much work a verb is, which `threads` weighs, and the arguments that the kernels of several verbs share."""

from __future__ import annotations

import numpy as np

from sparseggm.graph.pattern import Pattern
from sparseggm.kernels.sparse.inverse import Fill
from sparseggm.linalg import checks

ALL = checks.read_only_view(np.empty(0, np.int32))
"""For `inverse.sweep`: no choice among the entries of its result."""


def fill_structure(pattern: Pattern) -> Fill:
    """The wide pattern of `inverse.sweep`."""
    return Fill(pattern.indptr, pattern.rows, *pattern.row_structure)


def selected_inverse_work(pattern: Pattern, fill: Pattern) -> int:
    """2 Σ_j |S_j| |F_j|: multiply-adds of the selected inverse, the work that `threads` weighs."""
    return 2 * pattern.column_pairs(fill)


def factorisation_work(pattern: Pattern) -> int:
    """Σ_j |S_j|²: multiply-adds, twice over, of a factorisation or a Gram product."""
    return selected_inverse_work(pattern, pattern) // 2
