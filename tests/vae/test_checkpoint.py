"""A checkpoint is used only if it is whole, ours, and of the same recipe."""

from __future__ import annotations

import contextlib
import os
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sparseggm.vae import CheckpointError, Config, Images, Training, load_run
from sparseggm.vae.config import digest
from sparseggm.vae.files import checkpoint
from tests.vae.conftest import assert_same_numbers


@pytest.fixture
def run(digits: Images, recipe: Config, tmp_path: Path) -> Path:
    Training(recipe, digits, tmp_path / "run")
    return tmp_path / "run"


class Planted:
    """Unpickling it would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


def test_a_run_is_loaded_as_it_was_saved(run: Path, recipe: Config) -> None:
    config, vae, state = load_run(run)
    assert config == recipe
    assert all(torch.equal(weights, state["model"][name]) for name, weights in vae.named_parameters())


def test_a_missing_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"checkpoint\.pt: no checkpoint there"):
        load_run(tmp_path)


def damaged_places(path: Path, seed: int) -> Iterator[bytes]:
    """The file with one bit flipped: 200 places all over it, and 600 in its first entries and in its directory."""
    whole = path.read_bytes()
    random = np.random.default_rng(seed)
    with zipfile.ZipFile(path) as archive:
        first, directory = archive.infolist()[1].header_offset, archive.start_dir
    regions = [(0, len(whole), 200), (0, first, 200), (directory, len(whole), 400)]
    for start, stop, count in regions:
        for place in random.integers(start, stop, count):
            damaged = bytearray(whole)
            damaged[place] ^= 1 << int(random.integers(8))
            yield bytes(damaged)


def test_a_flipped_bit_anywhere_is_refused_or_means_nothing(run: Path) -> None:
    path = run / "checkpoint.pt"
    good, outcomes = checkpoint.load(path), []
    for content in damaged_places(path, seed=14):
        path.write_bytes(content)
        try:
            found = checkpoint.load(path)
        except CheckpointError:
            outcomes.append(False)
        else:
            assert_same_numbers(found, good)
            outcomes.append(True)
    assert 0 < sum(outcomes) < len(outcomes) / 2  # dates, attributes and padding


def changed(**parts: Any) -> Callable[[dict[str, Any]], object]:
    return lambda content: content.update(parts)


def within(entry: str, **parts: Any) -> Callable[[dict[str, Any]], object]:
    return lambda content: content[entry].update(parts)


def with_identity(**parts: Any) -> Callable[[dict[str, Any]], object]:
    """A recipe that was changed together with its digest."""

    def change(content: dict[str, Any]) -> None:
        content["identity"] = content["identity"] | parts
        content["digest"] = digest(content["identity"])

    return change


def with_moments(shape: tuple[int, ...]) -> Callable[[dict[str, Any]], object]:
    def change(content: dict[str, Any]) -> None:
        moments = {name: torch.zeros(shape) for name in ("exp_avg", "exp_avg_sq")}
        content["optimizer"]["state"] = {0: {"step": torch.tensor(1.0), **moments}}

    return change


VALUES: tuple[Any, ...] = (None, 3, 2.5, "text", [1], {1: 1}, torch.zeros(3))
CHANGES: dict[str, Callable[[dict[str, Any]], object]] = {
    **{f"no {name}": lambda content, name=name: content.pop(name) for name in checkpoint.ENTRIES},  # type: ignore[misc]
    **{
        f"{name} = {value!r}": changed(**{name: value})
        for name, kind in checkpoint.ENTRIES.items()
        for value in VALUES
        if not isinstance(value, kind)
    },
    "an empty identity": lambda content: content.update(identity={}, digest=digest({})),
    "an unknown posterior": with_identity(posterior="star"),
    "latent as text": with_identity(latent="4"),
    "another pattern": with_identity(factor_pattern="0" * 32),
    "another entry in the identity": with_identity(colour="red"),
    "data that is no text": with_identity(data=None),
    "an empty model": changed(model={}),
    "a model without a key": lambda content: content["model"].pop("decoder.0.bias"),
    "a model with another key": within("model", other=torch.zeros(1)),
    "weights of another shape": within("model", **{"decoder.0.bias": torch.zeros(3)}),
    "weights that are a number": within("model", **{"decoder.0.bias": 3.0}),
    "an empty optimizer": changed(optimizer={}),
    "an optimizer without groups": within("optimizer", param_groups=[]),
    "an optimizer of no groups": within("optimizer", param_groups=3),
    "moments of another shape": with_moments((3,)),
    "epoch 1 without a record": changed(epoch=1),
    "epoch −1": changed(epoch=-1, history=[]),
    "an epoch beyond the last": changed(epoch=10**20),
    "step −1": changed(step=-1),
    "a step beyond the last": changed(step=8),
    "sums of other steps": changed(sums=torch.zeros(3, 2)),
    "sums of no pairs": changed(sums=torch.tensor(1.0)),
    "records that are numbers": changed(epoch=1, history=[3]),
    "records without entries": changed(epoch=1, history=[{}]),
    "nothing tracked": changed(tracked={}),
    "a tracked number": within("tracked", loc=3.0),
    "a tracked mean of another shape": within("tracked", loc=torch.zeros(1, 3)),
    "another format": changed(format=checkpoint.FORMAT + 1),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_checkpoint_that_was_changed_is_refused_in_one_line(
    change: Callable[[dict[str, Any]], object], run: Path, digits: Images, recipe: Config
) -> None:
    path = run / "checkpoint.pt"
    content = checkpoint.load(path)
    change(content)
    torch.save(content, path)
    before = path.read_bytes()
    with pytest.raises(CheckpointError) as caught:
        Training(recipe, digits, run, resume=True)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == before
    with contextlib.suppress(CheckpointError):  # what only training needs is not asked for
        load_run(run)


OTHERS: tuple[Any, ...] = ({"format": 1}, {"format": checkpoint.FORMAT}, {}, [], None, 3, torch.zeros(3), "text")


@pytest.mark.parametrize("content", OTHERS, ids=repr)
def test_a_file_of_other_content_is_refused(content: Any, run: Path) -> None:
    torch.save(content, run / "checkpoint.pt")
    with pytest.raises(CheckpointError):
        load_run(run)


def test_an_archive_of_another_kind_is_refused(run: Path) -> None:
    np.savez(run / "checkpoint.npz", a=np.zeros(3))
    (run / "checkpoint.npz").rename(run / "checkpoint.pt")
    with pytest.raises(CheckpointError, match="damaged checkpoint"):
        load_run(run)


@pytest.mark.parametrize("size", [0, 1, 1000, -1])
def test_a_truncated_file_is_found(run: Path, size: int) -> None:
    path = run / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(CheckpointError, match="damaged checkpoint"):
        load_run(run)


@pytest.mark.parametrize("zipped", [True, False])
def test_pickled_objects_are_refused_and_never_built(run: Path, tmp_path: Path, zipped: bool) -> None:
    torch.save(
        {"format": 1, "model": Planted(tmp_path / "planted")},
        run / "checkpoint.pt",
        _use_new_zipfile_serialization=zipped,
    )
    with pytest.raises(CheckpointError, match=r"refused|damaged"):
        load_run(run)
    assert not (tmp_path / "planted").exists()


def test_a_file_of_someone_else_is_refused(run: Path) -> None:
    torch.save({"weights": torch.zeros(3)}, run / "checkpoint.pt")
    with pytest.raises(CheckpointError, match="needed a checkpoint of sparseggm"):
        load_run(run)


def test_a_changed_configuration_inside_a_checkpoint_is_found(run: Path) -> None:
    state = torch.load(run / "checkpoint.pt", weights_only=True)
    state["identity"]["learning_rate"] = 0.5
    torch.save(state, run / "checkpoint.pt")
    with pytest.raises(CheckpointError, match="digest of its configuration"):
        load_run(run)


def test_resuming_another_recipe_names_what_differs(run: Path, digits: Images, recipe: Config) -> None:
    with pytest.raises(CheckpointError, match=r"hidden 16 \(asked for: 20\); seed 0 \(asked for: 3\)\. Ask"):
        Training(replace(recipe, hidden=20, seed=3), digits, run, resume=True)
    with pytest.raises(CheckpointError, match=r"averaging 0\.0 \(asked for: 0\.9\)"):  # as it is by default
        Training(replace(recipe, averaging=0.9), digits, run, resume=True)
    with pytest.raises(CheckpointError, match=r"data '600 digits' \(asked for: 'others'\)"):
        Training(recipe, replace(digits, name="others"), run, resume=True)


def test_a_run_is_never_overwritten_by_a_new_one(run: Path, digits: Images, recipe: Config) -> None:
    with pytest.raises(CheckpointError, match=r"there is a run already\. Add --resume"):
        Training(recipe, digits, run)
