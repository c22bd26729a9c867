"""Pictures of graphs and patterns, with matplotlib: where each node goes, and what is plotted there.

Knows no topologies: `Topology.node_places` chooses among the layouts, `Topology.plot` calls `plot_graph`. Layouts put
joined nodes about one apart and depend on nothing but the graph. The blue and the orange are Okabe and Ito's and the
colour maps are cividis and purple–orange: colour-blind readers can tell them apart.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import scipy.sparse
from scipy.sparse.csgraph import shortest_path

from sparseggm.graph.pattern import IntArray, Pattern

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BLACK, BLUE, GREY, ORANGE = "#000000", "#0072B2", "#BBBBBB", "#E69F00"
SEQUENTIAL, DIVERGING = "cividis", "PuOr_r"
RADIUS = 0.27
"""Of a node, where neighbours are one apart."""
LINE_OF_NODES = 8
"""More nodes than these are folded into rows."""
NUMBERED_NODES = 100
"""With more nodes than these, the numbers would be too small to read."""

Array = npt.NDArray[Any]
Limits = tuple[float, float]

# ---------------------------------------------------------------------- layouts: (n, 2) places of the nodes


def rows(n: int, snake: bool = False) -> Array:
    """In rows as square as can be, or in one row; every other row from right to left if `snake`."""
    cols = n if n <= LINE_OF_NODES else math.ceil(math.sqrt(n))
    row, col = np.divmod(np.arange(n), cols)
    if snake:
        col = np.where(row % 2 == 0, col, cols - 1 - col)
    return np.stack([col, -row], axis=1).astype(float)


def slanted(n: int, size: int) -> Array:
    """In columns of this size, each lower node further right: node i + size is the right neighbour of node i."""
    node = np.arange(n)
    return rows(n, snake=True) if size == 1 else np.stack([node / size, -(node % size)], axis=1)


def lattice(shape: tuple[int, ...]) -> Array:
    """Of two axes, or of three: the last to the right, the one before downwards, a third backwards."""
    depth = shape[0] if len(shape) == 3 else 1
    apart = 1.0 if depth == 1 else 0.5 * depth + 0.2  # so that no layer hides another
    axes = np.array([[0.5, 0.4], [0.0, -apart], [apart, 0.0]])[-len(shape) :]
    return np.asarray(np.indices(shape).reshape(len(shape), -1).T @ axes)


def circle(n: int) -> Array:
    """On a circle, clockwise from the top."""
    angle = 2.0 * np.pi * np.arange(n) / max(n, 1)
    return max(1.0, n / (2.0 * np.pi)) * np.stack([np.sin(angle), np.cos(angle)], axis=1)


def by_depth(parents: Sequence[int]) -> Array:
    """A forest: roots on top, leaves one apart, each parent above the middle of its children."""
    children: list[list[int]] = [[] for _ in parents]
    for node, parent in enumerate(parents):
        if parent >= 0:
            children[parent].append(node)
    places, leaves = np.zeros((len(parents), 2)), 0
    parents_first = [node for node, parent in enumerate(parents) if parent < 0][::-1]
    visited = []
    while parents_first:  # depth first, left to right: no recursion, or a chain of a thousand would exceed its limit
        node = parents_first.pop()
        visited.append(node)
        if parents[node] >= 0:
            places[node, 1] = places[parents[node], 1] - 1.0
        if not children[node]:
            places[node, 0] = leaves
            leaves += 1
        parents_first.extend(reversed(children[node]))
    for node in reversed(visited):
        if children[node]:
            places[node, 0] = (places[children[node][0], 0] + places[children[node][-1], 0]) / 2.0
    return places


def by_distance(n: int, edges: IntArray, steps: int = 200) -> Array:
    """Distances on paper near distances in the graph: the stress Σ_{i<j} (|x_i − x_j| / d_ij − 1)², made small.

    Starts from classical scaling (the leading eigenvectors of the centred −½ d²) and repeats Guttman's transform: with
    weights w_ij = d_ij⁻² and their Laplacian V, V x' = B(x) x, where B has −w_ij d_ij / |x_i − x_j| off the diagonal.
    Dense in n. Source: [Gansner, Koren & North 2004].
    """
    if n < 3:
        return rows(n)
    graph = scipy.sparse.csr_array((np.ones(len(edges)), (edges[:, 0], edges[:, 1])), shape=(n, n))
    distance = shortest_path(graph, directed=False, unweighted=True)
    finite = np.isfinite(distance)
    distance[~finite] = 1.0 + distance[finite].max() / 2.0  # between components
    centred = np.eye(n) - 1.0 / n
    values, vectors = np.linalg.eigh(-0.5 * centred @ distance**2 @ centred)
    vectors *= np.sign(vectors[np.abs(vectors).argmax(axis=0), np.arange(n)])
    # Nodes with the same neighbours would share a place for ever: the circle parts them.
    places = vectors[:, -2:] * np.sqrt(np.maximum(values[-2:], 0.0)) + 0.2 * circle(n) / max(1.0, n / (2.0 * np.pi))
    off_diagonal = ~np.eye(n, dtype=bool)
    weight = np.zeros((n, n))
    weight[off_diagonal] = distance[off_diagonal] ** -2.0
    inverse = np.linalg.pinv(np.diag(weight.sum(axis=1)) - weight, hermitian=True)
    for _ in range(steps):
        apart = np.linalg.norm(places[:, None] - places, axis=-1)
        pull = np.divide(weight * distance, apart, out=np.zeros((n, n)), where=apart > 1e-9)
        places = inverse @ (pull.sum(axis=1)[:, None] * places - pull @ places)
    places -= places.mean(axis=0)
    closest = np.linalg.norm(places[:, None] - places, axis=-1)[off_diagonal].min()
    level = np.linalg.svd(places, full_matrices=False)[2]  # the longer axis first
    return np.asarray(places @ level.T * np.clip(0.8 / max(closest, 0.1), 1.0, 2.0))


# ---------------------------------------------------------------------- pictures


def plot_graph(
    ax: Axes | None,
    places: Array,
    edges: IntArray,
    is_solid: Array,
    node_values: Array | None = None,
    edge_values: Array | None = None,
    node_limits: Limits | None = None,
    edge_limits: Limits | None = None,
) -> Axes:
    """Discs at the places and a line for each edge: see `Topology.plot`."""
    ax = _axes(ax, np.ptp(places, axis=0) + 1.5)
    from matplotlib.collections import EllipseCollection, LineCollection

    low, high = places.min(axis=0) - 0.75, places.max(axis=0) + 0.75
    ax.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), xticks=[], yticks=[], aspect="equal")
    ax.spines[:].set_visible(False)
    unit = 72.0 / ax.figure.dpi * float(min(np.array(ax.get_window_extent().size) / (high - low)))
    paths = curves(places, edges)
    width = min(2.5, 0.05 * unit)
    for chosen, colour, style in ((~is_solid, GREY, "dashed"), (is_solid, BLUE, "solid")):
        lines = [path for path, is_chosen in zip(paths, chosen, strict=True) if is_chosen]
        thick = width if style == "solid" else 0.5 * width
        if edge_values is None:
            ax.add_collection(LineCollection(lines, colors=colour, linewidths=thick, linestyles=style))
            continue
        # Grey below, or an edge of weight near zero, or none, would not be seen.
        hair = 0.2 * width if style == "solid" else thick
        ax.add_collection(LineCollection(lines, colors=GREY, linewidths=hair, linestyles=style))
        coloured = LineCollection(lines, linewidths=thick, linestyles=style, cmap=DIVERGING)
        coloured.set(array=edge_values[chosen], clim=edge_limits or symmetric(edge_values))
        ax.add_collection(coloured)
    size = np.full(len(places), 2.0 * RADIUS)
    discs = EllipseCollection(size, size, 0.0 * size, units="xy", offsets=places, offset_transform=ax.transData)
    discs.set(facecolors="white", edgecolors=BLACK, linewidths=min(0.8, 0.03 * unit), zorder=3)
    if node_values is not None:
        discs.set(array=node_values, cmap=SEQUENTIAL, clim=node_limits)
        discs.autoscale_None()
    ax.add_collection(discs)
    if len(places) <= NUMBERED_NODES:
        _number(ax, places, None if node_values is None else discs.to_rgba(node_values), min(10.0, 0.26 * unit))
    return ax


def curves(places: Array, edges: IntArray) -> list[Array]:
    """(k, 2) points of the line of each edge: straight, but bent where it would run through another node."""
    lines = []
    for ends in edges:
        start, end = places[ends]
        along = end - start
        length = max(float(np.linalg.norm(along)), 1e-9)
        at = np.clip((places - start) @ along / length**2, 0.0, 1.0)  # of the point nearest to each node
        apart = np.linalg.norm(start + at[:, None] * along - places, axis=1)
        apart[ends] = np.inf
        if apart.min() > 0.8 * RADIUS:
            lines.append(np.stack([start, end]))
            continue
        normal = np.array([-along[1], along[0]]) / length
        normal *= 1.0 if (normal[1], normal[0]) > (1e-9, 0.0) or abs(normal[1]) < 1e-9 < normal[0] else -1.0
        t = np.linspace(0.0, 1.0, 25)[:, None]
        lines.append(start + t * along + 4.0 * t * (1.0 - t) * min(0.5, 0.3 * math.sqrt(length / 2.0)) * normal)
    return lines


def plot_patterns(ax: Axes | None, precision: Pattern, factor: Pattern) -> Axes:
    """Stored entries of L (below the diagonal) and P (on both sides): see `Topology.plot_pattern`."""
    ax = _axes(ax, np.array([5.0, 5.0]))
    from matplotlib.colors import to_rgb

    n = factor.n
    shown = np.ones((n, n, 3), np.float32)
    shown[precision.rows, precision.cols] = shown[precision.cols, precision.rows] = to_rgb(GREY)
    is_fill = ~np.isin(
        factor.cols.astype(np.int64) * n + factor.rows, precision.cols.astype(np.int64) * n + precision.rows
    )
    shown[factor.rows, factor.cols] = np.where(is_fill[:, None], to_rgb(ORANGE), to_rgb(BLUE))
    ax.imshow(shown, interpolation="nearest")
    ticks = range(0, n, max(1, n // 4))
    ax.set(xlabel="column", ylabel="row", xticks=ticks, yticks=ticks)
    return ax


def symmetric(*arrays: Array) -> Limits:
    """Limits about zero that hold every number; those that are NaN are left out."""
    largest = max((float(np.abs(array[np.isfinite(array)]).max(initial=0.0)) for array in arrays), default=0.0)
    return -largest, largest


def _axes(ax: Axes | None, size: Array) -> Axes:
    """The given axes, or those of a new figure for a picture of this size."""
    if ax is not None:
        return ax
    try:
        from matplotlib import pyplot
    except ImportError:
        raise ImportError("plot: needs matplotlib, which is not installed. Try: pip install matplotlib") from None
    inches = size * min(0.7, 10.0 / size.max())
    return pyplot.subplots(figsize=np.maximum(inches, 1.0), layout="constrained")[1]


def _number(ax: Axes, places: Array, fills: Array | None, points: float) -> None:
    """Each node's number in its disc, white on a dark one."""
    luminance = np.ones(len(places)) if fills is None else fills[:, :3] @ [0.299, 0.587, 0.114]
    for node, (x, y) in enumerate(places):
        colour = BLACK if luminance[node] > 0.45 else "white"
        ax.text(x, y, str(node), ha="center", va="center", fontsize=points, color=colour, zorder=4)
