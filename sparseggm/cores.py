"""How many cores this process may use: by affinity, the quota of its container, and OMP_NUM_THREADS."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path


def allowed_cores(membership: Path = Path("/proc/self/cgroup"), mount: Path = Path("/sys/fs/cgroup")) -> int:
    """Number of cores in the affinity, or in the tightest quota if that is less; part of a core counts as one.

    Args:
        membership: lines `hierarchy:controllers:/path` that name this process's control groups; v2 `0::/path`.
        mount: where the groups are seen. A container may not see the outer part of a path.
    """
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min([affinity, *_quotas(membership, mount)])))


def omp_num_threads() -> int:
    """OMP_NUM_THREADS, of a list the first (the outermost level); no limit where OpenMP would ignore the value."""
    first = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return (int(first) if first.isdecimal() else 0) or sys.maxsize


def _quotas(membership: Path, mount: Path) -> Iterator[float]:
    """CPU seconds a second that each control group of this process, and each group that contains it, may use."""
    for line in _text(membership).splitlines():
        _, controllers, path = line.split(":", 2)
        group = Path(path.lstrip("/"))
        for place in (group, *group.parents):
            if not controllers:  # cgroup v2
                yield from _quota(*_text(mount / place / "cpu.max").split())
            elif "cpu" in controllers.split(","):
                folder = mount / "cpu" / place
                yield from _quota(*(_text(folder / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period")))


def _quota(quota: str = "", period: str = "") -> Iterator[float]:
    """The quota in cores; nothing for a file that is absent, for "max" (v2) and for -1 (v1)."""
    if quota.isdecimal() and period.isdecimal():
        yield int(quota) / int(period)


def _text(path: Path) -> str:
    """The text of a file, empty if there is none."""
    try:
        return path.read_text()
    except OSError:
        return ""
