"""A topology or a verb that is missing from a list of the tests would be tried by none that read it: none is."""

from __future__ import annotations

import inspect

import pytest

import sparseggm as sg
from sparseggm import linalg
from sparseggm.gaussian import storage
from tests import topologies
from tests.graph import test_graphs
from tests.torch import support, test_compile
from tests.torch.problems import calls
from tests.verbs import VERBS

FAMILIES = {
    kind
    for kind in vars(sg).values()
    if inspect.isclass(kind) and issubclass(kind, sg.Topology) and not inspect.isabstract(kind)
}
NO_SIZES = {sg.Graph, sg.Tree}  # made of edges and of parents, whose tests are their own

LISTS = {
    "gaussian/storage.py, TOPOLOGIES: `save` knows no other": set(storage.TOPOLOGIES.values()),
    "tests/topologies.py, whose strategies serve all property tests": {
        kind for kind in FAMILIES if hasattr(topologies, kind.__name__)
    },
    "tests/graph/test_graphs.py, SIZES": set(test_graphs.SIZES) | NO_SIZES,
    "tests/torch/support.py, TOPOLOGIES: columns of docs/torch-support.md": set(map(type, support.TOPOLOGIES)),
    "tests/torch/test_compile.py, EVERY_FAMILY": set(map(type, test_compile.EVERY_FAMILY)),
}


@pytest.mark.parametrize("place", LISTS)
def test_every_topology_is_in_the_list(place: str) -> None:
    assert {kind.__name__ for kind in FAMILIES - LISTS[place]} == set(), f"add them to {place}"


def test_every_verb_has_a_row() -> None:
    rows = {row.name for row in VERBS.values()}
    assert set(linalg.__all__) - rows - {"attempt_cholesky"} == set(), "add them to tests/verbs.py, VERBS"


def test_every_verb_is_tried_in_torch() -> None:
    missing = set(linalg.__all__) - set(calls(sg.Chain(4))) - {"attempt_cholesky"}
    assert missing == set(), (
        "add them to tests/torch/problems.py, calls, or say in docs/limits.md that torch lacks them"
    )
