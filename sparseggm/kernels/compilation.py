"""`njit` for kernels: Numba's, with a cache on disk that never stands in the way of a result.

Numba raises where it finds no folder to write to, does not read a folder that it may not write to, and raises on a
damaged file. Here compiled code is read from wherever it lies, kept wherever it can be, and compiled again if damaged.
"""

from __future__ import annotations

import hashlib
import pickle
import sys
import uuid
import warnings
from functools import cache
from pathlib import Path

import numba
from numba.core.caching import NullCache
from numba.core.compiler import CompileResult
from numba.core.compiler_lock import global_compiler_lock
from numba.core.dispatcher import Dispatcher
from numba.core.serialize import dumps
from numba.misc.appdirs import AppDirs

from sparseggm import forks

# A child forked while another thread compiles would wait for that thread forever, and find LLVM in a half-made state.
forks.wait_for(global_compiler_lock.acquire, global_compiler_lock.release)


def njit(**options):
    """`numba.njit` with the cache of this module."""

    def decorate(function):
        kernel = numba.njit(**options)(function)
        if isinstance(kernel, Dispatcher):  # not with NUMBA_DISABLE_JIT=1
            kernel._cache = KernelCache(function)
        return kernel

    return decorate


class KernelCache(NullCache):
    """The compiled code of one kernel: a file for each signature and processor, which begins with its digest."""

    def __init__(self, function):
        self.kernel = f"{function.__module__.removeprefix(__package__).lstrip('.')}.{function.__qualname__}"
        self.source = source_digest()

    def load_overload(self, sig, target_context):
        """The compiled code, or None where no folder holds an undamaged file of it."""
        target_context.refresh()
        name, identity = self._identify(sig, target_context.codegen())
        for folder in folders():
            try:
                content = (folder / name).read_bytes()
            except OSError:
                continue
            payload = content[hashlib.blake2b.MAX_DIGEST_SIZE :]
            if self.source and content == _sealed(identity, payload):
                return CompileResult._rebuild(target_context, *pickle.loads(payload))
        return None

    def save_overload(self, sig, data):
        """Keep compiled code in the first folder that can be written to; warn if there is none."""
        name, identity = self._identify(sig, data.codegen)
        content, failures = _sealed(identity, dumps(data._reduce())), []
        for folder in folders() if self.source else ():
            try:
                return _write(folder / name, content)
            except OSError as failure:
                failures.append(f"{folder}: {failure.strerror}")
        return _warn(", ".join(failures) or "the package has no source files to compare with")

    def _identify(self, sig, codegen):
        """The file's name, which does not depend on the source; and everything that the compiled code depends on."""
        target = repr((str(sig), codegen.magic_tuple(), sys.implementation.cache_tag))
        name = f"{self.kernel}.{hashlib.blake2b(target.encode(), digest_size=8).hexdigest()}.nbc"
        return name, f"{self.source} {numba.__version__} {target}".encode()


def folders():
    """The folders to search: NUMBA_CACHE_DIR if it is set; else beside the kernels, then in the user's cache."""
    here = Path(__file__).parent
    installation = f"sparseggm_{hashlib.blake2b(str(here).encode(), digest_size=8).hexdigest()}"
    if numba.config.CACHE_DIR:
        return [Path(numba.config.CACHE_DIR) / installation]
    users = Path(AppDirs("numba", appauthor=False).user_cache_dir)
    return [here / "__pycache__", *([users / installation] if users.is_absolute() else [])]  # "~/…" without a home


@cache
def source_digest(package=Path(__file__).parent):
    """Digest of all files of the package, since a kernel contains code of others. None where there are no files."""
    sources = [path.read_bytes() for path in sorted(package.rglob("*.py"))]
    return hashlib.blake2b(b"".join(sources)).hexdigest() if sources else None


def _sealed(identity, payload):
    return hashlib.blake2b(payload, key=hashlib.blake2b(identity).digest()).digest() + payload


def _write(path, content):
    """Write the whole file or nothing: other processes may read it, or write the same file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    try:
        part.write_bytes(content)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


@cache
def _warn(reason):
    """Warn once for each reason."""
    warnings.warn(
        f"sparseggm: compiled kernels cannot be kept ({reason}), so that each process compiles those it uses. "
        "Set NUMBA_CACHE_DIR to a folder that can be written to.",
        RuntimeWarning,
        stacklevel=2,
    )
