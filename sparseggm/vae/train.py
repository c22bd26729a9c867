"""The training loop, and the state from which a stopped run is resumed.

`Training.train_epoch` is the whole recipe, top to bottom. All randomness is a function of (seed, epoch, step), see
`randomness`, so the state is: weights, optimiser, place in the epoch, history.
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm  # type: ignore[import-untyped]

from sparseggm.errors import NonFiniteError, NonPositiveError
from sparseggm.files import write_atomically, write_json
from sparseggm.vae import processes
from sparseggm.vae.config import PIXELS, Config
from sparseggm.vae.data import Images, load_images
from sparseggm.vae.errors import CheckpointError, ConfigError, DivergedError, Interrupted
from sparseggm.vae.files import checkpoint
from sparseggm.vae.files.interrupt import StopRequest
from sparseggm.vae.files.lock import only_process
from sparseggm.vae.history import EpochRecord, write_history
from sparseggm.vae.ladder import averaged, model_of
from sparseggm.vae.latents import block_diagonal
from sparseggm.vae.likelihoods import held_out
from sparseggm.vae.model import DTYPES
from sparseggm.vae.randomness import generator

# Reading a loss costs microseconds, so losses are read once in so many steps, and before anything is saved.
STEPS_BETWEEN_CHECKS = 50
# Norm of the gradient for grey images, several times the usual one. Before the weights of neighbours have settled, a
# single image may have more to say than all others.
LARGEST_GRADIENT = 500.0


class Training:
    """A run in memory, and its directory.

    Args:
        config: the recipe.
        images: the data.
        out: directory of `checkpoint.pt`, `config.json`, `history.json`, `history.csv` and `tracked.npz`: loc by latent
            variable; factor with rows and cols in the order of elimination, whose k-th is the variable order[k]. Of
            several layers one after the other, from the top, as a block-diagonal factor.
        resume: continue from the checkpoint in `out` instead of starting. A finished run goes on if the recipe has
            more epochs; all else must be the same.
        data: directory that the user named, kept for the command that resumes the run.
    Raises:
        CheckpointError, ConfigError: see `require_startable`.
    """

    def __init__(
        self, config: Config, images: Images, out: Path, *, resume: bool = False, data: Path | None = None
    ) -> None:
        require_startable(config, images, out, resume=resume)
        self.config, self.out = config, out
        self.identity = config.identity(images.name)
        self.vae = model_of(config, images.mean_intensity).to(DTYPES[config.precision])
        self.model = processes.shared(self.vae)
        self.optimizer = torch.optim.Adam(self.vae.parameters(), config.learning_rate, fused=True)
        self.images = images.train
        self.tracked_image = held_out(self.vae.likelihood, images, "test")[config.tracked : config.tracked + 1]
        self.steps = math.ceil(len(images.train) / config.batch)

        self.epoch, self.step, self.seconds = 0, 0, 0.0  # the next step, and the time spent in its epoch so far
        self.sums = torch.zeros(self.steps, len(config.terms), device="cpu")  # of the terms of each batch
        self.recent: list[tuple[Tensor, ...]] = []  # terms of the last steps, not yet summed
        self.average = averaged(self.vae, config.averaging) if config.averaging else None
        self.history: list[EpochRecord] = []
        self.tracked: dict[str, list[Tensor]] = {"loc": [], "factor": []}
        if resume:
            self._restore(data)
        else:
            if processes.is_first():
                out.mkdir(parents=True, exist_ok=True)
                write_config(config, out, data)
            self._track()
            self.save()

    @property
    def checkpoint(self) -> Path:
        """The file that the state is saved to."""
        return self.out / checkpoint.CHECKPOINT

    @property
    def finished(self) -> bool:
        """Whether all epochs are done."""
        return self.epoch >= self.config.epochs

    def train_epoch(self, stop: StopRequest, advance: Callable[[], object] = lambda: None) -> EpochRecord:
        """Train to the end of the current epoch, and save.

        Args:
            stop: asked before every step.
            advance: called after every step.
        Raises:
            Interrupted: a signal came; the state is saved as it is, in the middle of the epoch.
            DivergedError: the loss is no longer finite; the checkpoint is still that of the epoch's start.
        """
        config, began = self.config, time.perf_counter() - self.seconds
        for group in self.optimizer.param_groups:
            group["lr"] = config.learning_rate_at(self.epoch)
        order = torch.randperm(len(self.images), generator=generator(config.seed, "order", self.epoch))

        while self.step < self.steps:
            if (signal := processes.any_signal(stop.signal)) is not None:
                self._interrupt(signal, time.perf_counter() - began)
            batch = self.images[order[self.step * config.batch : (self.step + 1) * config.batch]]
            rng = generator(config.seed, "step", self.epoch, self.step)
            samples = config.sample_shape_at(self.epoch)
            noise = torch.randn(*samples, len(batch), config.latents, generator=rng, device="cpu")
            x = self.vae.likelihood.observe(batch, rng)
            mine = processes.rows_of(len(batch))

            self.optimizer.zero_grad()
            try:
                kl_weight = config.kl_weight_at(self.epoch + self.step / self.steps)
                objective = config.objective_at(self.epoch)
                loss, terms = self.model(x[mine], noise[..., mine, :], rng, kl_weight, objective)
                # Gradients are means over the processes.
                (loss.mean() * (processes.count() * len(loss) / len(batch))).backward()
                if config.is_grey:
                    nn.utils.clip_grad_norm_(self.vae.parameters(), LARGEST_GRADIENT)
            except (NonFiniteError, NonPositiveError) as error:  # the Gaussian raises before the loss is read
                self._require_finite()  # blames the step before, if its gradient brought the NaN
                raise self._diverged(self.step, str(error)) from error
            self.optimizer.step()
            if self.average is not None:
                self.average.update_parameters(self.vae)

            self.recent.append(tuple(terms[name].detach() for name in config.terms))
            self.step += 1
            if self.step % STEPS_BETWEEN_CHECKS == 0:
                self._require_finite()
            advance()

        self._require_finite()
        record = self.close_epoch(time.perf_counter() - began)
        self.save()
        return record

    def save(self) -> None:
        """Write the checkpoint, and then the files made from it for other readers, each atomically."""
        if not processes.is_first():
            return
        tracked = {name: torch.stack(values) for name, values in self.tracked.items()}
        state = {
            "model": self.vae.state_dict(),
            "average": {} if self.average is None else self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "epoch": self.epoch,
            "step": self.step,
            "seconds": self.seconds,
            "sums": self.sums,
            "history": [asdict(record) for record in self.history],
            "tracked": tracked,
        }
        checkpoint.save(self.checkpoint, self.identity, state)
        self._write_views(tracked)

    def _write_views(self, tracked: dict[str, Tensor]) -> None:
        """Write the files that others read instead of the checkpoint."""
        write_history(self.out, self.identity, self.history)
        structure = block_diagonal(self.config.posterior_topologies)
        arrays: dict[str, Any] = {name: values.numpy() for name, values in tracked.items()} | structure
        write_atomically(self.out / "tracked.npz", lambda file: np.savez(file, **arrays))

    def close_epoch(self, seconds: float) -> EpochRecord:
        """Record an epoch that took so long, by the terms in `sums`, and the posterior of the tracked image."""
        means = dict(zip(self.config.terms, (self.sums.cpu().double().sum(0) / len(self.images)).tolist(), strict=True))
        elbo, of_layers = means["reconstruction"] - means["kl"], [name for name in means if name.startswith("kl_")]
        record = EpochRecord(
            epoch=self.epoch + 1,
            **{"elbo": elbo, "bound": elbo, **{name: means[name] for name in means if name not in of_layers}},
            kl_by_layer=[means[name] for name in of_layers],
            learning_rate=self.config.learning_rate_at(self.epoch),
            seconds=round(seconds, 4),
        )
        self._track()
        self.history.append(record)
        self.epoch, self.step, self.seconds = self.epoch + 1, 0, 0.0
        return record

    def _track(self) -> None:
        """Record the posterior of the tracked image."""
        try:
            with torch.no_grad():
                layers = self.vae.infer(self.tracked_image).gaussians
        except (NonFiniteError, NonPositiveError) as error:  # finite weights may still be too large
            raise self._diverged(self.step - 1, str(error)) from error
        self.tracked["loc"].append(torch.cat([q.loc[0] for q in layers]).float().cpu())
        self.tracked["factor"].append(torch.cat([q.factor[0] for q in layers]).float().cpu())

    def _require_finite(self) -> None:
        self._sum_recent()
        bad = (~torch.isfinite(self.sums[: self.step].sum(1))).nonzero()
        if len(bad):
            step = int(bad[0])
            terms = zip(self.config.terms, self.sums[step].tolist(), strict=True)
            raise self._diverged(step, ", ".join(f"{name} {value}" for name, value in terms))
        # The loss of a step belongs to the weights before the step, so the weights after it are tested too.
        if not all(bool(torch.isfinite(weights).all()) for weights in self.vae.parameters()):
            raise self._diverged(self.step - 1, "some weights are not finite")

    def _sum_recent(self) -> None:
        """Sum the terms of recent steps at once: after every step, caches would be cold, and cost a twentieth of it."""
        if self.recent:
            sums = [torch.stack([term.sum() for term in terms]) for terms in self.recent]
            self.sums[self.step - len(sums) : self.step] = processes.total(torch.stack(sums))
            self.recent.clear()

    def _diverged(self, step: int, what: str) -> DivergedError:
        return DivergedError(
            f"the loss stopped being finite at epoch {self.epoch + 1}, step {step + 1} of {self.steps} ({what}). "
            f"The last good checkpoint, {self.checkpoint}, is kept. Try a smaller --learning_rate, with another --out."
        )

    def _interrupt(self, signal: int, seconds: float) -> None:
        self._require_finite()
        self.seconds = seconds
        self.save()
        raise Interrupted(
            f"stopped at epoch {self.epoch + 1}, step {self.step} of {self.steps}, and saved {self.checkpoint}.",
            signal=signal,
        )

    def _restore(self, data: Path | None) -> None:
        path = self.checkpoint
        state = checkpoint.load(path)
        self.identity = checkpoint.continued(path, state, self.identity)
        with checkpoint.restoring(path):
            checkpoint.require_history(path, state, self.config)
            self.vae.load_state_dict(state["model"])
            if self.average is not None:
                self.average.load_state_dict(state["average"])
            self.optimizer.load_state_dict(state["optimizer"])
            for parameter, moments in self.optimizer.state.items():
                if moments["exp_avg"].shape != parameter.shape or moments["exp_avg_sq"].shape != parameter.shape:
                    raise checkpoint.corrupt(path, f"moments of {tuple(parameter.shape)} weights have another shape")
            self.epoch, self.step, self.seconds = state["epoch"], state["step"], state["seconds"]
            if state["sums"].shape != self.sums.shape or not 0 <= self.step < self.steps:
                raise checkpoint.corrupt(path, f"step {self.step}, sums of {len(state['sums'])}, of {self.steps} steps")
            self.sums.copy_(state["sums"])
            self.history = [EpochRecord.of(record) for record in state["history"]]
            self.tracked = {name: list(values) for name, values in state["tracked"].items()}
        if not processes.is_first():
            return
        if state["identity"] != self.identity:  # extended
            write_config(self.config, self.out, data)
        self._write_views(state["tracked"])  # a kill or a full disk may have left older ones behind


def write_config(config: Config, out: Path, data: Path | None) -> None:
    """Write the file that `sparseggm train --config` reads."""
    write_json(out / "config.json", asdict(config) | {"out": str(out), "data": str(data) if data else None})


def require_startable(config: Config, images: Images, out: Path, *, resume: bool) -> checkpoint.Identity:
    """Raise the errors that `Training` would raise, before anything is written; else the identity of the run.

    Raises:
        CheckpointError: `out` holds a run already, or, with `resume`, none that fits.
        ConfigError: no test image has the number `tracked`, the warm-up outlasts the run, or memory is too small.
    """
    if config.tracked >= len(images.test):
        raise ConfigError(f"tracked must be below {len(images.test):,}, the test images; got {config.tracked}.")
    for name in ("warm_up", "importance_epochs"):
        if getattr(config, name) > config.epochs:
            raise ConfigError(f"{name} must be within the epochs, {config.epochs}, got {getattr(config, name)}.")
    processes.require_enough(len(images.train), config.batch)
    _require_memory(config, min(config.batch, len(images.train)))
    path, identity = out / checkpoint.CHECKPOINT, config.identity(images.name)
    if resume:
        return checkpoint.continued(path, checkpoint.load(path), identity)
    if path.exists() and processes.is_first():
        raise CheckpointError(f"{path}: there is a run already. Add --resume, or choose another --out.")
    return identity


def _require_memory(config: Config, batch: int) -> None:
    """Refuse sizes that cannot fit into memory; the pattern of so many latents would not fit either."""
    if sys.platform == "win32":  # which does not tell its size of memory
        return
    # The least number of weights: encoder, decoder, and a head of two numbers, or of all couplings, for each latent.
    # Each has a gradient and two moments.
    encoder, hidden, latent = config.encoder_width, config.hidden, config.latents
    heads = sum(layer.size + _least_entries(layer.name, layer.size) for layer in config.latent_layers)
    prior = _least_entries(config.prior, config.latent_layers[0].size)
    weights = encoder * (PIXELS + encoder + heads) + hidden * (PIXELS + hidden + latent) + prior
    samples = config.importance_samples if config.has_importance_samples else 1
    needed = 4 * (4 * weights + 2 * samples * batch * PIXELS)  # logits, and their gradients
    present = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > present:
        raise ConfigError(
            f"latent {latent:,}, hidden {max(hidden, encoder):,} and {samples:,} samples of {batch:,} images need at "
            f"least {needed / 1e9:,.0f} GB; this machine has {present / 1e9:,.0f} GB."
        )


def _least_entries(graph: str, size: int) -> int:
    return size * (size + 1) // 2 if graph == "full" else size


def train(config: Config, out: Path, data: Path | None = None, *, resume: bool = False) -> list[EpochRecord]:
    """Train one model, showing one line an epoch.

    Args:
        config: the recipe.
        out: directory for results, see `Training`.
        data: directory of the images; None: see `sparseggm.vae.data` for the places that are searched.
        resume: continue the run in `out`.
    Returns:
        The history.
    """
    images = load_images(data, config.split)
    require_startable(config, images, out, resume=resume)
    say = print if processes.is_first() else _silent
    with only_process(out) if processes.is_first() else nullcontext(), StopRequest() as stop:
        say(images.notice)
        training = Training(config, images, out, resume=resume, data=data)
        say(f"{images.name}: {config.latents_in_words}, seed {config.seed}, into {out}")
        while not training.finished:
            name = f"epoch {training.epoch + 1}"
            with progress_bar(name, training.steps, training.step) as bar:
                record = training.train_epoch(stop, bar.update)
            say(record.line(config), flush=True)
    return training.history


def _silent(*text: object, flush: bool = False) -> None:
    """In the place of `print`."""


def progress_bar(name: str, steps: int, done: int = 0) -> tqdm:
    """A progress bar that vanishes when it is full, and is shown only on a terminal."""
    return tqdm(desc=name, total=steps, initial=done, unit="step", leave=False, disable=None)
