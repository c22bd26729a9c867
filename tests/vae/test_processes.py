"""One run over two processes: the numbers of one process, to rounding."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from sparseggm.cli import main
from sparseggm.vae.files.checkpoint import load
from tests.vae.conftest import command_line

SMALL = ("--posterior=extended-grid", "--latent=4", "--hidden=16", "--batch=50", "--precision=64-true")


def train(out: Path, folder: Path, processes: int, *options: str) -> subprocess.Popen[str]:
    _, environment = command_line()
    environment |= {"OMP_NUM_THREADS": "1"}
    launcher = ["torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m"]
    command = [sys.executable, "-m", *(launcher if processes > 1 else []), "sparseggm", "train"]
    arguments = [*command, *SMALL, f"--data={folder}", f"--out={out}", *options]
    return subprocess.Popen(arguments, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finished(process: subprocess.Popen[str]) -> str:
    said, _ = process.communicate()
    assert process.returncode == 0, said
    return said


def test_two_processes_have_the_numbers_of_one(folder: Path, tmp_path: Path) -> None:
    """Weights in float64 differ by the order of sums over a batch, at most divided by Adam; histories are float32."""
    one, two = [train(tmp_path / str(count), folder, count, "--epochs=2") for count in (1, 2)]
    finished(one)
    assert finished(two).count("epoch 2/2") == 1
    states = [load(tmp_path / name / "checkpoint.pt") for name in ("1", "2")]
    for ours, theirs in zip(*(state["history"] for state in states), strict=True):
        assert ours["elbo"] == pytest.approx(theirs["elbo"], rel=50 * 2.0**-24)
        assert ours["kl"] == pytest.approx(theirs["kl"], rel=50 * 2.0**-24)
    for name, weights in states[0]["model"].items():
        torch.testing.assert_close(weights, states[1]["model"][name], rtol=1e-7, atol=1e-7)


def test_two_processes_stop_after_the_same_step(folder: Path, tmp_path: Path) -> None:
    stopped = train(tmp_path, folder, 2, "--epochs=10000")
    for _ in range(600):
        if (tmp_path / "history.csv").exists() and len((tmp_path / "history.csv").read_text().splitlines()) > 2:
            break
        time.sleep(0.1)
    stopped.send_signal(signal.SIGTERM)
    said, _ = stopped.communicate()
    assert said.count("and saved") == 1, said
    assert "Go on with: torchrun --nproc-per-node 2 -m sparseggm train " in said
    before = load(tmp_path / "checkpoint.pt")
    assert before["epoch"] > 1
    assert len(before["history"]) == before["epoch"]


def test_a_batch_smaller_than_the_processes_is_refused(folder: Path, tmp_path: Path) -> None:
    process = train(tmp_path / "run", folder, 2, "--epochs=1", "--batch=1")
    said, _ = process.communicate()
    assert process.returncode != 0
    assert "2 processes need batches of at least 2 images, got one of 1." in said
    assert not (tmp_path / "run" / "checkpoint.pt").exists()


def test_an_experiment_over_several_processes_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["experiment", "table1", f"--out={tmp_path / 'runs'}"]) == 2
    assert "table1: needs one process, got 2. Over several: sparseggm train." in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
