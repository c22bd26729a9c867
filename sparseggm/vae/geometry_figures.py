"""Figures of the geometry of posteriors: how far one moves while it is trained, and what lies between two."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from sparseggm import geometry
from sparseggm.gaussian.model import GaussianGraphicalModel
from sparseggm.graph.plotting import Array
from sparseggm.vae.interpolation import LINES, Ends, samples_of
from sparseggm.vae.model import VAE
from sparseggm.vae.plotting import new_figure, plot_tiles
from sparseggm.vae.randomness import generator
from sparseggm.vae.runs import TrackedLayer, TrainedRun

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def fisher_steps(layer: TrackedLayer) -> Array:
    """√J between the posterior after each epoch and that after the next, (epochs,): bounds of Fisher–Rao distances."""
    loc, factor = layer.loc.astype(float), layer.factor.astype(float)
    before, after = (
        GaussianGraphicalModel(loc[part], factor=factor[part], topology=layer.topology)
        for part in (slice(None, -1), slice(1, None))
    )
    return np.asarray(np.sqrt(geometry.jeffreys(before, after)))


def plot_lengths(layers: list[TrackedLayer], tracked: str) -> Figure:
    """The poster's Figures 4 and 5 as two numbers an epoch: the way of one image's posterior, and its end to end."""
    figure = new_figure(8.4, 3.6)
    way, step = figure.subplots(1, 2)
    for layer in layers:
        steps = fisher_steps(layer)
        epochs = np.arange(len(steps) + 1)
        (line,) = way.plot(epochs, np.append(0.0, np.cumsum(steps)), label=layer.name)
        step.semilogy(epochs[1:], steps, color=line.get_color())
    way.set(xlabel="epoch", ylabel="Fisher length from the start")
    step.set(xlabel="epoch", ylabel="Fisher length of an epoch")
    way.legend(frameon=False, fontsize=9)
    figure.suptitle(f"How far the posterior of {tracked} moves while it is trained")
    return figure


def plot_between(run: TrainedRun, images: Tensor, pairs: int = 8, places: int = 9) -> Figure:
    """What the decoder makes of one sample of each Gaussian between the posteriors of two images, along all lines."""
    assert isinstance(run.vae, VAE)
    pairs = min(pairs, len(images) // 2)
    ends = Ends.of(run.vae, images[: 2 * pairs].reshape(2, pairs, -1))
    rng = generator(run.config.seed, "between")
    noise = torch.randn(pairs, run.config.latents, generator=rng, device="cpu").double().numpy()
    figure = new_figure(0.42 * places * len(LINES) + 0.4, 0.42 * pairs + 0.7)
    with torch.inference_mode():
        for axes, line in zip(figure.subplots(1, len(LINES)), LINES, strict=True):
            between = [samples_of(ends.at(line, t), noise, run.vae.dtype) for t in np.linspace(0.0, 1.0, places)]
            shown = run.vae.likelihood.intensities(run.vae.decoder(torch.stack(between, 1).flatten(0, 1)))
            plot_tiles(axes, shown.numpy(), pairs)
            axes.set_title("straight in (loc, L)" if line == "straight" else f"{line}-geodesic", fontsize=10)
    figure.suptitle(f"{run.name}: samples between the posteriors of two images, of the same noise", fontsize=11)
    return figure
