"""Files of a run that survive a kill at any moment, and are trusted only after they were checked.

A checkpoint is what `torch.save` writes: a zip archive with a CRC of every entry. It is read with
`weights_only=True`, which builds tensors, numbers, text and containers and refuses any other object.
"""

from __future__ import annotations

import functools
import json
import os
import pickle
import zipfile
import zlib
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, Any

import torch

from sparseggm.vae.config import digest
from sparseggm.vae.errors import CheckpointError

FORMAT = 2
CHECKPOINT = "checkpoint.pt"


def write_atomically(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Let `write` fill a file that takes the place of `path` at once, or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")  # left by a kill, overwritten by the next write
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, content: object) -> None:
    """Write indented JSON atomically; a NaN is an error, for JSON has none."""
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    write_atomically(path, lambda file: file.write(text.encode()))


@functools.cache
def versions() -> dict[str, str]:
    """Versions that a result depends on."""
    found = {}
    for package in ("sparseggm", "torch", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # run from a source tree
            found[package] = "source tree"
    return found


def save(path: Path, identity: dict[str, str | int | float], state: Mapping[str, object]) -> None:
    """Write `state` with the identity it belongs to."""
    content = {"format": FORMAT, "identity": identity, "digest": digest(identity), "versions": versions(), **state}
    write_atomically(path, lambda file: torch.save(content, file))


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint that this library wrote.

    Raises:
        CheckpointError: missing, damaged, holding objects other than tensors and plain data, or of another format.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no checkpoint there. Name the directory given to --out of `sparseggm train`.")
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError) as error:
        raise _corrupt(path, str(error)) from error
    if damaged is not None:
        raise _corrupt(path, f"the CRC of {damaged} does not match")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{path}: refused: it holds objects other than tensors and plain data.") from error
    except (RuntimeError, ValueError, KeyError, EOFError) as error:
        raise _corrupt(path, f"torch.load: {error}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(f"{path}: needed a checkpoint of sparseggm, format {FORMAT}; got another file.")
    if digest(content["identity"]) != content["digest"]:
        raise _corrupt(path, "the digest of its configuration does not match")
    return content


def require_identity(path: Path, content: Mapping[str, Any], identity: dict[str, str | int | float]) -> None:
    """Raise unless the checkpoint belongs to this recipe and these data, naming what differs."""
    stored = content["identity"]
    differing = [
        f"{name} {stored.get(name)!r} (asked for: {identity.get(name)!r})"
        for name in sorted(stored.keys() | identity.keys())
        if stored.get(name) != identity.get(name)
    ]
    if differing:
        raise CheckpointError(
            f"{path}: belongs to another configuration: {'; '.join(differing)}. "
            "Ask for the same, or choose another --out."
        )


def _corrupt(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(f"{path}: damaged checkpoint ({reason}). Delete it to start again, or restore a copy.")
