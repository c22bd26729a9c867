"""10,000 draws from one 64 × 64 grid: the memory that they, their densities and their gradients need."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="the high-water mark of memory can only be reset on Linux"
)


@pytest.fixture(scope="module")
def peaks() -> dict[str, float]:
    """Of every case, in units of the samples."""
    command = [sys.executable, "-m", "tests.torch.peak_memory"]
    return json.loads(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout)


@pytest.mark.parametrize(
    ("case", "limit"),
    [
        ("draw-and-backward", 1.2),
        ("draw-and-backward, reordered", 1.2),
        ("draw-with-log-prob", 2.1),  # the noise, and the samples
        ("draw-with-log-prob, reordered", 2.1),
        ("draw-log-prob-and-backward", 2.2),  # the samples, and their cotangent
    ],
)
def test_memory_is_that_of_the_samples(peaks, case, limit):
    """In units of the samples, themselves included: scratch is a few blocks of 4 MB, a tenth of the 164 MB."""
    assert peaks[case] <= limit
