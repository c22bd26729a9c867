"""Files that are whole or absent: written aside, then moved into place at once; read only after their checksums fit."""

from __future__ import annotations

import contextlib
import json
import os
import stat
import struct
import uuid
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO

DAMAGE = (
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    EOFError,
    OSError,
    RuntimeError,
    struct.error,
    zipfile.BadZipFile,
)
"""The exceptions of zipfile, NumPy, torch and json for bytes that they cannot read."""

_ASIDE, _SUFFIX = ".sparseggm-", ".tmp"


def write_atomically(path: str | os.PathLike[str], write: Callable[[IO[bytes]], object]) -> None:
    """Let `write` fill a file that replaces `path` at once, or not at all.

    The content is on the disk before the file gets its name. A symbolic link stays, and its target is replaced;
    permission bits stay too. A device or a pipe cannot be replaced, so it is written to directly. Only a process that
    is killed while it writes leaves a file `.sparseggm-….tmp` behind, see `remove_leftovers`.

    Raises:
        OSError: that of the system, with `path` as its file name; an older file is untouched. A write-protected file is
            refused, although its directory would allow a replacement.
    """
    try:
        mode = _mode(path)
        if mode is not None and not stat.S_ISREG(mode):
            with open(path, "wb") as file:
                write(file)
        else:
            _replace(Path(os.path.realpath(os.fsdecode(path))), mode, write)
    except OSError as error:
        if error.errno is not None:  # else the message is its only argument
            error.filename, error.filename2 = os.fspath(path), None
        raise


def write_json(path: str | os.PathLike[str], content: object) -> None:
    """Write indented JSON atomically; a NaN is an error, because JSON has none."""
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    write_atomically(path, lambda file: file.write(text.encode()))


def remove_leftovers(directory: Path) -> None:
    """Delete the files that killed processes left behind. No other process may be writing into the directory."""
    for path in directory.glob(f"{_ASIDE}*{_SUFFIX}"):
        path.unlink(missing_ok=True)


def damage(file: IO[bytes]) -> str | None:
    """The reason why an open, uncompressed zip archive is damaged, or None; every entry is read, and its CRC compared.

    Other readers stop where the header inside an entry tells them to, often before the end, so they never see the CRC.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            compressed = [entry.filename for entry in archive.infolist() if entry.compress_type != zipfile.ZIP_STORED]
            wrong = f"{compressed[0]} is compressed" if compressed else archive.testzip()
    except DAMAGE as error:
        return f"{type(error).__name__}: {error}"
    finally:
        file.seek(0)
    return wrong if compressed or wrong is None else f"the CRC of {wrong} does not match"


def _mode(path: str | os.PathLike[str]) -> int | None:
    try:
        return os.stat(path).st_mode
    except FileNotFoundError:
        return None


def _replace(target: Path, mode: int | None, write: Callable[[IO[bytes]], object]) -> None:
    if mode is not None:
        os.close(os.open(target, os.O_WRONLY))  # raises where the file is write-protected
    # The name is short, however long the target's is, and unique: two processes may write the same file.
    aside = target.with_name(f"{_ASIDE}{uuid.uuid4().hex}{_SUFFIX}")
    try:
        with open(aside, "xb") as file:
            if mode is not None:
                os.chmod(aside, stat.S_IMODE(mode))
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, target)
    finally:
        aside.unlink(missing_ok=True)
    _sync_name(target.parent)


def _sync_name(directory: Path) -> None:
    """Ask that the new name survive a power cut. The file is in place already, so a refusal is not a failure."""
    with contextlib.suppress(OSError):
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
