"""The picture of a run: each ratio with a goal, divided by the goal. Right of the line is better than the goal."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.contest import Ratio, Result
from benchmarks.report import goal_text, with_unit

MET, MISSED = "#0072b2", "#d55e00"  # distinct for the colour-blind


def label(name: str, ratio: Ratio) -> str:
    """The label of a bar."""
    return f"{name}: {ratio.of.removeprefix('as fast as ')}"


def plot(path: Path, results: Mapping[str, Result]) -> None:
    """Write the picture."""
    judged = [(name, ratio) for name, result in results.items() for ratio in result.telling if ratio.goal is not None]
    bars = [(label(name, ratio), ratio) for name, ratio in judged]
    figure = Figure(figsize=(10.0, 1.2 + 0.24 * max(len(bars), 1)), layout="constrained")
    FigureCanvasAgg(figure)
    ax = figure.subplots()
    places = range(len(bars))
    leads = [ratio.lead for _, ratio in bars]
    ax.barh(places, [value - 1.0 for value in leads], left=1.0, color=[MET if x >= 1 else MISSED for x in leads])
    for place, (_, ratio), value in zip(places, bars, leads, strict=True):
        text = f"{with_unit(ratio.value, ratio)} ({goal_text(ratio)})"
        ax.annotate(text, (max(value, 1.0), place), (4, 0), textcoords="offset points", va="center", fontsize=7)
    ax.axvline(1.0, color="black", linewidth=0.8)
    ax.set(xscale="log", xlabel="measured / goal (better →)", ylim=(len(bars) - 0.5, -0.5))
    ax.set_yticks(places, [text for text, _ in bars], fontsize=7)
    ax.margins(x=0.2)
    ax.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
