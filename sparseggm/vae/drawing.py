"""Primitives of the figures: a graph with numbers on it, a heat map over training, a pattern, tiles of digits.

The blue is Okabe and Ito's and the colour maps are cividis and purple–orange: colour-blind readers can tell them apart.
Figures are plain `matplotlib.figure.Figure`s: pyplot and its global state are never touched.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from sparseggm.topology import BlockChain, Chain, Topology
from sparseggm.vae.config import squarest

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLACK, BLUE, GREY = "#000000", "#0072B2", "#BBBBBB"
SEQUENTIAL, DIVERGING = "cividis", "PuOr_r"
DOTS_PER_INCH = 160

Array = npt.NDArray[Any]


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, in inches, that lays itself out."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=DOTS_PER_INCH, layout="constrained")


def node_places(topology: Topology) -> Array:
    """(n, 2) places of the nodes, one apart: a grid by rows, a chain folded into rows, a block as a bent column."""
    cols = squarest(topology.n)[1]
    node = np.arange(topology.n)
    if isinstance(topology, BlockChain):
        block, inside = np.divmod(node, topology.size)
        # Bent, or the edges inside a block would hide one another.
        bend = 0.3 * np.sin(np.pi * (inside + 0.5) / topology.size)
        return np.stack([block + bend, -inside], axis=1)
    row, col = np.divmod(node, cols)
    if isinstance(topology, Chain):
        col = np.where(row % 2 == 0, col, cols - 1 - col)
    return np.stack([col, -row], axis=1).astype(float)


def factor_edges(topology: Topology) -> tuple[Array, Array]:
    """Stored off-diagonals of L: their positions among the packed values, and (m, 2) nodes that they join."""
    pattern = topology.factor_pattern
    stored = np.flatnonzero(pattern.rows != pattern.cols)
    return stored, topology.order[np.stack([pattern.rows, pattern.cols], axis=1)[stored]]


def draw_graph(
    axes: Axes,
    topology: Topology,
    nodes: Array | None = None,
    edges: Array | None = None,
    node_limits: tuple[float, float] = (0.0, 1.0),
    edge_limits: tuple[float, float] = (-1.0, 1.0),
) -> None:
    """Draw the graph of P, with thin grey lines for those of its edges that L does not store.

    Args:
        nodes: (n,) numbers shown as colours of the nodes; all alike if None.
        edges: values of L on `factor_edges`, shown as colours of the lines.
        node_limits, edge_limits: ranges of the colours.
    """
    from matplotlib.collections import LineCollection

    places = node_places(topology)
    _, ends = factor_edges(topology)
    stored = {frozenset(pair) for pair in ends.tolist()}
    implied = [pair for pair in topology.edges.tolist() if frozenset(pair) not in stored]
    axes.add_collection(LineCollection(list(places[implied]), colors=GREY, linewidths=1.0, linestyles="dashed"))
    width = 2.5 if len(ends) <= 3 * topology.n else 1.2
    lines = LineCollection(list(places[ends]), colors=BLUE if edges is None else None, linewidths=width, zorder=2)
    if edges is not None:
        # A hairline of grey below, or an edge of weight near zero would not be seen.
        axes.add_collection(LineCollection(list(places[ends]), colors=GREY, linewidths=0.4))
        lines.set(array=edges, cmap=DIVERGING, clim=edge_limits)
    axes.add_collection(lines)
    discs = axes.scatter(places[:, 0], places[:, 1], s=230, c="white", edgecolors=BLACK, linewidths=0.8, zorder=3)
    if nodes is not None:
        discs.set(array=nodes, cmap=SEQUENTIAL, clim=node_limits)
    box = {"boxstyle": "circle,pad=0.12", "facecolor": "white", "edgecolor": "none", "alpha": 0.8}
    for node, (x, y) in enumerate(places):
        axes.text(x, y, str(node), ha="center", va="center", fontsize=7, zorder=4, bbox=None if nodes is None else box)
    axes.set(xticks=[], yticks=[], aspect="equal")
    axes.margins(0.15)
    axes.spines[:].set_visible(False)


def draw_pattern(axes: Axes, topology: Topology) -> None:
    """Draw which entries of L (lower triangle, filled) and P (both triangles) are stored."""
    n = topology.n
    shown = np.zeros((n, n, 3)) + 1.0
    precision, factor = topology.precision_pattern, topology.factor_pattern
    for rows, cols in ((precision.rows, precision.cols), (precision.cols, precision.rows)):
        shown[rows, cols] = (0.80, 0.80, 0.80)
    shown[factor.rows, factor.cols] = (0.0, 0.447, 0.698)
    axes.imshow(shown, interpolation="nearest")
    ticks = range(0, n, max(1, n // 4))
    axes.set(xlabel="column", ylabel="row", xticks=ticks, yticks=ticks)


def draw_over_training(axes: Axes, values: Array, colour_map: str, limits: tuple[float, float]) -> Any:
    """Draw (epochs + 1, m) numbers as m rows of colour over epochs; returns what a colour bar describes."""
    extent = (-0.5, len(values) - 0.5, values.shape[1] - 0.5, -0.5)
    image = axes.imshow(values.T, aspect="auto", cmap=colour_map, clim=limits, interpolation="nearest", extent=extent)
    axes.set(xlabel="epoch")
    axes.xaxis.get_major_locator().set_params(integer=True)
    return image


def draw_tiles(axes: Axes, images: Array, rows: int) -> None:
    """Draw (rows · cols, 784) intensities in [0, 1] as one picture, row by row, white on black lines."""
    tiles = np.pad(images.reshape(rows, -1, 28, 28), ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=0.4)
    picture = tiles.transpose(0, 2, 1, 3).reshape(rows * 30, -1)
    axes.imshow(picture, cmap="gray_r", vmin=0, vmax=1, interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
