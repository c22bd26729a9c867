"""Error of the stochastic traces and variances against the number of triangular solves, beside the exact values.

    python -m examples.trace_error --out docs/images        # two minutes; writes trace_error.png and trace_error.json

Grids whose precision is positive definite by Gershgorin's theorem: P_ij = −w_ij with w uniform in (½, 3/2), and
P_ii = slack + Σ_j w_ij. The smaller the slack, the longer the correlations, and the more of ‖Σ‖_F is in few
eigenvalues.
"""

from __future__ import annotations

import argparse
import json
import timeit
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

import sparseggm as sg
from sparseggm import linalg, stochastic
from sparseggm.stochastic import Estimate

SOLVES = (16, 32, 64, 128, 256)
DISTANCES = (1, 3, 4, 6, 8, 11)
"""Of the colourings that probing uses: as many colours as fit within the solves."""

STYLES = {  # the colours of Okabe and Ito
    "Hutchinson": ("#000000", "o"),
    "plain sampling": ("#CC79A7", "P"),
    "probing": ("#0072B2", "s"),
    "Hutch++": ("#E69F00", "^"),
    "XTrace": ("#D55E00", "D"),
    "Rao–Blackwell": ("#009E73", "v"),
}


@dataclass(frozen=True)
class Problem:
    """One grid with its factor and the exact variances."""

    topology: sg.Grid
    slack: float
    factor: Any
    variances: Any

    @property
    def pattern(self) -> sg.Pattern:
        return self.topology.factor_pattern


@dataclass(frozen=True)
class Point:
    """One method at one number of solves, over all repeats; both errors relative to the exact value."""

    side: int
    slack: float
    quantity: str
    method: str
    solves: int
    error: float
    """Root mean square over repeats of estimate − exact; of variances, over nodes too."""
    standard_error: float
    """Root mean square of the standard errors that the estimates reported."""


def trace_error(
    out: Path,
    sides: tuple[int, ...] = (64, 256),
    slacks: tuple[float, ...] = (1.0, 0.01),
    solves: tuple[int, ...] = SOLVES,
    repeats: tuple[int, ...] = (30, 5),
    seed: int = 0,
) -> None:
    """Measure everything, write `trace_error.png` and `trace_error.json` into `out`. Arguments as `measure`."""
    report = measure(sides, slacks, solves, repeats, seed)
    out.mkdir(parents=True, exist_ok=True)
    (out / "trace_error.json").write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    plot(report).savefig(out / "trace_error.png")


def measure(
    sides: tuple[int, ...],
    slacks: tuple[float, ...],
    solves: tuple[int, ...],
    repeats: tuple[int, ...],
    seed: int,
) -> dict[str, Any]:
    """The content of `trace_error.json`: versions, arguments, exact values, and a `Point` for each method and cost.

    Args:
        sides: of the square grids, a row of panels each; repeats: independent estimates at each point, by side.
        slacks: Gershgorin slacks, a column of panels each; a last column shows the variances at the first of them.
        solves: upper limits; each point stands at the number it really took.
    """
    rng = np.random.default_rng(seed)
    exact, points = [], []
    for side, times in zip(sides, repeats, strict=True):
        for slack in slacks:
            problem = make_problem(side, slack, rng)
            exact.append(exact_values(problem))
            for quantity in ("trace", "variances"):
                points += list(measured(problem, quantity, solves, times, rng))
    return {
        "versions": {"sparseggm": sg.__version__, "numpy": np.__version__, "matplotlib": matplotlib.__version__},
        "arguments": {"sides": sides, "slacks": slacks, "solves": solves, "repeats": repeats, "seed": seed},
        "exact": exact,
        "points": [asdict(point) for point in points],
    }


def make_problem(side: int, slack: float, rng: np.random.Generator) -> Problem:
    """A grid with random couplings and the same slack everywhere, and its exact variances."""
    topology = sg.Grid(side, side)
    couplings = -rng.uniform(0.5, 1.5, len(topology.edges))
    diagonal = slack + np.bincount(topology.edges.ravel(), np.repeat(-couplings, 2), topology.n)
    factor = linalg.cholesky(topology.precision_pattern, topology.pack((diagonal, couplings)))
    return Problem(topology, slack, factor, linalg.marginal_variances(topology.factor_pattern, factor))


def exact_values(problem: Problem) -> dict[str, float]:
    """The trace, the range of the variances, and what they cost: as many flops, and as much time, as so many solves."""
    pattern, variances = problem.pattern, problem.variances
    return {
        "side": problem.topology.shape[0],
        "slack": problem.slack,
        "trace": float(variances.sum()),
        "least_variance": float(variances.min()),
        "largest_variance": float(variances.max()),
        "flops_in_solves": 2 * pattern.column_pairs(pattern) / (2 * pattern.nnz - pattern.n),
        "time_in_solves": time_in_solves(problem),
    }


def time_in_solves(problem: Problem, probes: int = 256) -> float:
    """The time of the exact variances, in solves that are done side by side; on one thread, the least of twenty."""
    noise = np.random.default_rng(0).standard_normal((probes, problem.pattern.n))
    sg.set_num_threads(1)
    exact = timeit.repeat(lambda: linalg.marginal_variances(problem.pattern, problem.factor), number=1, repeat=20)
    solves = timeit.repeat(lambda: linalg.solve_t(problem.pattern, problem.factor, noise), number=1, repeat=20)
    sg.set_num_threads(None)
    return probes * min(exact) / min(solves)


# ---------------------------------------------------------------------- measuring

Estimator = Callable[[np.random.Generator], Estimate]


def measured(
    problem: Problem, quantity: str, solves: tuple[int, ...], repeats: int, rng: np.random.Generator
) -> Iterator[Point]:
    """A point for each method and number of solves."""
    exact = problem.variances.sum() if quantity == "trace" else problem.variances
    scale = np.sqrt(np.mean(np.square(exact)))
    estimators = trace_estimators if quantity == "trace" else variance_estimators
    for method, cost, estimate in estimators(problem, solves):
        squares = []
        for _ in range(repeats):
            value, standard_error = estimate(rng)
            squares.append((np.mean(np.square(value - exact)), np.mean(np.square(standard_error))))
        error, reported = (float(root) for root in np.sqrt(np.mean(squares, axis=0)) / scale)
        side = problem.topology.shape[0]
        yield Point(side, problem.slack, quantity, method, cost, error, reported)
        print(
            f"{side} × {side}, slack {problem.slack:g}, {quantity:<9} {method:<15}{cost:>4} solves: "
            f"relative error {error:.2e}, reported {reported:.2e}",
            flush=True,
        )


def colourings(problem: Problem, most: int) -> Iterator[tuple[Any, int]]:
    """(colours, their number) of the distances that need at most so many."""
    for distance in DISTANCES:
        colours = sg.distance_colouring(problem.topology.precision_pattern, distance)
        count = int(colours.max()) + 1
        if count <= most:
            yield colours, count


def trace_estimators(problem: Problem, solves: tuple[int, ...]) -> Iterator[tuple[str, int, Estimator]]:
    """(method, solves, estimator) of tr Σ."""
    matrix = problem.pattern, problem.factor
    for limit in solves:
        third, quarter = limit // 3, limit // 4
        yield "Hutchinson", limit, partial(stochastic.estimate_trace_by_hutchinson, *matrix, limit)
        yield "Hutch++", 4 * quarter, partial(stochastic.estimate_trace_by_hutchpp, *matrix, quarter, quarter)
        yield "XTrace", 3 * third, partial(stochastic.estimate_trace_by_xtrace, *matrix, third)
    for colours, count in colourings(problem, solves[-1] // 2):
        yield "probing", 2 * count, partial(stochastic.estimate_trace_by_probing, *matrix, colours, 2)


def variance_estimators(problem: Problem, solves: tuple[int, ...]) -> Iterator[tuple[str, int, Estimator]]:
    """(method, solves, estimator) of diag Σ; a product with L costs as much as a solve."""
    matrix = problem.pattern, problem.factor
    for limit in solves:
        half = limit // 2
        yield "plain sampling", limit, partial(plain_sampling, *matrix, limit)
        yield "Rao–Blackwell", 2 * half, partial(stochastic.estimate_variances_by_rao_blackwell, *matrix, half)
    for colours, count in colourings(problem, solves[-1] // 4):
        yield "probing", 4 * count, partial(stochastic.estimate_variances_by_probing, *matrix, colours, 2)


def plain_sampling(pattern: sg.Pattern, factor: Any, count: int, rng: np.random.Generator) -> Estimate:
    """diag Σ as the mean of z_i², for comparison; variance 2 Σ_ii² / count."""
    z = linalg.solve_t(pattern, factor, rng.standard_normal((count, pattern.n)))
    value = np.mean(np.square(z), axis=0)
    return Estimate(value, np.sqrt(2 / (count + 2)) * value)


# ---------------------------------------------------------------------- plotting


def plot(report: dict[str, Any]) -> Figure:
    """The figure, from what `trace_error` writes: a row of panels for each side, the traces and then the variances."""
    sides, slacks = report["arguments"]["sides"], report["arguments"]["slacks"]
    shape = len(sides), len(slacks) + 1
    figure = Figure(figsize=(3.3 * shape[1], 2.9 * shape[0] + 0.7), dpi=140, layout="constrained")
    panels = figure.subplots(*shape, sharex=True, sharey=True, squeeze=False)
    for row, side in enumerate(sides):
        for column, slack in enumerate([*slacks, slacks[0]]):
            exact = next(exact for exact in report["exact"] if (exact["side"], exact["slack"]) == (side, slack))
            quantity = "trace" if column < len(slacks) else "variances"
            points = [point for point in report["points"] if (point["side"], point["slack"]) == (side, slack)]
            plot_panel(panels[row, column], exact, [point for point in points if point["quantity"] == quantity])
            values = f"{exact['least_variance']:.2f} … {exact['largest_variance']:.2f}"
            title = f"tr Σ = {exact['trace']:.2f}" if quantity == "trace" else f"diag Σ = {values}"
            panels[row, column].set_title(f"{side} × {side}, slack {slack:g}: {title}", fontsize=10)
    for axes in panels[-1]:
        axes.set_xlabel("triangular solves")
    for axes in panels[:, 0]:
        axes.set_ylabel("relative error")
    panels[0, 0].set_xticks([4, 16, 64, 256], labels=["4", "16", "64", "256"])
    panels[0, 0].xaxis.set_minor_locator(NullLocator())
    entries: dict[str, Any] = {}
    for axes in panels.ravel():
        entries |= {label: handle for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    entries["standard error reported"] = Line2D([], [], color="#555555", linewidth=1.2)
    entries["exact value: the same time"] = Line2D([], [], color="#888888", linewidth=1.2, linestyle="dashed")
    figure.legend(list(entries.values()), list(entries), loc="outside lower center", ncols=4, frameon=False)
    return figure


def plot_panel(axes: Axes, exact: dict[str, float], points: list[dict[str, Any]]) -> None:
    """Measured errors as markers, reported standard errors as lines, and where the exact value costs no more."""
    for method, (colour, marker) in STYLES.items():
        own = sorted((point for point in points if point["method"] == method), key=lambda point: point["solves"])
        if own:
            solves = [point["solves"] for point in own]
            axes.plot(solves, [point["standard_error"] for point in own], color=colour, linewidth=1.2)
            style: dict[str, Any] = {"color": colour, "marker": marker, "markersize": 5, "linestyle": "none"}
            axes.plot(solves, [point["error"] for point in own], label=method, **style)
    axes.axvline(exact["time_in_solves"], color="#888888", linestyle="dashed", linewidth=1.2)
    axes.set(xscale="log", yscale="log")
    axes.grid(color="#DDDDDD", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/trace_error"))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    trace_error(options.out, seed=options.seed)
