"""The figures of models of grey images: what a graph of the pixels adds to their means.

Samples, half images filled in, residuals, the learned factor as images, and the correlations of a pixel.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from sparseggm.graph.plotting import DIVERGING, SEQUENTIAL, Array, symmetric
from sparseggm.torch import GaussianGraphicalModel, GreyLevels
from sparseggm.vae.config import PIXELS, SIDE
from sparseggm.vae.evaluate import UPPER_HALF
from sparseggm.vae.likelihoods import LEVELS, LIMIT
from sparseggm.vae.model import ImageModel
from sparseggm.vae.plotting import image_of_tiles, new_figure, plot_tiles
from sparseggm.vae.randomness import generator
from sparseggm.vae.runs import TrainedRun

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SWEEPS = 30
WINDOW = 4


def pixel_figures(runs: Sequence[TrainedRun], images: Tensor) -> dict[str, Figure]:
    """All of them by name; `images` are grey test images (N, 784) uint8, the tracked one first."""
    pictures = {
        "pixel-samples": plot_pixel_samples(runs),
        "fillings": plot_fillings(runs, images[:6]),
        "residuals": plot_residuals(runs, images[:8]),
    }
    structured = [run for run in runs if run.config.pixels != "diagonal"]
    if structured:
        pictures["pixel-factor"] = plot_pixel_factor(structured, images[0])
        pictures["pixel-correlations"] = plot_pixel_correlations(structured, images[0])
    return pictures


def plot_pixel_samples(runs: Sequence[TrainedRun], columns: int = 8) -> Figure:
    """For the same latent variables: the decoder's mean image, and three samples of the pixels given them."""
    figure = new_figure(4.0 * len(runs), 2.3)
    axes = figure.subplots(1, len(runs), squeeze=False)[0]
    for place, run in zip(axes, runs, strict=True):
        source = generator(run.config.seed, "samples")
        noise = torch.randn(columns, run.config.latents, generator=source, device="cpu")
        rng = generator(run.config.seed, "pixels")
        with torch.inference_mode():
            decoded = run.vae.decoder(run.vae.latents(noise))
            rows = [run.vae.likelihood.intensities(decoded), *(sampled(decoded, rng) for _ in range(3))]
        plot_tiles(place, torch.cat(rows).numpy(), len(rows))
        place.set_title(run.name)
        place.set_yticks(30 * np.arange(4) + 15, ["mean", *3 * ["sample"]])
        place.tick_params(length=0)
    figure.suptitle("p(x | z): its mean, and three samples for the same z")
    return figure


def plot_fillings(runs: Sequence[TrainedRun], images: Tensor, count: int = 5) -> Figure:
    """Test images whose upper half is hidden, and plausible fillings by each model, by Gibbs' sampler."""
    figure = new_figure(1.9 + 3.1 * len(runs), 0.62 * len(images) + 0.7)
    axes = figure.subplots(1, 1 + len(runs), width_ratios=[1.0, *len(runs) * [count / 2]], squeeze=False)[0]
    seen = torch.where(UPPER_HALF, torch.tensor(0.25), images / (LEVELS - 1))
    plot_tiles(axes[0], torch.stack([images / (LEVELS - 1), seen], 1).flatten(0, 1).numpy(), len(images))
    axes[0].set_title("image, seen")
    for place, run in zip(axes[1:], runs, strict=True):
        rng = generator(run.config.seed, "fillings")
        filled = fillings(run.vae, images.repeat_interleave(count, 0), UPPER_HALF, rng, SWEEPS)
        plot_tiles(place, (filled / (LEVELS - 1)).numpy(), len(images))
        place.set_title(f"filled in: {run.name}")
    return figure


def fillings(vae: ImageModel, images: Tensor, hidden: Tensor, rng: torch.Generator, sweeps: int) -> Tensor:
    """Levels (N, 784) in which hidden pixels are sampled given the others, by Gibbs' sampler over z and pixels.

    A sweep samples z from q(z | x), the logits of the seen pixels within their levels given z, and those of the hidden
    pixels given these [Rezende, Mohamed & Wierstra 2014, appendix F]; approximate as q is.
    """
    x = torch.where(hidden, torch.randint(0, LEVELS, images.shape, generator=rng, device="cpu"), images.long())
    with torch.inference_mode():
        for _ in range(sweeps):
            observed = vae.likelihood.observe(x.to(torch.uint8), rng)
            noise = torch.randn(len(x), vae.latent_variables, generator=rng, device="cpu").to(vae.dtype)
            z, _ = vae.infer(observed).sample_and_log_ratios(noise)
            model = GreyLevels(vae.decoder(z), LEVELS, LIMIT, validate_args=False)
            logits, _ = model.sample_logits(x, generator=rng, missing=hidden)
            x = torch.where(hidden, model.levels_of(logits.double().sigmoid()), x)
    return x


def plot_residuals(runs: Sequence[TrainedRun], images: Tensor) -> Figure:
    """What the decoder's mean misses of test images, and what each model takes such a residual to look like."""
    figure = new_figure(4.2 * len(runs) + 0.6, 2.3)
    axes = figure.subplots(1, len(runs), squeeze=False)[0]
    for place, run in zip(axes, runs, strict=True):
        rng = generator(run.config.seed, "residuals")
        with torch.inference_mode():
            x = run.vae.likelihood.observe(images, rng)
            decoded = run.vae.decoder(run.vae.means(x))
            mean = run.vae.likelihood.intensities(decoded)
            truth = images / (LEVELS - 1)
            residuals = torch.cat([truth - mean, sampled(decoded, rng) - mean])
        height, width = 30, 30 * len(images)
        plot_tiles(place, torch.cat([truth, mean]).numpy(), 2)
        shown = place.imshow(
            image_of_tiles(residuals.numpy(), 2),
            cmap=DIVERGING,
            clim=(-1.0, 1.0),
            interpolation="nearest",
            extent=(-0.5, width - 0.5, 4 * height - 0.5, 2 * height - 0.5),
        )
        place.set(title=run.name, xlim=(-0.5, width - 0.5), ylim=(4 * height - 0.5, -0.5))
        place.set_yticks(height * np.arange(4) + 15, ["image", "mean", "residual", "a sampled one"])
        place.tick_params(length=0)
    figure.colorbar(shown, ax=axes, label="difference", shrink=0.9)
    figure.suptitle("Residuals at the posterior mean")
    return figure


def plot_pixel_factor(runs: Sequence[TrainedRun], image: Tensor) -> Figure:
    """The learned factor as images: σ_j = 1 / L_jj, and the weights β = −L_ij / L_jj of the right and lower pixel."""
    figure = new_figure(3.0 * len(runs) + 1.4, 7.6)
    axes = figure.subplots(3, len(runs), squeeze=False)
    maps = [factor_maps(decoded_at(run.vae, image)) for run in runs]
    limits = symmetric(*(weights for _, *both in maps for weights in both))
    for column, run in enumerate(runs):
        scales, right, below = maps[column]
        places = axes[:, column]
        shown = places[0].imshow(np.log10(scales), cmap=SEQUENTIAL, clim=_common_limits(maps), interpolation="nearest")
        for place, weights in zip(places[1:], (right, below), strict=True):
            coupled = place.imshow(weights, cmap=DIVERGING, clim=limits, interpolation="nearest")
        for place in places:
            place.set(xticks=[], yticks=[])
        places[0].set_title(run.name)
    for label, place in zip(("log₁₀ σ_j", "weight of the right pixel", "weight of the lower pixel"), axes, strict=True):
        place[0].set_ylabel(label)
    figure.colorbar(shown, ax=axes[0], shrink=0.8)
    figure.colorbar(coupled, ax=axes[1:], shrink=0.5)
    figure.suptitle("The learned factor at one test image")
    return figure


def plot_pixel_correlations(runs: Sequence[TrainedRun], image: Tensor) -> Figure:
    """The correlations of a bright pixel's logit with those around it, given z."""
    figure = new_figure(2.6 * len(runs) + 1.4, 3.1)
    axes = figure.subplots(1, len(runs), squeeze=False)[0]
    inner = image.reshape(SIDE, SIDE)[WINDOW:-WINDOW, WINDOW:-WINDOW]
    row, col = divmod(int(inner.flatten().argmax()), inner.shape[1])
    for place, run in zip(axes, runs, strict=True):
        window = correlations(decoded_at(run.vae, image), row + WINDOW, col + WINDOW)
        shown = place.imshow(window, cmap=DIVERGING, clim=(-1.0, 1.0), interpolation="nearest")
        place.set(xticks=[], yticks=[], title=run.name)
    figure.colorbar(shown, ax=axes, shrink=0.8)
    figure.suptitle(f"Correlations of pixel ({row + WINDOW}, {col + WINDOW}) given z")
    return figure


def sampled(decoded: GaussianGraphicalModel, rng: torch.Generator) -> Tensor:
    """A sample of the numbers in (0, 1), (..., 784)."""
    noise = torch.randn(decoded.loc.shape, generator=rng, device="cpu").to(decoded.loc)
    return (decoded.loc + decoded.colorize(noise)).sigmoid()


def decoded_at(vae: ImageModel, image: Tensor) -> GaussianGraphicalModel:
    """p(x | z), of batch shape (1,), at the posterior mean of an image (784,) uint8."""
    with torch.inference_mode():
        x = vae.likelihood.observe(image[None], generator(0, "decoded at"))
        decoded: GaussianGraphicalModel = vae.decoder(vae.means(x))
        return decoded


def factor_maps(g: GaussianGraphicalModel) -> tuple[Array, Array, Array]:
    """(28, 28) images of σ_j and of the weights of the right and the lower pixel, 0 where L has no entry."""
    pattern, factor = g.factor_pattern, g.factor[0].double().numpy()
    pivots = factor[pattern.diagonal]
    weights = {step: np.zeros(PIXELS) for step in (1, SIDE)}
    for step, of_step in weights.items():
        stored = np.flatnonzero(pattern.rows - pattern.cols == step)
        of_step[pattern.cols[stored]] = -factor[stored] / pivots[pattern.cols[stored]]
    return tuple(values.reshape(SIDE, SIDE) for values in (1.0 / pivots, *weights.values()))  # type: ignore[return-value]


def correlations(g: GaussianGraphicalModel, row: int, col: int) -> Array:
    """Of the logit at (row, col) with those of the window about it, (2 · WINDOW + 1) squared."""
    around = np.arange(-WINDOW, WINDOW + 1)
    nodes = ((row + around)[:, None] * SIDE + (col + around)[None]).ravel()
    pairs = np.stack([np.full(len(nodes), row * SIDE + col), nodes], axis=1)
    return g.correlation_on(pairs)[0].numpy().reshape(len(around), len(around))


def _common_limits(maps: Sequence[tuple[Array, Array, Array]]) -> tuple[float, float]:
    logs = [np.log10(scales) for scales, *_ in maps]
    return float(min(log.min() for log in logs)), float(max(log.max() for log in logs))
