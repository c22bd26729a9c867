"""Rows of an experiment's table, from the results of its runs, and the table as text.

Differences to the first model are paired: over seeds where there are several, else over images. Intervals are those of
Student's t at 95 %.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sparseggm.gaussian.observed import bits_per_dimension
from sparseggm.vae.bounds import interval, standard_error
from sparseggm.vae.config import PIXELS

BOUNDS = ("log_p", "elbo", "log_p_hidden")
LAYER = ("kl", "active_units", "correlation_rms")

FloatArray = npt.NDArray[np.float64]
Interval = tuple[float, float]
Result = dict[str, Any]


@dataclass(frozen=True)
class Row:
    """One model. Bounds: mean and standard error; gains over the first model: mean and half a 95 % interval.

    Over seeds where there are several, else over images; for nats an image. Gains are over the seeds of both models.
    """

    model: str
    seeds: tuple[int, ...]
    log_p: Interval
    elbo: Interval
    log_p_gain: Interval
    elbo_gain: Interval
    log_p_hidden: Interval | None
    log_p_hidden_gain: Interval | None
    seconds: float
    seconds_ratio: float


def rows_of(results: Sequence[Result], per_image: Mapping[str, Mapping[str, FloatArray]] | None = None) -> list[Row]:
    """The rows of models in the order in which they first appear.

    Args:
        results: of `evaluate`, each with the name of its `model` and the median of its `epoch_seconds`.
        per_image: by model and bound, the values of every image: of results that have one seed in common.
    """
    models = list(dict.fromkeys(result["model"] for result in results))
    runs = {m: {result["run"]["seed"]: result for result in results if result["model"] == m} for m in models}
    seconds = {model: float(np.median([run["epoch_seconds"] for run in runs[model].values()])) for model in models}
    base = models[0]
    rows = []
    for model in models:
        columns: dict[str, Interval | None] = {}
        for bound in BOUNDS:
            if bound not in next(iter(runs[model].values())):
                columns |= {bound: None, f"{bound}_gain": None}
                continue
            if per_image is None:
                own, other = ({seed: run[bound] for seed, run in runs[m].items()} for m in (model, base))
                paired = [own[seed] - other[seed] for seed in own if seed in other]
                values, differences = np.array(list(own.values())), np.array(paired)
            else:
                values, differences = per_image[model][bound], per_image[model][bound] - per_image[base][bound]
            columns |= {bound: _estimate(values), f"{bound}_gain": interval(differences)}
        ratio = seconds[model] / seconds[base]
        rows.append(
            Row(model, tuple(runs[model]), **columns, seconds=seconds[model], seconds_ratio=ratio)  # type: ignore[arg-type]
        )
    return rows


def _estimate(of: FloatArray) -> Interval:
    return float(of.mean()), standard_error(of)


def markdown(content: Result) -> str:
    """The table of an experiment's JSON as text that is also Markdown."""
    rows, first = [Row(**row) for row in content["rows"]], content["runs"][0]
    seeds, base, images = content["seeds"], rows[0].model, first["images"]
    spread = f"{len(seeds)} seeds" if len(seeds) > 1 else f"{images:,} images (one seed: not the spread of training)"
    columns = [_columns(row, row.model == base, content, "elbo_bits" in first) for row in rows]
    compared = "Δ (paired, ± its 95 % interval)"
    times = "not compared, as the runs are of different versions of packages"
    if has_one_version(content):
        compared += " and ratio"
        times = "models in turns" if content["jobs"] == 1 else f"{content['jobs']} runs at once"
    return (
        f"{content['title']}, nats an image: {content['data']}, {content['epochs']} epochs, "
        f"seeds {' '.join(map(str, seeds))}, {images:,} test images, {content['samples']} samples.\n\n"
        + aligned(columns)
        + f"\n\n± standard error over {spread}; {compared}: to {base}.\nSeconds: the median epoch, {times}.\n"
        + _of_layers(content)
    )


def has_one_version(content: Result) -> bool:
    """Whether all runs have the same versions of packages; else several commands made them, maybe on several machines.

    Then neither their seconds can be compared, nor is it known how many ran at once.
    """
    return len({tuple(sorted(run["versions"].items())) for run in content["runs"]}) == 1


def _of_layers(content: Result) -> str:
    """A table of the stochastic layers of each model, means over its seeds; nothing where all have one."""
    if not any("layers" in run for run in content["runs"]):
        return ""
    lines = []
    for model in dict.fromkeys(run["model"] for run in content["runs"]):
        runs = [run.get("layers", [run]) for run in content["runs"] if run["model"] == model]
        for number, of_seeds in enumerate(zip(*runs, strict=True)):
            means = {name: float(np.mean([layer[name] for layer in of_seeds])) for name in LAYER}
            lines.append(
                {
                    "model": model,
                    "layer": f"z{len(runs[0]) - number}",
                    "KL": f"{means['kl']:.2f}",
                    "active units": f"{means['active_units']:.1f} of {of_seeds[0]['units']}",
                    "correlations (rms)": f"{means['correlation_rms']:.3f}",
                }
            )
    note = "KL in nats an image; correlations of q on the edges, at the means of the layers above."
    return f"\n{note}\n\n{aligned(lines)}\n"


def aligned(rows: Sequence[Mapping[str, str]]) -> str:
    """A Markdown table of rows that have the same heads, its columns aligned."""
    cells = [list(rows[0]), *(list(row.values()) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    padded = [[cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in cells]
    lines = [f"| {' | '.join(line)} |" for line in padded]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def _columns(row: Row, is_base: bool, content: Result, in_bits: bool) -> dict[str, str]:
    """The cells of a row, by the heads of their columns."""
    cells = {"model": row.model}
    if len({len(each["seeds"]) for each in content["rows"]}) > 1:
        cells["seeds"] = str(len(row.seeds))
    published = content["published"].get(row.model, (math.nan, math.nan))
    for head, bound, other in zip(("log p(x)", "ELBO"), (row.log_p, row.elbo), published, strict=True):
        cells[head] = "{:.2f} ± {:.2f}".format(*bound)
        if in_bits:
            mean, error = bits_per_dimension(bound[0], PIXELS), bits_per_dimension(-bound[1], PIXELS)
            cells[f"{head}, bits per dimension"] = f"{mean:.4f} ± {error:.4f}"
        if content["published"]:
            cells[f"{head}, published"] = "–" if math.isnan(other) else f"{other:.1f}"
    gains = {"Δ log p(x)": row.log_p_gain, "Δ ELBO": row.elbo_gain}
    if row.log_p_hidden and row.log_p_hidden_gain:
        cells["log p(hidden half)"] = "{:.2f} ± {:.2f}".format(*row.log_p_hidden)
        gains["Δ log p(hidden half)"] = row.log_p_hidden_gain
    for head, gain in gains.items():
        cells[head] = "–" if is_base else "{:+.2f} ± {:.2f}".format(*gain)
    ratio = {"ratio": f"{row.seconds_ratio:.2f}"} if has_one_version(content) else {}
    return cells | {"s/epoch": f"{row.seconds:.2f}", **ratio}
