"""Trained models as the figures need them, with the posteriors of the tracked image over training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from sparseggm.graph.plotting import Array
from sparseggm.graph.topology import Topology
from sparseggm.vae.config import PIXEL_GRAPHS, POSTERIORS, Config
from sparseggm.vae.errors import CheckpointError
from sparseggm.vae.evaluate import load_run
from sparseggm.vae.files import checkpoint
from sparseggm.vae.model import ImageModel


@dataclass(frozen=True)
class TrackedLayer:
    """The posterior of the tracked image over training in one layer: `loc` and `factor` as in `TrainedRun`."""

    name: str
    is_diagonal: bool
    topology: Topology
    drawn_on: Topology
    """With the same edges; it has a place in the plane for each node."""
    loc: Array
    factor: Array


@dataclass(frozen=True)
class TrainedRun:
    """A run as the figures need it.

    Args:
        loc, factor: of the tracked image, (epochs + 1, n) and (epochs + 1, nnz).
        elbo: of the training images, (epochs,) nats: means over the epoch, while the weights move.
    """

    directory: Path
    config: Config
    vae: ImageModel
    loc: Array
    factor: Array
    elbo: Array
    origin: dict[str, Any]
    told_apart: str = ""
    """A word more for the name, where that of another run is the same."""

    @property
    def layers(self) -> list[TrackedLayer]:
        """The stochastic layers, from the top."""
        layers, found, node, entry = self.config.latent_layers, [], 0, 0
        for number, (layer, topology) in enumerate(zip(layers, self.config.posterior_topologies, strict=True)):
            loc, factor = slice(node, node + layer.size), slice(entry, entry + topology.factor_pattern.nnz)
            node, entry = loc.stop, factor.stop
            name = self.name if len(layers) == 1 else f"z{len(layers) - number}: {layer.name.replace('-', ' ')}"
            tracked = self.loc[:, loc], self.factor[:, factor]
            found.append(TrackedLayer(name, layer.name == "diagonal", topology, layer.topology, *tracked))
        return found

    @property
    def name(self) -> str:
        """The name of the run in titles: of grey images that of the pixels' graph, else of the posterior's graphs."""
        graphs = " over ".join(layer.name for layer in self.config.latent_layers)
        words = [(f"{self.config.pixels} pixels" if self.config.is_grey else graphs).replace("-", " ")]
        if self.config.layers:
            words.append(f"{self.config.head} head")
        if self.config.is_grey:
            words += [
                word for word in (self.config.structure, self.config.decoder) if word not in ("per-image", "dense")
            ]
        if self.config.prior != "standard":
            words.append(f"prior {self.config.prior.replace('-', ' ')}")
        if self.config.natural_gradient:
            words.append("natural gradient")
        return ", ".join(words) + (f" ({self.told_apart})" if self.told_apart else "")


def load_runs(paths: Sequence[Path]) -> list[TrainedRun]:
    """One run of each recipe, whatever its seed and epochs, in the order of `POSTERIORS` and `PIXEL_GRAPHS`."""
    found: dict[str, TrainedRun] = {}
    for path in paths:
        directories = sorted(file.parent for file in path.rglob(checkpoint.CHECKPOINT))
        if not directories:
            raise CheckpointError(f"figures: needed a run with a {checkpoint.CHECKPOINT}, or a folder of them: {path}.")
        for directory in directories:
            config, vae, state = load_run(directory)
            loc, factor = state["tracked"]["loc"].numpy(), state["tracked"]["factor"].numpy()
            elbo = np.array([record["elbo"] for record in state["history"]])
            origin = {**state["identity"], "epochs_trained": state["epoch"], "trained_with": state["versions"]}
            recipe = repr(replace(config, seed=Config.seed, epochs=Config.epochs))
            found.setdefault(recipe, TrainedRun(directory, config, vae, loc, factor, elbo, origin))
    runs = sorted(found.values(), key=lambda run: _place(run.config))
    names = Counter(run.name for run in runs)
    runs = [run if names[run.name] == 1 else replace(run, told_apart=run.directory.name) for run in runs]
    if len({run.config.likelihood for run in runs}) > 1:
        raise CheckpointError("figures: needed runs of one likelihood, got several. Name the runs of one of them.")
    return runs


def _place(config: Config) -> tuple[str | int | float, ...]:
    """By which runs are sorted."""
    graphs = POSTERIORS.index(config.posterior), PIXEL_GRAPHS.index(config.pixels)
    return config.likelihood, config.layers, config.head, *graphs, config.edges, config.prior, config.structure
