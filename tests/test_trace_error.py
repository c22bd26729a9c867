"""The example, in a setting that runs in seconds: it writes what it says, and the same from the same seed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparseggm import gershgorin, linalg

pytest.importorskip("matplotlib", reason="matplotlib is optional")

from examples.trace_error import STYLES, make_problem, measure, trace_error

TINY = {"sides": (4, 5), "slacks": (1.0, 0.1), "solves": (12, 24), "repeats": (2, 3)}


def test_trace_error_writes_a_figure_and_its_numbers(tmp_path: Path) -> None:
    trace_error(tmp_path, **TINY, seed=3)
    assert (tmp_path / "trace_error.png").read_bytes().startswith(b"\x89PNG")
    report = json.loads((tmp_path / "trace_error.json").read_text(encoding="utf-8"))
    assert report["arguments"]["seed"] == 3
    assert set(report["versions"]) == {"sparseggm", "numpy", "matplotlib"}
    assert {point["method"] for point in report["points"]} == set(STYLES)
    assert {(exact["side"], exact["slack"]) for exact in report["exact"]} == {(4, 1.0), (4, 0.1), (5, 1.0), (5, 0.1)}


def test_trace_error_repeats_with_its_seed() -> None:
    first, same, other = (measure(**TINY, seed=seed)["points"] for seed in (0, 0, 1))
    assert first == same != other


def test_the_slack_is_that_of_gershgorin() -> None:
    problem = make_problem(4, 0.1, np.random.default_rng(0))
    precision = linalg.gram(problem.pattern, problem.factor)
    slack = gershgorin.slack(problem.pattern, precision)
    assert (abs(slack - 0.1) < 1e-12).all()  # rounding of entries below 10, some 20 of them


def test_the_example_of_the_page_runs_and_its_estimate_is_near_the_exact_trace() -> None:
    """Its seed is fixed; 5 standard errors."""
    page = (Path(__file__).parent.parent / "docs" / "stochastic.md").read_text(encoding="utf-8")
    names: dict[str, Any] = {}
    exec(compile(page.split("```python\n")[1].split("```")[0], "stochastic.md", "exec"), names)
    exact = linalg.trace_inverse(names["grid"].factor_pattern, names["factor"])
    assert abs(names["value"] - exact) <= 5 * names["standard_error"]
    assert names["colours"].max() + 1 == 19
