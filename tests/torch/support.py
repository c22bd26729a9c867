"""What torch can do with each operation on each topology, found by trying.

`python -m tests.torch.support` writes docs/torch-support.md. Where a letter of it would be lost it names the cells and
leaves the file as it was, but for `--accept`. An operation is a row of `OPERATIONS`: its problem on a
topology is a function of tensors and arguments that ask for gradients. Each cell of the table tells which of four
probes succeeded on a problem of three to nine nodes.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Independent, Normal, kl_divergence

import sparseggm as sg
from sparseggm import Topology, parametrize
from sparseggm.torch import GaussianGraphicalModel, GreyLevels, LogitNormal, Residual, kl_terms, sample_and_kl
from sparseggm.torch.operators import residual, step
from sparseggm.torch.operators.registration import key_of
from tests.torch.problems import calls, factor, gradgradcheck, values, vectors

TABLE = Path(__file__).resolve().parents[2] / "docs" / "torch-support.md"

TOPOLOGIES = [
    sg.Diagonal(3),
    sg.Chain(4),
    sg.Band(4, 2),
    sg.BlockChain(2, 2),
    sg.ExtendedGrid(2, 3),
    sg.Stencil(2, 2, 1),
    sg.Grid(2, 3),
    sg.Torus(3, 3),
    sg.Tree([-1, 0, 0, 1]),
    sg.Star(4),
    sg.Cycle(4),
    sg.Graph(5, [(1, 0), (2, 1), (3, 0), (3, 2), (4, 1)]),
]

FAILURES = (RuntimeError, TypeError, ValueError, AssertionError)
"""What torch raises where a transform is not supported, a gradient is wrong, or results differ."""


@dataclass(frozen=True)
class Problem:
    """A function of tensors, one tensor or several as result, and arguments that ask for gradients."""

    function: Callable[..., Any]
    arguments: tuple[Tensor, ...]

    def __call__(self, *arguments: Tensor) -> Any:
        """The function, which draws the same noise each time."""
        return _seeded(self.function)(*arguments)


# ---------------------------------------------------------------------- rows


def _operator(name: str) -> Callable[[Topology], Problem]:
    def problem(topology: Topology) -> Problem:
        call = calls(topology)[name]
        return Problem(call.operator, call.arguments)

    return problem


def _of_distribution(function: Callable[..., Any]) -> Callable[[Topology], Problem]:
    """`function(q, noise)` as a function of q's loc and factor, with noise or a point beside them."""

    def problem(topology: Topology) -> Problem:
        def of_tensors(loc: Tensor, lower: Tensor, noise: Tensor) -> Any:
            return function(GaussianGraphicalModel(loc, factor=lower, topology=topology, validate_args=False), noise)

        n = topology.n
        return Problem(of_tensors, (vectors(n, 2), factor(topology.factor_pattern, 2), vectors(n, 2, seed=1)))

    return problem


def _of_family(name: str) -> Callable[[Topology], Problem | None]:
    family = getattr(parametrize, name)

    def problem(topology: Topology) -> Problem | None:
        if isinstance(family, type(parametrize.factor)) and not topology.is_factor_free:
            return None
        inputs = vectors(family.num_inputs(topology), 2)
        family(topology, inputs)  # its patterns must exist before torch.compile traces it, see docs/limits.md
        return Problem(lambda x: family(topology, x), (inputs,))

    return problem


def _eigenvalue(topology: Topology) -> Problem | None:
    """As beyond `spectral.DENSE_NODES`: by sparse factorisations."""
    pattern = topology.precision_pattern
    if pattern.nnz == pattern.n:
        return None  # R = 0 has no gradient
    couplings = values(pattern).detach().abs()
    couplings[torch.from_numpy(pattern.rows == pattern.cols)] = 0.0
    off_diagonal, key = (couplings != 0).to(couplings.dtype), key_of(pattern, "support")

    def function(x: Tensor) -> Tensor:
        return torch.ops.sparseggm.leading_eigenpair(key, x * off_diagonal)[0]

    return Problem(function, (couplings.requires_grad_(),))


def _grey_levels(q: GaussianGraphicalModel, numbers: Tensor) -> Tensor:
    """Of the levels of these numbers, at uniform numbers that stay."""
    uniform = torch.linspace(0.1, 0.9, 2 * q.topology.n, dtype=numbers.dtype).reshape(2, *(1,) * len(q.batch_shape), -1)
    x = (4.0 + 2.0 * numbers.detach()).long().clamp(0, 7)
    return GreyLevels(q, levels=8).log_prob(x, num_samples=2, uniform=uniform) + 0.0 * numbers.sum(-1)


def _normal_kl(q: GaussianGraphicalModel, scale: Tensor) -> Tensor:
    return kl_divergence(q, Independent(Normal(torch.zeros_like(scale), scale.exp(), validate_args=False), 1))


def _own_kl(q: GaussianGraphicalModel, loc: Tensor) -> Tensor:
    p = GaussianGraphicalModel(loc, factor=q._factor * 1.5, topology=q.topology, validate_args=False)
    return kl_divergence(q, p)


def _fused(topology: Topology) -> Problem:
    pattern, n = topology.factor_pattern, topology.n
    arguments = (vectors(n, 2), factor(pattern, 2), vectors(n, 3, 2, seed=1))
    return Problem(lambda *tensors: step.sample_and_kl(pattern, *tensors), arguments)


def _fused_terms(topology: Topology) -> Problem:
    pattern = topology.factor_pattern
    return Problem(lambda *tensors: residual.sample_and_kl_terms(pattern, *tensors), _moved(topology))


def _residual(topology: Topology) -> Problem | None:
    if not topology.is_factor_free:
        return None

    def function(loc: Tensor, lower: Tensor, shift: Tensor, moves: Tensor, noise: Tensor) -> Any:
        p = GaussianGraphicalModel(loc, factor=lower, topology=topology, validate_args=False)
        return Residual(p, shift, moves).sample_and_kl_terms(noise)

    return Problem(function, _moved(topology))


def _moved(topology: Topology) -> tuple[Tensor, ...]:
    """Prior, shift, moves and noise."""
    pattern, n = topology.factor_pattern, topology.n
    moves = (0.3 * values(pattern, 2, seed=3).detach()).requires_grad_()
    return vectors(n, 2), factor(pattern, 2), vectors(n, 2, seed=1), moves, vectors(n, 2, seed=2)


def _own_terms(q: GaussianGraphicalModel, loc: Tensor) -> Tensor:
    p = GaussianGraphicalModel(loc, factor=q._factor * 1.5, topology=q.topology, validate_args=False)
    return kl_terms(q, p)


FAMILIES = ("factor", "regression", "dominant", "scaled", "edge", "spectral")
OPERATIONS: dict[str, Callable[[Topology], Problem | None]] = {
    **{f"ops.{name}": _operator(name) for name in calls(sg.Chain(4))},
    "fused.sample_and_kl": _fused,
    "fused.sample_and_kl_terms": _fused_terms,
    "Residual.sample_and_kl_terms": _residual,
    "sample_and_kl(q, noise)": _of_distribution(lambda q, noise: sample_and_kl(q, noise=noise)),
    "sample_and_kl(q)": _of_distribution(lambda q, noise: sample_and_kl(q)),
    "rsample": _of_distribution(lambda q, noise: q.rsample()),
    "rsample_and_log_prob": _of_distribution(lambda q, noise: q.rsample_and_log_prob(noise=noise)),
    "log_prob": _of_distribution(lambda q, x: q.log_prob(x)),
    "LogitNormal.log_prob": _of_distribution(lambda q, x: LogitNormal(q).log_prob(x.sigmoid())),
    "LogitNormal.rsample": _of_distribution(lambda q, x: LogitNormal(q).rsample()),
    "GreyLevels.log_prob": _of_distribution(_grey_levels),
    "entropy": _of_distribution(lambda q, x: q.entropy()),
    "variance": _of_distribution(lambda q, x: q.variance),
    "covariance_on": _of_distribution(lambda q, x: q.covariance_on([(0, 1), (2, 0)])),
    "whiten": _of_distribution(lambda q, x: q.whiten(x)),
    "colorize": _of_distribution(lambda q, x: q.colorize(x)),
    "kl_divergence to a GaussianGraphicalModel": _of_distribution(_own_kl),
    "kl_terms": _of_distribution(_own_terms),
    "kl_divergence to Independent(Normal, 1)": _of_distribution(_normal_kl),
    **{f"parametrize.{name}": _of_family(name) for name in FAMILIES},
    "spectral.largest_eigenvalue beyond 64 nodes": _eigenvalue,
}


# ---------------------------------------------------------------------- probes


def _seeded(function: Callable[..., Any]) -> Callable[..., Any]:
    def seeded(*arguments: Tensor) -> Any:
        torch.manual_seed(0)
        return function(*arguments)

    return seeded


def _flat(results: Any) -> tuple[Tensor, ...]:
    return results if isinstance(results, tuple) else (results,)


def grad(problem: Problem) -> bool:
    return torch.autograd.gradcheck(problem, problem.arguments)


def double_grad(problem: Problem) -> bool:
    return gradgradcheck(problem, problem.arguments)


def vmap(problem: Problem) -> bool:
    """vmap equals the loop, for values and for gradients."""
    stacked = tuple(torch.stack([argument, 1.25 * argument]).detach() for argument in problem.arguments)

    def gradient(*arguments: Tensor) -> Any:
        def scalar(*inner: Tensor) -> Tensor:
            return sum((result.square().sum() for result in _flat(problem(*inner))), torch.zeros(()))

        return torch.func.grad(scalar, argnums=tuple(range(len(arguments))))(*arguments)

    for function in (problem, gradient):
        mapped = _flat(torch.func.vmap(function, randomness="same")(*stacked))
        looped = [_flat(function(*each)) for each in zip(*stacked, strict=True)]
        for of_map, of_loop in zip(mapped, zip(*looped, strict=True), strict=True):
            torch.testing.assert_close(of_map, torch.stack(of_loop), rtol=1e-12, atol=1e-12)
    return True


def compiles(problem: Problem) -> bool:
    """torch.compile without a graph break equals eager, forward and backward."""
    torch._dynamo.reset()
    compiled = torch.compile(problem.function, fullgraph=True, backend="aot_eager")
    for of_compiled, of_eager in zip(*map(_with_gradients, (_seeded(compiled), problem), [problem] * 2), strict=True):
        torch.testing.assert_close(of_compiled, of_eager, rtol=1e-12, atol=1e-12)
    return True


def _with_gradients(function: Callable[..., Any], problem: Problem) -> tuple[Tensor, ...]:
    arguments = tuple(argument.detach().requires_grad_() for argument in problem.arguments)
    results = _flat(function(*arguments))
    cotangents = tuple(torch.linspace(-1.0, 1.0, r.numel(), dtype=r.dtype).reshape(r.shape) for r in results)
    gradients = torch.autograd.grad(results, arguments, cotangents, allow_unused=True, materialize_grads=True)
    return (*(result.detach() for result in results), *gradients)


PROBES: dict[str, Callable[[Problem], bool]] = {"g": grad, "h": double_grad, "v": vmap, "c": compiles}


def cell(name: str, topology: Topology) -> str:
    """The letters of the probes that succeed, a dot for each that fails; – where the operation is not defined."""
    problem = OPERATIONS[name](topology)
    return "–" if problem is None else "".join(_letter(letter, problem) for letter in PROBES)


def _letter(letter: str, problem: Problem) -> str:
    try:
        return letter if PROBES[letter](problem) else "·"
    except FAILURES:
        return "·"


# ---------------------------------------------------------------------- the table

HEAD = """# What torch can do with what

* g: gradients agree with differences
* h: so do gradients of gradients
* v: `torch.func.vmap` equals the loop, of values and of `torch.func.grad`
* c: `torch.compile(fullgraph=True)` equals eager, forward and backward; of samples with the same noise (inductor draws
  its own, unless `torch._inductor.config.fallback_random` is set)

A dot: not; limits.md says why. A dash: not defined there. `python -m tests.torch.support` tries each on three to nine
nodes in float64 and writes this table; a test tries a part of it again.
"""


def lines(cells: Callable[[str, Topology], str] = cell) -> Iterator[str]:
    """The table, a line at a time."""
    yield from HEAD.splitlines()
    yield ""
    yield "| operation | " + " | ".join(f"`{type(topology).__name__}`" for topology in TOPOLOGIES) + " |"
    yield "|---" * (1 + len(TOPOLOGIES)) + "|"
    for name in OPERATIONS:
        yield f"| `{name}` | " + " | ".join(cells(name, topology) for topology in TOPOLOGIES) + " |"


def lost(before: list[str], after: list[str]) -> list[str]:
    """The cells in which a probe that succeeded before does not any more; rows and columns that are gone, too."""
    then, now = cells_of(before), cells_of(after)
    return [
        f"{operation} on {topology}: {was} → {now.get((operation, topology), 'gone')}"
        for (operation, topology), was in then.items()
        if set(was) & set(PROBES) - set(now.get((operation, topology), ""))
    ]


def cells_of(table: list[str]) -> dict[tuple[str, str], str]:
    """The cells of a table by operation and topology."""
    rows = [[part.strip(" `") for part in line.split("|")[1:-1]] for line in table if line.startswith("| ")]
    head, *body = rows
    return {(row[0], topology): found for row in body for topology, found in zip(head[1:], row[1:], strict=True)}


def write(path: Path, table: list[str], accept: bool) -> None:
    """Write the table, if nothing is lost or a loss is accepted.

    Raises:
        SystemExit: with the cells that would lose a letter.
    """
    losses = lost(path.read_text(encoding="utf-8").splitlines(), table)
    if losses and not accept:
        raise SystemExit("\n".join([*losses, f"{path.name} is left as it was. Mend these, or pass --accept."]))
    path.write_text("\n".join(table) + "\n", encoding="utf-8")


def only(operations: list[str]) -> Callable[[str, Topology], str]:
    """The cells of these operations as found now, the others as they are written."""
    written = cells_of(TABLE.read_text(encoding="utf-8").splitlines())

    def found(name: str, topology: Topology) -> str:
        written_cell = written.get((name, type(topology).__name__))
        return cell(name, topology) if name in operations or written_cell is None else written_cell

    return found


if __name__ == "__main__":
    warnings.simplefilter("error")
    parser = argparse.ArgumentParser(description="Try what torch can do with each operation, and write the table.")
    parser.add_argument("--accept", action="store_true", help="write the table though a letter is lost")
    parser.add_argument("--only", nargs="+", metavar="OPERATION", help="try these rows, and cells that are new")
    asked = parser.parse_args()
    write(TABLE, list(lines(only(asked.only) if asked.only else cell)), asked.accept)
