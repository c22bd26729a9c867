"""How many cores a process may use, on control groups that are written for the test; and who else is asked."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sparseggm import cores

ROOT = Path(__file__).resolve().parents[1]
MANY = 64

V1_AND_V2 = "9:name=systemd:/a\n3:cpuset:/\n1:cpuacct,cpu:/outer/inner\n0::/a/b\n"

GROUPS = {
    "no files": ("", {}, MANY),
    "v2, no limit": ("0::/", {"cpu.max": "max 100000\n"}, MANY),
    "v2 in a container": ("0::/", {"cpu.max": "200000 100000\n"}, 2),
    "v2, part of a core": ("0::/", {"cpu.max": "150000 100000\n"}, 2),
    "v2, less than one": ("0::/", {"cpu.max": "1000 100000\n"}, 1),
    "v2, more than there are": ("0::/", {"cpu.max": "9900000 100000\n"}, MANY),
    "v2, bound by the group outside": ("0::/a/b\n", {"a/b/cpu.max": "800000 100000", "a/cpu.max": "300000 100000"}, 3),
    "v2, the path is not seen inside": ("0::/docker/0a1b", {"cpu.max": "400000 100000"}, 4),
    "v2, not ours": ("0::/a", {"b/cpu.max": "100000 100000"}, MANY),
    "v2, cut short": ("0::/", {"cpu.max": ""}, MANY),
    "v1": (
        "4:memory:/\n1:cpu,cpuacct:/a",
        {"cpu/a/cpu.cfs_quota_us": "250000\n", "cpu/a/cpu.cfs_period_us": "50000\n"},
        5,
    ),
    "v1, no limit": ("1:cpu:/", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, MANY),
    "v1, no period": ("1:cpu:/", {"cpu/cpu.cfs_quota_us": "100000\n"}, MANY),
    "both": (
        V1_AND_V2,
        {"cpu/outer/cpu.cfs_quota_us": "700000", "cpu/outer/cpu.cfs_period_us": "100000", "a/cpu.max": "max 100000"},
        7,
    ),
}


@pytest.mark.parametrize("name", GROUPS)
def test_the_tightest_quota_bounds_the_affinity(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(MANY)), raising=False)
    membership, files, expected = GROUPS[name]
    (tmp_path / "cgroup").write_text(membership)
    for path, text in files.items():
        (tmp_path / "mount" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "mount" / path).write_text(text)
    assert cores.allowed_cores(tmp_path / "cgroup", tmp_path / "mount") == expected
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0}, raising=False)
    assert cores.allowed_cores(tmp_path / "cgroup", tmp_path / "mount") == 1


def test_this_machine_grants_some() -> None:
    assert 1 <= cores.allowed_cores() <= (os.cpu_count() or 1)


@pytest.mark.parametrize(
    ("value", "expected"),
    [(None, math.inf), ("3", 3), (" 2 ", 2), ("4,2", 4), ("0", math.inf), ("-1", math.inf), ("many", math.inf)],
)
def test_omp_num_threads_is_read_as_openmp_reads_it(value, expected, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if value is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", value)
    assert min(cores.omp_num_threads(), sys.maxsize) == min(expected, sys.maxsize)


ASKED = """
import ast, os, sys
from sparseggm import get_num_threads, set_num_threads
from sparseggm import cores
cores.allowed_cores = lambda: 8
for name, (environment, script, _) in ast.literal_eval(sys.argv[1]).items():
    if os.fork():
        os.wait()
        continue
    os.environ.update(environment)
    exec(script)
    print(name, get_num_threads(), sep=": ", flush=True)
    os._exit(0)
"""
"""A process that has loaded the package and asked nothing, and a fork of it for each case."""

PROCESSES = {
    "alone": ({}, "", "8"),
    "OMP_NUM_THREADS": ({"OMP_NUM_THREADS": "3"}, "", "3"),
    "more than the cores": ({"OMP_NUM_THREADS": "99"}, "", "8"),
    "what is given overrules": ({"OMP_NUM_THREADS": "3"}, "set_num_threads(12)", "12"),
    "until it is taken back": ({"OMP_NUM_THREADS": "3"}, "set_num_threads(12); set_num_threads(None)", "3"),
    "torch": ({"OMP_NUM_THREADS": "3"}, "import torch; torch.set_num_threads(5)", "5"),
    "torch reads OMP_NUM_THREADS": ({"OMP_NUM_THREADS": "2"}, "import torch", "2"),
    "torch has more than the cores": ({}, "import torch; torch.set_num_threads(12)", "8"),
    "torch is being imported": (
        {"OMP_NUM_THREADS": "3"},
        "import sys, types; sys.modules['torch'] = types.ModuleType('torch')",
        "3",
    ),
    "given, in a child": (
        {"OMP_NUM_THREADS": "3"},
        "import os; set_num_threads(12); child = os.fork(); child and (os.waitpid(child, 0), os._exit(0))",
        "3",
    ),
    "fewer are given, in a child": (
        {},
        "import os; set_num_threads(2); child = os.fork(); child and (os.waitpid(child, 0), os._exit(0))",
        "2",
    ),
}


@pytest.fixture(scope="module")
def answers() -> list[str]:
    inherited = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", ASKED, repr(PROCESSES)]
    done = subprocess.run(command, cwd=ROOT, env=inherited, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


@pytest.mark.parametrize("name", PROCESSES)
def test_a_call_uses_the_threads_that_its_process_is_allowed(name: str, answers: list[str]) -> None:
    assert [answer for answer in answers if answer.startswith(f"{name}:")] == [f"{name}: {PROCESSES[name][2]}"]
