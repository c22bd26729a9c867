"""Gaussians on disk: back to the bit, and no file that is not one of ours, whole and of this layout."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

import reference.topology
import sparseggm as sg
from sparseggm import GaussianGraphicalModel, PatternError, Topology
from sparseggm.graph import orders
from sparseggm.graph.topology import FactorTopology
from tests.strategies import gaussians
from tests.topologies import topologies

same_file = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


def example(topology: Topology | None = None) -> GaussianGraphicalModel:
    """On a grid unless told otherwise."""
    topology = topology or sg.Grid(2, 2)
    factor = np.arange(1.0, topology.factor_pattern.nnz + 1) / 7
    return GaussianGraphicalModel(np.arange(1.0 * topology.n), factor=factor, topology=topology)


def stored(path: Path) -> dict[str, Any]:
    with np.load(path) as file:
        return dict(file)


def with_header(path: Path, **changes: Any) -> None:
    """Rewrite the file with another header."""
    arrays = stored(path)
    header = json.loads(str(arrays["header"])) | changes
    np.savez(path, **arrays | {"header": np.array(json.dumps(header))})


# ---------------------------------------------------------------------- there and back


@same_file
@given(g=gaussians())
def test_a_gaussian_comes_back_to_the_bit(tmp_path_factory: pytest.TempPathFactory, g: GaussianGraphicalModel) -> None:
    path = tmp_path_factory.getbasetemp() / "gaussian.npz"
    sg.save(path, g)
    again = sg.load(path)
    assert again.topology == g.topology
    assert again.factor_pattern is g.factor_pattern
    assert again.graph == g.graph
    for array, expected in ((again.loc, g.loc), (again.factor, g.factor), (again.precision, g.precision)):
        assert array.dtype == expected.dtype
        np.testing.assert_array_equal(array, expected)
    np.testing.assert_array_equal(again.topology.order, g.topology.order)


@same_file
@given(topology=topologies(3))
def test_every_topology_comes_back(tmp_path_factory: pytest.TempPathFactory, topology: Topology) -> None:
    path = tmp_path_factory.getbasetemp() / "topology.npz"
    sg.save(path, example(topology))
    again = sg.load(path).topology
    assert again == topology
    assert type(again) is type(topology)


@pytest.mark.parametrize("name", ["plain", "with.dots", "other.suffix"])
def test_the_file_has_the_name_that_was_given(tmp_path: Path, name: str) -> None:
    sg.save(tmp_path / name, example())
    sg.save(str(tmp_path / name), example())
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert sg.load(str(tmp_path / name)).n == 4


def test_a_file_holds_plain_arrays_and_json(tmp_path: Path) -> None:
    path = tmp_path / "g.npz"
    sg.save(path, example())
    arrays = stored(path)
    assert set(arrays) == {"header", "edges", "order", "indptr", "rows", "loc", "factor"}
    assert not any(array.dtype.hasobject for array in arrays.values())
    assert json.loads(str(arrays["header"])) == {
        "format": 1,
        "rule": 2,
        "topology": "Grid",
        "arguments": {"shape": [2, 2], "ordered": False},
        "key": example().factor_pattern.key,
        "is_on_topology": False,
    }


def test_sizes_that_are_numpy_integers_are_stored_as_numbers(tmp_path: Path) -> None:
    sg.save(tmp_path / "g.npz", example(sg.Chain(np.int64(5))))
    assert sg.load(tmp_path / "g.npz").topology == sg.Chain(5)


def test_the_graph_of_p_survives_though_both_gaussians_have_one_pattern(tmp_path: Path) -> None:
    """On a grid, L of a precision and an L that was given have equal patterns, but different graphs of P."""
    grid = sg.Grid(2, 2)
    precision = grid.pack((np.full(4, 4.0), np.ones(4)))
    made = GaussianGraphicalModel.from_precision(np.zeros(4), precision=precision, topology=grid)
    for g, edges in ((made, 4), (example(grid), 5)):
        sg.save(tmp_path / "g.npz", g)
        assert len(sg.load(tmp_path / "g.npz").graph.edges) == len(g.graph.edges) == edges


# ---------------------------------------------------------------------- refusals


@pytest.mark.parametrize("change", [np.float32, lambda P: P[:-1], lambda P: np.stack([P, P])], ids=["dtype", "n", "b"])
def test_a_precision_that_does_not_fit_the_factor_is_refused(tmp_path: Path, change: Any) -> None:
    grid = sg.Grid(2, 2)
    precision = grid.pack((np.full(4, 4.0), np.ones(4)))
    g = GaussianGraphicalModel.from_precision(np.zeros(4), precision=precision, topology=grid)
    sg.save(tmp_path / "g.npz", g)
    arrays = stored(tmp_path / "g.npz")
    np.savez(tmp_path / "g.npz", **arrays | {"precision": change(arrays["precision"])})
    refused(tmp_path / "g.npz")


def refused(path: Path, message: str = "is not a file that sparseggm.save wrote") -> None:
    with pytest.raises(PatternError, match=f"^load: {re.escape(str(path))} .*{re.escape(message)}"):
        sg.load(path)


@pytest.mark.parametrize("content", [b"", b"PK", b"\x93NUMPY", b"a text", b"\x80\x04N."], ids=repr)
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "g.npz"
    path.write_bytes(content)
    refused(path)


def test_a_bare_array_and_an_archive_of_others_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "g.npy"
    np.save(path, np.ones(3))
    refused(path)
    np.savez(tmp_path / "g.npz", loc=np.ones(3))
    refused(tmp_path / "g.npz")


def test_a_missing_file_is_the_systems_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        sg.load(tmp_path / "none.npz")
    with pytest.raises(IsADirectoryError):
        sg.load(tmp_path)


def test_a_truncated_file_is_refused_wherever_it_ends(tmp_path: Path) -> None:
    path = tmp_path / "g.npz"
    sg.save(path, example())
    whole = path.read_bytes()
    for size in range(0, len(whole), 37):
        path.write_bytes(whole[:size])
        refused(path)


def damaged_places(path: Path, seed: int) -> Iterator[tuple[bytes, str]]:
    """The file with one bit flipped: at 200 places all over it, and everywhere in the archive's directory."""
    whole = path.read_bytes()
    random = np.random.default_rng(seed)
    directory = whole.rindex(b"PK\x05\x06") - int.from_bytes(whole[whole.rindex(b"PK\x05\x06") + 12 :][:4], "little")
    for place in [*random.integers(0, len(whole), 200), *range(directory, len(whole))]:
        damaged, bit = bytearray(whole), int(random.integers(8))
        damaged[place] ^= 1 << bit
        yield bytes(damaged), f"bit {bit} of byte {place}"


def test_a_flipped_bit_anywhere_is_refused_or_means_nothing(tmp_path: Path) -> None:
    path, g = tmp_path / "g.npz", example(sg.Chain(2000))
    sg.save(path, g)
    outcomes = []
    for content, where in damaged_places(path, seed=14):
        path.write_bytes(content)
        try:
            again = sg.load(path)
        except PatternError:
            outcomes.append(False)
        else:
            assert (again.topology, again.graph) == (g.topology, g.graph), where
            np.testing.assert_array_equal(again.loc, g.loc, where)
            np.testing.assert_array_equal(again.factor, g.factor, where)
            outcomes.append(True)
    assert 0 < sum(outcomes) < len(outcomes) / 2  # dates, attributes and padding


def test_a_shape_that_a_flipped_bit_shortens_is_refused(tmp_path: Path) -> None:
    """A reader that trusts the array's own header stops before the end, where it would see the CRC."""
    path, topology = tmp_path / "g.npz", sg.Chain(4000)
    sg.save(path, GaussianGraphicalModel(np.zeros((2, 4000)), factor=np.ones(7999), topology=topology))
    path.write_bytes(path.read_bytes().replace(b"(2, 4000)", b"(0, 4000)"))
    refused(path)


def test_a_failing_save_leaves_the_file_that_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "g.npz"
    sg.save(path, example())

    def interrupted(file: Any, **arrays: Any) -> None:
        file.write(b"PK")
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez", interrupted)
    with pytest.raises(KeyboardInterrupt):
        sg.save(path, example(sg.Chain(5)))
    assert sg.load(path).topology == sg.Grid(2, 2)
    assert [entry.name for entry in tmp_path.iterdir()] == ["g.npz"]


@pytest.mark.parametrize("kind", [None, True, 3, 2.5, "4", [], [4], {}, {"n": 4.0}, {"n": "4"}, {"n": None}, {"m": 4}])
@pytest.mark.parametrize("entry", ["format", "topology", "arguments", "key", "is_on_topology"])
def test_a_header_of_other_types_is_refused_or_means_the_same(tmp_path: Path, entry: str, kind: Any) -> None:
    path, g = tmp_path / "g.npz", example(sg.Chain(4))
    sg.save(path, g)
    with_header(path, **{entry: kind})
    try:
        again = sg.load(path)
    except PatternError:
        return
    assert (again.topology, again.graph) == (g.topology, g.graph)
    assert isinstance(again.topology.n, int)


def test_pickled_objects_are_refused_and_never_run(tmp_path: Path) -> None:
    path, planted = tmp_path / "g.npz", tmp_path / "planted"

    class Planting:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (planted,)

    for name in ("loc", "header", "order", "extra"):
        sg.save(path, example())
        arrays = stored(path) | {name: np.array([Planting()], dtype=object)}
        np.savez(path, allow_pickle=True, **arrays)
        refused(path)
        assert not planted.exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 2}, "has format 2 and topology 'Grid'; needed format 1 and one of Diagonal, Chain"),
        ({"topology": "Sheet"}, "has format 1 and topology 'Sheet'; needed format 1 and one of Diagonal, Chain"),
        ({"topology": ["Grid"]}, "has format 1 and topology ['Grid']; needed"),
        ({"key": "0" * 32}, "has another graph, order of elimination or pattern than Grid(2, 2)."),
        ({"arguments": {"shape": [4, 1], "ordered": False}}, "has another graph, order of elimination or pattern than"),
        ({"arguments": {"shape": [2, 2], "ordered": True}}, None),
        ({"arguments": {"shape": [2, 3]}}, "is not a file that sparseggm.save wrote"),
        ({"arguments": {}}, "is not a file that sparseggm.save wrote"),
        ({"arguments": None}, "is not a file that sparseggm.save wrote"),
        ({"arguments": {"shape": [0]}}, "is not a file that sparseggm.save wrote"),
        ({"topology": "Chain"}, "is not a file that sparseggm.save wrote"),
        ({"rule": "2"}, "is not a file that sparseggm.save wrote"),
    ],
)
def test_a_header_that_does_not_fit_is_refused(tmp_path: Path, changes: dict[str, Any], message: str | None) -> None:
    path = tmp_path / "g.npz"
    sg.save(path, example())
    with_header(path, **changes)
    if message is None:  # the stored order is then the one that was given: another topology, the same numbers
        assert sg.load(path).topology == sg.Grid(2, 2, order=sg.Grid(2, 2).order)
    else:
        refused(path, message)


@pytest.mark.parametrize("name", ["order", "edges", "indptr", "rows"])
def test_another_order_graph_or_pattern_is_refused(tmp_path: Path, name: str) -> None:
    """As if written by a version that eliminates a grid in another order."""
    path, array = tmp_path / "g.npz", {}
    sg.save(path, example(sg.Grid(3, 3)))
    other = sg.Grid(3, 3, order=range(9))
    array["order"], array["edges"] = other.order, sg.Chain(9).edges
    array["indptr"], array["rows"] = other.factor_pattern.indptr, other.factor_pattern.rows
    np.savez(path, **stored(path) | {name: array[name]})
    with pytest.raises(PatternError, match=f"^load: {re.escape(str(path))} "):
        sg.load(path)


AXIS_PARALLEL = {
    sg.Grid(6, 6): reference.topology.axis_parallel_dissection((6, 6)),
    sg.Graph(36, sg.Grid(6, 6).edges): reference.topology.axis_parallel_dissection((6, 6)),
    sg.Torus(3, 4): [0, 2, 5, 7, 8, 10, 4, 1, 3, 6, 9, 11],
}


@pytest.mark.parametrize("rule", [None, 1, 3])
@pytest.mark.parametrize("topology", AXIS_PARALLEL, ids=str)
def test_an_order_of_another_rule_is_read_as_given(tmp_path: Path, rule: int | None, topology: Any) -> None:
    """The numbers mean what they meant: the topology has the order of the file, and says that it was given."""
    order, path = AXIS_PARALLEL[topology], tmp_path / "g.npz"
    arguments = (topology.n, topology.edges) if isinstance(topology, sg.Graph) else topology.shape
    written = example(type(topology)(*arguments, order=order))
    sg.save(path, written)
    arrays = stored(path)
    header = json.loads(str(arrays["header"]))
    header["arguments"]["ordered"] = False
    header = {name: value for name, value in header.items() if name != "rule"} | ({"rule": rule} if rule else {})
    np.savez(path, **arrays | {"header": np.array(json.dumps(header))})
    again = sg.load(path)
    assert again.topology == written.topology != topology
    np.testing.assert_array_equal(again.precision, written.precision)
    with_header(path, rule=orders.RULE)
    refused(path, "has another graph, order of elimination or pattern than")


@pytest.mark.parametrize("topology", [sg.Chain(5), sg.Band(5, 2), sg.Grid(2, 2), sg.Grid(1, 5), sg.Star(4)], ids=str)
def test_an_order_that_all_rules_find_is_not_given(tmp_path: Path, topology: Topology) -> None:
    sg.save(tmp_path / "g.npz", example(topology))
    with_header(tmp_path / "g.npz", rule=1)
    assert sg.load(tmp_path / "g.npz").topology == topology


def test_values_are_checked_as_by_the_constructor(tmp_path: Path) -> None:
    path = tmp_path / "g.npz"
    sg.save(path, example())
    np.savez(path, **stored(path) | {"factor": np.full(9, np.nan)})
    with pytest.raises(sg.NonFiniteError, match="factor must be finite, got nan"):
        sg.load(path)


def test_a_topology_of_ones_own_is_refused_with_advice(tmp_path: Path) -> None:
    class Pair(FactorTopology):
        n = 2

        def __repr__(self) -> str:
            return "Pair()"

        def _factor_edges(self) -> Any:
            return np.array([[1, 0]])

    g = example(Pair())
    with pytest.raises(PatternError, match=r"^save: Pair\(\) is not one of Diagonal, .* Save it as Graph\(n, edges\)"):
        sg.save(tmp_path / "g.npz", g)
    assert not (tmp_path / "g.npz").exists()


def test_the_numbers_of_nodes_are_kept(tmp_path: Path) -> None:
    g = GaussianGraphicalModel(np.zeros(5), factor=np.ones(9), topology=sg.Chain(5)).condition([0], [0.3])
    sg.save(tmp_path / "g.npz", g)
    assert sg.load(tmp_path / "g.npz").nodes.tolist() == [1, 2, 3, 4]
    with np.load(tmp_path / "g.npz") as stored:
        arrays = {**stored, "nodes": np.arange(3)}
    np.savez(tmp_path / "damaged.npz", **arrays)
    with pytest.raises(PatternError, match=r"nodes int64 \(3,\), needed int64 \(4,\)"):
        sg.load(tmp_path / "damaged.npz")
