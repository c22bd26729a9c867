"""What is never materialised: many samples of one Gaussian copy no factor and keep no gradient a sample."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

PEAK = """
import resource
import torch
import sparseggm as sg
from sparseggm.torch import ops

pattern = sg.BlockChain(8, 32).factor_pattern
factor = torch.full((pattern.nnz,), 0.01, dtype=torch.float64)
factor[torch.from_numpy(pattern.diagonal.astype("int64"))] = 1.0
factor.requires_grad_()

def step(samples):
    noise = torch.ones(samples, pattern.n, dtype=torch.float64, requires_grad=True)
    ops.solve_t(pattern, factor, noise).square().sum().backward()

def peak():
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

step(1)  # compiles the kernels
before = peak()
step(4000)
print(peak() - before, 4000 * pattern.n * 8, 4000 * pattern.nnz * 8)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in KiB on Linux, in other units elsewhere")
def test_many_samples_of_one_factor_need_the_memory_of_the_samples():
    """The peak of a whole process, 4,000 samples of 256 nodes: torch's memory and NumPy's."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.run([sys.executable, "-c", PEAK], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    growth, samples, factors = map(int, run.stdout.split())
    # noise, x, x², their cotangents and that of the noise: seven arrays of the samples at most, and some room
    assert growth < 8 * samples + 2**23
    assert 8 * samples + 2**23 < factors / 4  # so that a copy of the factors, or gradients a sample, would be seen
