"""The page of results: its numbers are those of the files, its commands those that made them."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats

from sparseggm.cli import main, parser
from sparseggm.vae import GREY_PIXELS, TABLE1, CheckpointError, Config, Images, experiment, results
from sparseggm.vae.experiments import EXPERIMENTS
from sparseggm.vae.latents import latent_topology
from sparseggm.vae.results import claims, commands
from tests.vae.conftest import ROOT

STORED = ROOT / "docs" / "results"


@pytest.fixture
def folder(few_digits: Images, recipe: Config, tmp_path: Path) -> Path:
    recipe = replace(recipe, batch=80)
    experiment(TABLE1, recipe, tmp_path / "runs", ("diagonal", "chain"), seeds=2, epochs=1, samples=3)
    (tmp_path / "results").mkdir()
    shutil.copy(tmp_path / "runs" / "table1.json", tmp_path / "results" / "first.json")
    (tmp_path / "results" / "first.txt").write_text("What a person says.\n")
    (tmp_path / "results" / "first.png").write_bytes(b"")
    (tmp_path / "results" / "other.json").write_text('{"fit": 3}')
    return tmp_path / "results"


def test_the_page_has_the_command_the_table_the_text_and_the_picture(folder: Path) -> None:
    page = results(folder)
    assert page == folder.with_suffix(".md")
    text = page.read_text()
    assert (folder.parent / "runs" / "table1.md").read_text().strip() in text
    assert "\n## Table 1: first\n" in text
    assert "What a person says." in text
    assert "![Table 1](results/first.png)" in text
    assert re.search(r"4 runs: \d+ min of training and \d+ min of evaluation, 1 at once\.", text)
    assert "other" not in text


def only_command(content: dict[str, Any]) -> str:
    (command,) = commands(content)
    return command


def test_a_table_of_extended_runs_has_a_command_for_each_time() -> None:
    content = json.loads((STORED / "table1-300-epochs-full.json").read_text())
    first, *others = (line.split() for line in commands(content))
    assert first[first.index("--epochs") + 1] == "150"
    assert "--resume" not in first
    assert [(line[line.index("--epochs") + 1], line[-1]) for line in others] == [
        ("240", "--resume"),
        ("300", "--resume"),
    ]


def test_the_command_of_a_table_asks_for_what_was_asked(folder: Path, recipe: Config) -> None:
    content = json.loads((folder / "first.json").read_text())
    words = only_command(content).split()
    asked = parser().parse_args(words[1:]).experiment.table1
    assert (asked.models, asked.seeds, asked.epochs, asked.samples) == (["diagonal", "chain"], 2, 1, 3)
    assert (asked.latent, asked.hidden, asked.batch, asked.learning_rate) == (4, 16, 80, 3e-3)
    assert not {"--likelihood", "--jobs", "--hide", "--kl"} & set(words)


def test_the_command_of_an_experiment_leaves_out_its_own_defaults(
    few_digits: Images, recipe: Config, tmp_path: Path
) -> None:
    grey = replace(recipe, posterior="diagonal", likelihood="levels", learning_rate=2e-3, least_scale=0.2)
    experiment(GREY_PIXELS, grey, tmp_path, epochs=1, samples=2, hide="upper")
    line = only_command(json.loads((tmp_path / "pixels.json").read_text()))
    assert "--likelihood" not in line
    assert "--learning_rate" not in line
    assert line.endswith("--least_scale 0.2 --seeds 1 --epochs 1 --samples 2 --hide upper")
    parser().parse_args(line.split()[1:])


def row(model: str, gain: tuple[float, float]) -> dict[str, Any]:
    names = ("log_p", "elbo", "log_p_gain")
    return {
        "model": model,
        "seeds": (0, 1),
        **dict.fromkeys(names, (0.0, 0.0)),
        "elbo_gain": gain,
        "log_p_hidden": None,
        "log_p_hidden_gain": None,
        "seconds": 1.0,
        "seconds_ratio": 1.0,
    }


def test_a_claim_is_made_only_where_the_interval_does_not_hold_zero() -> None:
    gains = {"base": (0.0, 0.0), "better": (0.3, 0.2), "worse": (-0.3, 0.2), "unclear": (0.3, 0.4)}
    rows = [row(model, gain) for model, gain in gains.items()]
    assert claims({"rows": rows, "seeds": [0]}) == [
        "One seed: no claim about the models, only about these runs of them."
    ]
    said = claims({"experiment": "table1", "rows": rows, "seeds": [0, 1], "runs": []})
    assert said == [
        "better is 0.30 ± 0.20 nats above base in ELBO.",
        "worse is 0.30 ± 0.20 nats below base in ELBO.",
        "Not told apart: better and base (log p(x) +0.00 ± 0.00); worse and base (log p(x) +0.00 ± 0.00); "
        "unclear and base (ELBO +0.30 ± 0.40, log p(x) +0.00 ± 0.00).",
    ]


def test_seconds_of_different_versions_are_not_compared(folder: Path) -> None:
    path = folder / "first.json"
    assert "| ratio" in results(folder).read_text()
    content = json.loads(path.read_text())
    content["runs"][-1]["versions"]["torch"] = "2.0.0"
    path.write_text(json.dumps(content))
    page = results(folder).read_text()
    assert "ratio" not in page
    assert "evaluation, by several commands." in page
    assert "not compared, as the runs are of different versions of packages." in page


@pytest.mark.parametrize(
    ("words", "name", "model"),
    [
        ("chain", "chain", "chain"),
        ("regular grid, dominant family", "grids", "grid-dominant"),
        ("regular grid, spectral family", "grids", "grid-spectral"),
        ("extended grid", "", "extended-grid"),
        ("block chain", "full", "block-chain"),
        ("all correlations", "full", "full"),
    ],
)
def test_the_table_of_the_readme_is_that_of_the_results(words: str, name: str, model: str) -> None:
    content = json.loads((STORED / f"table1-150-epochs{'-' * bool(name)}{name}.json").read_text())
    (row,) = (row for row in content["rows"] if row["model"] == model)
    edges = len(latent_topology(model, 16).edges)
    gains = " | ".join("{:.2f} ± {:.2f}".format(*row[gain]).replace("-", "−") for gain in ("elbo_gain", "log_p_gain"))
    assert f"\n| {words} | {edges} | {len(row['seeds'])} | {gains} |\n" in (ROOT / "README.md").read_text()


def test_pairs_that_an_experiment_names_are_compared_too() -> None:
    content = json.loads((STORED / "layers-forty-epochs.json").read_text())
    elbo = {(run["model"], run["run"]["seed"]): run["elbo"] for run in content["runs"]}
    gains = [elbo["structured-potential", seed] - elbo["diagonal-potential", seed] for seed in content["seeds"]]
    half = scipy.stats.sem(gains) * scipy.stats.t(len(gains) - 1).ppf(0.975)
    assert half < -np.mean(gains)
    sentence = f"structured-potential is {-np.mean(gains):.2f} ± {half:.2f} nats below diagonal-potential in ELBO."
    assert claims(content).count(sentence) == 1


def test_pairs_are_of_models_that_there_are() -> None:
    for what in EXPERIMENTS.values():
        assert {name for pair in what.pairs for name in pair} <= what.models.keys()


def test_a_folder_without_results_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(CheckpointError, match="needed a folder with a JSON"):
        results(tmp_path)
    (tmp_path / "table1.json").write_text("{")
    assert main(["results", str(tmp_path)]) == 2
    assert "table1.json: not the JSON of an experiment (JSONDecodeError" in capsys.readouterr().err
    content = (STORED / "table1-first-look.json").read_text()
    (tmp_path / "table1.json").write_text(content.replace('"elbo": -', '"elbo": NaN, "before": -', 1))
    assert main(["results", str(tmp_path)]) == 2
    assert "table1.json: not the JSON of an experiment (ValueError: it holds NaN)" in capsys.readouterr().err


def test_a_page_has_the_whole_name_of_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "results-0.1"
    shutil.copytree(STORED, folder)
    assert results(folder) == tmp_path / "results-0.1.md"
    monkeypatch.chdir(folder)
    assert results(Path(".")) == tmp_path / "results-0.1.md"


def test_a_command_is_one_that_the_parser_takes() -> None:
    content = json.loads((STORED / "pixels-density.json").read_text())
    content["runs"][0]["run"]["layers"] = "8:chain 12:diagonal"
    del content["runs"][0]["run"]["likelihood"]  # as of a run with what is usual in `Config`
    said = only_command(content)
    assert "--layers '8:chain 12:diagonal'" in said
    assert "--likelihood bernoulli" in said


def test_the_page_in_docs_is_that_of_the_stored_results(tmp_path: Path) -> None:
    shutil.copytree(STORED, tmp_path / "results")
    assert results(tmp_path / "results").read_text() == STORED.with_suffix(".md").read_text()
