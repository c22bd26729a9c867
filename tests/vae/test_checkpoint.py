"""A checkpoint is used only if it is whole, ours, and of the same recipe."""

from __future__ import annotations

import io
import os
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sparseggm.vae import CheckpointError, Config, Digits, Training, checkpoint, load_run


@pytest.fixture
def run(digits: Digits, recipe: Config, tmp_path: Path) -> Path:
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


@pytest.mark.parametrize("place", [0.01, 0.3, 0.6, 0.9])
def test_a_flipped_byte_is_found(run: Path, place: float) -> None:
    path = run / "checkpoint.pt"
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:  # padding between entries means nothing, so flip a byte of an entry
        entries = [entry for entry in archive.infolist() if entry.file_size > 100]
        entry = entries[int(place * len(entries))]
        with archive.open(entry) as file:
            start = content.index(file.read(64))
    content[start + 20] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"checkpoint\.pt: damaged checkpoint .*CRC"):
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


def test_resuming_another_recipe_names_what_differs(run: Path, digits: Digits, recipe: Config) -> None:
    with pytest.raises(CheckpointError, match=r"hidden 16 \(asked for: 20\); seed 0 \(asked for: 3\)\. Ask"):
        Training(replace(recipe, hidden=20, seed=3), digits, run, resume=True)
    with pytest.raises(CheckpointError, match=r"data '600 digits' \(asked for: 'others'\)"):
        Training(recipe, replace(digits, name="others"), run, resume=True)


def test_a_run_is_never_overwritten_by_a_new_one(run: Path, digits: Digits, recipe: Config) -> None:
    with pytest.raises(CheckpointError, match=r"there is a run already\. Add --resume"):
        Training(recipe, digits, run)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    checkpoint.write_atomically(path, lambda file: file.write(b"old"))

    def fail(file: io.BufferedIOBase) -> None:
        file.write(b"ne")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        checkpoint.write_atomically(path, fail)  # type: ignore[arg-type]
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]
