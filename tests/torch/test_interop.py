"""Beside the rest of PyTorch: pickles, checkpoints, workers, autocast, determinism, other devices."""

from __future__ import annotations

import copy
import io
import pickle
import subprocess
import sys

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

import sparseggm as sg
from sparseggm import parametrize, threads
from sparseggm.torch import ConvHead, FactorHead, GaussianGraphicalModel, PrecisionHead, ops, sample_and_kl
from tests.torch.problems import factor, vectors

HEADS = [
    lambda: FactorHead(3, sg.ExtendedGrid(2, 3)),
    lambda: PrecisionHead(3, sg.Grid(2, 3), parametrize.spectral),
    lambda: ConvHead(3, sg.ExtendedGrid(2, 3)),
]
every_head = pytest.mark.parametrize("make", HEADS, ids=["FactorHead", "PrecisionHead", "ConvHead"])


def features_of(head: torch.nn.Module) -> torch.Tensor:
    shape = (4, 3, 2, 3) if isinstance(head, ConvHead) else (4, 3)
    return torch.linspace(-1.0, 1.0, 12 if len(shape) == 2 else 72).reshape(shape)


def stir(head: torch.nn.Module) -> None:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))


@every_head
@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda head: pickle.loads(pickle.dumps(head))], ids=["copy", "pickle"]
)
def test_a_head_is_copied_and_pickled(make, copied):
    head = make()
    stir(head)
    other = copied(head)
    features = features_of(head)
    assert torch.equal(other(features).variance, head(features).variance)
    assert other.topology.factor_pattern is head.topology.factor_pattern


@every_head
def test_a_checkpoint_loads_with_weights_only(make):
    head, other, file = make(), make(), io.BytesIO()
    stir(head)
    torch.save(head.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(other(features_of(head)).loc, head(features_of(head)).loc)


@pytest.mark.parametrize(
    "make", [lambda q: copy.deepcopy(q), lambda q: pickle.loads(pickle.dumps(q))], ids=["copy", "pickle"]
)
def test_a_distribution_is_copied_and_pickled(make):
    pattern = sg.Chain(4).factor_pattern
    q = GaussianGraphicalModel(vectors(4, 2).detach(), factor=factor(pattern, 2).detach(), topology=sg.Chain(4))
    x = torch.ones(2, 4, dtype=torch.float64)
    assert torch.equal(make(q).log_prob(x), q.log_prob(x))


class Draws(Dataset):
    """Its items are computed by our operators, in the worker."""

    topology = sg.Grid(3, 3)

    def __len__(self) -> int:
        return 4

    def __getitem__(self, i: int) -> torch.Tensor:
        pattern = self.topology.precision_pattern
        values = torch.zeros(pattern.nnz, dtype=torch.float64)
        values[torch.tensor(pattern.diagonal.copy())] = 1.0 + i
        lower = ops.cholesky(pattern, values)
        return ops.solve_t(pattern.filled(), lower, torch.ones(9, dtype=torch.float64))


@pytest.mark.parametrize("context", ["fork", "spawn"])
# Threads are at work in the parent, which is what is tested here; Python warns of any fork beside threads.
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork:DeprecationWarning")
def test_workers_of_a_data_loader_may_call_the_operators(context):
    pattern = sg.Chain(256).factor_pattern
    ops.solve_t(
        pattern, factor(pattern, 4096).detach(), torch.ones(4096, 256, dtype=torch.float64)
    )  # wakes our threads
    loader = DataLoader(Draws(), batch_size=2, num_workers=2, multiprocessing_context=context)
    expected = torch.stack([Draws()[i] for i in range(4)])
    assert torch.equal(torch.cat(list(loader)), expected)


class Threads(Dataset):
    def __len__(self) -> int:
        return 2

    def __getitem__(self, i: int) -> int:
        return sg.get_num_threads()


@pytest.mark.parametrize("context", ["fork", "spawn"])
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork:DeprecationWarning")
def test_a_worker_of_a_data_loader_uses_the_one_thread_that_torch_gives_it(context):
    sg.set_num_threads(3)
    try:
        loader = DataLoader(Threads(), num_workers=1, multiprocessing_context=context)
        assert torch.cat(list(loader)).tolist() == [1, 1]
        assert sg.get_num_threads() == 3
    finally:
        sg.set_num_threads(None)


def test_the_number_of_threads_of_torch_is_ours(monkeypatch):
    monkeypatch.setattr(threads, "_cores", lambda: 8)
    before = torch.get_num_threads()
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            assert sg.get_num_threads() == count
    finally:
        torch.set_num_threads(before)


@every_head
def test_under_autocast_the_gaussian_is_float32(make):
    head = make()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        q = head(features_of(head))
        z, kl = sample_and_kl(q)
        loss = z.square().sum() + kl.sum()
    loss.backward()
    assert q.loc.dtype == z.dtype == kl.dtype == torch.float32
    assert all(parameter.grad is not None for parameter in head.parameters())


@every_head
def test_in_double_everything_is(make):
    head = make().double()
    assert head(features_of(head).double()).variance.dtype == torch.float64


@every_head
def test_deterministic_algorithms_give_equal_steps(make):
    head, noise = make(), torch.linspace(-1.0, 1.0, 24).reshape(4, 6)
    stir(head)

    def gradients() -> list[torch.Tensor]:
        head.zero_grad()
        z, kl = sample_and_kl(head(features_of(head)), noise=noise)
        (z.square().sum() + kl.sum()).backward()
        return [parameter.grad.clone() for parameter in head.parameters()]

    torch.use_deterministic_algorithms(True)
    try:
        first, second = gradients(), gradients()
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_a_tensor_elsewhere_is_refused_by_name():
    class Elsewhere(torch.Tensor):  # no accelerator is needed to test a message
        @property
        def device(self) -> torch.device:
            return torch.device("cuda:0")

    pattern = sg.Chain(4).factor_pattern
    with pytest.raises(ValueError, match=r"on cuda:0\. Move it with \.cpu\(\)"):
        ops.logdet(pattern, factor(pattern).detach().as_subclass(Elsewhere))


def test_without_pyro_its_module_names_the_package_to_install():
    code = "import sys; sys.modules['pyro'] = None; import sparseggm.pyro"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.rstrip().endswith(
        "ImportError: sparseggm.pyro: needs Pyro, which is not installed. Try: pip install pyro-ppl"
    )
