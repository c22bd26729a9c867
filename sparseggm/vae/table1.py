"""The poster's Table 1: the same recipe, seeds and binarised test images for every posterior, shown beside the poster.

The models of a seed are trained in turns, an epoch each, so that their seconds an epoch can be compared even on a busy
machine. Differences to the first posterior are paired: over seeds where there are several, else over images.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sparseggm.files import write_atomically, write_json
from sparseggm.vae.config import Config, require_count
from sparseggm.vae.data import Images, load_images
from sparseggm.vae.errors import ConfigError
from sparseggm.vae.evaluate import evaluate, standard_error
from sparseggm.vae.files import checkpoint
from sparseggm.vae.files.interrupt import StopRequest
from sparseggm.vae.files.lock import only_process
from sparseggm.vae.train import Training, progress_bar, require_startable

# (log p(x), its lower bound): Table 1 of the poster, in nats an image.
POSTER = {"diagonal": (-89.2, -93.4), "chain": (-89.1, -93.4), "extended-grid": (-88.8, -93.0)}
# Enough for a first look. On the subset, which has fewer steps an epoch, many more would overfit.
DEFAULT_STEPS = 6_000
TABLE = "table1.json"

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Row:
    """One posterior: means over seeds, or over images where there is one seed, each with its standard error."""

    posterior: str
    log_p: tuple[float, float]
    elbo: tuple[float, float]
    log_p_gain: tuple[float, float]
    elbo_gain: tuple[float, float]
    seconds: float
    seconds_ratio: float


def table1(
    recipe: Config,
    out: Path,
    posteriors: tuple[str, ...] = tuple(POSTER),
    seeds: tuple[int, ...] = (0,),
    epochs: int | None = None,
    samples: int = 500,
    data: Path | None = None,
    *,
    resume: bool = False,
) -> list[Row]:
    """Train, evaluate, print, and write `table1.json` and `table1.md`.

    Args:
        recipe: everything but posterior, seed and epochs.
        out: each run goes to out/seed-S/POSTERIOR.
        posteriors: their names; the others are compared with the first.
        seeds: the seeds of the runs.
        epochs: of each run; None: about 6,000 steps.
        samples: importance samples an image.
        data: directory of the images; None: see `sparseggm.vae.data` for the places that are searched.
        resume: continue the runs that are in `out`.
    Raises:
        ConfigError, CheckpointError: some run of the table cannot start; then no run was started.
    """
    require_count("samples", samples)
    configs = _configs(recipe, posteriors, seeds, 1 if epochs is None else epochs)
    images = load_images(data, recipe.split)
    if epochs is None:
        configs = [replace(config, epochs=_default_epochs(config, images)) for config in configs]
    for config in configs:
        require_startable(config, images, run_directory(out, config), resume=_begun(out, config, resume))

    with ExitStack() as locks:
        for directory in (out, *(run_directory(out, config) for config in configs)):
            locks.enter_context(only_process(directory))
        print(images.notice)
        for seed in seeds:
            _train_in_turns([config for config in configs if config.seed == seed], images, out, data, resume)
        results = [evaluate(run_directory(out, config), samples, data=data) for config in configs]
        rows = rows_of(out, posteriors, seeds)
        content = {
            "data": images.name,
            "epochs": configs[0].epochs,
            "samples": samples,
            "seeds": list(seeds),
            "unit": "nats an image; seconds an epoch",
            "rows": [vars(row) for row in rows],
            "poster": POSTER,
            "runs": results,
            "versions": checkpoint.versions(),
        }
        table = markdown(rows, content)
        print(f"\n{table}", flush=True)  # before writing: a full disk then loses the files, not the result
        write_json(out / TABLE, content)
        write_atomically(out / "table1.md", lambda file: file.write(table.encode()))
        print(f"written to {out / TABLE} and {out / 'table1.md'}")
    return rows


def _configs(recipe: Config, posteriors: tuple[str, ...], seeds: tuple[int, ...], epochs: int) -> list[Config]:
    if len(set(posteriors)) != len(posteriors) or not posteriors or len(set(seeds)) != len(seeds) or not seeds:
        raise ConfigError(f"table1: posteriors and seeds must be given, each once; got {posteriors} and {seeds}.")
    return [replace(recipe, posterior=name, seed=seed, epochs=epochs) for seed in seeds for name in posteriors]


def _default_epochs(recipe: Config, images: Images) -> int:
    return max(1, round(DEFAULT_STEPS * recipe.batch / len(images.train)))


def _begun(out: Path, config: Config, resume: bool) -> bool:
    """Whether to continue this run; the runs of later seeds begin only after those of the first are trained."""
    return resume and (run_directory(out, config) / checkpoint.CHECKPOINT).exists()


def run_directory(out: Path, config: Config) -> Path:
    """The directory of one run of the table."""
    return out / f"seed-{config.seed}" / config.posterior


def rows_of(out: Path, posteriors: tuple[str, ...], seeds: tuple[int, ...]) -> list[Row]:
    """The rows, computed from the files of the runs."""
    values = {(name, bound): _units(out, name, seeds, bound) for name in posteriors for bound in ("log_p", "elbo")}
    seconds = {name: _median_seconds(out, name, seeds) for name in posteriors}
    base = posteriors[0]

    def estimate(of: FloatArray) -> tuple[float, float]:
        return float(of.mean()), standard_error(of)

    return [
        Row(
            posterior=name,
            log_p=estimate(values[name, "log_p"]),
            elbo=estimate(values[name, "elbo"]),
            log_p_gain=estimate(values[name, "log_p"] - values[base, "log_p"]),
            elbo_gain=estimate(values[name, "elbo"] - values[base, "elbo"]),
            seconds=seconds[name],
            seconds_ratio=seconds[name] / seconds[base],
        )
        for name in posteriors
    ]


def markdown(rows: list[Row], content: dict[str, Any]) -> str:
    """The table as text that is also Markdown."""
    seeds, base = content["seeds"], rows[0].posterior
    images = content["runs"][0]["images"]
    spread = f"{len(seeds)} seeds" if len(seeds) > 1 else f"{images:,} images (one seed: not the spread of training)"
    cells = [["model", "log p(x)", "poster", "ELBO", "poster", "Δ log p(x)", "Δ ELBO", "s/epoch", "ratio"]]
    for row in rows:
        poster = [f"{value:.1f}" for value in POSTER[row.posterior]] if row.posterior in POSTER else ["–", "–"]
        bounds = ["{:.2f} ± {:.2f}".format(*bound) for bound in (row.log_p, row.elbo)]
        gains = ["{:+.2f} ± {:.2f}".format(*gain) for gain in (row.log_p_gain, row.elbo_gain)]
        gains = gains if row.posterior != base else ["–", "–"]
        time = [f"{row.seconds:.2f}", f"{row.seconds_ratio:.2f}"]
        cells.append([row.posterior, bounds[0], poster[0], bounds[1], poster[1], *gains, *time])
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    padded = [[cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in cells]
    lines = [f"| {' | '.join(line)} |" for line in padded]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return (
        f"Table 1, nats an image: {content['data']}, {content['epochs']} epochs, seeds {' '.join(map(str, seeds))}, "
        f"{images:,} test images, {content['samples']} samples.\n\n"
        + "\n".join(lines)
        + f"\n\n± standard error over {spread}; Δ (paired) and ratio: to {base}.\n"
        "Seconds: the median epoch, models in turns.\n"
    )


def _train_in_turns(configs: list[Config], images: Images, out: Path, data: Path | None, resume: bool) -> None:
    runs = []
    for config in configs:
        begun = _begun(out, config, resume)
        runs.append(Training(config, images, run_directory(out, config), resume=begun, data=data))
    steps = sum(run.steps * config.epochs for run, config in zip(runs, configs, strict=True))
    done = sum(run.steps * run.epoch + run.step for run in runs)
    with StopRequest() as stop, progress_bar(f"seed {configs[0].seed}", steps, done) as bar:
        while not all(run.finished for run in runs):
            behind = min(run.epoch for run in runs)
            turn = [run for run in runs if run.epoch == behind]
            # Each model goes first in turn, because the first after a checkpoint's fsync finds colder caches.
            first = behind % len(turn)
            for run in turn[first:] + turn[:first]:
                record = run.train_epoch(stop, bar.update)
                bar.write(f"{run.config.posterior:<13}  {record.line(run.config.epochs)}")


def _units(out: Path, posterior: str, seeds: tuple[int, ...], bound: str) -> FloatArray:
    """One value for each seed, or, with a single seed, one for each image."""
    per_image = [np.load(out / f"seed-{seed}" / posterior / "evaluation.npz")[bound] for seed in seeds]
    return per_image[0] if len(seeds) == 1 else np.array([values.mean() for values in per_image])


def _median_seconds(out: Path, posterior: str, seeds: tuple[int, ...]) -> float:
    seconds: list[float] = []
    for seed in seeds:
        state = checkpoint.load(out / f"seed-{seed}" / posterior / checkpoint.CHECKPOINT)
        seconds += [record["seconds"] for record in state["history"]]
    return float(np.median(seconds))
