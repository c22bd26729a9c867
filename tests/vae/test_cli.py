"""The command: options, files of options, one line for a mistake."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from sparseggm.cli import main
from sparseggm.vae import Digits
from sparseggm.vae.checkpoint import load
from tests.vae.conftest import command_line

SMALL = ("--latent=4", "--hidden=16", "--batch=50", "--epochs=1")


def test_train_evaluate_and_figures_in_a_row(
    few_digits: Digits, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = str(tmp_path / "run")
    assert main(["train", "--posterior=block-chain", *SMALL, "--out", run]) == 0
    assert main(["evaluate", run, "--samples=20"]) == 0
    output = capsys.readouterr().out
    assert "600 digits, block-chain posterior, seed 0, 1 epochs; 100 test digits, 20 samples\nELBO  " in output
    assert " ± " in output
    assert main(["evaluate", run, "--samples=2", "--part=validation"]) == 0
    assert json.loads((tmp_path / "run" / "evaluation.json").read_text())["part"] == "validation"
    capsys.readouterr()
    assert main(["figures", run]) == 0
    pictures = [Path(line) for line in capsys.readouterr().out.splitlines()]
    assert {picture.name for picture in pictures} >= {"figure4.png", "figure5.png"}


def test_a_config_file_is_read_and_the_command_line_wins(few_digits: Digits, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(
        "posterior: diagonal\nlatent: 3\nhidden: 16\nepochs: 1\nlearning_rate: 1e-2\n"
    )
    assert main(["train", "--config", str(tmp_path / "recipe.yaml"), "--latent=5", "--out", str(tmp_path / "run")]) == 0
    identity = load(tmp_path / "run" / "checkpoint.pt")["identity"]
    assert (identity["posterior"], identity["latent"], identity["learning_rate"]) == ("diagonal", 5, 0.01)


def test_the_config_that_a_run_writes_resumes_it(few_digits: Digits, tmp_path: Path) -> None:
    assert main(["train", *SMALL, "--learning_rate=1e-5", "--out", str(tmp_path / "run")]) == 0
    assert main(["train", "--config", str(tmp_path / "run" / "config.json"), "--resume"]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["train", "--posterior=grid"],
            "unknown posterior 'grid'; one of: diagonal, chain, extended-grid, block-chain",
        ),
        (["train", "--posterior=extended-grid", "--latent=7"], "near it: 4 = 2 × 2, 6 = 2 × 3, 8 = 2 × 4"),
        (["train", "--epochs=many"], '"epochs"'),
        (["train", "--epoch-count=3"], "epoch-count"),
        (["train", "--config=nowhere.yaml"], "nowhere.yaml"),
        (["train", "--resume"], "no checkpoint there"),
        (["evaluate", "nowhere"], "no checkpoint there"),
        (["evaluate", "nowhere", "--samples=0"], "samples must be at least 1, got 0"),
        (["evaluate", "nowhere", "--part=train"], "unknown part 'train'; one of: test, validation"),
        (["figures", "nowhere"], "needed a run"),
        (["table1", "--seeds", "1", "1"], "each once"),
        (["table1", "--posteriors", "star"], "unknown posterior 'star'"),
        (["train", "--data=nowhere"], "--data: needed train-images-idx3-ubyte"),
        (["juggle"], "juggle"),
        ([], "command"),
    ],
)
def test_a_mistake_is_one_line_on_stderr_and_status_2(
    arguments: list[str],
    message: str,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if "--data=nowhere" not in arguments:
        request.getfixturevalue("few_digits")
    if arguments[:1] in (["train"], ["table1"]):
        arguments = [*arguments, "--out", str(tmp_path)]
    assert main(arguments) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("sparseggm")
    assert message in errors
    assert errors.count("\n") == 1


def test_a_run_of_other_digits_is_not_evaluated(
    few_digits: Digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *SMALL, "--out", str(tmp_path / "run")]) == 0
    object.__setattr__(few_digits, "name", "other digits")
    try:
        assert main(["evaluate", str(tmp_path / "run")]) == 2
        assert main(["figures", str(tmp_path / "run")]) == 2
    finally:
        object.__setattr__(few_digits, "name", "600 digits")
    assert "trained on 600 digits, found other digits" in capsys.readouterr().err


def test_importing_the_library_or_its_command_does_not_import_torch() -> None:
    code = "import sys, sparseggm, sparseggm.cli; sys.exit('torch' in sys.modules)"
    environment = command_line()[1]
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 0
