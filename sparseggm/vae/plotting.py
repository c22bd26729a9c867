"""Primitives of the figures: a heat map over training, tiles of digits.

Colours and the graphs themselves are those of `sparseggm.graph.plotting`.
Figures are plain `matplotlib.figure.Figure`s: pyplot and its global state are never touched.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from sparseggm.graph.plotting import Array
from sparseggm.graph.topology import Topology

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DOTS_PER_INCH = 160


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, in inches, that lays itself out."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=DOTS_PER_INCH, layout="constrained")


def stored_couplings(topology: Topology) -> Array:
    """Packed positions of the off-diagonals of L."""
    pattern = topology.factor_pattern
    return np.flatnonzero(pattern.rows != pattern.cols)


def plot_over_training(axes: Axes, values: Array, colour_map: str, limits: tuple[float, float]) -> Any:
    """Plot (epochs + 1, m) numbers as m rows of colour over epochs; returns the image, for a colour bar."""
    extent = (-0.5, len(values) - 0.5, values.shape[1] - 0.5, -0.5)
    image = axes.imshow(values.T, aspect="auto", cmap=colour_map, clim=limits, interpolation="nearest", extent=extent)
    from matplotlib.ticker import MaxNLocator

    axes.set(xlabel="epoch")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    return image


def plot_tiles(axes: Axes, images: Array, rows: int) -> None:
    """Plot (rows · cols, 784) intensities in [0, 1] as one picture, row by row, black on white, with grey lines."""
    axes.imshow(image_of_tiles(images, rows, 0.4), cmap="gray_r", vmin=0, vmax=1, interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


def image_of_tiles(images: Array, rows: int, line: float = np.nan) -> Array:
    """(rows · cols, 784) numbers as one picture, row by row, with lines of a number (NaN: none) between the tiles."""
    tiles = np.pad(images.reshape(rows, -1, 28, 28), ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=line)
    return tiles.transpose(0, 2, 1, 3).reshape(rows * 30, -1)
