"""Hypothesis profiles, and the ledger of the property tests at the end of a deep run.

`pytest` takes the profile `dev`: few examples, the same every time. For 100,000 random cases and more, and the table:
`pytest -m property --hypothesis-profile=deep`.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from tests import ledger

# Numba compiles inside the first example, so examples have no deadline.
_common = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large]}
settings.register_profile("dev", max_examples=25, derandomize=True, database=None, **_common)
settings.register_profile("deep", max_examples=4000, print_blob=True, **_common)
settings.load_profile("dev")

NEEDED = {
    "torch": [
        *("fields/test_constraints.py", "fields/test_laplace.py", "fields/test_observations.py"),
        *("fields/test_spatial.py", "fields/test_state_space.py", "linalg/test_cores.py", "linalg/test_singular.py"),
        *("positivity/test_gershgorin.py", "positivity/test_semidefinite.py", "positivity/test_spectral.py"),
        *("test_lists.py", "torch", "vae"),
    ],
    "pandas": ["gaussian/test_observations.py", "test_promotion.py"],
    "mpmath": ["kernels/test_normal.py"],
}
"""Tests of arrays beside tensors, or beside another package's numbers, which an installation of the core may lack."""
ABSENT = [package for package in NEEDED if find_spec(package) is None]
collect_ignore = [path for package in ABSENT for path in NEEDED[package]]


def pytest_report_header() -> list[str]:
    """What is not collected, and why."""
    return [f"without {package}, not collected: {', '.join(NEEDED[package])}" for package in ABSENT]


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "property: hypothesis tests whose tolerance is a theorem; they fill the ledger")


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A worker of pytest-xdist sends its ledger home."""
    if hasattr(session.config, "workeroutput"):
        rows = [(*key, entry.worst, entry.cases) for key, entry in ledger.LEDGER.items()]
        session.config.workeroutput["ledger"] = rows


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    for verb, family, dtype, worst, cases in getattr(node, "workeroutput", {}).get("ledger", []):
        ledger.LEDGER.add((verb, family, dtype), worst, cases)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if config.getoption("--hypothesis-profile", default=None) == "deep" and ledger.LEDGER:
        terminalreporter.section("error / bound")
        for line in ledger.table(ledger.LEDGER):
            terminalreporter.write_line(line)
