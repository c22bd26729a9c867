"""The ledger of the property tests: for each verb, topology and dtype the worst error / bound, and how many cases.

`check` is the assertion of every property test. Under the profile `deep` the run ends with the table.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from tests.numerics import Array

Key = tuple[str, str, str]


@dataclass
class Entry:
    """What is known of one verb on one topology in one dtype."""

    worst: float = 0.0
    cases: int = 0

    def add(self, worst: float, cases: int) -> None:
        self.worst = max(self.worst, worst)
        self.cases += cases


class Ledger(dict[Key, Entry]):
    """Entries by (verb, topology, dtype)."""

    def add(self, key: Key, worst: float, cases: int = 1) -> None:
        self.setdefault(key, Entry()).add(worst, cases)


LEDGER = Ledger()


def check(verb: str, family: str, dtype: Any, error: Array, bound: Array, ledger: Ledger = LEDGER) -> None:
    """Assert error ≤ bound entrywise, and record the worst ratio; NaN fails."""
    ratio = worst_ratio(np.asarray(error), np.asarray(bound))
    if np.size(error):
        ledger.add((verb, family, np.dtype(dtype).name), ratio)
    assert ratio <= 1, f"{verb} on {family}, {np.dtype(dtype).name}: error is {ratio:.3g} times its bound"


def worst_ratio(error: Array, bound: Array) -> float:
    """max error / bound, with 0 / 0 = 0; infinite where the error, or the bound, is NaN."""
    error, bound = np.broadcast_arrays(abs(error), bound)
    ratio = np.divide(error, bound, out=np.zeros(error.shape, bound.dtype), where=bound > 0)
    ratio = np.where((error > 0) & (bound == 0) | np.isnan(error) | ~(bound >= 0), np.inf, ratio)
    return float(ratio.max(initial=0))


def table(ledger: Ledger) -> list[str]:
    """Lines: a row for each verb and dtype, a column for each topology, and the total."""
    families = sorted({family for _, family, _ in ledger})
    width = max(map(len, families), default=0)
    lines = ["worst error / bound" + " " * 20 + "".join(f"{family:>{width + 2}}" for family in families) + "     cases"]
    for verb, dtype in sorted({(verb, dtype) for verb, _, dtype in ledger}):
        entries = [ledger.get((verb, family, dtype)) for family in families]
        cells = [f"{'–' if entry is None else format(entry.worst, '.2f'):>{width + 2}}" for entry in entries]
        cases = sum(entry.cases for entry in entries if entry)
        lines.append(f"{verb:<29} {dtype:<9}{''.join(cells)}{cases:>10}")
    worst = max((entry.worst for entry in ledger.values()), default=0.0)
    total = sum(entry.cases for entry in ledger.values())
    return [*lines, f"total: {total} cases, worst error / bound {worst:.3f}" + (" ≤ 1" if worst <= 1 else " > 1")]
