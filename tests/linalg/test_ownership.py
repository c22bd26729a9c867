"""Whose memory it is: what a caller writes into an array of theirs changes nothing that was made from it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from sparseggm import Chain, GaussianGraphicalModel, Graph, Pattern, Tree, linalg
from sparseggm.gaussian.scipy_adapter import SparsePrecisionCovariance
from tests.calls import TOPOLOGIES, arrays_of, calls, gaussian
from tests.verbs import VERBS, arguments

NAMES = list(calls(Chain(4)))
each_topology = pytest.mark.parametrize("topology", TOPOLOGIES, ids=str)


@pytest.mark.parametrize("name", NAMES)
@each_topology
@pytest.mark.parametrize("view", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64", "int64"])
def test_results_do_not_change_with_the_arrays_they_were_made_from(
    topology: Any, name: str, view: bool, dtype: str
) -> None:
    """Nor through a read-only view that was handed over in their place."""
    call, g = calls(topology)[name], gaussian(topology)
    given = {word: array.astype(dtype) for word, array in call.values.items()}
    handed = {word: np.broadcast_to(array, array.shape) if view else array for word, array in given.items()}
    result = call.function(g, **handed)
    before = [array.copy() for array in arrays_of(result)]
    for array in given.values():
        array[...] = -1
    for now, then in zip(arrays_of(result), before, strict=True):
        np.testing.assert_array_equal(now, then)
    if isinstance(result, GaussianGraphicalModel):
        assert np.isfinite(result.sample(rng=0)).all()


QUESTIONS: dict[str, Callable[[GaussianGraphicalModel], Any]] = {
    "loc": lambda g: g.loc,
    "factor": lambda g: g.factor,
    "precision": lambda g: g.precision,
    "information": lambda g: g.information_vector,
    "variance": lambda g: g.variance,
    "sample": lambda g: g.sample(rng=0),
    "entropy": lambda g: g.entropy(),
    "covariance_on": lambda g: g.covariance_on([(1, 0)]),
    "correlation_on": lambda g: g.correlation_on([(1, 0)]),
    "trace": lambda g: g.estimate_trace_covariance(rng=0).value,
    "moved_to": lambda g: g.moved_to([1, 2, 3, 4]).factor,
    "condition": lambda g: g.condition([], []).loc,
    "observe": lambda g: g.observe([], [], []).factor,
    "marginal": lambda g: g.marginal([0, 1, 2, 3]).factor,
    "scipy": lambda g: SparsePrecisionCovariance(g).covariance,
    "float64 from float32": lambda g: g.moved_to(g.loc.astype(np.float64)).factor,
}


@pytest.mark.parametrize("name", QUESTIONS)
@each_topology
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_what_a_gaussian_gives_is_new_or_cannot_be_written_into(topology: Any, name: str, dtype: str) -> None:
    g = gaussian(topology, dtype)
    before = [g.loc.copy(), g.factor.copy(), g.log_prob(np.zeros(4))]
    answer = QUESTIONS[name](g)
    if answer.flags.writeable:
        answer[...] = np.nan
    else:
        with pytest.raises(ValueError, match="read-only"):
            answer[...] = np.nan
    for now, then in zip([g.loc, g.factor, g.log_prob(np.zeros(4))], before, strict=True):
        np.testing.assert_array_equal(now, then)


def test_what_nobody_can_write_into_is_shared_and_broadcast_axes_stay_so() -> None:
    g = gaussian(Chain(4))
    again = GaussianGraphicalModel(g.loc, factor=g.factor, topology=g.topology)
    assert again.loc is g.loc
    assert again.factor is g.factor
    assert g.moved_to([1, 2, 3, 4]).factor is g.factor
    stored = np.frombuffer(g.factor.tobytes())
    assert GaussianGraphicalModel(g.loc, factor=stored, topology=g.topology).factor is stored
    many = np.broadcast_to(g.factor.copy(), (1000, 7))
    assert GaussianGraphicalModel(g.loc, factor=many, topology=g.topology).factor.strides == many.strides


def test_patterns_and_topologies_do_not_change_with_the_arrays_they_were_made_from() -> None:
    edges, order, parents = np.array([(1, 0), (2, 1)]), np.array([2, 0, 1]), np.array([-1, 0, 1])
    indptr, rows = np.array([0, 2, 4, 5], np.int32), np.array([0, 1, 1, 2, 2], np.int32)
    graph, tree, pattern = Graph(3, edges, order), Tree(parents), Pattern(3, indptr, rows)
    for array in (edges, order, parents, indptr, rows):
        array[...] = 0
    assert graph == Graph(3, [(1, 0), (2, 1)], [2, 0, 1])
    assert tree == Tree([-1, 0, 1])
    assert pattern is Chain(3).factor_pattern
    assert pattern.rows.tolist() == [0, 1, 1, 2, 2]
    for array in (graph.edges, graph.order, tree.edges, tree.order, pattern.indptr, pattern.rows, pattern.cols):
        assert not array.flags.writeable


@pytest.mark.parametrize("verb", VERBS.values(), ids=list(VERBS))
def test_no_verb_gives_the_memory_of_an_argument(verb) -> None:
    for pattern in (Chain(1).factor_pattern, Chain(4).factor_pattern, Pattern.from_edges(4, [])):
        given = arguments(verb, pattern, 0, (2,))
        result = verb(pattern, given)
        assert not any(np.shares_memory(result, array) for array in given.values())


# ---------------------------------------------------------------------- out=


def out_and_rhs(kind: str) -> tuple[Any, Any]:
    """An `out` and a right-hand side that share memory in one way or another, (100, 4), more rows than a block has."""
    memory = np.arange(1.0, 500.0)
    if kind == "the same array":
        array = memory[:400].reshape(100, 4)
        return array, array
    offset = {"another view": 0, "rows further on": 4, "numbers further on": 2}[kind]
    return memory[offset : offset + 400].reshape(100, 4), memory[:400].reshape(100, 4)


KINDS = ("the same array", "another view", "rows further on", "numbers further on")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("swapped", [False, True])
def test_out_may_overlap_the_right_hand_side_in_any_way(kind: str, swapped: bool) -> None:
    pattern, factor = Chain(4).factor_pattern, gaussian(Chain(4)).factor
    first, second = out_and_rhs(kind)
    out, rhs = (second, first) if swapped else (first, second)
    expected = linalg.solve_t(pattern, factor, rhs.copy())
    assert linalg.solve_t(pattern, factor, rhs, out=out) is out
    np.testing.assert_array_equal(out, expected)


def test_out_may_overlap_the_factor() -> None:
    pattern, factor = Chain(4).factor_pattern, gaussian(Chain(4)).factor
    rhs = np.arange(400.0).reshape(100, 4)
    expected = linalg.solve_t(pattern, factor, rhs)
    memory = np.concatenate([factor, np.zeros(393)])
    out = memory.reshape(100, 4)
    np.testing.assert_array_equal(linalg.solve_t(pattern, memory[:7], rhs, out=out), expected)


def test_out_that_cannot_be_written_into_is_refused() -> None:
    pattern, rhs = Chain(4).factor_pattern, np.ones(4)
    with pytest.raises(ValueError, match=r"^solve_t: out must be writeable, got a read-only array\."):
        linalg.solve_t(pattern, np.ones(7), rhs, out=np.frombuffer(rhs.tobytes()))


@pytest.mark.parametrize("kind", KINDS)
def test_a_failure_is_not_blamed_on_an_overwritten_right_hand_side(kind: str) -> None:
    pattern, factor = Chain(4).factor_pattern, gaussian(Chain(4)).factor.copy()
    factor[pattern.diagonal[-1]] = 0.0
    out, rhs = out_and_rhs(kind)
    with pytest.raises(ValueError, match=r"^solve_t: the diagonal of factor must be positive, got 0 at column 3"):
        linalg.solve_t(pattern, factor, rhs, out=out)
