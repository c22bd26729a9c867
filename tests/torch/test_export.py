"""`torch.export`: programs of heads hold numbers, not fakes, and run in a process that has built no topology."""

from __future__ import annotations

import base64
import re
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from torch.distributions import Independent, Normal, kl_divergence

import sparseggm as sg
from sparseggm import parametrize
from sparseggm.torch import ConvHead, FactorHead, GaussianGraphicalModel, LogitNormal, PrecisionHead, sample_and_kl
from sparseggm.torch.operators import portable
from tests.strategies import named_patterns
from tests.torch.exported import FEATURES, Wrapped

ROOT = Path(__file__).resolve().parents[2]


def everything(q):
    ones = torch.ones_like(q.loc)
    moments = q.mean, q.variance, q.entropy(), q.trace_covariance(), q.information_vector, q.precision
    return *moments, q.log_prob(ones), *q.rsample_and_log_prob(noise=ones), *sample_and_kl(q, noise=ones)


HEADS = {
    "factor": lambda: FactorHead(8, sg.ExtendedGrid(3, 5)),
    "factor, in an order": lambda: FactorHead(8, sg.Star(7)),
    "dominant": lambda: PrecisionHead(8, sg.Grid(2, 5), parametrize.dominant),
    "scaled": lambda: PrecisionHead(8, sg.Cycle(7), parametrize.scaled),
    "edge": lambda: PrecisionHead(8, sg.Torus(3, 3), parametrize.edge),
    "spectral": lambda: PrecisionHead(8, sg.Grid(2, 3), parametrize.spectral),
    "spectral, sparse": lambda: PrecisionHead(8, sg.Grid(9, 8), parametrize.spectral),
    "convolution": lambda: torch.nn.Sequential(torch.nn.Unflatten(-1, (1, 2, 4)), ConvHead(1, sg.ExtendedGrid(2, 4))),
}


def wrapped(name):
    torch.manual_seed(0)
    head = HEADS[name]()
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return Wrapped(head, everything)


# Every other head, strict and not in turn: both ways of each take minutes.
@pytest.mark.parametrize(("name", "strict"), [(name, i % 2 == 0) for i, name in enumerate([*HEADS][::2])])
def test_an_exported_head_gives_the_numbers_of_the_head(name, strict):
    module = wrapped(name)
    expected = module(FEATURES)  # derives what the topology needs
    found = torch.export.export(module, (FEATURES,), strict=strict).module()(FEATURES)
    assert {type(tensor) for tensor in found} == {torch.Tensor}
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)  # the operators' order of sums in float32


def test_every_program_runs_in_a_process_that_has_built_no_topology(tmp_path):
    expected = {}
    for name in ("factor", "dominant", "spectral", "convolution"):
        module, program = wrapped(name), tmp_path / f"{name}.pt2"
        expected[program] = module(FEATURES)
        torch.export.save(torch.export.export(module, (FEATURES,)), program)
    command = [sys.executable, "-m", "tests.torch.exported", str(tmp_path)]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    for program, results in expected.items():
        torch.testing.assert_close(torch.load(program.with_suffix(".results")), results, rtol=1e-5, atol=1e-5)


@given(named=named_patterns(of="precision"))
def test_a_pattern_comes_back_from_its_text(named):
    pattern = named[1]
    assert portable.from_text(portable.to_text(pattern)) is pattern


def test_the_text_of_a_lattice_is_short():
    assert len(portable.to_text(sg.Chain(100_000).factor_pattern)) < 4_000
    assert len(portable.to_text(sg.ExtendedGrid(28, 28).factor_pattern)) < 1_000


def _text(key, *numbers):
    return f"{key}:{base64.b64encode(zlib.compress(np.array(numbers, '<i4').tobytes())).decode()}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("abc:***", "not the text of a pattern"),
        ("abc:AAAA", "not the text of a pattern"),
        (_text("abc", 2, 1, 1, 0), "1 entries, but columns of 2 in all"),
        (_text("abc", 2, 1, 1, 0, 0), r"with key \w{32}, not abc"),
        (_text("abc", 2, 1, 1, 0, 5), "each column must start with its diagonal entry"),
        (_text("abc"), "n must be at least 1"),
        (_text("abc", -1), "n must be at least 1"),
    ],
)
def test_text_that_is_not_that_of_its_pattern_is_refused(text, message):
    with pytest.raises(sg.PatternError, match=message):
        portable.from_text(text)


def test_a_key_that_nothing_is_alive_for_says_what_to_do():
    with pytest.raises(sg.PatternError, match=re.escape("Build its topology first, and keep it.")):
        torch.ops.sparseggm.logdet("0" * 32, torch.ones(3), False)


TRACED = {
    "log_prob": lambda q: q.log_prob(torch.ones(4)),
    "entropy": lambda q: q.entropy(),
    "variance": lambda q: q.variance,
    "kl to Normal": lambda q: kl_divergence(q, STANDARD),
    "kl from Normal": lambda q: kl_divergence(STANDARD, q),
    "sample_and_kl": lambda q: sample_and_kl(q, noise=torch.ones(4))[0],
    "product": lambda q: q.product(q).loc,
    "LogitNormal": lambda q: LogitNormal(q).log_prob(torch.full((4,), 0.3)),
}
STANDARD = Independent(Normal(torch.zeros(4), torch.ones(4)), 1)


@pytest.mark.parametrize("name", TRACED)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own: `torch.jit.trace` itself is deprecated
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")  # sizes become constants where they are only compared
def test_a_trace_gives_the_numbers_of_eager_code_for_other_inputs_and_sizes(name):
    def answer(loc):
        return TRACED[name](GaussianGraphicalModel(loc, factor=torch.ones(7), topology=sg.Chain(4)))

    traced = torch.jit.trace(answer, (torch.zeros(3, 4),), check_trace=False)
    for count in (3, 5):
        loc = torch.linspace(-1.0, 1.0, 4 * count).reshape(count, 4)
        torch.testing.assert_close(traced(loc), answer(loc))
