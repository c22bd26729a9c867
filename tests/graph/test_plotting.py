"""Pictures: every node and edge of P is plotted once, solid where L stores it; layouts keep nodes apart."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings

from sparseggm import (
    Band,
    BlockChain,
    Chain,
    Cycle,
    ExtendedGrid,
    Graph,
    Grid,
    ShapeError,
    Star,
    Stencil,
    Topology,
    Torus,
    Tree,
)
from sparseggm.graph import plotting
from tests.topologies import topologies

pytest.importorskip("matplotlib", reason="matplotlib is optional")

from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.collections import EllipseCollection, LineCollection
from matplotlib.figure import Figure


@pytest.fixture(autouse=True)
def no_windows() -> Iterator[None]:
    before = pyplot.get_backend()
    pyplot.switch_backend("agg")
    yield
    pyplot.close("all")
    pyplot.switch_backend(before)


def lines(ax: Axes, dashed: bool) -> list[Any]:
    """Paths of all solid or all dashed lines that carry the picture: those above the hairlines."""
    layers = [c for c in ax.collections if isinstance(c, LineCollection)]
    return [path for c in layers if (c.get_linestyle()[0][1] is not None) is dashed for path in c.get_paths()]


@pytest.mark.property
@settings(max_examples=40)
@given(topology=topologies())
def test_every_node_and_edge_of_every_family_is_plotted_once(topology: Topology) -> None:
    ax = topology.plot(Figure().subplots())
    (discs,) = (c for c in ax.collections if isinstance(c, EllipseCollection))
    np.testing.assert_array_equal(discs.get_offsets(), topology.node_places())
    assert [text.get_text() for text in ax.texts] == [str(node) for node in range(topology.n)]
    is_stored = topology.factor_positions[1] >= 0
    for dashed in (False, True):
        plotted = lines(ax, dashed)
        expected = topology.node_places()[topology.edges[is_stored != dashed]]
        assert len(plotted) == len(expected)
        for path, ends in zip(plotted, expected, strict=True):
            np.testing.assert_allclose(path.vertices[[0, -1]], ends, atol=1e-12)


@pytest.mark.property
@settings(max_examples=60)
@given(topology=topologies(5))
def test_places_are_finite_and_no_disc_hides_another(topology: Topology) -> None:
    places = topology.node_places()
    assert places.shape == (topology.n, 2)
    assert np.isfinite(places).all()
    apart = np.linalg.norm(places[:, None] - places, axis=-1) + 9.0 * np.eye(topology.n)
    assert apart.min() > 2 * plotting.RADIUS


NEIGHBOURS_AT_ONE = {
    "Chain": Chain(30),
    "Grid": Grid(3, 4),
    "ExtendedGrid": ExtendedGrid(1, 5),
    "Cycle": Cycle(50),
    "Star": Star(6),
    "Path as a Tree": Tree([-1, 0, 1, 2]),
    "Path as a Graph": Graph(4, Chain(4).edges),
}


@pytest.mark.parametrize("topology", NEIGHBOURS_AT_ONE.values(), ids=list(NEIGHBOURS_AT_ONE))
def test_joined_nodes_are_one_apart_where_the_layout_can_do_it(topology: Topology) -> None:
    start, end = topology.node_places()[topology.edges.T]
    np.testing.assert_allclose(np.linalg.norm(end - start, axis=1), 1.0, rtol=0.01)


def test_a_tree_hangs_from_its_roots_with_parents_above_the_middle_of_their_children() -> None:
    tree = Tree([-1, 0, 0, 1, 1, 2, -1])
    np.testing.assert_array_equal(tree.node_places()[:, 1], [0, -1, -1, -2, -2, -2, 0])
    np.testing.assert_array_equal(tree.node_places()[:, 0], [1.25, 0.5, 2, 0, 1, 2, 3])
    assert len(Tree([*range(-1, 4999)]).node_places()) == 5000  # no recursion


def test_the_layout_of_a_graph_is_that_of_its_distances() -> None:
    """A 4 × 4 grid, given as any graph, gets back its shape: the stress of a flat lattice in the city-block metric."""
    places = Graph(16, Grid(4, 4).edges).node_places()
    distance = np.linalg.norm(places[:, None] - places, axis=-1)
    ends = Grid(4, 4).edges
    along, across = distance[ends[:, 0], ends[:, 1]], distance[[0, 3], [15, 12]]
    assert 0.7 < along.min() < along.max() < 1.2
    np.testing.assert_allclose(across, across.mean(), rtol=0.02)
    np.testing.assert_array_equal(places, Graph(16, Grid(4, 4).edges).node_places())


@pytest.mark.parametrize(
    "topology", [Torus(4, 4), BlockChain(4, 4), Stencil(3, 4, 2), Grid(9, 1), Band(20, 3)], ids=str
)
def test_no_line_runs_through_a_node_on_a_lattice(topology: Topology) -> None:
    places = topology.node_places()
    for line, ends in zip(plotting.curves(places, topology.edges), topology.edges, strict=True):
        start, end = line[:-1, None], line[1:, None]
        along = end - start
        at = np.clip(((places - start) * along).sum(-1) / (along**2).sum(-1), 0.0, 1.0)[..., None]
        apart = np.linalg.norm(start + at * along - places, axis=-1).min(axis=0)
        assert np.delete(apart, ends).min() > 0.1


def test_values_are_colours_and_missing_ones_stay_grey() -> None:
    grid = ExtendedGrid(3, 3)
    values = np.where(grid.factor_positions[1] >= 0, np.linspace(-2, 1, len(grid.edges)), np.nan)
    ax = grid.plot(node_values=np.arange(9.0), edge_values=values, node_limits=(-1.0, 10.0))
    (discs,) = (c for c in ax.collections if isinstance(c, EllipseCollection))
    assert discs.get_clim() == (-1.0, 10.0)
    coloured = [c for c in ax.collections if isinstance(c, LineCollection) and c.get_array() is not None]
    assert [c.get_clim() for c in coloured] == [(-2.0, 2.0)] * 2
    assert np.isnan(coloured[0].get_array().filled(np.nan)).all()
    np.testing.assert_array_equal(coloured[1].get_array(), values[np.isfinite(values)])
    ax.figure.canvas.draw()


@pytest.mark.parametrize("form", [list, tuple, np.float32, np.asarray], ids=lambda form: form.__name__)
def test_values_may_be_lists_or_arrays_of_any_numbers(form: Any) -> None:
    ax = Chain(4).plot(node_values=form([0, 1, 2, 3]), edge_values=form([1, -1, 2]))
    (discs,) = (c for c in ax.collections if isinstance(c, EllipseCollection))
    assert discs.get_array().tolist() == [0, 1, 2, 3]
    ax.figure.canvas.draw()


def test_masked_values_are_missing() -> None:
    hidden = np.ma.array([1.0, 50.0, 2.0], mask=[False, True, False])
    lines = [c for c in Chain(4).plot(edge_values=hidden).collections if isinstance(c, LineCollection)]
    assert {c.get_clim() for c in lines if c.get_array() is not None} == {(-2.0, 2.0)}


@pytest.mark.parametrize("name", ["node", "edge"])
def test_values_of_a_wrong_size_are_refused(name: str) -> None:
    with pytest.raises(
        ShapeError, match=rf"^Chain\(n=4\)\.plot: {name}_values must be \({4 if name == 'node' else 3},\)"
    ):
        Chain(4).plot(**{f"{name}_values": np.ones(5)})


def test_without_axes_a_figure_is_made_and_with_axes_none() -> None:
    ax = Grid(2, 3).plot()
    assert pyplot.get_fignums() == [1]
    assert Grid(3, 3).plot(ax) is ax
    assert Grid(3, 3).plot_pattern(ax) is ax
    assert pyplot.get_fignums() == [1]


def test_the_pattern_shows_fill_apart_from_what_both_store() -> None:
    cycle = Cycle(5)
    shown = np.asarray(cycle.plot_pattern(Figure().subplots()).images[0].get_array())
    white, grey = (shown == 1.0).all(axis=-1), (shown == shown[0, 1]).all(axis=-1)
    L, P = np.zeros((5, 5), bool), np.zeros((5, 5), bool)
    L[cycle.factor_pattern.rows, cycle.factor_pattern.cols] = True
    P[cycle.precision_pattern.rows, cycle.precision_pattern.cols] = True
    np.testing.assert_array_equal(white, ~(L | P | P.T))
    np.testing.assert_array_equal(grey, P.T & ~L)
    np.testing.assert_array_equal((shown == shown[4, 1]).all(axis=-1), L & ~P)  # fill: (3, 1) is not of P either
    assert (L & ~P).sum() == 2


def test_without_matplotlib_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"^plot: needs matplotlib, .* pip install matplotlib$"):
        Chain(3).plot()
