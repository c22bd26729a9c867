"""Table 1 and the figures, in a setting that runs in seconds."""

from __future__ import annotations

import importlib
import json
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from sparseggm.vae import (
    POSTERIORS,
    TABLE1,
    CheckpointError,
    Config,
    ConfigError,
    Images,
    Interrupted,
    Training,
    chow_liu,
    experiment,
    figures,
    load_run,
    train,
)
from sparseggm.vae.figures import _plot_all as plot_all
from sparseggm.vae.files.checkpoint import load
from sparseggm.vae.files.interrupt import StopRequest
from sparseggm.vae.ladder import untrained
from sparseggm.vae.runs import load_runs

MODELS = ("diagonal", "chain", "extended-grid", "block-chain", "tree", "grid-spectral", "full")


@pytest.fixture
def table(few_digits: Images, recipe: Config, tmp_path: Path) -> Path:
    experiment(TABLE1, recipe, tmp_path, MODELS, epochs=2, samples=5)
    return tmp_path


def test_table1_shows_the_poster_beside_ours(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = json.loads((table / "table1.json").read_text())
    assert [row["model"] for row in content["rows"]] == list(MODELS)
    text = (table / "table1.md").read_text()
    assert "600 digits, 2 epochs, seeds 0, 100 test images, 5 samples" in text
    assert [line.split("|")[3].strip() for line in text.splitlines() if line.startswith("| ")][:4] == [
        "log p(x), published",
        "-89.2",
        "-89.1",
        "-88.8",
    ]
    first, second = content["rows"][:2]
    gain = second["elbo"][0] - first["elbo"][0]
    assert second["elbo_gain"][0] == pytest.approx(gain)
    per_digit = [np.load(table / "seed-0" / name / "evaluation.npz")["elbo"] for name in MODELS[:2]]
    difference = per_digit[1] - per_digit[0]
    assert second["elbo_gain"][1] == pytest.approx(stats.t.ppf(0.975, 99) * difference.std(ddof=1) / 10)


def test_several_seeds_give_the_spread_over_seeds(few_digits: Images, recipe: Config, tmp_path: Path) -> None:
    rows = experiment(TABLE1, recipe, tmp_path, ("diagonal", "chain"), seeds=3, epochs=1, samples=3)
    runs = [json.loads((tmp_path / f"seed-{s}" / "chain" / "evaluation.json").read_text()) for s in range(3)]
    elbo = np.array([run["elbo"] for run in runs])
    assert rows[1].elbo == pytest.approx((elbo.mean(), elbo.std(ddof=1) / np.sqrt(3)))


def test_models_in_turns_have_the_numbers_of_models_alone(table: Path, few_digits: Images, recipe: Config) -> None:
    alone = Training(recipe, few_digits, table / "alone")
    while not alone.finished:
        alone.train_epoch(StopRequest())
    in_turns = load(table / "seed-0" / "chain" / "checkpoint.pt")["history"]
    assert [record.elbo for record in alone.history] == [record["elbo"] for record in in_turns]


def test_an_interrupted_table_goes_on_where_it_stopped(
    few_digits: Images, recipe: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = experiment(TABLE1, recipe, tmp_path / "whole", ("diagonal", "chain"), epochs=2, samples=3)
    train_epoch = Training.train_epoch

    def interrupted(self: Training, stop: StopRequest, *arguments: Any) -> Any:
        if self.config.posterior == "chain" and self.epoch == 1:
            stop.signal = signal.SIGINT
        return train_epoch(self, stop, *arguments)

    monkeypatch.setattr(Training, "train_epoch", interrupted)
    with pytest.raises(Interrupted):
        experiment(TABLE1, recipe, tmp_path / "stopped", ("diagonal", "chain"), epochs=2, samples=3)
    monkeypatch.setattr(Training, "train_epoch", train_epoch)
    resumed = experiment(TABLE1, recipe, tmp_path / "stopped", ("diagonal", "chain"), epochs=2, samples=3, resume=True)
    assert [(row.elbo, row.log_p) for row in resumed] == [(row.elbo, row.log_p) for row in whole]


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_chow_liu_tree_is_that_of_the_full_run_of_its_seed(
    jobs: int, folder: Path, recipe: Config, tmp_path: Path
) -> None:
    models = ("diagonal", "chow-liu-tree", "full")
    rows = experiment(TABLE1, recipe, tmp_path, models, epochs=1, samples=3, jobs=jobs, data=folder)
    assert [row.model for row in rows] == list(models)
    config, _, state = load_run(tmp_path / "seed-0" / "chow-liu-tree")
    assert config.posterior == "tree"
    assert config.edges == chow_liu(tmp_path / "seed-0" / "full", folder)
    assert state["epoch"] == 1
    again = experiment(TABLE1, recipe, tmp_path, models, epochs=1, samples=3, data=folder, resume=True)
    assert [row.elbo for row in again] == [row.elbo for row in rows]
    with pytest.raises(CheckpointError, match=r"chow-liu-tree.* there is a run already"):
        experiment(TABLE1, recipe, tmp_path, ("chow-liu-tree", "full"), epochs=1, samples=3, data=folder)


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_chow_liu_tree_keeps_its_edges_when_its_table_is_extended(
    jobs: int, folder: Path, recipe: Config, tmp_path: Path
) -> None:
    """Even where those of the full run, which is trained for longer too, would be others by then."""
    models, run = ("full", "chow-liu-tree"), tmp_path / "seed-0" / "chow-liu-tree"
    experiment(TABLE1, recipe, tmp_path, models, epochs=1, samples=3, data=folder)
    edges = load_run(run)[0].edges
    experiment(TABLE1, recipe, tmp_path, models, epochs=9, samples=3, jobs=jobs, data=folder, resume=True)
    config, _, state = load_run(run)
    assert (config.edges, state["epoch"]) == (edges, 9)
    assert edges != chow_liu(tmp_path / "seed-0" / "full", folder)


def test_extended_runs_are_not_compared_with_others(few_digits: Images, recipe: Config, tmp_path: Path) -> None:
    experiment(TABLE1, recipe, tmp_path, ("diagonal",), epochs=1, samples=3)
    wanted = "seed 0 diagonal, extended after 1 epochs, and seed 0 chain, trained at once, cannot be compared"
    with pytest.raises(CheckpointError, match=wanted):
        experiment(TABLE1, recipe, tmp_path, ("diagonal", "chain"), epochs=2, samples=3, resume=True)
    assert {path.name for path in (tmp_path / "seed-0").iterdir()} == {"diagonal"}
    assert load_run(tmp_path / "seed-0" / "diagonal")[2]["epoch"] == 1


@pytest.mark.parametrize(
    ("name", "content"),
    [("evaluation.npz", None), ("evaluation.npz", b"no arrays"), ("evaluation.json", b"[]"), ("evaluation.json", b"{")],
    ids=["of another evaluation", "no arrays", "a list", "cut off"],
)
def test_a_table_of_one_seed_is_made_of_whole_evaluations(
    name: str, content: bytes | None, few_digits: Images, recipe: Config, tmp_path: Path
) -> None:
    """A process that is stopped between the two files leaves the older one of the second."""
    models, file = ("diagonal", "chain"), tmp_path / "seed-0" / "chain" / name
    experiment(TABLE1, recipe, tmp_path, models, epochs=1, samples=3)
    older = file.read_bytes()
    rows = experiment(TABLE1, recipe, tmp_path, models, epochs=1, samples=9, resume=True)
    file.write_bytes(older if content is None else content)
    again = experiment(TABLE1, recipe, tmp_path, models, epochs=1, samples=9, resume=True)
    assert [(row.log_p, row.log_p_gain) for row in again] == [(row.log_p, row.log_p_gain) for row in rows]


def test_titles_name_the_images_that_runs_recorded(few_digits: Images, recipe: Config, tmp_path: Path) -> None:
    folders = [tmp_path / str(tracked) for tracked in (0, 1)]
    for tracked, out in enumerate(folders):
        train(replace(recipe, tracked=tracked, epochs=1, seed=tracked), out)
    one, two = (plot_all(load_runs(some), few_digits) for some in (folders[1:], folders))
    titles = [[plotted[name].get_suptitle() for name in ("figure5", "fisher-length")] for plotted in (one, two)]
    assert titles == [
        ["Mean of the posterior of test image 1", "How far the posterior of test image 1 moves while it is trained"],
        [
            "Mean of the posterior of test images 0, 1",
            "How far the posterior of test images 0, 1 moves while it is trained",
        ],
    ]


def test_a_chow_liu_tree_needs_the_full_model_beside_it(few_digits: Images, recipe: Config, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the model chow-liu-tree needs the model full beside it"):
        experiment(TABLE1, recipe, tmp_path, ("diagonal", "chow-liu-tree"), epochs=1, samples=3)
    assert not list(tmp_path.iterdir())


def test_a_wide_diagonal_has_the_weights_of_the_extended_grid() -> None:
    sizes = {}
    for name in ("wide-diagonal", "extended-grid"):
        vae = untrained(Config(**TABLE1.models[name]))
        sizes[name] = sum(parameter.numel() for parameter in vae.parameters())
    assert 0 <= sizes["wide-diagonal"] - sizes["extended-grid"] < 200  # less than another unit would add


def test_the_figures_are_pictures_with_their_origin_beside_them(table: Path) -> None:
    pictures = figures([table])
    assert {path.name for path in pictures} == {
        "topologies.png",
        "figure4.png",
        "figure5.png",
        "curves.png",
        "fisher-length.png",
        "samples.png",
        "between.png",
        "reconstructions.png",
        "diagnostics.png",
    }
    for path in pictures:
        assert path.read_bytes().startswith(b"\x89PNG")
        origin = json.loads(path.with_suffix(".json").read_text())
        assert [run["posterior"] for run in origin["runs"]] == sorted(MODELS, key=POSTERIORS.index)
        assert origin["runs"][0]["seed"] == 0
        assert "torch" in origin["plotted_with"]


def test_figures_show_every_recipe_once_whatever_its_seed(few_digits: Images, recipe: Config, tmp_path: Path) -> None:
    """A wider encoder is another recipe of the same graph, told apart by its folder."""
    for folder, changes in {"a": {}, "again": {"seed": 1}, "wide": {"encoder_hidden": 20}}.items():
        train(replace(recipe, posterior="diagonal", epochs=1, **changes), tmp_path / folder)
    assert [run.name for run in load_runs([tmp_path])] == ["diagonal (a)", "diagonal (wide)"]
    assert [run.name for run in load_runs([tmp_path / "wide"])] == ["diagonal"]


@pytest.mark.parametrize("count", [1, 3])
def test_figures_of_few_test_images_show_those_there_are(
    count: int, digits: Images, recipe: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = replace(digits, test=digits.test[:count])
    for module in ("train", "evaluate", "figures"):
        monkeypatch.setattr(importlib.import_module(f"sparseggm.vae.{module}"), "load_images", lambda *_: few)
    train(replace(recipe, epochs=1), tmp_path)
    assert ("between" in {path.stem for path in figures([tmp_path])}) == (count > 1)


def test_figures_need_a_run(tmp_path: Path, few_digits: Images) -> None:
    with pytest.raises(CheckpointError, match="needed a run"):
        figures([tmp_path])


def test_a_diagonal_run_alone_has_no_figure_of_its_factor(few_digits: Images, recipe: Config, tmp_path: Path) -> None:
    Training(replace(recipe, posterior="diagonal"), few_digits, tmp_path / "run")
    assert "figure4.png" not in {path.name for path in figures([tmp_path / "run"])}
