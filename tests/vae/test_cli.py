"""The command: options, files of options, one line for a mistake."""

from __future__ import annotations

import errno
import json
import os
import shlex
import signal
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparseggm import __version__
from sparseggm.cli import main, parser
from sparseggm.vae import Images, Training
from sparseggm.vae.experiments import EXPERIMENTS
from sparseggm.vae.files.checkpoint import load
from sparseggm.vae.files.interrupt import StopRequest
from sparseggm.vae.files.lock import only_process
from tests.vae.conftest import ROOT, command_line

TABLE1, PIXELS = ["experiment", "table1"], ["experiment", "pixels"]
SMALL = ("--latent=4", "--hidden=16", "--batch=50", "--epochs=1")


def test_train_evaluate_and_figures_in_a_row(
    few_digits: Images, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = str(tmp_path / "run")
    assert main(["train", "--posterior=block-chain", *SMALL, "--out", run]) == 0
    assert main(["evaluate", run, "--samples=20"]) == 0
    output = capsys.readouterr().out
    assert (
        "600 digits, block-chain posterior, 4 latents, seed 0, 1 epochs; 100 test images, 20 samples\nELBO  " in output
    )
    assert " ± " in output
    assert main(["evaluate", run, "--samples=2", "--part=validation"]) == 0
    assert json.loads((tmp_path / "run" / "evaluation.json").read_text())["part"] == "validation"
    capsys.readouterr()
    assert main(["figures", run]) == 0
    pictures = [Path(line) for line in capsys.readouterr().out.splitlines()]
    assert {picture.name for picture in pictures} >= {"figure4.png", "figure5.png"}


def test_a_config_file_is_read_and_the_command_line_wins(few_digits: Images, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(
        "posterior: diagonal\nlatent: 3\nhidden: 16\nepochs: 1\nlearning_rate: 1e-2\n"
    )
    assert main(["train", "--config", str(tmp_path / "recipe.yaml"), "--latent=5", "--out", str(tmp_path / "run")]) == 0
    identity = load(tmp_path / "run" / "checkpoint.pt")["identity"]
    assert (identity["posterior"], identity["latent"], identity["learning_rate"]) == ("diagonal", 5, 0.01)


@pytest.mark.parametrize("text", ["", "# nothing"])
def test_a_config_file_without_options_is_named_as_one(text: str, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "empty.yaml").write_text(text)
    assert main(["train", "--config", str(tmp_path / "empty.yaml"), "--out", str(tmp_path / "run")]) == 2
    assert capsys.readouterr().err == f"sparseggm: --config needs a YAML file of options, got one of '{text}'.\n"


def test_the_config_that_a_run_writes_resumes_it(few_digits: Images, tmp_path: Path) -> None:
    assert main(["train", *SMALL, "--learning_rate=1e-5", "--out", str(tmp_path / "run")]) == 0
    assert main(["train", "--config", str(tmp_path / "run" / "config.json"), "--resume"]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["train", "--posterior=grid"],
            "unknown posterior 'grid'; one of: diagonal, chain, tree, grid-dominant, grid-scaled, grid-edge, "
            "grid-spectral, extended-grid, block-chain, full.",
        ),
        (["train", "--posterior=extended-grid", "--latent=7"], "near it: 4 = 2 × 2, 6 = 2 × 3, 8 = 2 × 4"),
        (["train", "--epochs=many"], "sparseggm: --epochs must be of type int, got many"),
        (["evaluate"], "sparseggm: the following arguments are required: run"),
        (["experiment"], "sparseggm: name must be one of {table1,pixels,layers,natural-gradient}"),
        (["train", "--epoch-count=3"], "epoch-count"),
        (["train", "--config=nowhere.yaml"], "nowhere.yaml"),
        (["train", "--resume"], "no checkpoint there"),
        (["evaluate", "nowhere"], "no checkpoint there"),
        (["evaluate", "nowhere", "--samples=0"], "samples must be an integer from 1 to 2,147,483,647, got 0"),
        (
            ["evaluate", "nowhere", "--refine=-1"],
            "refine, if not 0, must be an integer from 1 to 2,147,483,647, got -1",
        ),
        (["evaluate", "nowhere", "--part=train"], "unknown part 'train'; one of: test, validation"),
        (["figures", "nowhere"], "needed a run"),
        ([*TABLE1, "--models", "chain", "chain"], "models must be given, each once; got chain chain"),
        ([*TABLE1, "--models", "star"], "unknown model 'star'; one of: diagonal, chain"),
        (
            [*PIXELS, "--models", "star"],
            "unknown model 'star'; one of: diagonal, extended-grid, stencil-3, stencil-5",
        ),
        ([*TABLE1, "--seeds=0"], "seeds must be an integer from 1"),
        ([*TABLE1, "--jobs=0"], "jobs must be an integer from 1"),
        (
            ["experiment", "star"],
            "invalid choice: 'star' (choose from 'table1', 'pixels', 'layers', 'natural-gradient')",
        ),
        ([*PIXELS, "--likelihood=bernoulli"], "needs likelihood levels or logit-normal, got likelihood bernoulli"),
        (["train", "--structure=global"], "structure global needs likelihood levels or logit-normal"),
        (["train", "--likelihood=levels", "--alpha=1e-3"], "alpha 0.001 needs likelihood logit-normal, got"),
        (["train", "--data=nowhere"], "--data: needed train-images-idx3-ubyte"),
        (
            ["fit-pixels", "--pixels=grid"],
            "unknown pixels 'grid'; one of: diagonal, extended-grid, stencil-3, stencil-5",
        ),
        (["fit-pixels", "--likelihood=normal"], "unknown likelihood 'normal'; one of: levels, logit-normal"),
        (["train", "--edges=0-1 1-2"], "edges 0-1 1-2 needs posterior tree, got posterior chain"),
        (
            ["train", "--importance_samples=5"],
            "importance_samples 5 needs objective iwae or piwae, or importance_epochs",
        ),
        (["train", "--objective=piwae", "--kl=path"], "kl path needs objective elbo, got objective piwae"),
        (["train", "--warm_up=61"], "warm_up must be within the epochs, 60, got 61"),
        (["train", "--posterior=tree", "--latent=3", "--edges=0-1 1-3"], "edges: nodes must be in 0 … 2, got 1-3"),
        (["train", "--least_scale=0.2"], "least_scale 0.2 needs likelihood levels or logit-normal, got"),
        (["fit-pixels", "--alpha=0.5"], "alpha must be at least 9e-16 and below 0.5, got 0.5"),
        (["fit-pixels", "--sweeps=0"], "sweeps must be an integer from 1 to 2,147,483,647, got 0"),
        (["fit-pixels", "--data=nowhere"], "--data: needed train-images-idx3-ubyte"),
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
    if arguments[:1] in (["train"], ["fit-pixels"]) or arguments[:2] in (TABLE1, PIXELS):
        arguments = [*arguments, "--out", str(tmp_path)]
    assert main(arguments) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("sparseggm")
    assert message in errors
    assert errors.count("\n") == 1


@pytest.mark.parametrize("command", ["figures", "results"])
def test_a_mistake_names_the_command_once(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith(f"sparseggm {command}: needed a ")


@pytest.mark.parametrize(
    "command",
    [
        "train --out a/b --latent 4",
        "evaluate a --data b",
        "interpolate a --pairs 3",
        "figures a b --out c",
        "results a",
        "fit-pixels --out a --pixels chain",
        *(f"experiment {name} --seeds 3" for name in EXPERIMENTS),
    ],
)
def test_options_that_are_printed_are_read_again(command: str, tmp_path: Path, capsys: Any) -> None:
    words, file = command.split(), tmp_path / "options.yaml"
    with pytest.raises(SystemExit, match=r"^0$"):
        main([*words, "--print_config"])
    file.write_text(capsys.readouterr().out)
    named = words[: 2 if words[0] == "experiment" else 1]
    assert options_of([*named, f"--config={file}"]) == options_of(words)


def options_of(words: list[str]) -> dict[str, Any]:
    options = parser().parse_args(words).as_flat()
    return {name: value for name, value in vars(options).items() if not name.endswith("config")}


def test_the_help_shows_no_address(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("train", "evaluate", "interpolate", "figures", "results", "fit-pixels", "experiment table1"):
        with pytest.raises(SystemExit) as left:
            main([*command.split(), "--help"])
        assert left.value.code == 0
        shown = " ".join(capsys.readouterr().out.split())
        assert " at 0x" not in shown
        assert "type: path" in shown


HUGE = 10**400
COUNTS = (-1, 0, 2**31, HUGE, 1.5, "nan", "many", "")
NUMBERS: dict[str, tuple[object, ...]] = {
    "latent": COUNTS,
    "hidden": (*COUNTS, 2**31 - 1),  # which is a number, but needs 10¹⁹ bytes
    "encoder_hidden": (*(count for count in COUNTS if count != 0), 2**31 - 1),
    "epochs": COUNTS,
    "batch": COUNTS,
    "samples": COUNTS,
    "pairs": COUNTS,
    "seeds": COUNTS,
    "jobs": COUNTS,
    "refine": tuple(value for value in COUNTS if value != 0),
    "learning_rate": (-1, 0, "nan", "inf", "-inf", HUGE, "fast", ""),
    "warm_up": (*(count for count in COUNTS if count != 0), 61),  # of 60 epochs
    "importance_samples": COUNTS,
    "seed": (-1, 2**64, HUGE, 1.5, "nan", "any", ""),
    "tracked": (-1, 100, HUGE, 1.5, "nan", "any", ""),
    "sweeps": COUNTS,
    "alpha": (-1, 0, 1e-17, 0.5, 1, "nan", "inf", HUGE, "small", ""),
    "least_scale": (-1, 0, 1e-3, 1, "nan", "inf", HUGE, "small", ""),
}
NAMES: dict[str, tuple[object, ...]] = {
    "precision": ("bf16-true", "16-true", "bf16-mixed", "16-mixed", "transformer-engine", "32", "64", "17-bit", ""),
    "posterior": ("grid", ""),
    "split": ("70k", ""),
    "kl": ("none", ""),
    "prior": ("tree", "diagonal", ""),
    "natural_gradient": ("maybe", 2, ""),
    "objective": ("vae", ""),
    "likelihood": ("poisson", ""),
    "decoder": ("recurrent", ""),
    "pixels": ("grid", ""),
    "edges": ("0-1", "0", "nan", "any"),
    "structure": ("local", ""),
    "part": ("train", ""),
    "hide": ("left", ""),
    "out": ("", "~nobody-of-this-name/run"),
    "data": ("", "~nobody-of-this-name/mnist"),
}
OF_RUNS = ("evaluate", "interpolate", "figures")
PIXEL_NAMES = ("likelihood", "decoder", "structure")
EXPERIMENT = ("seeds", "jobs", "epochs", "samples")
OPTIONS = {  # of each command, but for paths of which there can be several
    "train": (
        *("latent", "hidden", "encoder_hidden", "epochs", "batch", "learning_rate", "seed", "tracked", "alpha"),
        *("least_scale", "warm_up", "importance_samples"),
    ),
    "evaluate": ("samples", "refine"),
    "interpolate": ("pairs", "samples"),
    "experiment table1": (*EXPERIMENT, "latent", "hidden", "batch", "learning_rate", "tracked"),
    "experiment pixels": ("epochs", "samples", "alpha", "least_scale"),  # others as those of table1
    "figures": (),
    "fit-pixels": ("sweeps", "samples", "alpha", "seed"),
}
OTHERS = {
    "train": (
        *("precision", "posterior", "edges", "prior", "objective", "split", "kl", "out", "data"),
        *("natural_gradient", *PIXEL_NAMES, "pixels"),
    ),
    "evaluate": ("part", "hide", "data"),
    "interpolate": ("data",),
    "experiment table1": ("precision", "split", "kl", "out", "data"),
    "experiment pixels": ("posterior", "out", "data", *PIXEL_NAMES),
    "figures": ("out", "data"),
    "fit-pixels": ("likelihood", "pixels", "split", "out", "data"),
}
LISTS = {  # after a good one, which is the last
    ("experiment table1", "models"): ("grid", "", "chain"),
    ("experiment pixels", "models"): ("grid", "", "diagonal"),
}
BAD = [
    *((command, f"--{name}={value}") for command in OPTIONS for name in OPTIONS[command] for value in NUMBERS[name]),
    *((command, f"--{name}={value}") for command in OTHERS for name in OTHERS[command] for value in NAMES[name]),
    *(
        (command, f"--{name}", str(values[-1]), str(value))
        for (command, name), values in LISTS.items()
        for value in values
    ),
]


@pytest.fixture
def run(few_digits: Images, tmp_path: Path) -> Path:
    """A run of one epoch."""
    assert main(["train", *SMALL, "--out", str(tmp_path / "run")]) == 0
    return tmp_path / "run"


def files_in(directory: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: " ".join(bad)[:60])
def test_a_bad_value_of_any_option_is_one_line_and_writes_nothing(
    bad: tuple[str, ...],
    few_digits: Images,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    command, *values = bad
    good = [] if command in OF_RUNS else ["--out", str(tmp_path / "out")]
    target = [str(tmp_path / "none")] if command in OF_RUNS else []
    assert main([*command.split(), *target, *good, *values]) == 2
    output, errors = capsys.readouterr()
    assert errors.startswith("sparseggm")
    assert errors.count("\n") == 1
    assert not output
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "content",
    [
        b"latent: [",
        b"latent: abc",
        b"nothing: 3",
        b"[1, 2]",
        b"abc",
        b"",
        b"out: [a]",
        b"seed: .nan",
        b"\xff\xfe\x00",
        b"a: &x [*x]",
        b"{{{{",
        b"learning_rate: .inf",
        b"config: nowhere.yaml",
        b"'\\0': 1",
        b'out: "a\\0b"',
    ],
    ids=repr,
)
def test_a_bad_file_of_options_is_one_line_and_writes_nothing(
    content: bytes, few_digits: Images, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "options.yaml"
    path.write_bytes(content)
    arguments = ["train", *SMALL, f"--config={path}"]
    assert main(arguments if b"out" in content else [*arguments, f"--out={tmp_path / 'out'}"]) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("sparseggm")
    assert errors.count("\n") == 1
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("command", ["train", "experiment table1", "figures", "fit-pixels"])
@pytest.mark.parametrize("place", ["file", "file/below", "/proc/sparseggm"])
def test_an_out_where_nothing_can_be_written_is_one_line(
    command: str, place: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("mine")
    capsys.readouterr()
    few = ["--latent=4", "--hidden=16", "--epochs=1"]
    arguments = {"figures": [str(run)], "fit-pixels": []}.get(command, few)
    assert main([*command.split(), *arguments, f"--out={tmp_path / place}"]) == 2
    errors = capsys.readouterr().err
    assert errors.startswith(f"sparseggm {command}: {tmp_path / place}: ")
    assert errors.count("\n") == 1
    assert (tmp_path / "file").read_text() == "mine"


COMMANDS: dict[str, list[str]] = {
    "train": ["--resume", "--config={run}/config.json"],
    "evaluate": ["{run}", "--samples=3"],
    "interpolate": ["{run}", "--samples=2", "--pairs=3"],
    "figures": ["{run}", "--out={other}"],
    "experiment table1": [*SMALL, "--models", "diagonal", "chain", "--samples=3", "--out={other}", "--resume"],
    "experiment pixels": [*SMALL, "--models", "diagonal", "extended-grid", "--samples=3", "--out={other}", "--resume"],
    "fit-pixels": ["--pixels=extended-grid", "--sweeps=2", "--samples=2", "--out={other}", "--resume"],
}


def arguments_of(command: str, run: Path) -> list[str]:
    return [*command.split(), *(text.format(run=run, other=run.parent / "other") for text in COMMANDS[command])]


def whole(path: Path) -> None:
    """Fail unless the file can be read to its end by whoever reads such files."""
    if path.suffix == ".json":
        json.loads(path.read_text())
    elif path.suffix == ".npz":
        with np.load(path) as arrays:
            dict(arrays)
    elif path.suffix == ".pt":
        load(path)
    elif path.suffix == ".png":
        assert path.read_bytes().endswith(b"IEND\xaeB`\x82")
    else:
        assert path.suffix in (".csv", ".md") or path.name == ".lock", path


@pytest.mark.parametrize("command", COMMANDS)
def test_a_disk_that_is_full_at_any_write_is_one_line_and_leaves_whole_files(
    command: str, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = run / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"epochs": 1}))
    if command == "train":  # begun, and stopped before its first epoch
        stop_before_training(run, monkeypatch)
    fsync, writes, status = os.fsync, 0, 2
    while status == 2:
        left = writes
        writes += 1 + writes // 3

        def limited(descriptor: int) -> None:
            nonlocal left
            if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
                left -= 1
                if left < 0:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            fsync(descriptor)

        capsys.readouterr()
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", limited)
            status = main(arguments_of(command, run))
        output, errors = capsys.readouterr()
        for path in run.parent.rglob("*"):
            assert path.is_dir() or not path.name.endswith(".tmp")
            if path.is_file():
                whole(path)
        if status == 2:
            assert errors.startswith(f"sparseggm {command}: ")
            assert "No space left on device" in errors
            assert errors.count("\n") == 1
            assert command != "evaluate" or "log p(x)" in output
    assert status == 0
    assert writes > 2
    history = json.loads((run / "history.json").read_text())["epochs"]
    assert history == load(run / "checkpoint.pt")["history"]
    assert len(history) == 1


def stop_before_training(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (run / "checkpoint.pt").unlink()
    with monkeypatch.context() as patch:
        patch.setattr(Training, "train_epoch", interrupting)
        assert main(["train", f"--config={run / 'config.json'}"]) == 128 + signal.SIGINT


def interrupting(self: Training, stop: StopRequest, *arguments: Any) -> None:
    self._interrupt(signal.SIGINT, 0.0)


@pytest.mark.parametrize("command", ["train", "figures", "experiment table1", "fit-pixels"])
def test_a_second_process_in_one_directory_is_refused(
    command: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = run if command == "train" else run.parent / "other"
    with only_process(directory):
        before = files_in(directory)
        capsys.readouterr()
        assert main(arguments_of(command, run)) == 2
        errors = capsys.readouterr().err
        expected = f"{directory}: process {os.getpid()} works there. Wait for it, or choose another --out."
        assert errors == f"sparseggm {command}: {expected}\n"
        assert files_in(directory) == before
    assert main(arguments_of(command, run)) == 0


def test_a_table_holds_the_directories_of_its_runs(run: Path) -> None:
    with only_process(run.parent / "other" / "seed-0" / "chain"):
        assert main(arguments_of("experiment table1", run)) == 2


def test_a_killed_process_releases_its_directory(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from sparseggm.vae.files.lock import only_process\n"
        "with only_process(Path(sys.argv[1])): print('in', flush=True); time.sleep(600)"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    process = subprocess.Popen(command, env=command_line()[1], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "in\n"
    with pytest.raises(RuntimeError, match=f"process {process.pid} works there"), only_process(tmp_path):
        pass
    process.kill()
    process.communicate()
    with only_process(tmp_path):
        assert (tmp_path / ".lock").read_text() == f"{os.getpid()}\n"


def test_a_table_is_refused_before_it_trains_if_any_of_its_runs_is_there(
    few_digits: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    table = [*TABLE1, *SMALL, "--models", "chain", "--samples=3", f"--out={tmp_path}"]
    assert main(table) == 0
    monkeypatch.setattr(Training, "__init__", lambda *arguments, **options: pytest.fail("a run began"))
    assert main([*table, "--seeds=2"]) == 2
    assert "seed-0/chain/checkpoint.pt: there is a run already" in capsys.readouterr().err
    assert main([*table, "--latent=5", "--resume", "--seeds=2"]) == 2
    assert "latent 4 (asked for: 5)" in capsys.readouterr().err


@pytest.mark.parametrize("command", [["train"], TABLE1])
def test_the_command_that_continues_is_quoted_for_a_shell(
    command: list[str],
    few_digits: Images,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "it's a $run; -x"
    models = ["--models", "chain", "--samples=3"] if command == TABLE1 else []
    with monkeypatch.context() as patch:
        patch.setattr(Training, "train_epoch", interrupting)
        assert main([*command, *SMALL, *models, f"--out={out}"]) == 130
    again = shlex.split(capsys.readouterr().err.split("Go on with: ")[1])
    assert again[: 1 + len(command)] == ["sparseggm", *command]
    assert main(again[1:]) == 0


def test_a_tilde_is_the_home_directory_in_every_option_that_is_a_path(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(run)
    (tmp_path / "options.yaml").write_text("out: ~/second\nepochs: 1\nhidden: 16\nlatent: 4\n")
    assert main(["train", "--config=~/options.yaml"]) == 0
    assert main(["train", *SMALL, "--out=~/third"]) == 0
    assert main(["evaluate", "~/third", "--samples=2"]) == 0
    assert main(["figures", "~/third", "~/second", "--out=~/pictures"]) == 0
    assert {path.name for path in tmp_path.iterdir()} >= {"second", "third", "pictures"}
    assert not (run / "~").exists()


def test_the_module_is_the_command_and_says_its_version() -> None:
    for command in ([sys.executable, "-m", "sparseggm", "--version"], [*command_line("--version")[0]]):
        done = subprocess.run(command, env=command_line()[1], cwd=ROOT, capture_output=True, text=True, check=True)
        assert done.stdout == f"sparseggm {__version__}\n"


@pytest.mark.parametrize(("device", "status"), [("/dev/full", 2), (None, 141)], ids=["full", "closed"])
def test_an_output_that_cannot_be_written_is_one_line_or_none(run: Path, device: str | None, status: int) -> None:
    """A disk that is full, and a pipe whose reader has gone."""
    command, environment = command_line("--version")
    code = "import sys; from sparseggm import cli; cli.run = lambda options: print(options); sys.exit(cli.main())"
    command = [sys.executable, "-c", code, "evaluate", str(run)]
    read, written = os.pipe()
    os.close(read)
    descriptor = os.open(device, os.O_WRONLY) if device else written
    done = subprocess.run(command, env=environment, stdout=descriptor, stderr=subprocess.PIPE, text=True, check=False)
    os.close(written)
    assert done.returncode == status
    assert done.stderr == ("sparseggm evaluate: output: No space left on device\n" if device else "")


def test_a_run_of_other_digits_is_not_evaluated(
    few_digits: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
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
