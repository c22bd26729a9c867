"""The figure of diagnostics: what the last `sparseggm evaluate` of each run says of its posteriors and weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sparseggm.graph.plotting import BLUE, GREY, ORANGE, Array
from sparseggm.vae.diagnostics import ACTIVE, largest_shape
from sparseggm.vae.evaluate import stored_evaluation
from sparseggm.vae.plotting import new_figure
from sparseggm.vae.runs import TrainedRun

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BINS = 40


@dataclass(frozen=True)
class Evaluated:
    """A run, and the files of its evaluation."""

    run: TrainedRun
    summary: dict[str, Any]
    arrays: dict[str, Array]


def evaluated(run: TrainedRun) -> Evaluated | None:
    """The evaluation of a run as it is now trained; None if there is none, or one of an earlier version.

    Raises:
        CheckpointError: its files are damaged, or not of one evaluation.
    """
    found = stored_evaluation(run.directory)
    if found is None:
        return None
    content, arrays = found
    if content.get("epochs_trained") != run.origin["epochs_trained"] or "active_units" not in content:
        return None
    return Evaluated(run, content, arrays)


def plot_diagnostics(evaluations: Sequence[Evaluated]) -> Figure:
    """A column for each run; from above: inference gap of images, their k̂, correlations of edges, activity of units.

    There is no row of k̂ where every run was evaluated with too few samples for it.
    """
    shapes = [each.arrays.get("pareto_k", np.empty(0)) for each in evaluations]
    count = 4 if any(map(len, shapes)) else 3
    figure = new_figure(3.6 * len(evaluations) + 0.6, 2.4 * count)
    rows = figure.subplots(count, len(evaluations), squeeze=False, sharey="row")
    gaps = [each.arrays["log_p"] - each.arrays["elbo"] for each in evaluations]
    for place, each, gap in zip(rows[0], evaluations, gaps, strict=True):
        _plot_histogram(place, gap, gaps, f"log p(x) − ELBO, nats: mean {gap.mean():.2f}")
        place.set_title(_title(each))
    rows[0][0].set_ylabel("images")
    if count == 4:
        rows[1][0].set_ylabel("images")
        for place, each, shape in zip(rows[1], evaluations, shapes, strict=True):
            samples = each.summary["samples"]
            _plot_histogram(place, shape, shapes, rf"$\hat{{k}}$ of {samples} importance weights")
            place.axvline(largest_shape(samples), color=ORANGE, linestyle="--")
    for place, each in zip(rows[-2], evaluations, strict=True):
        _plot_correlations(place, each.arrays["correlation"], each.arrays["correlation_deviation"])
    for place, each in zip(rows[-1], evaluations, strict=True):
        _plot_activity(place, each.arrays["variance_of_means"])
    rows[-2][0].set_ylabel("correlation, ± over images")
    rows[-1][0].set_ylabel("variance of E[z]")
    parts = " and ".join(sorted({each.summary["part"] for each in evaluations}))
    figure.suptitle(f"Posteriors of the {parts} images, and the weights of samples from them")
    return figure


def _title(each: Evaluated) -> str:
    steps = each.summary["refinement"]
    return f"{each.run.name}, refined by {steps['steps']} steps" if steps else each.run.name


def _plot_histogram(axes: Axes, values: Array, beside: Sequence[Array], label: str) -> None:
    """Bins are those of all runs; the last bin takes the largest thousandth."""
    everything = np.concatenate(beside)
    if everything.size:
        limits = float(everything.min()), float(np.quantile(everything, 0.999))
        axes.hist(np.minimum(values, limits[1]), BINS, range=limits, color=BLUE)
    axes.set_xlabel(label)


def _plot_correlations(axes: Axes, mean: Array, deviation: Array) -> None:
    axes.axhline(0.0, color=GREY, linewidth=0.8)
    axes.errorbar(
        np.arange(len(mean)), mean, deviation, fmt="o", color=BLUE, ecolor=GREY, markersize=3.5, elinewidth=1.4
    )
    _label_numbers(axes, f"edge, of {len(mean)}")
    if not len(mean):
        axes.set_xticks([])


def _plot_activity(axes: Axes, variance: Array) -> None:
    active = variance > ACTIVE
    units = np.arange(len(variance))
    axes.axhline(ACTIVE, color=ORANGE, linestyle="--")
    axes.semilogy(units[active], variance[active], "o", color=BLUE, markersize=4)
    axes.semilogy(units[~active], variance[~active], "o", color=GREY, markersize=4)
    _label_numbers(axes, f"latent variable: {active.sum()} of {len(variance)} active")


def _label_numbers(axes: Axes, label: str) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel(label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
