"""What several of these tests stand on."""

from __future__ import annotations

import math

import pytest

from sparseggm import Pattern
from sparseggm.graph import fronts
from sparseggm.linalg import engines


@pytest.fixture
def fronts_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every pattern goes by dense fronts, whether they are faster or not."""
    monkeypatch.setattr(fronts, "LEAST_ENTRIES", 0)
    monkeypatch.setattr(fronts, "COLUMN_WORK", math.inf)
    monkeypatch.setattr(fronts, "MOST_SCRATCH", math.inf)
    monkeypatch.setattr(Pattern, "fronts", property(lambda pattern: fronts.fronts_of(*pattern.structure)))
    monkeypatch.setattr(engines, "LEAST_FRONTS", 0)
