"""The output of a run: lines with goals, JSON, and the table of docs/benchmarks.md."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import sparseggm as sg
from benchmarks.contest import MANY, Ratio, Result, Setting
from benchmarks.timing import COPIED, copy, interleaved

PACKAGES = (
    "numpy",
    "scipy",
    "numba",
    "torch",
    "jax",
    "sparsax",
    "gabp-sparse-inv",
    "torchsparsegradutils",
)


def machine(setting: Setting) -> dict[str, Any]:
    """The machine, versions and setting on which the figures depend, without names of hosts or users."""
    threads = sg.get_num_threads()
    copies = {f"{count} thread{'s' if count > 1 else ''}": copy(count) for count in sorted({1, threads})}
    seconds = interleaved(copies, setting.rounds, setting.seconds)
    return {
        "architecture": platform.machine(),
        "cores": os.cpu_count(),
        "threads": {"sparseggm": threads, "torch": torch.get_num_threads()},
        "copy, bytes a second": {name: 2 * COPIED / of for name, of in seconds.items()},
        "python": platform.python_version(),
        "versions": {"sparseggm": sg.__version__, **{name: _version(name) for name in PACKAGES}},
        "setting": asdict(setting),
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"


def heading(about: dict[str, Any]) -> str:
    """One paragraph on the machine and the versions."""
    copies = ", ".join(f"{of / 1e9:.1f} GB/s with {name}" for name, of in about["copy, bytes a second"].items())
    versions = ", ".join(f"{name} {number}" for name, number in about["versions"].items())
    threads, setting = about["threads"], about["setting"]
    return (
        f"{about['architecture']}, {about['cores']} cores; sparseggm uses {threads['sparseggm']} threads, torch "
        f"{threads['torch']}; copying memory: {copies}. Python {about['python']}, {versions}. "
        f"Medians of {setting['rounds']} interleaved rounds"
        + (f"; sizes divided by {setting['scale']}." if setting["scale"] > 1 else ".")
    )


def lines(name: str, result: Result) -> list[str]:
    """A row as it is printed."""
    out = [f"{name}: {result.work}"]
    if len(result.ratios) <= MANY:  # more of them are only in the JSON
        out += [f"    {duration(seconds):>9}  {contestant}" for contestant, seconds in result.seconds.items()]
    out += [f"    {with_unit(ratio.value, ratio):>9}  {ratio.of}{verdict(ratio)}" for ratio in result.ratios]
    out += [f"    {'missing':>9}  {peer}: {install}" for peer, install in result.missing.items()]
    return out


def duration(seconds: float) -> str:
    """Three digits and a unit."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}" if seconds < 1000 * size else f"{seconds / size:.0f} {unit}"
    return f"{seconds / 1e-9:.0f} ns"


def number(value: float) -> str:
    """Three digits, without an exponent."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def with_unit(value: float, ratio: Ratio) -> str:
    """A value of this ratio, or its goal, with the unit."""
    return duration(value) if ratio.unit == "s" else f"{number(value)} {ratio.unit}".rstrip()


def verdict(ratio: Ratio) -> str:
    """The goal, and whether it was reached."""
    return "" if ratio.goal is None else f" (goal {goal_text(ratio)}: {'met' if ratio.met else 'NOT MET'})"


def goal_text(ratio: Ratio) -> str:
    """The goal with its sense; empty without one."""
    return "" if ratio.goal is None else f"{ratio.sense} {with_unit(ratio.goal, ratio)}"


def markdown(about: dict[str, Any], results: Mapping[str, Result]) -> str:
    """The table of docs/benchmarks.md: one line for each ratio; of rows with many ratios, only the telling ones."""
    table = ["| row | ours | ratio | of, or as fast as | goal | |", "|---|---|---|---|---|---|"]
    for name, result in results.items():
        ours = result.seconds.get("sparseggm")
        for index, ratio in enumerate(result.telling):
            cells = (
                f"`{name}`" if index == 0 else "",
                duration(ours) if ours and index == 0 else "",
                with_unit(ratio.value, ratio),
                ratio.of,
                goal_text(ratio),
                {None: "", True: "met", False: "**not met**"}[ratio.met],
            )
            table.append(f"| {' | '.join(cells)} |")
        table += [f"| | | missing | {peer}: `{install}` | | |" for peer, install in result.missing.items()]
    return "\n".join([heading(about), "", *table, ""])


def write_json(path: Path, about: dict[str, Any], results: Mapping[str, Result]) -> None:
    """Everything measured."""
    rows = {
        name: asdict(result) | {"ratios": [asdict(ratio) | {"met": ratio.met} for ratio in result.ratios]}
        for name, result in results.items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"machine": about, "rows": rows}, indent=1, ensure_ascii=False))
