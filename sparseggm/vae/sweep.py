"""The runs of an experiment, trained and evaluated: in turns in this process, or several at once in processes.

A run that is trained, or evaluated as asked, is not trained or evaluated again. Processes are commands of `sparseggm`
with a session of their own: a signal comes to this one alone, which passes it on, once, so that each saves its run.
A process that outlived a killed sweep keeps the lock on its run; the next sweep waits for it, and tries a run again
that such a process took from it.
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from sparseggm.vae.config import Config
from sparseggm.vae.data import Images
from sparseggm.vae.errors import BusyError, CheckpointError, FailedRunError, Interrupted
from sparseggm.vae.evaluate import evaluate, stored_evaluation
from sparseggm.vae.files import checkpoint
from sparseggm.vae.files.interrupt import StopRequest
from sparseggm.vae.files.lock import only_process
from sparseggm.vae.train import Training, progress_bar, write_config
from sparseggm.vae.trees import chow_liu

SECONDS_BETWEEN_LOOKS = 0.5
LOG = "log.txt"
# Several commands in one process: importing torch takes longer than an epoch of a small model.
CHILD = """
import json, sys
from sparseggm.cli import main
sys.exit(next((status for command in json.loads(sys.argv[1]) if (status := main(command))), 0))
"""


@dataclass(frozen=True)
class Run:
    """One model of one seed.

    Args:
        model: its name in the experiment.
        config: its recipe.
        out: its folder.
        after: the run whose posteriors' Chow–Liu tree gives this one its edges; so it begins when that is trained.
    """

    model: str
    config: Config
    out: Path
    after: Run | None = None

    @property
    def name(self) -> str:
        """As lines for the user call it."""
        return f"seed {self.config.seed} {self.model}"

    def is_begun(self, resume: bool) -> bool:
        """Whether to continue it: runs begin one after the other, so that some may not be there yet."""
        return resume and (self.out / checkpoint.CHECKPOINT).exists()

    def resolved(self, data: Path | None, resume: bool) -> Run:
        """The run with its edges: those that it began with, though the other may have been trained for longer since."""
        if self.after is None:
            return self
        if self.is_begun(resume):
            edges = checkpoint.load(self.out / checkpoint.CHECKPOINT)["identity"].get("edges", "")
        else:
            edges = chow_liu(self.after.out, data)
        return replace(self, config=replace(self.config, edges=edges), after=None)

    def is_trained(self) -> bool:
        """Whether all its epochs are done."""
        path = self.out / checkpoint.CHECKPOINT
        if not path.exists():
            return False
        content = checkpoint.load(path)
        return bool(content["epoch"] >= self.config.epochs)


@dataclass(frozen=True)
class EvaluationOptions:
    """How runs are evaluated; see `evaluate`."""

    samples: int
    hide: str
    refine: int
    data: Path | None

    def result(self, run: Run) -> dict[str, Any] | None:
        """The result that lies in a run's folder, if it is whole, of its present weights, and as asked."""
        try:
            stored = stored_evaluation(run.out)
        except CheckpointError:  # so it is evaluated again, as that says
            return None
        if stored is None:
            return None
        result, _ = stored
        identity = checkpoint.load(run.out / checkpoint.CHECKPOINT)["identity"]
        found = tuple(result.get(name) for name in ("run", "part", "samples", "hidden", "epochs_trained"))
        steps = (result.get("refinement") or {}).get("steps", 0)
        asked = identity, "test", self.samples, self.hide, run.config.epochs
        return result if found == asked and steps == self.refine else None

    def required(self, run: Run) -> dict[str, Any]:
        """That result, of a run that this sweep has evaluated."""
        result = self.result(run)
        if result is None:
            raise CheckpointError(f"{run.out}: it was evaluated in another way meanwhile. Go on with --resume.")
        return result


def in_turns(runs: Sequence[Run], images: Images, options: EvaluationOptions, resume: bool) -> list[dict[str, Any]]:
    """Train the models of a seed in turns, an epoch each, then evaluate all; the results in the order of the runs."""

    def turn(run: Run) -> tuple[int, bool]:
        return run.config.seed, run.after is not None

    for _, of_seed in groupby(sorted(runs, key=turn), key=turn):
        left = [run.resolved(options.data, resume) for run in of_seed if not (resume and run.is_trained())]
        _train_in_turns(left, images, options, resume)
    for run in runs:
        if options.result(run) is None:
            evaluate(run.out, options.samples, data=options.data, hide=options.hide, refine=options.refine)
    return _results(runs, options)


def _train_in_turns(runs: Sequence[Run], images: Images, options: EvaluationOptions, resume: bool) -> None:
    trainings = {
        run: Training(run.config, images, run.out, resume=run.is_begun(resume), data=options.data) for run in runs
    }
    steps = sum(training.steps * training.config.epochs for training in trainings.values())
    done = sum(training.steps * training.epoch + training.step for training in trainings.values())
    with StopRequest() as stop, progress_bar("training", steps, done) as bar:
        while left := [run for run in runs if not trainings[run].finished]:
            behind = min(trainings[run].epoch for run in left)
            turn = [run for run in left if trainings[run].epoch == behind]
            # Each model goes first in turn, because the first after a checkpoint's fsync finds colder caches.
            first = behind % len(turn)
            for run in turn[first:] + turn[:first]:
                record = trainings[run].train_epoch(stop, bar.update)
                bar.write(f"{run.model:<13}  {record.line(run.config)}")


def in_processes(runs: Sequence[Run], options: EvaluationOptions, jobs: int, resume: bool) -> list[dict[str, Any]]:
    """Train and evaluate up to `jobs` runs at once, in the order of the runs; the results in that order too.

    Raises:
        FailedRunError: a run ended in an error; the others were asked to save and to stop.
        Interrupted: a signal came, and all were asked to save and to stop.
    """
    waiting = [run for run in runs if not (run.is_begun(resume) and run.is_trained() and options.result(run))]
    total, known = sum(run.config.epochs for run in runs), len(runs) - len(waiting)
    active: dict[Run, _Process] = {}
    with StopRequest() as stop, progress_bar("epochs", total, _epochs_done(runs)) as bar:
        try:
            while (waiting or active) and stop.signal is None:
                for run in list(waiting):
                    is_ready = run.after not in waiting and run.after not in active
                    if len(active) < jobs and is_ready and not _is_busy(run.out):
                        waiting.remove(run)
                        active[run] = _Process(run.resolved(options.data, resume), options, jobs, resume)
                for run in [run for run, process in active.items() if process.child.poll() is not None]:
                    process = active.pop(run)
                    if resume and process.was_overtaken():
                        waiting.insert(0, run)
                        continue
                    process.require_success()
                    known += 1
                    bar.write(_line(run, options, f"{known} of {len(runs)} runs"))
                bar.update(_epochs_done(runs) - bar.n)
                if active or waiting:
                    time.sleep(SECONDS_BETWEEN_LOOKS)
        finally:
            for process in active.values():
                process.terminate()
            for process in active.values():
                process.child.wait()
    if stop.signal is not None:
        raise Interrupted(f"stopped, and saved all: {known} of {len(runs)} runs are finished.", signal=stop.signal)
    return _results(runs, options)


class _Process:
    """A run that is trained and then evaluated by a process of its own, whose output goes to log.txt."""

    def __init__(self, run: Run, options: EvaluationOptions, jobs: int, resume: bool) -> None:
        self.run, self.was_begun = run, run.is_begun(resume)
        threads = max(1, len(os.sched_getaffinity(0)) // jobs) if hasattr(os, "sched_getaffinity") else 1
        with open(run.out / LOG, "ab") as log:
            self.child = subprocess.Popen(
                [sys.executable, "-c", CHILD, json.dumps(_commands(run, options, resume))],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={"OMP_NUM_THREADS": str(threads), **os.environ},
                start_new_session=True,
            )

    def was_overtaken(self) -> bool:
        """Whether it failed because a process of an earlier sweep, which had not yet taken the lock, was faster."""
        if self.child.returncode == 0:
            return False
        return _is_busy(self.run.out) or self.run.is_begun(resume=True) != self.was_begun

    def require_success(self) -> None:
        """Raise if it ended in an error."""
        if self.child.returncode != 0:
            path = self.run.out / LOG
            last = path.read_text(errors="replace").strip().rpartition("\n")[2]
            raise FailedRunError(
                f"{self.run.name}: ended with status {self.child.returncode}: {last} All that it said is in {path}."
            )

    def terminate(self) -> None:
        """Ask it to save and to end."""
        if self.child.poll() is None:
            self.child.send_signal(signal.SIGTERM)


def _commands(run: Run, options: EvaluationOptions, resume: bool) -> list[list[str]]:
    """The commands of `sparseggm` that are left to do for a run."""
    settings = {"samples": options.samples, "hide": options.hide, "refine": options.refine}
    evaluation = ["evaluate", str(run.out), *(f"--{name}={value}" for name, value in settings.items())]
    evaluation += [f"--data={options.data}"] if options.data else []
    if run.is_begun(resume) and run.is_trained():
        return [evaluation] if options.result(run) is None else []
    write_config(run.config, run.out, options.data)
    return [
        ["train", f"--config={run.out / 'config.json'}", *(["--resume"] if run.is_begun(resume) else [])],
        evaluation,
    ]


def _is_busy(directory: Path) -> bool:
    """Whether another process works there."""
    try:
        with only_process(directory):
            return False
    except BusyError:
        return True


def _results(runs: Sequence[Run], options: EvaluationOptions) -> list[dict[str, Any]]:
    """The evaluation of each run, with the name of its model and the seconds of its training and of an epoch."""
    found = []
    for run in runs:
        history = checkpoint.load(run.out / checkpoint.CHECKPOINT)["history"]
        seconds = [record["seconds"] for record in history]
        times = {"epoch_seconds": statistics.median(seconds), "training_seconds": round(sum(seconds), 1)}
        found.append({"model": run.model, **times, **options.required(run)})
    return found


def _line(run: Run, options: EvaluationOptions, progress: str) -> str:
    result = options.required(run)
    bounds = f"ELBO {result['elbo']:.2f}, log p(x) {result['log_p']:.2f} nats an image"
    return f"{run.name}: {run.config.epochs} epochs, {bounds}; {progress}"


def _epochs_done(runs: Sequence[Run]) -> int:
    return sum(_lines(run.out / "history.csv") - 1 for run in runs if (run.out / "history.csv").exists())


def _lines(path: Path) -> int:
    with open(path, "rb") as file:
        return sum(1 for _ in file)
