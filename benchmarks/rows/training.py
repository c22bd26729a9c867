"""Epochs of variational autoencoders: structured posteriors against a diagonal, our loop against a bare one.

The images are noise, because no step's time depends on their values.
"""

from __future__ import annotations

import statistics
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from benchmarks.contest import Ratio, Result, Setting
from benchmarks.peers.bare_loop import PIXELS, BareLoop
from benchmarks.timing import Call, seconds_of
from sparseggm.vae import Config, Images, Training
from sparseggm.vae.files.interrupt import StopRequest


def _images(setting: Setting, count: int = 50_000) -> Images:
    train = torch.randint(0, 256, (setting.size(count, 128), PIXELS), dtype=torch.uint8)
    held_out = torch.zeros(1, PIXELS, dtype=torch.uint8)
    return Images("noise", "", train, held_out, held_out)


def epochs_in_turn(setting: Setting, models: dict[str, Config], others: dict[str, Call], images: Images) -> Result:
    """Median seconds an epoch, the contestants in turns; the first epoch of each warms up."""
    with tempfile.TemporaryDirectory() as directory, StopRequest() as stop:
        epochs = dict(others)
        for name, config in models.items():
            training = Training(replace(config, epochs=setting.rounds + 2), images, Path(directory) / name)
            epochs[name] = partial(training.train_epoch, stop)
        times: dict[str, list[float]] = {name: [] for name in epochs}
        for _ in range(setting.rounds + 1):
            for name, epoch in epochs.items():
                times[name].append(seconds_of(epoch))
    seconds = {name: statistics.median(of[1:]) for name, of in times.items()}
    sizes = {config.latents for config in models.values()}
    return Result(f"an epoch of {len(images.train):,} images, n = {max(sizes)}, batch 128", seconds)


def structure(setting: Setting) -> Result:
    """Epochs with graphs against those with a diagonal."""
    goals = {"chain": 1.05, "extended-grid": 1.05, "grid-dominant": 1.25, "grid-spectral": 1.6}
    models = {posterior: Config(posterior=posterior) for posterior in ("diagonal", *goals)}
    result = epochs_in_turn(setting, models, {}, _images(setting))
    for name, goal in goals.items():
        times = result.seconds[name] / result.seconds["diagonal"]
        result.ratios.append(Ratio(f"of the diagonal's time, {name}", times, goal, "≤"))
    return result


def loop(setting: Setting) -> Result:
    """Our loop, diagonal posterior, against a bare loop of the same network."""
    images = _images(setting)
    bare = BareLoop(images.train)
    result = epochs_in_turn(
        setting, {"diagonal": Config(posterior="diagonal")}, {"a bare PyTorch loop": bare.train_epoch}, images
    )
    times = result.seconds["diagonal"] / result.seconds["a bare PyTorch loop"]
    result.ratios.append(Ratio("of the time of a bare PyTorch loop", times, 1.03, "≤"))
    return result


def layers(setting: Setting) -> Result:
    """Two stochastic layers with graphs against two without, with each head that a factor-free graph can have."""
    structured, heads = "16:extended-grid 40:block-chain", ("free", "residual")
    models = {
        f"{graphs} {head}": Config(layers=graphs, head=head, hidden=300)
        for head in heads
        for graphs in ("16:diagonal 40:diagonal", structured)
    }
    result = epochs_in_turn(setting, models, {}, _images(setting))
    for head in heads:
        times = result.seconds[f"{structured} {head}"] / result.seconds[f"16:diagonal 40:diagonal {head}"]
        result.ratios.append(Ratio(f"of the diagonal's time, {head} posteriors, layers {structured}", times, 1.15, "≤"))
    return result


def pixels(likelihood: str, goal: float, setting: Setting) -> Result:
    """Grey pixels on an extended grid against independent ones; 100 steps."""
    models = {each: Config(posterior="diagonal", likelihood=likelihood, pixels=each) for each in PIXEL_GRAPHS}
    result = epochs_in_turn(setting, models, {}, _images(setting, 12_800))
    independent, structured = (result.seconds[each] for each in PIXEL_GRAPHS)
    result.ratios.append(Ratio("of the time with independent pixels", structured / independent, goal, "≤"))
    return result


PIXEL_GRAPHS = ("diagonal", "extended-grid")

ROWS = {
    "vae-epoch": structure,
    "training-loop": loop,
    "layers-epoch": layers,
    "pixels-density-epoch": partial(pixels, "logit-normal", 1.3),
    "pixels-levels-epoch": partial(pixels, "levels", 2.0),
}
