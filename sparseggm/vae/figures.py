"""The figures of trained runs; each PNG stands beside a JSON file that names the runs and data it was made from.

Figure 4 of the poster (factor of one tracked image over training), Figure 5 (its mean), the topologies, samples from
the prior, reconstructions, and diagnostics of the runs that were evaluated.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from sparseggm.files import write_atomically, write_json
from sparseggm.graph.plotting import DIVERGING, SEQUENTIAL, symmetric
from sparseggm.vae.data import Images, load_images
from sparseggm.vae.diagnostic_figure import evaluated, plot_diagnostics
from sparseggm.vae.errors import CheckpointError
from sparseggm.vae.files import checkpoint
from sparseggm.vae.files.lock import only_process
from sparseggm.vae.likelihoods import held_out
from sparseggm.vae.pixel_figures import pixel_figures
from sparseggm.vae.plotting import new_figure, plot_factor, plot_over_training, plot_tiles, stored_couplings
from sparseggm.vae.randomness import generator
from sparseggm.vae.runs import TrainedRun, load_runs

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def figures(runs: Sequence[Path], out: Path | None = None, data: Path | None = None) -> list[Path]:
    """Plot all figures.

    Args:
        runs: directories of runs, or directories that hold some; of several runs of one posterior the first is plotted.
        out: directory for the pictures; None: `figures` in the first directory.
        data: directory of MNIST; None: see `sparseggm.vae.data` for the places that are searched.
    Returns:
        The pictures written.
    Raises:
        CheckpointError: there is no run, or a run has other data than were found.
    """
    trained = load_runs(runs)
    images = load_images(data, trained[0].config.split)
    for run in trained:
        if run.origin["data"] != images.name:
            raise CheckpointError(f"figures: needed runs of {images.name}, as found, got one of {run.origin['data']}.")
    out = runs[0] / "figures" if out is None else out
    with only_process(out):
        pictures = _plot_all(trained, images)
        return [_write(out / f"{name}.png", picture, trained) for name, picture in pictures.items()]


def plot_factors(runs: list[TrainedRun]) -> Figure:
    """The poster's Figure 4: L of one image's posterior over training, and the last one on its graph."""
    figure = new_figure(3.6 * len(runs) + 0.8, 8.4)
    widths = [*(1.0 for _ in runs), 0.05]  # the last column is for colour bars
    axes = figure.subplots(3, len(runs) + 1, width_ratios=widths, height_ratios=(4, 5, 5))
    diagonals = [run.factor[:, run.config.topology.factor_positions[0]] for run in runs]
    edges = [run.factor[:, stored_couplings(run.config.topology)] for run in runs]
    lengths = (min(d.min() for d in diagonals), max(d.max() for d in diagonals))
    couplings = symmetric(*edges)
    for places, run, diagonal, edge in zip(axes.T, runs, diagonals, edges, strict=False):
        top, middle, bottom = places
        top.set_title(f"{run.name} ({edge.shape[1]} couplings)")
        shown = plot_over_training(top, diagonal, SEQUENTIAL, lengths)
        coupled = plot_over_training(middle, edge, DIVERGING, couplings)
        plot_factor(bottom, run.config.topology, run.factor[-1], lengths, couplings)
        bottom.set_title(f"after epoch {len(diagonal) - 1}", fontsize=10)
    axes[0, 0].set_ylabel("node j")
    axes[1, 0].set_ylabel("stored entry (i, j), by column")
    figure.colorbar(shown, cax=axes[0, -1], label="diagonal of L")
    figure.colorbar(coupled, cax=axes[1, -1], label="off-diagonal of L")
    axes[2, -1].set_visible(False)
    figure.suptitle(f"Cholesky factor of the posterior precision of test image {runs[0].config.tracked}")
    return figure


def plot_means(runs: list[TrainedRun]) -> Figure:
    """The poster's Figure 5: mean of one image's posterior over training."""
    figure = new_figure(3.0 * len(runs) + 0.8, 3.4)
    axes = figure.subplots(1, len(runs), squeeze=False, sharey=True)[0]
    limits = symmetric(*(run.loc for run in runs))
    for place, run in zip(axes, runs, strict=True):
        shown = plot_over_training(place, run.loc, DIVERGING, limits)
        place.set_title(run.name)
    axes[0].set_ylabel("latent variable")
    figure.colorbar(shown, ax=axes, label="posterior mean")
    figure.suptitle(f"Mean of the posterior of test image {runs[0].config.tracked}")
    return figure


def plot_topologies(runs: list[TrainedRun]) -> Figure:
    """Each posterior's graph and pattern."""
    figure = new_figure(3.0 * len(runs), 6.8)
    axes = figure.subplots(2, len(runs), squeeze=False)
    for column, run in enumerate(runs):
        topology = run.config.topology
        topology.plot(axes[0, column])
        axes[0, column].set_title(f"{run.name}\n{len(topology.edges)} edges", fontsize=11)
        topology.plot_pattern(axes[1, column])
        axes[1, column].set_title(f"{topology.factor_pattern.nnz} entries of L", fontsize=11)
    figure.suptitle("Graph of P, dashed where L stores nothing; pattern of L (blue; fill, orange) and P (grey)")
    return figure


def plot_samples(runs: list[TrainedRun], side: int = 8) -> Figure:
    """Decoder means at samples from the prior, made of the same noise for every model."""
    figure = new_figure(3.2 * len(runs), 3.9)
    axes = figure.subplots(1, len(runs), squeeze=False)[0]
    for place, run in zip(axes, runs, strict=True):
        rng = generator(run.config.seed, "samples")
        noise = torch.randn(side * side, run.config.latent, generator=rng, device="cpu")
        with torch.inference_mode():
            decoded = run.vae.decoder(run.vae.latents(noise))
            plot_tiles(place, run.vae.likelihood.intensities(decoded).numpy(), side)
        place.set_title(run.name)
    figure.suptitle("Decoder means at samples of the prior")
    return figure


def plot_reconstructions(runs: list[TrainedRun], images: Images, count: int = 12) -> Figure:
    """Test images, the tracked one first, and decoder means at their posterior means."""
    chosen = _tracked_first(runs, images)[:count]
    with torch.inference_mode():
        x = [held_out(run.vae.likelihood, images, "test")[chosen] for run in runs]
        rows = [runs[0].vae.likelihood.encoded(x[0])]
        for run, observed in zip(runs, x, strict=True):
            rows.append(run.vae.likelihood.intensities(run.vae.decoder(run.vae.posterior(observed).loc)))
    figure = new_figure(9.0, 0.66 * len(rows) + 0.4)
    axes = figure.subplots()
    plot_tiles(axes, torch.cat(rows).numpy(), len(rows))
    axes.set_yticks(30 * np.arange(len(rows)) + 15, ["test image", *(run.name for run in runs)])
    axes.tick_params(length=0)
    axes.set_title("Reconstructions at the posterior mean")
    return figure


def _tracked_first(runs: list[TrainedRun], images: Images) -> list[int]:
    """The indices of all test images."""
    tracked = runs[0].config.tracked
    return [tracked, *(index for index in range(len(images.test)) if index != tracked)]


def _plot_all(trained: list[TrainedRun], images: Images) -> dict[str, Figure]:
    structured = [run for run in trained if run.config.posterior != "diagonal"]
    pictures = {"topologies": plot_topologies(trained), "figure5": plot_means(trained)}
    if structured:
        pictures["figure4"] = plot_factors(structured)
    pictures["samples"] = plot_samples(trained)
    pictures["reconstructions"] = plot_reconstructions(trained, images)
    evaluations = [each for each in map(evaluated, trained) if each is not None]
    if evaluations:
        pictures["diagnostics"] = plot_diagnostics(evaluations)
    if trained[0].config.is_grey:
        pictures |= pixel_figures(trained, images.test[_tracked_first(trained, images)])
    return pictures


def _write(path: Path, picture: Figure, runs: list[TrainedRun]) -> Path:
    content = io.BytesIO()
    picture.savefig(content, format="png")
    write_atomically(path, lambda file: file.write(content.getvalue()))
    origin = {"picture": path.name, "runs": [run.origin for run in runs], "plotted_with": checkpoint.versions()}
    write_json(path.with_suffix(".json"), origin)
    return path
