"""Real digits, few of them, and small recipes."""

from __future__ import annotations

import importlib
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sparseggm.vae import Config, Images, data, load_images
from sparseggm.vae.files.interrupt import SIGNALS

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True, scope="session")
def offline() -> Iterator[None]:
    """No test reaches for the network."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPARSEGGM_OFFLINE", "1")
        yield


@pytest.fixture(autouse=True, scope="session")
def heeded_signals() -> Iterator[None]:
    """As in a terminal, though the tests run in the background of a script, where some signals are ignored."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    for number, handler in before.items():
        if handler is signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def digits() -> Images:
    """600 real digits: of `$SPARSEGGM_DATA` where it is set, else of the subset."""
    found = load_images()
    return Images("600 digits", "600 digits.", found.train[:400], found.validation[:100], found.test[:100])


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory, digits: Images) -> Path:
    """The 600 digits as files, for processes."""
    directory = tmp_path_factory.mktemp("digits")
    for name, images in ((data.TRAIN, digits.train), (data.TEST, digits.test)):
        header = data.IDX_HEADER.pack(data.IDX_IMAGES, len(images), 28, 28)
        (directory / name).write_bytes(header + images.numpy().tobytes())
    return directory


@pytest.fixture
def few_digits(digits: Images, monkeypatch: pytest.MonkeyPatch) -> Images:
    """Let every command find the 600 digits."""
    for module in ("train", "evaluate", "experiments", "figures", "pixel_fit"):
        monkeypatch.setattr(
            importlib.import_module(f"sparseggm.vae.{module}"), "load_images", lambda data=None, split="50k": digits
        )
    return digits


@pytest.fixture
def recipe() -> Config:
    """Two epochs of eight steps of a small chain."""
    return Config(posterior="chain", latent=4, hidden=16, epochs=2, batch=50, learning_rate=3e-3)


def command_line(*arguments: object) -> tuple[list[str], dict[str, str]]:
    """Arguments and environment of a child process that runs the command from the source tree."""
    code = "import sys; from sparseggm.cli import main; sys.exit(main())"
    return [sys.executable, "-c", code, *map(str, arguments)], {**os.environ, "PYTHONPATH": str(ROOT)}


def assert_same_numbers(a: Any, b: Any) -> None:
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, np.ndarray):
        np.testing.assert_array_equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for name in a:
            assert_same_numbers(a[name], b[name])
    elif isinstance(a, list):
        assert len(a) == len(b)
        for left, right in zip(a, b, strict=True):
            assert_same_numbers(left, right)
    else:
        assert a == b
