"""Models that differ in one word of their recipe, trained and evaluated alike, and the table of their differences.

The models of a seed are trained in turns, an epoch each, so that their seconds an epoch can be compared even on a busy
machine. Differences to the first model are paired: over seeds where there are several, else over images.
"""

from __future__ import annotations

import math
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import stdtrit

from sparseggm.files import write_atomically, write_json
from sparseggm.gaussian.observed import bits_per_dimension
from sparseggm.vae.bounds import standard_error
from sparseggm.vae.config import PIXELS, Config, require_count
from sparseggm.vae.data import Images, load_images
from sparseggm.vae.errors import ConfigError
from sparseggm.vae.evaluate import evaluate, require_hideable
from sparseggm.vae.files import checkpoint
from sparseggm.vae.files.interrupt import StopRequest
from sparseggm.vae.files.lock import only_process
from sparseggm.vae.train import Training, progress_bar, require_startable

CONFIDENCE = 0.95

FloatArray = npt.NDArray[np.float64]
Interval = tuple[float, float]
Reference = tuple[float, float]


@dataclass(frozen=True)
class Comparison:
    """Which models are compared, and how the result is called.

    Args:
        name: of the files written, and of the command.
        title: of the table.
        field: of the recipe in which the models differ, such as "posterior".
        published: (log p(x), its lower bound) of models by their word, nats an image, shown beside ours.
        steps: of a run by default: a first look. On the subset, with fewer steps an epoch, many more would overfit.
    """

    name: str
    title: str
    field: str
    published: dict[str, Reference]
    steps: int


@dataclass(frozen=True)
class Row:
    """One model. Bounds: mean and standard error; gains over the first model: mean and half a 95 % interval.

    Over seeds where there are several, else over images, by Student's t; for nats an image.
    """

    model: str
    log_p: Interval
    elbo: Interval
    log_p_gain: Interval
    elbo_gain: Interval
    log_p_hidden: Interval | None
    log_p_hidden_gain: Interval | None
    seconds: float
    seconds_ratio: float


def compare(
    comparison: Comparison,
    recipe: Config,
    out: Path,
    models: tuple[str, ...],
    seeds: tuple[int, ...] = (0,),
    epochs: int | None = None,
    samples: int = 500,
    data: Path | None = None,
    *,
    hide: str = "nothing",
    resume: bool = False,
) -> list[Row]:
    """Train, evaluate, print, and write the table as JSON and as Markdown.

    Args:
        comparison: what differs.
        recipe: everything but the field that differs, seed and epochs.
        out: each run goes to out/seed-S/MODEL.
        models: values of the field; the others are compared with the first.
        seeds: the seeds of the runs.
        epochs: of each run; None: as many as make `comparison.steps`.
        samples: importance samples an image.
        data: directory of the images; None: see `sparseggm.vae.data` for the places that are searched.
        hide: see `evaluate`.
        resume: continue the runs that are in `out`.
    Raises:
        ConfigError, CheckpointError: some run of the table cannot start; then no run was started.
    """
    require_count("samples", samples)
    require_hideable(hide, recipe)
    configs = _configs(comparison, recipe, models, seeds, 1 if epochs is None else epochs)
    images = load_images(data, recipe.split)
    if epochs is None:
        configs = [replace(config, epochs=_default_epochs(comparison, config, images)) for config in configs]
    runs = {config: out / f"seed-{config.seed}" / getattr(config, comparison.field) for config in configs}
    for config, run in runs.items():
        require_startable(config, images, run, resume=_begun(run, resume))

    with ExitStack() as locks:
        for directory in (out, *runs.values()):
            locks.enter_context(only_process(directory))
        print(images.notice)
        for seed in seeds:
            _train_in_turns({config: run for config, run in runs.items() if config.seed == seed}, images, data, resume)
        results = [evaluate(run, samples, data=data, hide=hide) for run in runs.values()]
        rows = rows_of(out, models, seeds, hidden=hide != "nothing")
        content = {
            "data": images.name,
            "epochs": configs[0].epochs,
            "samples": samples,
            "hidden": hide,
            "seeds": list(seeds),
            "unit": "nats an image; seconds an epoch",
            "rows": [vars(row) for row in rows],
            "published": comparison.published,
            "runs": results,
            "versions": checkpoint.versions(),
        }
        table = markdown(comparison, rows, content)
        print(f"\n{table}", flush=True)  # before writing: a full disk then loses the files, not the result
        files = out / f"{comparison.name}.json", out / f"{comparison.name}.md"
        write_json(files[0], content)
        write_atomically(files[1], lambda file: file.write(table.encode()))
        print(f"written to {files[0]} and {files[1]}")
    return rows


def _configs(
    comparison: Comparison, recipe: Config, models: tuple[str, ...], seeds: tuple[int, ...], epochs: int
) -> list[Config]:
    if len(set(models)) != len(models) or not models or len(set(seeds)) != len(seeds) or not seeds:
        raise ConfigError(f"{comparison.name}: models and seeds must be given, each once; got {models} and {seeds}.")
    return [
        replace(recipe, **{comparison.field: name}, seed=seed, epochs=epochs)  # type: ignore[arg-type]
        for seed in seeds
        for name in models
    ]


def _default_epochs(comparison: Comparison, recipe: Config, images: Images) -> int:
    return max(1, round(comparison.steps * recipe.batch / len(images.train)))


def _begun(run: Path, resume: bool) -> bool:
    """Whether to continue this run; the runs of later seeds begin only after those of the first are trained."""
    return resume and (run / checkpoint.CHECKPOINT).exists()


def rows_of(out: Path, models: tuple[str, ...], seeds: tuple[int, ...], hidden: bool = False) -> list[Row]:
    """The rows, computed from the files of the runs."""
    bounds = ("log_p", "elbo", "log_p_hidden") if hidden else ("log_p", "elbo")
    values = {(name, bound): _units(out, name, seeds, bound) for name in models for bound in bounds}
    seconds = {name: _median_seconds(out, name, seeds) for name in models}
    base = models[0]
    return [
        Row(
            model=name,
            log_p=_estimate(values[name, "log_p"]),
            elbo=_estimate(values[name, "elbo"]),
            log_p_gain=_interval(values[name, "log_p"] - values[base, "log_p"]),
            elbo_gain=_interval(values[name, "elbo"] - values[base, "elbo"]),
            log_p_hidden=_estimate(values[name, "log_p_hidden"]) if hidden else None,
            log_p_hidden_gain=(
                _interval(values[name, "log_p_hidden"] - values[base, "log_p_hidden"]) if hidden else None
            ),
            seconds=seconds[name],
            seconds_ratio=seconds[name] / seconds[base],
        )
        for name in models
    ]


def _estimate(of: FloatArray) -> Interval:
    return float(of.mean()), standard_error(of)


def _interval(of: FloatArray) -> Interval:
    """Mean, and half its 95 % interval; 0 for a single value, where it has no meaning."""
    quantile = float(stdtrit(len(of) - 1, (1.0 + CONFIDENCE) / 2.0)) if len(of) > 1 else 0.0
    return float(of.mean()), quantile * standard_error(of)


def markdown(comparison: Comparison, rows: list[Row], content: dict[str, Any]) -> str:
    """The table as text that is also Markdown."""
    seeds, base, images = content["seeds"], rows[0].model, content["runs"][0]["images"]
    spread = f"{len(seeds)} seeds" if len(seeds) > 1 else f"{images:,} images (one seed: not the spread of training)"
    columns = [_columns(row, row.model == base, comparison, "elbo_bits" in content["runs"][0]) for row in rows]
    cells = [list(columns[0]), *(list(column.values()) for column in columns)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    padded = [[cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in cells]
    lines = [f"| {' | '.join(line)} |" for line in padded]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return (
        f"{comparison.title}, nats an image: {content['data']}, {content['epochs']} epochs, "
        f"seeds {' '.join(map(str, seeds))}, {images:,} test images, {content['samples']} samples.\n\n"
        + "\n".join(lines)
        + f"\n\n± standard error over {spread}; Δ (paired, ± its 95 % interval) and ratio: to {base}.\n"
        "Seconds: the median epoch, models in turns.\n"
    )


def _columns(row: Row, is_base: bool, comparison: Comparison, in_bits: bool) -> dict[str, str]:
    """The cells of a row, by the heads of their columns."""
    cells = {"model": row.model}
    published = comparison.published.get(row.model, (math.nan, math.nan))
    for head, bound, other in zip(("log p(x)", "ELBO"), (row.log_p, row.elbo), published, strict=True):
        cells[head] = "{:.2f} ± {:.2f}".format(*bound)
        if in_bits:
            mean, error = bits_per_dimension(bound[0], PIXELS), bits_per_dimension(-bound[1], PIXELS)
            cells[f"{head}, bits per dimension"] = f"{mean:.4f} ± {error:.4f}"
        if comparison.published:
            cells[f"{head}, published"] = "–" if math.isnan(other) else f"{other:.1f}"
    gains = {"Δ log p(x)": row.log_p_gain, "Δ ELBO": row.elbo_gain}
    if row.log_p_hidden and row.log_p_hidden_gain:
        cells["log p(hidden half)"] = "{:.2f} ± {:.2f}".format(*row.log_p_hidden)
        gains["Δ log p(hidden half)"] = row.log_p_hidden_gain
    for head, gain in gains.items():
        cells[head] = "–" if is_base else "{:+.2f} ± {:.2f}".format(*gain)
    return cells | {"s/epoch": f"{row.seconds:.2f}", "ratio": f"{row.seconds_ratio:.2f}"}


def _train_in_turns(configs: dict[Config, Path], images: Images, data: Path | None, resume: bool) -> None:
    runs = [
        Training(config, images, directory, resume=_begun(directory, resume), data=data)
        for config, directory in configs.items()
    ]
    names = {run: run.out.name for run in runs}
    steps = sum(run.steps * run.config.epochs for run in runs)
    done = sum(run.steps * run.epoch + run.step for run in runs)
    with StopRequest() as stop, progress_bar(f"seed {runs[0].config.seed}", steps, done) as bar:
        while not all(run.finished for run in runs):
            behind = min(run.epoch for run in runs)
            turn = [run for run in runs if run.epoch == behind]
            # Each model goes first in turn, because the first after a checkpoint's fsync finds colder caches.
            first = behind % len(turn)
            for run in turn[first:] + turn[:first]:
                record = run.train_epoch(stop, bar.update)
                bar.write(f"{names[run]:<13}  {record.line(run.config)}")


def _units(out: Path, model: str, seeds: tuple[int, ...], bound: str) -> FloatArray:
    """One value for each seed, or, with a single seed, one for each image."""
    per_image = [np.load(out / f"seed-{seed}" / model / "evaluation.npz")[bound] for seed in seeds]
    return per_image[0] if len(seeds) == 1 else np.array([values.mean() for values in per_image])


def _median_seconds(out: Path, model: str, seeds: tuple[int, ...]) -> float:
    seconds: list[float] = []
    for seed in seeds:
        state = checkpoint.load(out / f"seed-{seed}" / model / checkpoint.CHECKPOINT)
        seconds += [record["seconds"] for record in state["history"]]
    return float(np.median(seconds))


TABLE1 = Comparison(
    name="table1",
    title="Table 1",
    field="posterior",
    published={"diagonal": (-89.2, -93.4), "chain": (-89.1, -93.4), "extended-grid": (-88.8, -93.0)},  # the poster's
    steps=6_000,
)
GREY_PIXELS = Comparison(name="pixels", title="Grey pixels", field="pixels", published={}, steps=2_400)
