"""Where digits are looked for, what is refused, and what binarisation does."""

from __future__ import annotations

import gzip
import hashlib
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch

from sparseggm.vae import DataError, data, load_digits
from sparseggm.vae.randomness import binarize, generator

COUNTS = {data.TRAIN: 30, data.TEST: 7}


def idx_bytes(name: str) -> bytes:
    pixels = np.random.default_rng(len(name)).integers(0, 256, COUNTS[name] * 784, dtype=np.uint8)
    return b"\x00\x00\x08\x03".ljust(data.IDX_HEADER, b"\x00") + pixels.tobytes()


@pytest.fixture
def small_mnist(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A directory of made-up IDX files that stand for MNIST's."""
    for name in COUNTS:
        monkeypatch.setitem(data.COUNT, name, COUNTS[name])
        monkeypatch.setitem(data.SHA256, name, hashlib.sha256(idx_bytes(name)).hexdigest())
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(idx_bytes(name)))
    monkeypatch.delenv("SPARSEGGM_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


@pytest.fixture
def subset_reason(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Reasons for which the subset was asked for; it is not loaded."""
    reasons: list[str] = []
    monkeypatch.setattr(data, "_subset", reasons.append)
    return reasons


def test_a_directory_is_read_gzipped_or_not_and_with_or_without_mnist_in_its_name(small_mnist: Path) -> None:
    expected = load_digits(small_mnist).train
    inner = small_mnist / "elsewhere" / "mnist"
    inner.mkdir(parents=True)
    for name in COUNTS:
        (inner / name).write_bytes(idx_bytes(name))
    found = load_digits(small_mnist / "elsewhere")
    assert torch.equal(found.train, expected)
    assert found.train.shape == (30, 784)
    assert found.test.shape == (7, 784)
    assert str(small_mnist / "elsewhere") in found.notice


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("spelling", ["{}-images-idx3-ubyte", "{}-images.idx3-ubyte"])
@pytest.mark.parametrize("folder", [".", "mnist", "MNIST", "raw", "MNIST/raw"])
def test_the_files_are_found_as_others_name_and_place_them(
    folder: str, spelling: str, suffix: str, small_mnist: Path
) -> None:
    root = small_mnist / "root"
    (root / folder).mkdir(parents=True)
    for part, name in (("train", data.TRAIN), ("t10k", data.TEST)):
        content = gzip.compress(idx_bytes(name)) if suffix else idx_bytes(name)
        (root / folder / f"{spelling.format(part)}{suffix}").write_bytes(content)
    assert torch.equal(load_digits(root).train, load_digits(small_mnist).train)


def test_the_environment_may_name_the_home_directory(small_mnist: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(small_mnist.parent))
    monkeypatch.setenv("SPARSEGGM_DATA", f"~/{small_mnist.name}")
    assert "SPARSEGGM_DATA" in load_digits().notice


def test_the_environment_names_a_directory_and_the_option_wins(
    small_mnist: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPARSEGGM_DATA", str(small_mnist))
    assert "SPARSEGGM_DATA" in load_digits().notice
    assert "--data" in load_digits(small_mnist).notice


def test_a_missing_file_is_named(small_mnist: Path) -> None:
    (small_mnist / f"{data.TEST}.gz").unlink()
    with pytest.raises(DataError, match=r"--data: needed t10k-images-idx3-ubyte or .*\.gz in .*: not there"):
        load_digits(small_mnist)
    with pytest.raises(DataError, match="no such directory"):
        load_digits(small_mnist / "nowhere")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: gzip.compress(content)[:-400], "damaged gzip file"),
        (lambda content: b"<html>not found</html>", "damaged gzip file"),
        (lambda content: b"", "got 0: truncated"),
        (lambda content: gzip.compress(b""), "got 0: truncated"),
        (lambda content: gzip.compress(content)[:2000] + bytes(200) + gzip.compress(content)[2200:], "damaged gzip"),
        (lambda content: gzip.compress(content[:-1]), "got 5,503: truncated"),
        (lambda content: gzip.compress(content[:-1] + bytes([content[-1] ^ 1])), "got SHA-256"),
    ],
    ids=["truncated gzip", "no gzip", "empty", "empty gzip", "damaged gzip", "truncated", "wrong content"],
)
def test_a_damaged_file_is_named_with_what_was_expected(small_mnist: Path, damage, message: str) -> None:
    path = small_mnist / f"{data.TEST}.gz"
    path.write_bytes(damage(idx_bytes(data.TEST)))
    with pytest.raises(DataError, match=message) as caught:
        load_digits(small_mnist)
    assert str(path) in str(caught.value)
    assert "5,504 bytes" in str(caught.value)


@pytest.fixture
def mirror(small_mnist: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A local server of the made-up files, in place of MNIST's mirrors."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(small_mnist))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(data, "MIRRORS", (f"http://127.0.0.1:{server.server_port}/",))
        monkeypatch.delenv("SPARSEGGM_OFFLINE")
        yield small_mnist
        server.shutdown()


def test_a_download_is_verified_kept_in_the_cache_and_quiet(mirror: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert "downloaded into" in load_digits().notice
    assert "found in the cache" in load_digits().notice
    assert sorted(path.name for path in data.cache_directory().iterdir()) == sorted(f"{name}.gz" for name in COUNTS)
    assert capfd.readouterr() == ("", "")


def test_a_download_of_something_else_is_not_kept(mirror: Path, subset_reason: list[str]) -> None:
    for name in COUNTS:
        (mirror / f"{name}.gz").write_bytes(b"<html>please log in</html>")
    load_digits()
    assert subset_reason == ["the download failed with DataError"]
    assert not data.cache_directory().exists()


def test_without_a_network_the_subset_is_used(mirror: Path, subset_reason: list[str], monkeypatch) -> None:
    monkeypatch.setattr(data, "MIRRORS", ("http://127.0.0.1:9/",))
    load_digits()
    assert subset_reason == ["the download failed with ConnectionError"]
    monkeypatch.setenv("SPARSEGGM_OFFLINE", "1")
    load_digits()
    assert subset_reason[1] == "SPARSEGGM_OFFLINE=1 forbids the download"


def test_the_subset_is_shuffled_split_and_named(small_mnist: Path) -> None:
    subset = load_digits()
    assert [len(part) for part in (subset.train, subset.validation, subset.test)] == [4000, 500, 500]
    assert subset.name == "MNIST subset 4,000/500/500"
    assert "Full MNIST not found" in subset.notice
    assert "SPARSEGGM_DATA" in subset.notice
    assert torch.equal(subset.test, load_digits().test)


def test_held_out_digits_are_binarised_once_and_alike(small_mnist: Path) -> None:
    first, second = load_digits(small_mnist), load_digits(small_mnist)
    assert torch.equal(first.test, second.test)
    assert first.test.unique().tolist() == [0, 1]
    assert first.train.max() > 1


def test_binarisation_turns_a_pixel_on_with_its_intensity() -> None:
    intensities = torch.arange(256, dtype=torch.uint8).expand(20_000, 256)
    frequency = binarize(intensities, generator(0, "test")).mean(0)
    probability = torch.arange(256) / 255
    assert frequency[0] == 0.0
    assert frequency[255] == 1.0
    standard_error = (probability * (1 - probability) / 20_000).sqrt()
    assert ((frequency - probability).abs() <= 5 * standard_error).all()


def test_a_generator_is_a_function_of_its_purpose() -> None:
    def draw(*purpose: int | str) -> list[float]:
        return torch.rand(3, generator=generator(*purpose)).tolist()

    assert draw(0, "step", 1, 2) == draw(0, "step", 1, 2)
    assert len({tuple(draw(*purpose)) for purpose in [(0, "step", 1, 2), (0, "step", 12), (1, "step", 1, 2)]}) == 3


def test_a_gzip_file_damaged_anywhere_is_a_data_error(small_mnist: Path) -> None:
    path = small_mnist / f"{data.TEST}.gz"
    whole, random = path.read_bytes(), np.random.default_rng(16)
    expected = data.read_idx(path, data.TEST)
    for place in [*range(24), *random.integers(0, len(whole), 150), *range(len(whole) - 8, len(whole))]:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << int(random.integers(8))
        path.write_bytes(damaged)
        try:
            found = data.read_idx(path, data.TEST)
        except DataError:
            continue
        assert np.array_equal(found, expected)  # a flipped date
