"""Where images are looked for, what is refused, and what binarisation and dequantisation do."""

from __future__ import annotations

import gzip
import hashlib
import math
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch

from sparseggm.vae import DataError, data, load_images
from sparseggm.vae.likelihoods import Bernoulli, held_out
from sparseggm.vae.randomness import binarize, dequantized, generator

COUNTS = {data.TRAIN: 30, data.TEST: 7}


def idx_bytes(name: str) -> bytes:
    pixels = np.random.default_rng(len(name)).integers(0, 256, COUNTS[name] * 784, dtype=np.uint8)
    return data.IDX_HEADER.pack(data.IDX_IMAGES, COUNTS[name], 28, 28) + pixels.tobytes()


@pytest.fixture
def small_mnist(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A directory of made-up IDX files that stand for MNIST's."""
    for name in COUNTS:
        monkeypatch.setitem(data.MNIST_SHA256, name, hashlib.sha256(idx_bytes(name)).hexdigest())
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
    expected = load_images(small_mnist).train
    inner = small_mnist / "elsewhere" / "mnist"
    inner.mkdir(parents=True)
    for name in COUNTS:
        (inner / name).write_bytes(idx_bytes(name))
    found = load_images(small_mnist / "elsewhere")
    assert torch.equal(found.train, expected)
    assert found.name == "MNIST 25/5/7"
    assert found.train.shape == (25, 784)
    assert found.test.shape == (7, 784)
    assert str(small_mnist / "elsewhere") in found.notice


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("spelling", ["{}-images-idx3-ubyte", "{}-images.idx3-ubyte"])
@pytest.mark.parametrize("folder", data.FOLDERS)
def test_the_files_are_found_as_others_name_and_place_them(
    folder: str, spelling: str, suffix: str, small_mnist: Path
) -> None:
    root = small_mnist / "root"
    (root / folder).mkdir(parents=True)
    for part, name in (("train", data.TRAIN), ("t10k", data.TEST)):
        content = gzip.compress(idx_bytes(name)) if suffix else idx_bytes(name)
        (root / folder / f"{spelling.format(part)}{suffix}").write_bytes(content)
    assert torch.equal(load_images(root).train, load_images(small_mnist).train)


def test_the_environment_may_name_the_home_directory(small_mnist: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(small_mnist.parent))
    monkeypatch.setenv("SPARSEGGM_DATA", f"~/{small_mnist.name}")
    assert "SPARSEGGM_DATA" in load_images().notice


def test_the_environment_names_a_directory_and_the_option_wins(
    small_mnist: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPARSEGGM_DATA", str(small_mnist))
    assert "SPARSEGGM_DATA" in load_images().notice
    assert "--data" in load_images(small_mnist).notice


def test_a_missing_file_is_named(small_mnist: Path) -> None:
    (small_mnist / f"{data.TEST}.gz").unlink()
    with pytest.raises(DataError, match=r"--data: needed t10k-images-idx3-ubyte or .*\.gz in .*: not there"):
        load_images(small_mnist)
    with pytest.raises(DataError, match="no such directory"):
        load_images(small_mnist / "nowhere")


def header(*numbers: int) -> bytes:
    return data.IDX_HEADER.pack(*numbers)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: gzip.compress(content)[:-400], "damaged gzip file"),
        (lambda content: b"<html>not found</html>", "damaged gzip file"),
        (lambda content: b"", "16 bytes or more, got 0: truncated"),
        (lambda content: gzip.compress(b""), "16 bytes or more, got 0: truncated"),
        (lambda content: gzip.compress(content)[:2000] + bytes(200) + gzip.compress(content)[2200:], "damaged gzip"),
        (lambda content: gzip.compress(content[:-1]), "5,504 bytes for 7 images, got 5,503: truncated"),
        (lambda content: gzip.compress(content + b"x"), "5,504 bytes for 7 images, got 5,505: more than its header"),
        (lambda content: gzip.compress(header(0x801, 7, 28, 28) + content[16:]), "0x00000803, got 0x00000801: labels"),
        (lambda content: gzip.compress(header(0x803, 7, 14, 56) + content[16:]), "one or more, got 7 of 14 × 56"),
        (lambda content: gzip.compress(header(0x803, 0, 28, 28)), "one or more, got 0 of 28 × 28"),
        (lambda content: gzip.compress(header(0x803, 2**32 - 1, 28, 28)), "4,294,967,295 images, got 16: truncated"),
        (lambda content: gzip.compress(content[:-1] + bytes([content[-1] ^ 1])), "got SHA-256"),
    ],
    ids=[
        "truncated gzip",
        "no gzip",
        "empty",
        "empty gzip",
        "damaged gzip",
        "truncated",
        "too long",
        "labels",
        "another shape",
        "no image",
        "vast count",
        "one file of MNIST and one that is not",
    ],
)
def test_a_damaged_file_is_named_with_what_was_expected(small_mnist: Path, damage, message: str) -> None:
    path = small_mnist / f"{data.TEST}.gz"
    path.write_bytes(damage(idx_bytes(data.TEST)))
    with pytest.raises(DataError, match=message) as caught:
        load_images(small_mnist)
    assert str(caught.value).startswith(f"{path}: needed ")


def other_images(root: Path, count: int) -> Path:
    """A directory of IDX files that are not MNIST's, as torchvision lays out its own."""
    raw = root / "some-images" / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for name, images in ((data.TRAIN, count), (data.TEST, 3)):
        pixels = np.random.default_rng(images).integers(0, 256, images * 784, dtype=np.uint8)
        (raw / name).write_bytes(header(0x803, images, 28, 28) + pixels.tobytes())
    return root / "some-images"


def test_other_images_are_named_by_their_folder_and_content(small_mnist: Path) -> None:
    root = other_images(small_mnist, 1200)
    raw = root / "FashionMNIST" / "raw"
    digest = hashlib.sha256((raw / data.TRAIN).read_bytes() + (raw / data.TEST).read_bytes()).hexdigest()[:8]
    found = load_images(root)
    assert found.name == f"some-images {digest} 1k/200/3"
    assert "--data" in found.notice
    assert "not MNIST" in found.notice
    assert torch.equal(torch.cat((found.train, found.validation)), load_images(root, "60k").train)
    assert load_images(root, "60k").name == f"some-images {digest} 1,200/3"
    assert load_images(raw).name == f"raw {digest} 1k/200/3"


def test_other_images_in_the_cache_are_refused(small_mnist: Path) -> None:
    data.cache_directory().parent.mkdir(parents=True)
    other_images(small_mnist, 12).rename(data.cache_directory())
    with pytest.raises(DataError, match="needed MNIST's train-images-idx3-ubyte with SHA-256"):
        load_images()


def test_both_files_come_from_one_folder(small_mnist: Path) -> None:
    """One of MNIST's files is missing below `root`, where another data set is complete."""
    root = other_images(small_mnist, 12)
    (root / "MNIST" / "raw").mkdir(parents=True)
    (root / "MNIST" / "raw" / data.TRAIN).write_bytes(idx_bytes(data.TRAIN))
    assert load_images(root).name.startswith("some-images ")


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
    assert "downloaded into" in load_images().notice
    assert "found in the cache" in load_images().notice
    assert sorted(path.name for path in data.cache_directory().iterdir()) == sorted(f"{name}.gz" for name in COUNTS)
    assert capfd.readouterr() == ("", "")


def test_a_download_of_something_else_is_not_kept(mirror: Path, subset_reason: list[str]) -> None:
    for name in COUNTS:
        (mirror / f"{name}.gz").write_bytes(b"<html>please log in</html>")
    load_images()
    assert subset_reason == ["the download failed with DataError"]
    assert not data.cache_directory().exists()


def test_without_a_network_the_subset_is_used(mirror: Path, subset_reason: list[str], monkeypatch) -> None:
    monkeypatch.setattr(data, "MIRRORS", ("http://127.0.0.1:9/",))
    load_images()
    assert subset_reason == ["the download failed with ConnectionError"]
    monkeypatch.setenv("SPARSEGGM_OFFLINE", "1")
    load_images()
    assert subset_reason[1] == "SPARSEGGM_OFFLINE=1 forbids the download"


def test_the_subset_is_shuffled_split_and_named(small_mnist: Path) -> None:
    subset = load_images()
    assert [len(part) for part in (subset.train, subset.validation, subset.test)] == [4000, 500, 500]
    assert subset.name == "MNIST subset 4,000/500/500"
    assert "Full MNIST not found" in subset.notice
    assert "SPARSEGGM_DATA" in subset.notice
    assert torch.equal(subset.test, load_images().test)


def test_held_out_images_are_binarised_once_and_alike(small_mnist: Path) -> None:
    first, second = load_images(small_mnist), load_images(small_mnist)
    for part, grey in (("validation", first.validation), ("test", first.test)):
        ones = held_out(Bernoulli(), first, part)
        assert torch.equal(ones, held_out(Bernoulli(), second, part))
        assert ones.dtype == torch.float32
        assert ones.unique().tolist() == [0, 1]
        assert grey.max() > 1
        assert not ones[grey == 0].any()


def test_the_binarisation_of_the_subset_is_the_one_of_every_version(small_mnist: Path) -> None:
    """Digests of the first ten images, recorded when the loader binarised them itself."""
    subset = load_images()
    first_ten = {
        part: held_out(Bernoulli(), subset, part)[:10].byte().numpy().tobytes() for part in ("validation", "test")
    }
    assert {part: hashlib.sha256(content).hexdigest() for part, content in first_ten.items()} == {
        "validation": "2878b140019af2575bd73754f034e2cea7b74a630badc3aeb158437ebda5ce6e",
        "test": "5c50cdded690eced723f54ae9a436e9b5448111ee8dfa7df0c0b998d933bc564",
    }


def test_binarisation_turns_a_pixel_on_with_its_intensity() -> None:
    intensities = torch.arange(256, dtype=torch.uint8).expand(20_000, 256)
    frequency = binarize(intensities, generator(0, "test")).mean(0)
    probability = torch.arange(256) / 255
    assert frequency[0] == 0.0
    assert frequency[255] == 1.0
    standard_error = (probability * (1 - probability) / 20_000).sqrt()
    assert ((frequency - probability).abs() <= 5 * standard_error).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dequantisation_spreads_a_level_evenly_over_its_interval(dtype: torch.dtype) -> None:
    levels = torch.arange(256, dtype=torch.uint8).expand(2_000, 256)
    alpha = 1e-3
    numbers = dequantized(levels, generator(0, "test"), alpha, dtype)
    assert numbers.dtype == dtype
    assert numbers.min() >= alpha
    assert numbers.max() <= 1 - alpha
    place = (numbers.double() - alpha) / (1 - 2 * alpha) * 256 - levels
    rounding = 256 * 3 * torch.finfo(dtype).eps
    assert -rounding <= place.min() <= place.max() <= 1 + rounding
    # Of N uniform numbers the mean deviates by 1/√(12N), the mean square by √(4/45N).
    count = place.numel()
    assert abs(place.mean() - 1 / 2) <= 5 / math.sqrt(12 * count) + rounding
    assert abs(place.square().mean() - 1 / 3) <= 5 * math.sqrt(4 / 45 / count) + 2 * rounding


def test_dequantised_numbers_stay_inside_at_the_smallest_alpha_in_use() -> None:
    extremes = torch.tensor([0, 255], dtype=torch.uint8).expand(1_000_000, 2)
    numbers = dequantized(extremes, generator(1, "test"), 1e-6)
    assert numbers.min() > 0
    assert numbers.max() < 1


def test_a_generator_is_a_function_of_its_purpose() -> None:
    def draw(*purpose: int | str) -> list[float]:
        return torch.rand(3, generator=generator(*purpose)).tolist()

    assert draw(0, "step", 1, 2) == draw(0, "step", 1, 2)
    assert len({tuple(draw(*purpose)) for purpose in [(0, "step", 1, 2), (0, "step", 12), (1, "step", 1, 2)]}) == 3


def test_a_gzip_file_damaged_anywhere_is_a_data_error(small_mnist: Path) -> None:
    path = small_mnist / f"{data.TEST}.gz"
    whole, random = path.read_bytes(), np.random.default_rng(16)
    expected = data.read_idx(path)
    for place in [*range(24), *random.integers(0, len(whole), 150), *range(len(whole) - 8, len(whole))]:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << int(random.integers(8))
        path.write_bytes(damaged)
        try:
            found = data.read_idx(path)
        except DataError:
            continue
        assert found == expected  # a flipped date
