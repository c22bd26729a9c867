"""The checkpoint of a run, used only after checks of its content; `sparseggm.files` writes it.

A checkpoint is a file of `torch.save`: a zip archive with a CRC of every entry. It is read with
`weights_only=True`, which builds tensors, numbers, text and containers and refuses any other object.
"""

from __future__ import annotations

import contextlib
import functools
import io
import pickle
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from sparseggm.files import DAMAGE, damage, write_atomically
from sparseggm.vae.config import Config, digest
from sparseggm.vae.errors import CheckpointError

Identity = dict[str, str | int | float]

FORMAT = 2
EXTENDED = "extended"
CHECKPOINT = "checkpoint.pt"
ENTRIES: dict[str, type] = {
    "identity": dict,
    "digest": str,
    "versions": dict,
    "model": dict,
    "optimizer": dict,
    "epoch": int,
    "step": int,
    "seconds": float,
    "sums": torch.Tensor,
    "history": list,
    "tracked": dict,
}


@functools.cache
def versions() -> dict[str, str]:
    """The versions of packages on which a result depends."""
    found = {}
    for package in ("sparseggm", "torch", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # run from a source tree
            found[package] = "source tree"
    return found


def save(path: Path, identity: Identity, state: Mapping[str, object]) -> None:
    """Write `state` with the identity it belongs to."""
    content = {"format": FORMAT, "identity": identity, "digest": digest(identity), "versions": versions(), **state}
    # Serialised in memory first: on a full disk, torch's writer would raise a RuntimeError of its own.
    serialized = io.BytesIO()
    torch.save(content, serialized)
    write_atomically(path, lambda file: file.write(serialized.getbuffer()))


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint that this library wrote.

    Raises:
        CheckpointError: the file is missing or damaged, holds objects other than tensors and plain data, has another
            format, or lacks an entry of `ENTRIES`.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no checkpoint there. Name the directory given to --out of `sparseggm train`.")
    with open(path, "rb") as file:
        if (reason := damage(file)) is not None:
            raise corrupt(path, reason)
        try:
            content = torch.load(file, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            raise CheckpointError(f"{path}: refused: it holds objects other than tensors and plain data.") from error
        except DAMAGE as error:
            raise corrupt(path, f"torch.load: {error}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(f"{path}: needed a checkpoint of sparseggm, format {FORMAT}; got another file.")
    for name, kind in ENTRIES.items():
        if not isinstance(content.get(name), kind):
            raise corrupt(path, f"its {name} should be a {kind.__name__}, got {type(content.get(name)).__name__}")
    with restoring(path):
        matches = digest(content["identity"]) == content["digest"]
    if not matches:
        raise corrupt(path, "the digest of its configuration does not match")
    return content


@contextlib.contextmanager
def restoring(path: Path, failed: Callable[[Path, str], CheckpointError] | None = None) -> Iterator[None]:
    """While entered, turn errors of other code, from content of a wrong kind or shape, into a CheckpointError.

    Args:
        failed: makes that error, of the path and a reason; None: `corrupt`.
    """
    try:
        yield
    except CheckpointError:
        raise
    except DAMAGE as error:
        raise (failed or corrupt)(path, f"{type(error).__name__}: {error}") from error


def continued(path: Path, content: Mapping[str, Any], identity: Identity) -> Identity:
    """The identity of the run that goes on from this checkpoint.

    More epochs than a finished run has extend it. Its rates were those of fewer epochs, so it is another run than one
    of as many epochs from the start: the former numbers stay in the identity, under `extended`.

    Raises:
        CheckpointError: it belongs to another recipe or other data; the error names the differences.
    """
    stored = dict(content["identity"])
    before = str(stored.pop(EXTENDED, ""))
    epochs = stored.get("epochs")
    if epochs == content["epoch"] < int(identity["epochs"]):
        before, stored["epochs"] = f"{before} {epochs}".strip(), identity["epochs"]
    elif isinstance(epochs, int) and epochs < int(identity["epochs"]) and {**identity, "epochs": epochs} == stored:
        raise CheckpointError(
            f"{path}: belongs to another configuration: epochs {epochs} (asked for: {identity['epochs']}), of which "
            f"{content['epoch']} are done. Finish it with --epochs {epochs}; a finished run goes on with more."
        )
    require_identity(path, stored, identity)
    return {**identity, EXTENDED: before} if before else identity


def require_identity(path: Path, stored: Identity, identity: Identity) -> None:
    """Raise unless a file of this identity belongs to this recipe and these data; the error names the differences."""
    names = [name for name in sorted(stored.keys() | identity.keys()) if stored.get(name) != identity.get(name)]
    usual = {name: getattr(Config, name, None) for name in names}  # of what an identity leaves out
    differing = [
        f"{name} {stored.get(name, usual[name])!r} (asked for: {identity.get(name, usual[name])!r})" for name in names
    ]
    if differing:
        raise CheckpointError(
            f"{path}: belongs to another configuration: {'; '.join(differing)}. "
            "Ask for the same, or choose another --out."
        )


def require_history(path: Path, content: Mapping[str, Any], config: Config) -> None:
    """Raise unless there is a record of every epoch, and a tracked posterior before the first and after each."""
    epoch, tracked = content["epoch"], content["tracked"]
    entries = sum(topology.factor_pattern.nnz for topology in config.posterior_topologies)
    sizes = {"loc": config.latents, "factor": entries}
    found = {name: tuple(tracked[name].shape) for name in sizes}
    needed = {name: (epoch + 1, size) for name, size in sizes.items()}
    if not 0 <= epoch <= config.epochs or len(content["history"]) != epoch or found != needed:
        raise corrupt(path, f"{len(content['history'])} records and tracked {found} after {epoch} epochs")


def corrupt(path: Path, reason: str) -> CheckpointError:
    """The error of a checkpoint that cannot be used, in one line."""
    reason = " ".join(reason.split())
    return CheckpointError(f"{path}: damaged checkpoint ({reason}). Delete it to start again, or restore a copy.")
