"""The geometry of tensors: the same names and values as that of arrays, with gradients, on every topology."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import sparseggm as sg
from sparseggm import geometry as of_arrays
from sparseggm.errors import NonFiniteError, NotPositiveDefiniteError, PatternError
from sparseggm.torch import GaussianGraphicalModel, geometry
from tests.torch import support
from tests.torch.gaussians import Kind, in_numpy
from tests.torch.problems import vectors

ONLY_OF_ARRAYS = {
    "coupled_distance": "an estimate; z of two Gaussians with the same noise= is its differentiable form",
    "wasserstein": "dense, by a singular value decomposition",
}
Gaussians = tuple[Any, Any]


def packed(topology: sg.Topology, seed: int) -> Tensor:
    return vectors(topology.factor_pattern.nnz, seed=seed)


def path(module: Any, q: Any, p: Any) -> list[Any]:
    return [q, module.e_geodesic(q, p, 0.3), p]


CALLS: dict[str, Callable[[Any, Any, Any], Any]] = {
    "centroid e": lambda m, q, p: m.centroid([q, p], [1.0, 3.0]),
    "centroid m": lambda m, q, p: m.centroid([q, p], [1.0, 3.0], "m"),
    "e_geodesic": lambda m, q, p: m.e_geodesic(q, p, 0.3),
    "fisher_length": lambda m, q, p: m.fisher_length(path(m, q, p)),
    "fisher_rao_bounds": lambda m, q, p: m.fisher_rao_bounds(q, p, 3),
    "jeffreys": lambda m, q, p: m.jeffreys(q, p),
    "m_geodesic": lambda m, q, p: m.m_geodesic(q, p, 0.3),
    "moments_on": lambda m, q, p: m.moments_on(q, p.topology),
    "project": lambda m, q, p: m.project(q, p.topology),
    **{
        f"{name} {kind}": lambda m, q, p, name=name, kind=kind: getattr(m, name)(q, *some_values(q, m), kind)
        for name in ("fisher_matmul", "fisher_solve")
        for kind in ("factor", "regression", "natural", "expectation")
    },
    **{
        f"to_coordinates {kind}": lambda m, q, p, kind=kind: m.to_coordinates(q, kind)
        for kind in ("factor", "regression", "natural", "expectation")
    },
    **{
        f"from_coordinates {kind}": lambda m, q, p, kind=kind: m.from_coordinates(
            *m.to_coordinates(q, kind), q.topology, kind
        )
        for kind in ("factor", "regression", "natural", "expectation")
    },
}


def some_values(q: Any, module: Any) -> Any:
    u = vectors(q.topology.n, seed=7).detach(), packed(q.topology, 8).detach()
    return u if module is geometry else [x.numpy() for x in u]


def parts(result: Any) -> list[Any]:
    """The numbers of a result, flat."""
    if hasattr(result, "factor_pattern"):
        return [result.loc, result.precision]
    return [each for one in result for each in parts(one)] if isinstance(result, tuple) else [result]


def test_the_names_are_those_of_arrays_but_for_what_has_no_derivative() -> None:
    assert set(geometry.__all__) == set(of_arrays.__all__) - ONLY_OF_ARRAYS.keys()
    functions = {name for name in geometry.__all__ if not isinstance(getattr(geometry, name), type)}
    assert {name.split()[0] for name in CALLS} == functions


def pair(topology: sg.Topology, *batch: int) -> Gaussians:
    kind = Kind(topology, "factor" if topology.is_factor_free else "precision")
    return kind.example(*batch), kind.example(seed=11)


def refusal(name: str, topology: sg.Topology) -> str:
    """What a function of tensors says where the graph does not have what it needs; nothing where it has."""
    function, *kinds = name.split()
    if function.startswith(("fisher_matmul", "fisher_solve")) or kinds in (["factor"], ["regression"]):
        if not topology.is_factor_free:
            return "needs an L that is free on its pattern"
        is_curved = function.startswith("fisher_") and kinds[0] in ("natural", "expectation")
        return "needs a graph that is chordal" if is_curved and not topology.factor_pattern.is_closed else ""
    projects = name in ("centroid m", "m_geodesic", "project", "from_coordinates expectation")
    return "of tensors, needs a graph that is chordal" if projects and not topology.precision_pattern.is_closed else ""


@pytest.mark.parametrize("topology", support.TOPOLOGIES, ids=str)
@pytest.mark.parametrize("name", CALLS)
def test_values_are_those_of_arrays(name: str, topology: sg.Topology) -> None:
    q, p = pair(topology, 2)
    message = refusal(name, topology)
    if message:
        with pytest.raises(PatternError, match=message):
            CALLS[name](geometry, q, p)
        return
    expected = CALLS[name](of_arrays, in_numpy(q), in_numpy(p))
    for ours, theirs in zip(parts(CALLS[name](geometry, q, p)), parts(expected), strict=True):
        np.testing.assert_allclose(*np.broadcast_arrays(ours.detach().numpy(), theirs), rtol=1e-10, atol=1e-10)


DIFFERENTIABLE = [sg.Diagonal(2), sg.Chain(3), sg.BlockChain(1, 3), sg.ExtendedGrid(2, 2)]


@pytest.mark.parametrize(
    ("name", "topology"),
    [(name, each) for name in CALLS for each in DIFFERENTIABLE if not refusal(name, each)],
    ids=str,
)
def test_gradients_are_those_of_differences(name: str, topology: sg.Topology) -> None:
    q, p = pair(topology)
    given = [x.detach().requires_grad_() for x in (q.loc, q.factor, p.loc, p.factor)]

    def call(*x: Tensor) -> tuple[Tensor, ...]:
        ends = (GaussianGraphicalModel(*x[k : k + 1], factor=x[k + 1], topology=topology) for k in (0, 2))
        return tuple(parts(CALLS[name](geometry, *ends)))

    assert torch.autograd.gradcheck(call, given)
    if name in ("jeffreys", "e_geodesic", "fisher_solve regression", "project"):
        assert torch.autograd.gradgradcheck(call, given, fast_mode=True)


def test_the_given_values_of_the_fisher_matrix_have_gradients_too() -> None:
    q, _ = pair(sg.ExtendedGrid(2, 2), 2)
    own = q.detach()
    for of in (geometry.fisher_matmul, geometry.fisher_solve):
        for kind in ("factor", "regression"):
            given = vectors(4, 2), vectors(own.factor_pattern.nnz, 2, seed=3)
            assert torch.autograd.gradcheck(lambda v, V, of=of, kind=kind: tuple(of(own, v, V, kind)), given)


def test_a_distance_of_nothing_has_the_gradient_zero() -> None:
    q, _ = pair(sg.Chain(3))
    for distance in (lambda p: geometry.fisher_length([q, p]), lambda p: geometry.fisher_rao_bounds(q, p).upper):
        loc = q.loc.detach().requires_grad_()
        distance(q.detach().moved_to(loc)).backward()
        assert torch.equal(loc.grad, torch.zeros(3, dtype=torch.float64))


def test_results_keep_their_dtype_and_go_under_vmap() -> None:
    q, p = pair(sg.Chain(4), 3)
    single = GaussianGraphicalModel(q.loc.float(), factor=q.factor.float(), topology=q.topology)
    assert geometry.jeffreys(single, single).dtype == torch.float32
    assert geometry.jeffreys(single, p).dtype == torch.float64
    assert geometry.e_geodesic(single, single, 0.5).loc.dtype == torch.float32
    assert geometry.fisher_solve(single, [1.0, 2, 3, 4], np.ones(7, np.float32)).vector.dtype == torch.float32

    def one(loc: Tensor, factor: Tensor) -> Tensor:
        own = GaussianGraphicalModel(loc, factor=factor, topology=q.topology)
        return geometry.jeffreys(own, p) + geometry.fisher_solve(own, loc, factor).values.sum()

    found = torch.func.vmap(one)(q.loc, q.factor)
    expected = geometry.jeffreys(q, p) + geometry.fisher_solve(q, q.loc, q.factor).values.sum(-1)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_failures_are_named_by_the_function() -> None:
    q, p = pair(sg.Chain(3))
    broken = GaussianGraphicalModel(q.loc, factor=q.factor * np.nan, topology=q.topology, validate_args=False)
    with pytest.raises(NonFiniteError, match=r"^jeffreys: factor must be finite, got nan"):
        geometry.jeffreys(broken, p)
    with pytest.raises(NonFiniteError, match=r"^centroid: factor must be finite, got nan"):
        geometry.centroid([p, broken], kind="m")
    with pytest.raises(NotPositiveDefiniteError, match=r"^e_geodesic: t must be in \[0, 1\], or so near"):
        geometry.e_geodesic(q, p, 1e3)
    with pytest.raises(TypeError, match=r"^jeffreys: needs Gaussians of one kind, got sparseggm\.torch"):
        geometry.jeffreys(q, in_numpy(p))
    with pytest.raises(TypeError, match=r"^jeffreys: needs a GaussianGraphicalModel, got int"):
        geometry.jeffreys(q, 3)
