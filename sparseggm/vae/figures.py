"""The figures of trained runs; each PNG stands beside a JSON file that names the runs and data it was made from.

Figure 4 of the poster (factor of one tracked image over training), Figure 5 (its mean), their Fisher length, the
topologies, samples from the prior, reconstructions, what lies between two images, and diagnostics of the runs that were
evaluated.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING

import numpy as np
import torch

from sparseggm.files import write_atomically, write_json
from sparseggm.graph.plotting import DIVERGING, SEQUENTIAL, Limits, symmetric
from sparseggm.vae.data import Images, load_images
from sparseggm.vae.diagnostic_figure import evaluated, plot_diagnostics
from sparseggm.vae.errors import CheckpointError
from sparseggm.vae.files import checkpoint
from sparseggm.vae.files.lock import only_process
from sparseggm.vae.geometry_figures import plot_between, plot_lengths
from sparseggm.vae.likelihoods import held_out
from sparseggm.vae.model import VAE
from sparseggm.vae.pixel_figures import pixel_figures
from sparseggm.vae.plotting import new_figure, plot_over_training, plot_tiles, stored_couplings
from sparseggm.vae.randomness import generator
from sparseggm.vae.runs import TrackedLayer, TrainedRun, load_runs

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def figures(runs: Sequence[Path], out: Path | None = None, data: Path | None = None) -> list[Path]:
    """Plot all figures.

    Args:
        runs: directories of runs, or directories that hold some; of several runs of one posterior the first is plotted.
        out: directory for the pictures; None: `figures` in the first directory.
        data: directory of the images; None: see `sparseggm.vae.data` for the places that are searched.
    Returns:
        The pictures written.
    Raises:
        CheckpointError: there is no run, or a run has other data than were found.
    """
    trained = load_runs(runs)
    images = load_images(data, trained[0].config.split)
    for run in trained:
        if run.origin["data"] != images.name:
            raise CheckpointError(
                f"figures: needed runs of {images.name}, as found, got {run.directory} of {run.origin['data']}."
            )
    out = runs[0] / "figures" if out is None else out
    with only_process(out):
        pictures = _plot_all(trained, images)
        return [_write(out / f"{name}.png", picture, trained) for name, picture in pictures.items()]


def plot_factors(layers: list[TrackedLayer], tracked: str) -> Figure:
    """The poster's Figure 4: L of one image's posterior over training, and the last one on its graph."""
    figure = new_figure(3.6 * len(layers) + 0.8, 8.4)
    widths = [*(1.0 for _ in layers), 0.05]  # the last column is for colour bars
    axes = figure.subplots(3, len(layers) + 1, width_ratios=widths, height_ratios=(4, 5, 5))
    diagonals = [layer.factor[:, layer.topology.factor_positions[0]] for layer in layers]
    edges = [layer.factor[:, stored_couplings(layer.topology)] for layer in layers]
    lengths = (min(d.min() for d in diagonals), max(d.max() for d in diagonals))
    couplings = symmetric(*edges)
    for places, layer, diagonal, edge in zip(axes.T, layers, diagonals, edges, strict=False):
        top, middle, bottom = places
        top.set_title(f"{layer.name} ({edge.shape[1]} couplings)")
        shown = plot_over_training(top, diagonal, SEQUENTIAL, lengths)
        coupled = plot_over_training(middle, edge, DIVERGING, couplings)
        _plot_factor(bottom, layer, lengths, couplings)
        bottom.set_title(f"after epoch {len(diagonal) - 1}", fontsize=10)
    axes[0, 0].set_ylabel("node j")
    axes[1, 0].set_ylabel("stored entry (i, j), by column")
    figure.colorbar(shown, cax=axes[0, -1], label="diagonal of L")
    figure.colorbar(coupled, cax=axes[1, -1], label="off-diagonal of L")
    axes[2, -1].set_visible(False)
    figure.suptitle(f"Cholesky factor of the posterior precision of {tracked}")
    return figure


def _plot_factor(axes: Axes, layer: TrackedLayer, node_limits: Limits, edge_limits: Limits) -> None:
    """Plot the last L of a layer on the graph of P: its diagonal at the nodes, its couplings on the edges."""
    factor, (nodes, edges) = layer.factor[-1], layer.topology.factor_positions
    couplings = np.where(edges >= 0, factor[edges], np.nan)
    layer.drawn_on.plot(
        axes, node_values=factor[nodes], edge_values=couplings, node_limits=node_limits, edge_limits=edge_limits
    )


def plot_means(layers: list[TrackedLayer], tracked: str) -> Figure:
    """The poster's Figure 5: mean of one image's posterior over training."""
    figure = new_figure(3.0 * len(layers) + 0.8, 3.4)
    sizes = {layer.loc.shape[1] for layer in layers}
    axes = figure.subplots(1, len(layers), squeeze=False, sharey=len(sizes) == 1)[0]
    limits = symmetric(*(layer.loc for layer in layers))
    for place, layer in zip(axes, layers, strict=True):
        shown = plot_over_training(place, layer.loc, DIVERGING, limits)
        place.set_title(layer.name)
    axes[0].set_ylabel("latent variable")
    figure.colorbar(shown, ax=axes, label="posterior mean")
    figure.suptitle(f"Mean of the posterior of {tracked}")
    return figure


def plot_curves(runs: list[TrainedRun]) -> Figure:
    """ELBO of the training images over the epochs."""
    from matplotlib.ticker import MaxNLocator

    figure = new_figure(6.4, 4.0)
    axes = figure.subplots()
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    for run in runs:
        axes.plot(np.arange(1, len(run.elbo) + 1), run.elbo, label=run.name)
    # The first epochs are far below.
    axes.set_ylim(bottom=min((np.quantile(run.elbo, 0.1) for run in runs if len(run.elbo)), default=0.0))
    axes.set(xlabel="epoch", ylabel="ELBO of training images, nats")
    axes.legend(frameon=False, fontsize=9)
    return figure


def plot_topologies(layers: list[TrackedLayer]) -> Figure:
    """Each posterior's graph and pattern."""
    figure = new_figure(3.0 * len(layers), 6.8)
    axes = figure.subplots(2, len(layers), squeeze=False)
    for column, layer in enumerate(layers):
        topology = layer.topology
        topology.plot(axes[0, column])
        axes[0, column].set_title(f"{layer.name}\n{len(topology.edges)} edges", fontsize=11)
        topology.plot_pattern(axes[1, column])
        axes[1, column].set_title(f"{topology.factor_pattern.nnz} entries of L", fontsize=11)
    title = "Graph of P, dashed where L stores nothing; pattern of L (blue; fill, orange) and P (grey)"
    figure.suptitle(title, wrap=True)
    return figure


def plot_samples(runs: list[TrainedRun], side: int = 8) -> Figure:
    """Decoder means at samples from the prior, made of the same noise for every model."""
    figure = new_figure(3.2 * len(runs), 3.9)
    axes = figure.subplots(1, len(runs), squeeze=False)[0]
    for place, run in zip(axes, runs, strict=True):
        rng = generator(run.config.seed, "samples")
        noise = torch.randn(side * side, run.config.latents, generator=rng, device="cpu")
        with torch.inference_mode():
            decoded = run.vae.decoder(run.vae.latents(noise))
            plot_tiles(place, run.vae.likelihood.intensities(decoded).numpy(), side)
        place.set_title(run.name)
    figure.suptitle("Decoder means at samples of the prior")
    return figure


def plot_layers(runs: list[TrainedRun], count: int = 6) -> Figure:
    """Decoder means at samples of the prior, in which one layer varies along a row and all others are held.

    The noise of a layer varies, so that layers below follow those above.
    """
    figure = new_figure(sum(2.2 * len(run.config.latent_layers) for run in runs) + 0.4, 2.9)
    widths = [len(run.config.latent_layers) for run in runs]
    places = iter(figure.subplots(1, sum(widths), squeeze=False)[0])
    for run in runs:
        sizes = [layer.size for layer in run.config.latent_layers]
        rng = generator(run.config.seed, "samples by layer")
        held, drawn = (torch.randn(count, count, sum(sizes), generator=rng, device="cpu") for _ in range(2))
        for number, start in enumerate(np.cumsum([0, *sizes[:-1]])):
            noise = held[:, :1].repeat(1, count, 1)
            own = slice(int(start), int(start) + sizes[number])
            noise[..., own] = drawn[..., own]
            with torch.inference_mode():
                images = run.vae.likelihood.intensities(run.vae.decoder(run.vae.latents(noise)))
            place = next(places)
            plot_tiles(place, images.flatten(0, 1).numpy(), count)
            place.set_title(f"{fill(run.name, 24)}:\nz{len(sizes) - number} varies", fontsize=9)
    figure.suptitle("Decoder means at samples of the prior, row by row")
    return figure


def plot_reconstructions(runs: list[TrainedRun], images: Images, count: int = 12) -> Figure:
    """Test images, the tracked one first, and decoder means at their posterior means."""
    chosen = _tracked_first(runs, images)[:count]
    with torch.inference_mode():
        x = [held_out(run.vae.likelihood, images, "test")[chosen] for run in runs]
        rows = [runs[0].vae.likelihood.encoded(x[0])]
        for run, observed in zip(runs, x, strict=True):
            rows.append(run.vae.likelihood.intensities(run.vae.decoder(run.vae.means(observed))))
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


def _tracked_in_words(runs: list[TrainedRun]) -> str:
    """The image, or images, whose posteriors runs have recorded, for a title."""
    numbers = dict.fromkeys(str(run.config.tracked) for run in runs)
    return f"test image {', '.join(numbers)}" if len(numbers) == 1 else f"test images {', '.join(numbers)}"


def _plot_all(trained: list[TrainedRun], images: Images) -> dict[str, Figure]:
    layers, tracked = [layer for run in trained for layer in run.layers], _tracked_in_words(trained)
    structured = [layer for layer in layers if not layer.is_diagonal]
    pictures = {"topologies": plot_topologies(layers), "figure5": plot_means(layers, tracked)}
    if structured:
        pictures["figure4"] = plot_factors(structured, tracked)
    pictures["curves"] = plot_curves(trained)
    pictures["fisher-length"] = plot_lengths(layers, tracked)
    pictures["samples"] = plot_samples(trained)
    laddered = [run for run in trained if run.config.layers]
    if laddered:
        pictures["layers"] = plot_layers(laddered)
    binary = [run for run in trained if isinstance(run.vae, VAE) and not run.config.is_grey]
    if binary and len(images.test) > 1:
        pictures["between"] = plot_between(binary[-1], held_out(binary[-1].vae.likelihood, images, "test"))
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
