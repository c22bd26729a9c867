"""A lock that admits one process at a time to a directory of results."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from sparseggm.files import remove_leftovers
from sparseggm.vae.errors import BusyError

if sys.platform != "win32":  # Windows has no flock, so there is no lock there
    import fcntl

LOCK = ".lock"


@contextlib.contextmanager
def only_process(directory: Path) -> Iterator[None]:
    """Make the directory and hold its lock. The system releases the lock when the process ends, however it ends.

    The file `.lock` stays: if it were deleted, two processes could hold locks of two files of that name.

    Raises:
        BusyError: another process, or another thread, holds the lock.
        OSError: the directory cannot be made or written to, or its file system has no locks.
    """
    if directory.exists() and not directory.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, "needed a directory, got a file", str(directory))
    directory.mkdir(parents=True, exist_ok=True)
    with open(directory / LOCK, "a+") as file:
        if sys.platform != "win32":
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                file.seek(0)
                raise BusyError(
                    f"{directory}: process {file.read().strip()} works there. Wait for it, or choose another --out."
                ) from error
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        remove_leftovers(directory)
        yield
