"""Experiments whose runs are processes: killed, stopped and failing ones, runs that are extended, several sweeps."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sparseggm.cli import main
from sparseggm.vae import (
    TABLE1,
    CheckpointError,
    Config,
    FailedRunError,
    Images,
    Interrupted,
    Training,
    experiment,
    load_run,
)
from sparseggm.vae.files.checkpoint import load
from sparseggm.vae.files.interrupt import StopRequest
from sparseggm.vae.files.lock import only_process
from sparseggm.vae.sweep import Run
from tests.vae.conftest import assert_same_numbers, command_line

MODELS = ("diagonal", "chain")
SMALL = ("--latent=4", "--hidden=16", "--batch=50", "--learning_rate=3e-3")
TIMES = ("seconds", "epoch_seconds", "training_seconds", "seconds_ratio")


@pytest.fixture
def recipe() -> Config:
    return Config(latent=4, hidden=16, batch=50, learning_rate=3e-3)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """As in the processes, two on two cores: sums of other lengths round otherwise."""
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        torch.set_num_threads(1)
        yield
        torch.set_num_threads(threads)


def arguments(out: Path, folder: Path) -> list[str]:
    words = ["experiment", "table1", *SMALL, "--models", *MODELS, "--epochs=6", "--samples=3", "--jobs=2"]
    return [*words, f"--data={folder}", f"--out={out}"]


def sweep(out: Path, folder: Path, *options: str) -> subprocess.Popen[bytes]:
    command, environment = command_line(*arguments(out, folder), *options)
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def without_times(content: Any) -> Any:
    if isinstance(content, dict):
        return {name: without_times(value) for name, value in content.items() if name not in TIMES}
    return [without_times(value) for value in content] if isinstance(content, list) else content


def wait_until(condition: Callable[[], bool]) -> None:
    for _ in range(600):
        if condition():
            return
        time.sleep(0.1)
    pytest.fail("waited a minute")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, folder: Path) -> Path:
    out = tmp_path_factory.mktemp("sweep") / "table"
    assert main(arguments(out, folder)) == 0
    return out


def test_the_runs_of_a_sweep_are_those_of_models_in_turns(
    undisturbed: Path, tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "2 runs at once" in (undisturbed / "table1.md").read_text()
    assert main([*arguments(tmp_path, folder), "--jobs=1"]) == 0
    assert_same_runs(tmp_path, undisturbed)


def assert_same_runs(a: Path, b: Path) -> None:
    for model in MODELS:
        states = [load(out / "seed-0" / model / "checkpoint.pt") for out in (a, b)]
        assert_same_numbers(*(state["model"] for state in states))
        assert_same_numbers(*(without_times(state["history"]) for state in states))
        assert_same_numbers(*(dict(np.load(out / "seed-0" / model / "evaluation.npz")) for out in (a, b)))


def test_a_sweep_killed_three_times_ends_with_the_files_of_one_that_was_not(
    undisturbed: Path, tmp_path: Path, folder: Path
) -> None:
    """Its processes outlive it; the next sweep waits for them."""
    moments = random.Random(0)
    for _ in range(3):
        process = sweep(tmp_path, folder, "--resume")
        time.sleep(moments.uniform(2.0, 8.0))
        process.kill()
        process.communicate()
    assert main([*arguments(tmp_path, folder), "--resume"]) == 0
    assert_same_runs(tmp_path, undisturbed)
    tables = [json.loads((out / "table1.json").read_text()) for out in (tmp_path, undisturbed)]
    assert without_times(tables[0]) == without_times(tables[1])


def test_what_is_finished_is_not_done_again(undisturbed: Path, folder: Path) -> None:
    def times() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in undisturbed.rglob("*") if path.name != ".lock"}

    before = {path: time for path, time in times().items() if path.parent.name in MODELS}
    assert main([*arguments(undisturbed, folder), "--resume"]) == 0
    assert {path: time for path, time in times().items() if path.parent.name in MODELS} == before


def test_a_signal_saves_every_run_once(tmp_path: Path, folder: Path) -> None:
    process = sweep(tmp_path, folder, "--epochs=10000")
    runs = [tmp_path / "seed-0" / model for model in MODELS]
    wait_until(lambda: all((run / "history.csv").exists() for run in runs))
    process.send_signal(signal.SIGTERM)
    said = process.communicate()[0].decode()
    assert process.returncode == 128 + signal.SIGTERM
    assert "stopped, and saved all: 0 of 2 runs are finished. Go on with: sparseggm experiment table1 " in said
    for run in runs:
        assert load(run / "checkpoint.pt")["epoch"] < 10000
        assert "Go on with: sparseggm train" in (run / "log.txt").read_text()
        with only_process(run):
            pass


def test_a_run_that_fails_stops_the_sweep_and_names_its_log(
    tmp_path: Path, folder: Path, recipe: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPARSEGGM_DATA", str(folder))
    (tmp_path / "out" / "seed-0" / "chain" / "history.json").mkdir(parents=True)  # which cannot be written to
    with pytest.raises(FailedRunError, match=r"seed 0 chain: ended with status 2: .*history.json.* All that it said"):
        experiment(TABLE1, recipe, tmp_path / "out", MODELS, epochs=2, samples=3, jobs=2)


def test_two_sweeps_in_one_folder_are_refused(tmp_path: Path, folder: Path) -> None:
    with only_process(tmp_path):
        assert main(arguments(tmp_path, folder)) == 2
    assert not (tmp_path / "seed-0").exists()


# ---------------------------------------------------------------------- more epochs


def trained(training: Training) -> Training:
    while not training.finished:
        training.train_epoch(StopRequest())
    return training


def test_more_epochs_extend_a_finished_run(digits: Images, recipe: Config, tmp_path: Path) -> None:
    config = replace(recipe, epochs=2)
    trained(Training(config, digits, tmp_path))
    more = trained(Training(replace(config, epochs=4), digits, tmp_path, resume=True))
    assert [record.epoch for record in more.history] == [1, 2, 3, 4]
    assert load(tmp_path / "checkpoint.pt")["identity"]["extended"] == "2"
    assert json.loads((tmp_path / "config.json").read_text())["epochs"] == 4
    assert load_run(tmp_path)[0].epochs == 4
    trained(Training(replace(config, epochs=5), digits, tmp_path, resume=True))
    assert load(tmp_path / "checkpoint.pt")["identity"]["extended"] == "2 4"
    with pytest.raises(CheckpointError, match=r"epochs 5 \(asked for: 4\)"):
        Training(replace(config, epochs=4), digits, tmp_path, resume=True)
    with pytest.raises(CheckpointError, match=r"hidden 16 \(asked for: 8\)"):
        Training(replace(config, epochs=6, hidden=8), digits, tmp_path, resume=True)


def test_an_unfinished_run_is_not_extended(digits: Images, recipe: Config, tmp_path: Path) -> None:
    """Its rates have not fallen yet; as many epochs as asked for first come first."""
    Training(replace(recipe, epochs=2), digits, tmp_path).train_epoch(StopRequest())
    with pytest.raises(CheckpointError, match=r"epochs 2 \(asked for: 4\), of which 1 are done\. Finish it with"):
        Training(replace(recipe, epochs=4), digits, tmp_path, resume=True)
    with pytest.raises(
        CheckpointError, match=r"epochs 2 \(asked for: 4\); hidden 16 \(asked for: 8\)\. Ask for the same"
    ):
        Training(replace(recipe, epochs=4, hidden=8), digits, tmp_path, resume=True)


def test_an_extended_run_that_is_stopped_goes_on_as_one_that_was_not(
    digits: Images, recipe: Config, tmp_path: Path
) -> None:
    states = []
    for name, pause in (("whole", False), ("stopped", True)):
        trained(Training(replace(recipe, epochs=1), digits, tmp_path / name))
        more = Training(replace(recipe, epochs=3), digits, tmp_path / name, resume=True)
        if pause:
            more.train_epoch(StopRequest())
            more = Training(replace(recipe, epochs=3), digits, tmp_path / name, resume=True)
        states.append(trained(more).vae.state_dict())
    assert_same_numbers(*states)


def test_an_experiment_in_turns_extends_its_runs_and_evaluates_them_again(
    few_digits: Images, recipe: Config, tmp_path: Path
) -> None:
    few = experiment(TABLE1, recipe, tmp_path, MODELS, epochs=1, samples=3)
    more = experiment(TABLE1, recipe, tmp_path, MODELS, epochs=3, samples=3, resume=True)
    assert more[0].elbo > few[0].elbo
    run = Run("chain", replace(recipe, epochs=3), tmp_path / "seed-0" / "chain")
    assert run.is_trained()


def test_an_interrupted_sweep_says_so(tmp_path: Path, folder: Path, recipe: Config) -> None:
    """A signal that came before the first process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StopRequest, "__init__", lambda self: self.__dict__.update(signal=signal.SIGINT, _previous={}))
        with pytest.raises(Interrupted, match="0 of 2 runs are finished"):
            experiment(TABLE1, recipe, tmp_path, MODELS, epochs=1, samples=3, data=folder, jobs=2)
    assert os.listdir(tmp_path) == [".lock"]
