"""The dense twin of examples/dense_on_gpu.py is the library's model: bound, gradients, and a run that goes on."""

from __future__ import annotations

import signal
import sys
from typing import Any

import pytest
import torch

from examples import dense_on_gpu
from examples.dense_on_gpu import DenseVAE, Trainer
from sparseggm.vae.config import PIXELS, Config
from sparseggm.vae.errors import CheckpointError, DivergedError, Interrupted
from sparseggm.vae.evaluate import evaluate, load_run
from sparseggm.vae.files.interrupt import StopRequest
from sparseggm.vae.model import VAE
from sparseggm.vae.train import Training, train

CPU = torch.device("cpu")
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here"))]


def small(**settings: Any) -> Config:
    facts = {"posterior": "full", "latent": 6, "hidden": 8, "objective": "iwae", "importance_samples": 4}
    return Config(**facts | settings)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kl_weight", [1.0, 0.25])
def test_bound_and_gradients_are_those_of_the_library(kl_weight, device):
    rng = torch.Generator().manual_seed(5)
    vae = VAE(small(), torch.full((PIXELS,), 0.3)).double()
    with torch.no_grad():
        vae.head.layer.weight.normal_(0.0, 0.3, generator=rng)  # away from the identity
    x = torch.bernoulli(torch.full((3, PIXELS), 0.3), generator=rng).double()
    noise = torch.randn(4, 3, 6, generator=rng, dtype=torch.float64)
    loss, terms = vae(x, noise, rng, kl_weight, "iwae")
    loss.sum().backward()

    twin = DenseVAE(vae, torch.device(device))
    twin_loss, twin_terms = twin(x.to(device), noise.to(device), torch.tensor(kl_weight, device=device))
    twin_loss.sum().backward()
    for name, twins in zip(("reconstruction", "kl", "bound"), twin_terms, strict=True):
        torch.testing.assert_close(twins.cpu(), terms[name], rtol=1e-12, atol=1e-12)
    for own, other in zip(vae.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(other.grad.cpu(), own.grad, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("device", DEVICES)
def test_a_run_is_evaluated_and_goes_on(tmp_path, few_digits, device):
    torch.manual_seed(0)
    recipe = {"batch": 150, "warm_up": 1, "averaging": 0.9, "learning_rate": 1e-2}
    config = small(**recipe, epochs=40)
    trainer = Trainer(Training(config, few_digits, tmp_path / "run"), torch.device(device))
    trainer.train(StopRequest())
    _, vae, state = load_run(tmp_path / "run")
    assert [record["epoch"] for record in state["history"]] == list(range(1, 41))
    assert state["history"][-1]["bound"] > state["history"][0]["bound"] + 5.0
    assert int(trainer.training.average.n_averaged) == 40 * 2  # two batches of 150 in 400 images
    for own, average in zip(vae.parameters(), trainer.averages, strict=True):
        torch.testing.assert_close(own.detach(), average.cpu(), rtol=0, atol=0)
    assert evaluate(tmp_path / "run", samples=5)["epochs_trained"] == 40
    assert len(train(small(**recipe, epochs=41), tmp_path / "run", resume=True)) == 41


def test_a_stopped_run_goes_on_as_if_it_had_not(tmp_path, few_digits):
    config = small(epochs=6, batch=150, averaging=0.9, warm_up=2)
    whole, stopped = (Trainer(Training(config, few_digits, tmp_path / name), CPU) for name in ("whole", "stopped"))
    whole.train(StopRequest())
    stop = StopRequest()
    stop.signal = signal.SIGTERM
    for epochs in (1, 2, 3):
        with pytest.raises(Interrupted, match=f"stopped after epoch {epochs}; go on with --resume"):
            stopped.train(stop)
    resumed = Trainer(Training(config, few_digits, tmp_path / "stopped", resume=True), CPU)
    resumed.train(StopRequest())
    assert [r.bound for r in resumed.training.history] == [r.bound for r in whole.training.history]
    for one, other in zip(resumed.weights + resumed.averages, whole.weights + whole.averages, strict=True):
        assert torch.equal(one, other)


def test_a_run_that_stopped_within_an_epoch_is_left_to_the_library(few_digits, tmp_path):
    training = Training(small(averaging=0.9), few_digits, tmp_path / "run")
    training.step = 1
    with pytest.raises(CheckpointError, match="within an epoch"):
        Trainer(training, CPU)


@pytest.fixture
def command(few_digits, monkeypatch):
    """The command, and its options, on few digits."""
    monkeypatch.setattr(dense_on_gpu, "load_images", lambda *_: few_digits)

    def run(options: str) -> None:
        monkeypatch.setattr(sys, "argv", ["dense_on_gpu", *options.split()])
        dense_on_gpu.main()

    return run


def test_the_command_trains_and_resumes(command, tmp_path):
    options = f"--device cpu --samples 2 --batch 200 --warm_up 1 --out {tmp_path}/run"
    command(f"{options} --epochs 1")
    command(f"{options} --epochs 2 --resume")
    assert load_run(tmp_path / "run")[2]["epoch"] == 2


@pytest.mark.parametrize(
    ("options", "message"),
    {
        "batch": ("--device cpu --batch 401", "batch must be within the training images, 400."),
        "samples": ("--device cpu --samples 0", "importance_samples"),
        "split": ("--device cpu --split 70k", "split"),
        "no run": ("--device cpu --resume", "no checkpoint there"),
        "no GPU": ("--device cuda", "no GPU here."),
    }.values(),
)
def test_a_mistake_is_one_line(command, options, message, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        command(f"{options} --out {tmp_path}/run")
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("which", ["weights", "averages"])
def test_numbers_that_are_not_finite_end_the_run_before_they_are_saved(few_digits, tmp_path, which):
    trainer = Trainer(Training(small(averaging=0.9), few_digits, tmp_path / "run"), CPU)
    with torch.no_grad():
        getattr(trainer, which)[-1][0] = torch.nan
    with pytest.raises(DivergedError, match="stopped being finite in epoch 1"):
        trainer.train(StopRequest())
    _, vae, state = load_run(tmp_path / "run")
    assert state["epoch"] == 0
    assert all(weights.isfinite().all() for weights in vae.parameters())
