"""Gaussian graphical models of the pixels of images, without a network: fitted, evaluated on test images, saved.

A directory of results holds `pixels.npz`, which `sparseggm.load` reads, and `pixels.json`. Both are written before the
first sweep and after each, so that an interrupt loses at most a part of a sweep, and `resume` goes on from there. All
randomness derives from the seed and the number of the sweep.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sparseggm.errors import NotPositiveDefiniteError
from sparseggm.files import write_json
from sparseggm.gaussian.levels_fitting import dequantized, em_sweep, fit_density, start_of_levels
from sparseggm.gaussian.model import GaussianGraphicalModel
from sparseggm.gaussian.observed import GreyLevels, LogitNormal, bits_per_dimension
from sparseggm.gaussian.storage import load, save
from sparseggm.graph.topology import Topology
from sparseggm.vae.bounds import standard_error
from sparseggm.vae.checks import require_count, require_integer, require_one_of
from sparseggm.vae.config import GREY, LARGEST_SEED, LEAST_ALPHA, PIXEL_GRAPHS, SPLITS, pixel_topology
from sparseggm.vae.data import load_images
from sparseggm.vae.errors import CheckpointError, ConfigError, DataError, Interrupted
from sparseggm.vae.files import checkpoint
from sparseggm.vae.files.interrupt import StopRequest
from sparseggm.vae.files.lock import only_process
from sparseggm.vae.likelihoods import LEVELS
from sparseggm.vae.train import progress_bar

MODEL, RESULT = "pixels.npz", "pixels.json"
IMAGES_AT_ONCE = 500
SAMPLES_AT_ONCE = 8

# Purposes of generators, after the seed.
START, SWEEP, TEST = 0, 1, 2

FloatArray = npt.NDArray[np.float64]
Levels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class PixelFit:
    """A global Gaussian of the logits of grey images.

    Args:
        likelihood: levels (probabilities of the 256 grey levels) or logit-normal (a density of dequantised images).
        pixels: which pixels L couples one with: diagonal (none), extended-grid (its right and lower neighbour),
            stencil-3 or stencil-5 (the later half of a window of 3 × 3 or 5 × 5).
        split: 50k (the last sixth of the training images is left out) or 60k.
        seed: of dequantisation and samples; 0 … 2⁶⁴ − 1.
        alpha: dequantised images are squeezed into (alpha, 1 - alpha); with levels only at the start.
    """

    likelihood: str = "levels"
    pixels: str = "stencil-3"
    split: str = "60k"
    seed: int = 0
    alpha: float = 1e-6

    def __post_init__(self) -> None:
        for name, known in {"likelihood": GREY, "pixels": PIXEL_GRAPHS, "split": SPLITS}.items():
            require_one_of(name, getattr(self, name), known)
        require_integer("seed", self.seed, 0, LARGEST_SEED)
        least = LEAST_ALPHA["64-true"]
        if not (isinstance(self.alpha, float | int) and least <= self.alpha < 0.5):
            raise ConfigError(f"alpha must be at least {least:.1g} and below 0.5, got {self.alpha}.")
        if self.likelihood == "levels" and self.pixels == "diagonal" and self.alpha != PixelFit.alpha:
            raise ConfigError(f"alpha {self.alpha} needs likelihood logit-normal, or pixels that are coupled.")

    @property
    def topology(self) -> Topology:
        """Whose nodes are the pixels, row by row."""
        return pixel_topology(self.pixels)

    @property
    def needs_sweeps(self) -> bool:
        """Whether the start is not yet the maximum."""
        return self.likelihood == "levels" and self.pixels != "diagonal"

    def generator(self, *purpose: int) -> np.random.Generator:
        """A fresh generator for one purpose."""
        return np.random.default_rng([self.seed, *purpose])

    def start(self, images: Levels) -> GaussianGraphicalModel:
        """The Gaussian before the first sweep.

        Raises:
            DataError: too few images for so many joined pixels.
        """
        fit = start_of_levels if self.likelihood == "levels" else fit_density
        try:
            return fit(images, self.topology, self.alpha, self.generator(START))
        except NotPositiveDefiniteError as error:
            raise DataError(f"{len(images):,} training images are too few for {self.pixels}: {error}") from error

    def identity(self, data: str) -> dict[str, str | int | float]:
        """The facts on which the numbers depend; `data` names the images."""
        return {**asdict(self), "data": data, "factor_pattern": self.topology.factor_pattern.key}


def fit_pixels(
    fit: PixelFit,
    out: Path,
    sweeps: int = 15,
    samples: int = 8,
    data: Path | None = None,
    *,
    resume: bool = False,
) -> dict[str, Any]:
    """Fit, showing one line a sweep; evaluate on the test images; write `pixels.npz` and `pixels.json` into `out`.

    Args:
        fit: the model.
        out: directory of results.
        sweeps: of EM in all; without meaning for densities and on `Diagonal`, whose fit is found at once.
        samples: importance samples a test image; likewise.
        data: directory of the images; None: see `sparseggm.vae.data` for the places that are searched.
        resume: continue the fit in `out`, if there is one.
    Returns:
        The content of `pixels.json`.
    Raises:
        CheckpointError: `out` holds a fit already, or, with `resume`, another one or a damaged one.
        DataError: too few images for so many joined pixels.
        ConfigError: an option has a value that no fit could use.
        Interrupted: a signal came; the model of the last complete sweep is saved.
    """
    require_count("sweeps", sweeps)
    require_count("samples", samples)
    images = load_images(data, fit.split)
    train, test = images.train.numpy(), images.test.numpy()
    with only_process(out), StopRequest() as stop:
        begun = (out / RESULT).exists()
        if begun and not resume:
            raise CheckpointError(f"{out / RESULT}: there is a fit already. Add --resume, or choose another --out.")
        gaussian, content = _load(out, fit, images.name) if begun else (None, {})
        print(images.notice)
        print(f"{images.name}: {fit.likelihood}, {fit.topology}, seed {fit.seed}, into {out}", flush=True)
        if gaussian is None:
            gaussian, content = _started(fit, train, images.name)
            _save(out, gaussian, content)
        while fit.needs_sweeps and len(content["bounds"]) < sweeps:
            with progress_bar(f"sweep {len(content['bounds']) + 1}", len(train)) as bar:
                gaussian, content = _swept(fit, gaussian, content, train, _advance(bar.update, stop, out, content))
            _save(out, gaussian, content)
            print(_sweep_line(content, sweeps), flush=True)
        with progress_bar("evaluate", len(test)) as bar:
            bits = bits_of(fit, gaussian, test, samples, _advance(bar.update, stop, out, content))
        content |= {
            "bits_per_dimension": float(bits.mean()),
            "bits_per_dimension_standard_error": standard_error(bits),
            "images": len(test),
            "samples": samples if fit.needs_sweeps else None,
            "histogram_bits": histogram_bits(train, test) if fit.likelihood == "levels" else None,
        }
        print(describe(content), flush=True)  # before writing: a full disk then loses the files, not the result
        _save(out, gaussian, content)
    return content


def bits_of(
    fit: PixelFit,
    gaussian: GaussianGraphicalModel,
    images: Levels,
    samples: int,
    advance: Callable[[int], object] = lambda count: None,
) -> FloatArray:
    """Bits per dimension of each image, (N,): −log₂ of its probability, or of the density of one dequantisation of it.

    Args:
        fit: says which of the two.
        gaussian: the fitted one.
        images: (N, 784).
        samples: importance samples an image; a probability of coupled pixels is estimated, see `GreyLevels.log_prob`.
        advance: called with the number of images that were just finished.
    """
    bits = []
    for start in range(0, len(images), IMAGES_AT_ONCE):
        chunk = images[start : start + IMAGES_AT_ONCE]
        if fit.likelihood == "levels":
            counts = [min(SAMPLES_AT_ONCE, samples - first) for first in range(0, samples, SAMPLES_AT_ONCE)]
            counts = counts if fit.needs_sweeps else [1]  # else every sample is exact
            levels, rng = GreyLevels(gaussian), fit.generator(TEST, start)
            sums = [levels.log_prob(chunk, count, rng) + math.log(count) for count in counts]
            log_prob = np.logaddexp.reduce(sums) - math.log(sum(counts))
            bits.append(bits_per_dimension(log_prob, gaussian.n))
        else:
            x = dequantized(chunk, fit.alpha, fit.generator(TEST, start))
            bits.append(bits_per_dimension(LogitNormal(gaussian).log_prob(x), gaussian.n, alpha=fit.alpha))
        advance(len(chunk))
    return np.concatenate(bits)


def histogram_bits(train: Levels, test: Levels) -> float:
    """Bits per dimension of test images by a histogram of each pixel: independent pixels, each of any distribution.

    p_j(k) = (number of training images whose pixel j has level k + ½) / (N + ½ · 256)
    """
    bits = 0.0
    for known, new in zip(train.T, test.T, strict=True):
        counts = np.bincount(known, minlength=LEVELS) + 0.5
        bits -= float(np.log2(counts / counts.sum())[new].mean())
    return bits / len(train.T)


def describe(content: dict[str, Any]) -> str:
    """The line that shows the result of `fit_pixels`."""
    fit, samples = content["fit"], content["samples"]
    estimated = f", {samples} {'sample' if samples == 1 else 'samples'} an image" if samples else ""
    bits = content["histogram_bits"]
    histogram = f"; by a histogram of each pixel {bits:.4f}" if bits else ""
    return (
        f"{fit['data']}, {fit['likelihood']}, {fit['pixels']}: {content['bits_per_dimension']:.4f} ± "
        f"{content['bits_per_dimension_standard_error']:.4f} bits per dimension; {content['images']:,} test images"
        f"{estimated}{histogram}"
    )


def _started(fit: PixelFit, images: Levels, data: str) -> tuple[GaussianGraphicalModel, dict[str, Any]]:
    began, gaussian = time.perf_counter(), fit.start(images)
    return gaussian, {"fit": fit.identity(data), "bounds": [], "seconds": [round(time.perf_counter() - began, 3)]}


def _swept(
    fit: PixelFit,
    gaussian: GaussianGraphicalModel,
    content: dict[str, Any],
    images: Levels,
    advance: Callable[[int], object],
) -> tuple[GaussianGraphicalModel, dict[str, Any]]:
    began, bounds = time.perf_counter(), content["bounds"]
    gaussian, bound = em_sweep(gaussian, images, fit.generator(SWEEP, len(bounds)), advance=advance)
    return gaussian, {
        "fit": content["fit"],
        "bounds": [*bounds, float(bits_per_dimension(bound, gaussian.n))],
        "seconds": [*content["seconds"], round(time.perf_counter() - began, 3)],
    }


def _sweep_line(content: dict[str, Any], sweeps: int) -> str:
    number = f"{len(content['bounds']):>{len(str(sweeps))}}/{sweeps}"
    bound, seconds = content["bounds"][-1], content["seconds"][-1]
    return f"sweep {number}  bound before it {bound:.4f} bits per dimension  {seconds:6.2f} s"


def _advance(
    update: Callable[[int], object], stop: StopRequest, out: Path, content: dict[str, Any]
) -> Callable[[int], None]:
    """Move the progress bar, and stop where a signal asks for it."""

    def advance(count: int) -> None:
        update(count)
        if stop.signal is not None:
            done = len(content["bounds"])
            raise Interrupted(f"stopped after {done} sweeps, whose fit is in {out / MODEL}.", signal=stop.signal)

    return advance


def _save(out: Path, gaussian: GaussianGraphicalModel, content: dict[str, Any]) -> None:
    # A process that is killed between the two repeats the number of a sweep, and no more than that.
    save(out / MODEL, gaussian)
    write_json(out / RESULT, {**content, "unit": "bits per dimension", "versions": checkpoint.versions()})


def _load(out: Path, fit: PixelFit, data: str) -> tuple[GaussianGraphicalModel, dict[str, Any]]:
    path = out / RESULT
    with checkpoint.restoring(path):
        stored = json.loads(path.read_text())
        content = {"fit": dict(stored["fit"]), "bounds": list(stored["bounds"]), "seconds": list(stored["seconds"])}
        if len(content["seconds"]) != len(content["bounds"]) + 1:
            raise checkpoint.corrupt(path, f"{len(content['seconds'])} times of {len(content['bounds'])} sweeps")
        checkpoint.require_identity(path, dict(stored["fit"]), fit.identity(data))
    with checkpoint.restoring(out / MODEL):
        gaussian = load(out / MODEL)
    if gaussian.topology != fit.topology or gaussian.batch_shape:
        raise checkpoint.corrupt(out / MODEL, f"it holds {gaussian}")
    return gaussian, content
