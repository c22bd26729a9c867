"""What is kept from one call for the next: nothing for ever, and symbolic work once.

Patterns live as long as the topologies, the Gaussians and the graphs of autograd that need them, and no longer.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.distributions import kl_divergence

import sparseggm as sg
from sparseggm.graph import pattern as patterns
from sparseggm.kernels import symbolic
from sparseggm.torch import GaussianGraphicalModel, PrecisionHead, ops, sample_and_kl
from tests.torch.operators import FIRST_ORDER, OPERATORS, floating, name_of, operator, operators


@pytest.fixture(autouse=True, scope="module")
def _only_young_objects() -> Iterator[None]:
    """What torch has made at its import need not be collected again and again."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


N, SOME = 12, 5
GRID = sg.Grid(3, 4)

Call = Callable[[Any, np.random.Generator], Any]


def identity(topology: sg.Topology) -> np.ndarray:
    lower = np.zeros(topology.factor_pattern.nnz)
    lower[topology.factor_pattern.diagonal] = 1.0
    return lower


def in_numpy(topology: sg.Topology) -> sg.GaussianGraphicalModel:
    return sg.GaussianGraphicalModel(np.zeros(topology.n), factor=identity(topology), topology=topology)


def in_torch(topology: sg.Topology) -> GaussianGraphicalModel:
    """On leaves that ask for gradients."""
    lower = torch.from_numpy(identity(topology)).requires_grad_()
    return GaussianGraphicalModel(torch.zeros(topology.n, dtype=torch.float64), factor=lower, topology=topology)


def some(rng: np.random.Generator) -> np.ndarray:
    return rng.permutation(N)[:SOME]


def random_graph(rng: np.random.Generator) -> sg.Graph:
    return sg.Graph(N, np.argwhere(np.tril(rng.random((N, N)) < 0.3, -1)))


def pairs(rng: np.random.Generator) -> np.ndarray:
    return rng.integers(N, size=(4, 2))


IN_NUMPY: dict[str, Call] = {
    "condition": lambda g, rng: g.condition(some(rng), np.zeros(SOME)),
    "observe": lambda g, rng: g.observe(some(rng), np.zeros(SOME), np.ones(SOME)),
    "marginal": lambda g, rng: g.marginal(some(rng)),
    "covariance_on": lambda g, rng: g.covariance_on(pairs(rng)),
    "correlation_on": lambda g, rng: g.correlation_on(pairs(rng)),
    "kl_divergence": lambda g, rng: g.kl_divergence(in_numpy(random_graph(rng))),
    "kl_divergence from another": lambda g, rng: in_numpy(random_graph(rng)).kl_divergence(g),
    "a topology of its own": lambda g, rng: in_numpy(random_graph(rng)).precision,
}
IN_TORCH: dict[str, Call] = {
    "condition": lambda q, rng: q.condition(some(rng), torch.zeros(SOME)).loc,
    "marginal": lambda q, rng: q.marginal(some(rng)).factor,
    "covariance_on": lambda q, rng: q.covariance_on(pairs(rng)),
    "correlation_on": lambda q, rng: q.correlation_on(pairs(rng)),
    "kl_divergence": lambda q, rng: kl_divergence(q, in_torch(random_graph(rng))),
    "kl_divergence from another": lambda q, rng: kl_divergence(in_torch(random_graph(rng)), q),
    "sample_and_kl": lambda q, rng: sample_and_kl(q, in_torch(random_graph(rng)))[1],
    "sample_and_kl to N(0, I)": lambda q, rng: sample_and_kl(in_torch(random_graph(rng)))[1],
    "rsample_and_log_prob": lambda q, rng: in_torch(random_graph(rng)).rsample_and_log_prob()[1],
    "log_prob": lambda q, rng: in_torch(random_graph(rng)).log_prob(q.loc),
    "a head": lambda q, rng: PrecisionHead(2, random_graph(rng))(torch.zeros(1, 2)).entropy(),
    "vmap": lambda q, rng: mapped_logdet(random_graph(rng)),
    "vmap of a gradient": lambda q, rng: torch.func.grad(mapped_gradients)(q.loc, random_graph(rng)),
}


def mapped_logdet(topology: sg.Topology) -> torch.Tensor:
    stacked = torch.from_numpy(np.stack([identity(topology)] * 2)).requires_grad_()
    return torch.func.vmap(lambda lower: ops.logdet(topology.factor_pattern, lower))(stacked)


def mapped_gradients(loc: torch.Tensor, topology: sg.Topology) -> torch.Tensor:
    lower = torch.from_numpy(identity(topology))
    whitened = torch.func.vmap(lambda x: ops.matmul_t(topology.factor_pattern, lower, x))(torch.stack([loc, loc]))
    return whitened.square().sum()


def living_after(call: Callable[[np.random.Generator], Any], count: int) -> int:
    """Patterns alive after so many calls, each on nodes or a graph of its own."""
    for seed in range(count):
        call(np.random.default_rng(seed))
    gc.collect()
    return len(patterns._interned)


@pytest.mark.parametrize("name", IN_NUMPY)
def test_no_call_keeps_a_pattern_alive(name: str) -> None:
    g = in_numpy(GRID)
    few, many = (living_after(lambda rng: IN_NUMPY[name](g, rng), count) for count in (1, 20))
    assert many == few


@pytest.mark.parametrize("name", IN_TORCH)
def test_neither_does_a_call_in_torch_with_its_backward(name: str) -> None:
    q = in_torch(GRID)

    def call(rng: np.random.Generator) -> None:
        result = IN_TORCH[name](q, rng).sum()
        if result.requires_grad:
            result.backward()

    few, many = (living_after(call, count) for count in (1, 20))
    assert many == few


def test_cycles_between_patterns_are_not_needed_to_free_them() -> None:
    """Reference counts suffice: large patterns go with their topology, not when the collector comes."""
    gc.collect()
    gc.disable()
    try:
        counts = [len(patterns._interned)]
        for seed in range(5):
            graph = random_graph(np.random.default_rng(seed))
            in_numpy(GRID).kl_divergence(in_numpy(graph))
            in_numpy(graph).kl_divergence(in_numpy(graph))
            del graph
            counts.append(len(patterns._interned))
    finally:
        gc.enable()
    assert counts[1:] == [counts[1]] * 5


WITHOUT_PATTERN = {"square_norm", "levels_log_prob", "levels_log_prob_and_gradients"}  # backwards that need none


@pytest.mark.parametrize("row", [row for row in OPERATORS if name_of(row) not in {*FIRST_ORDER, *WITHOUT_PATTERN}])
def test_a_backward_keeps_the_pattern_of_its_operator(row: str) -> None:
    """A graph of autograd holds patterns, which nothing else does here, until it is gone."""
    on = sg.ExtendedGrid(2, 7).factor_pattern  # of no other test
    count, arguments_on = operators(on)[row]
    arguments = list(arguments_on(*([(2,)] * count)))
    for place in floating(row, arguments):
        arguments[place].requires_grad_()
    keys = {argument for argument in arguments if isinstance(argument, str) and argument}
    result = operator(row)(*arguments)
    result = result[0] if isinstance(result, tuple) else result
    del on, arguments_on, arguments
    gc.collect()
    assert keys <= set(patterns._interned)
    result.square().sum().backward()
    del result
    gc.collect()
    assert not keys & set(patterns._interned)


@pytest.fixture
def symbolic_work(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the symbolic steps, as they are called."""
    steps: list[str] = []

    def counted(owner: Any, name: str) -> None:
        original = getattr(owner, name)

        def counting(*args: Any, **options: Any) -> Any:
            steps.append(name)
            return original(*args, **options)

        monkeypatch.setattr(owner, name, counting)

    for name in ("union", "positions_of", "permuted", "to_scipy"):
        counted(patterns.Pattern, name)
    for name in ("_checked", "as_pairs", "_sorted_once"):  # which every new pattern goes through
        counted(patterns, name)
    for name in ("transpose", "fill_counts", "fill_rows", "group_columns"):
        counted(symbolic, name)
    counted(sg.Graph, "__init__")
    return steps


PRIORS = [sg.ExtendedGrid(3, 4), GRID, sg.Chain(N), sg.Cycle(N), sg.Star(N)]


@pytest.mark.parametrize("prior", PRIORS, ids=str)
@pytest.mark.parametrize("posterior", PRIORS, ids=str)
def test_symbolic_work_of_a_divergence_is_done_once(
    posterior: sg.Topology, prior: sg.Topology, symbolic_work: list[str]
) -> None:
    """New Gaussians on the same topologies, as at each step of a training run, do arithmetic alone."""
    for of in (in_numpy, in_torch):
        results = []
        for _ in range(3):
            symbolic_work.clear()
            q, p = of(posterior), of(prior)
            results.append((q.kl_divergence(p) if of is in_numpy else kl_divergence(q, p)).item())
        assert not symbolic_work
        assert results == [results[0]] * 3


@pytest.mark.parametrize("of", [in_numpy, in_torch])
def test_a_graph_is_made_once(of: Callable[[sg.Topology], Any]) -> None:
    assert of(GRID).graph is of(GRID).graph
    assert of(GRID).graph != GRID
    assert of(sg.Chain(4)).graph == sg.Chain(4)


@pytest.mark.parametrize("topology", [GRID, sg.Cycle(N), sg.ExtendedGrid(3, 4)], ids=str)
def test_symbolic_work_of_a_precision_is_done_once(topology: sg.Topology, symbolic_work: list[str]) -> None:
    values = np.where(topology.precision_pattern.rows == topology.precision_pattern.cols, 4.0, 0.5)
    for _ in range(2):
        symbolic_work.clear()
        for owner, made in (
            (sg.GaussianGraphicalModel, np.zeros(N)),
            (GaussianGraphicalModel, torch.zeros(N).double()),
        ):
            precision = values if owner is sg.GaussianGraphicalModel else torch.from_numpy(values)
            g = owner.from_precision(made, precision=precision, topology=topology)
            np.testing.assert_allclose(g.moved_to(made + 1.0).precision, values, rtol=1e-14)
    assert not symbolic_work


def test_a_compiled_graph_keeps_its_patterns() -> None:
    """It holds keys alone, as constants: of its forward, and of what its backward needs."""
    torch._dynamo.reset()
    on = sg.ExtendedGrid(2, 8).factor_pattern  # of no other test
    key, lower = on.key, torch.from_numpy(identity(sg.ExtendedGrid(2, 8))).requires_grad_()
    compiled = torch.compile(lambda x: torch.ops.sparseggm.cholesky(key, x), fullgraph=True, backend="aot_eager")
    compiled(lower).sum().backward()
    del on
    gc.collect()
    compiled(lower).sum().backward()
    assert lower.grad is not None
