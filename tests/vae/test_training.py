"""What a run computes, and that stopping it anywhere changes nothing."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sparseggm.vae import (
    POSTERIORS,
    CheckpointError,
    Config,
    ConfigError,
    DivergedError,
    Images,
    Interrupted,
    Training,
    evaluate,
    figures,
    load_run,
    train,
)
from sparseggm.vae.files.checkpoint import load
from sparseggm.vae.files.interrupt import StopRequest
from sparseggm.vae.likelihoods import Bernoulli, held_out
from tests.vae.conftest import assert_same_numbers, command_line


def run_to_end(
    training: Training, stop: StopRequest | None = None, advance: Callable[[], object] = lambda: None
) -> Training:
    while not training.finished:
        training.train_epoch(stop or StopRequest(), advance)
    return training


def numbers(path: Path) -> dict[str, Any]:
    """Everything in a checkpoint except times."""
    state = load(path)
    for record in state["history"]:
        del record["seconds"]
    return {name: value for name, value in state.items() if name != "seconds"}


@pytest.mark.parametrize("posterior", POSTERIORS)
@pytest.mark.parametrize("kl", ["exact", "sampled"])
def test_training_raises_the_bound(posterior: str, kl: str, digits: Images, recipe: Config, tmp_path: Path) -> None:
    before = torch.random.get_rng_state()
    recipe = replace(recipe, posterior=posterior, kl=kl, epochs=10, hidden=32, learning_rate=0.01)
    history = run_to_end(Training(recipe, digits, tmp_path)).history
    assert history[9].elbo > history[0].elbo + 10
    assert all(record.elbo == pytest.approx(record.reconstruction - record.kl) for record in history)
    assert torch.equal(before, torch.random.get_rng_state()), "the global generator is the caller's"


def test_history_is_the_same_in_memory_json_csv_and_checkpoint(
    few_digits: Images, recipe: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    history = [asdict(record) for record in train(recipe, tmp_path)]
    assert json.loads((tmp_path / "history.json").read_text())["epochs"] == history
    with open(tmp_path / "history.csv") as file:
        rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    assert [row | {"kl_by_layer": []} for row in rows] == history
    assert load(tmp_path / "checkpoint.pt")["history"] == history
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "600 digits."
    assert lines[-1].startswith(f"epoch 2/2  ELBO {history[1]['elbo']:8.2f}  reconstruction")
    assert lines[-1].endswith(" s")


def test_the_tracked_digit_is_recorded_before_training_and_after_every_epoch(
    digits: Images, recipe: Config, tmp_path: Path
) -> None:
    training = run_to_end(Training(replace(recipe, tracked=5), digits, tmp_path))
    tracked = np.load(tmp_path / "tracked.npz")
    pattern = recipe.topology.factor_pattern
    assert tracked["loc"].shape == (3, 4)
    assert np.array_equal(np.round(tracked["factor"][0], 12), pattern.rows == pattern.cols)  # see `heads.SILENCE`
    q = training.vae.posterior(held_out(Bernoulli(), digits, "test")[5:6])
    assert np.array_equal(tracked["factor"][2], q.factor[0].detach().numpy())
    assert np.array_equal(tracked["loc"][2], q.loc[0].detach().numpy())


def test_the_learning_rate_falls_at_60_and_85_percent() -> None:
    config = Config(epochs=20, learning_rate=1.0)
    rates = [config.learning_rate_at(epoch) for epoch in range(20)]
    assert rates == [1.0] * 12 + [0.3] * 5 + [0.1] * 3


def test_equal_recipes_give_equal_numbers_and_another_seed_does_not(
    digits: Images, recipe: Config, tmp_path: Path
) -> None:
    states = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        run_to_end(Training(replace(recipe, seed=seed), digits, tmp_path / name))
        states.append(numbers(tmp_path / name / "checkpoint.pt"))
    assert_same_numbers(states[0], states[1])
    assert states[0]["history"] != states[2]["history"]


@pytest.mark.parametrize("steps", [0, 1, 7, 8, 13])
def test_a_run_stopped_at_any_step_resumes_to_the_same_numbers(
    steps: int, digits: Images, recipe: Config, tmp_path: Path
) -> None:
    run_to_end(Training(recipe, digits, tmp_path / "whole"))
    stop, done = StopRequest(), 0

    def advance() -> None:
        nonlocal done
        done += 1
        stop.signal = signal.SIGINT if done == steps else None

    stop.signal = signal.SIGINT if steps == 0 else None
    training = Training(recipe, digits, tmp_path / "stopped")
    with pytest.raises(Interrupted, match="stopped at epoch"):
        run_to_end(training, stop, advance)
    resumed = Training(recipe, digits, tmp_path / "stopped", resume=True)
    assert (resumed.epoch, resumed.step) == divmod(steps, 8)
    run_to_end(resumed)
    assert_same_numbers(numbers(tmp_path / "whole" / "checkpoint.pt"), numbers(tmp_path / "stopped" / "checkpoint.pt"))


SMALL = {"posterior": "extended-grid", "latent": 6, "hidden": 16, "batch": 200, "epochs": 3}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run of `SMALL` on all digits there are."""
    out = tmp_path_factory.mktemp("uninterrupted")
    train(Config(**SMALL), out)  # type: ignore[arg-type]
    return out


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_or_interrupted_process_resumes_to_the_same_numbers(
    how: signal.Signals, uninterrupted: Path, tmp_path: Path
) -> None:
    arguments = ["train", *(f"--{name}={value}" for name, value in SMALL.items()), "--out", tmp_path / "stopped"]
    command, environment = command_line(*arguments)
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(3)]
    assert lines[2].startswith("epoch 1/3"), lines
    time.sleep(0.05)  # into the second epoch
    process.send_signal(how)
    _, errors = process.communicate(timeout=300)
    state = load(tmp_path / "stopped" / "checkpoint.pt")
    assert 1 <= state["epoch"] < 3, "the signal came in time"
    if how == signal.SIGINT:
        assert process.returncode == 130
        assert f"Go on with: sparseggm train --config={tmp_path / 'stopped' / 'config.json'} --resume" in errors
    else:
        assert process.returncode == -signal.SIGKILL

    train(Config(**SMALL), tmp_path / "stopped", resume=True)  # type: ignore[arg-type]
    assert_same_numbers(numbers(uninterrupted / "checkpoint.pt"), numbers(tmp_path / "stopped" / "checkpoint.pt"))


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_checkpoint(
    digits: Images, recipe: Config, tmp_path: Path
) -> None:
    training = Training(recipe, digits, tmp_path)
    training.train_epoch(StopRequest())
    good = (tmp_path / "checkpoint.pt").read_bytes()
    with torch.no_grad():
        training.vae.decoder[4].bias[100] = float("nan")
    with pytest.raises(DivergedError, match=r"epoch 2, step 1 of 8 .*nan.*is kept"):
        training.train_epoch(StopRequest())
    assert (tmp_path / "checkpoint.pt").read_bytes() == good
    run_to_end(Training(recipe, digits, tmp_path, resume=True))


def test_a_learning_rate_that_is_too_large_is_said_to_be_so(digits: Images, recipe: Config, tmp_path: Path) -> None:
    training = Training(replace(recipe, learning_rate=1e30), digits, tmp_path)
    with pytest.raises(DivergedError, match=r"stopped being finite at epoch 1, step \d of 8 .*--learning_rate"):
        training.train_epoch(StopRequest())


def test_an_interrupt_never_saves_weights_that_diverged(digits: Images, recipe: Config, tmp_path: Path) -> None:
    training = Training(recipe, digits, tmp_path)
    with torch.no_grad():
        training.vae.decoder[4].bias[100] = float("nan")
    stop = StopRequest()

    def advance() -> None:
        stop.signal = signal.SIGINT

    with pytest.raises(DivergedError):
        training.train_epoch(stop, advance)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
def test_only_the_first_signal_is_a_request(number: signal.Signals) -> None:
    previous = signal.getsignal(number)
    with StopRequest() as stop:
        signal.raise_signal(number)
        assert stop.signal == number
        assert signal.getsignal(number) is previous
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_signal_that_is_ignored_stays_ignored() -> None:
    """As SIGHUP under nohup, and SIGINT in the background of a script."""
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequest() as stop:
            signal.raise_signal(signal.SIGHUP)
            assert stop.signal is None
    finally:
        signal.signal(signal.SIGHUP, previous)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"posterior": "grid"}, "unknown posterior 'grid'; one of: diagonal, chain, tree, grid-dominant, grid-sc"),
        ({"posterior": "extended-grid", "latent": 13}, r"got 13; near it: .*12 = 3 × 4, 14 = 2 × 7"),
        ({"posterior": "block-chain", "latent": 2}, r"got 2; near it: 4 = 2 × 2"),
        ({"posterior": "grid-spectral", "latent": 13}, r"grid-spectral needs .* got 13; near it: .*12 = 3 × 4"),
        ({"latent": 0}, "latent must be an integer from 1 to 2,147,483,647, got 0"),
        ({"split": "70k"}, "unknown split '70k'; one of: 50k, 60k"),
        ({"kl": "none"}, "unknown kl 'none'; one of: exact, sampled, path"),
        ({"learning_rate": float("nan")}, "learning_rate must be positive and finite, got nan"),
        ({"tracked": -1}, "tracked, the index of a test digit, must be an integer from 0 to .*, got -1"),
    ],
)
def test_an_impossible_recipe_is_refused_with_what_would_work(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Config(**options)


@pytest.mark.parametrize("options", [{"tracked": 100}, {"hidden": 2**31 - 1}, {"latent": 2**31 - 1}])
def test_what_these_digits_or_this_machine_lack_is_refused(
    options: dict[str, Any], digits: Images, recipe: Config, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        Training(replace(recipe, **options), digits, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("options", [{"seed": 2**63}, {"seed": 2**64 - 1}, {"precision": "64-true"}], ids=str)
def test_whatever_is_not_refused_trains_resumes_and_is_evaluated(
    options: dict[str, Any], few_digits: Images, recipe: Config, tmp_path: Path
) -> None:
    recipe = replace(recipe, **options)
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    train(recipe, whole)
    training = Training(recipe, few_digits, stopped)
    training.train_epoch(StopRequest())
    train(recipe, stopped, resume=True)
    assert_same_numbers(numbers(whole / "checkpoint.pt"), numbers(stopped / "checkpoint.pt"))
    assert evaluate(stopped, samples=3)["elbo"] < 0
    assert {"figure4", "figure5", "curves", "diagnostics"} <= {picture.stem for picture in figures([stopped])}


def test_double_precision_is_double_in_training_and_evaluation(
    few_digits: Images, recipe: Config, tmp_path: Path
) -> None:
    double = replace(recipe, precision="64-true")
    records = [train(config, tmp_path / config.precision)[-1] for config in (recipe, double)]
    assert records[0].elbo != records[1].elbo
    assert records[0].elbo == pytest.approx(records[1].elbo, abs=0.1)
    _, vae, state = load_run(tmp_path / "64-true")
    assert vae.dtype == state["model"]["decoder.0.bias"].dtype == torch.float64


def test_a_last_step_that_overflows_is_a_diverged_loss(digits: Images, recipe: Config, tmp_path: Path) -> None:
    """The loss of the only step of an epoch is that of the weights before it."""
    training = Training(replace(recipe, batch=400, learning_rate=1e39), digits, tmp_path)
    good = (tmp_path / "checkpoint.pt").read_bytes()
    with pytest.raises(DivergedError, match="--learning_rate"):
        training.train_epoch(StopRequest())
    assert (tmp_path / "checkpoint.pt").read_bytes() == good


def test_weights_too_large_to_evaluate_are_said_to_be_so(few_digits: Images, recipe: Config, tmp_path: Path) -> None:
    Training(replace(recipe, batch=400, learning_rate=1e30), few_digits, tmp_path).train_epoch(StopRequest())
    with pytest.raises(DivergedError, match="weights are too large"):
        evaluate(tmp_path, samples=2)


def test_figures_name_a_run_of_other_data(few_digits: Images, recipe: Config, tmp_path: Path) -> None:
    Training(recipe, replace(few_digits, name="others"), tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"figures: needed runs of 600 digits, as found, got \S*run of others"):
        figures([tmp_path])
