"""The largest eigenvalue of random weights on the edges of grids, for the spectral family, beside all by LAPACK."""

from __future__ import annotations

from functools import partial

import numpy as np

import sparseggm as sg
from benchmarks.contest import Contestant, Peer, Result, Setting, race
from sparseggm import spectral

LAPACK = "LAPACK, all eigenvalues"


def largest(setting: Setting, batch: int, side: int) -> Result:
    """Of `batch` grids side × side."""
    grid, batch = sg.Grid(setting.size(side, 3), setting.size(side, 3)), setting.size(batch)
    pattern, on_edges = grid.precision_pattern, np.random.default_rng(0).standard_normal((batch, len(grid.edges)))
    values = grid.pack((np.zeros((batch, grid.n)), on_edges))
    dense = spectral.dense(pattern, values)
    ours = Contestant(lambda: spectral.largest_eigenvalue(pattern, values), lambda rho: [rho])
    theirs = Contestant(lambda: np.linalg.eigvalsh(dense)[..., -1], lambda top: [top])
    return race(setting, f"largest eigenvalue, {grid}, batch {batch}, float64", ours, {LAPACK: Peer(lambda: theirs)})


ROWS = {
    "eigenvalue-128x16": partial(largest, batch=128, side=4),
    "eigenvalue-128x64": partial(largest, batch=128, side=8),
    "eigenvalue-128x100": partial(largest, batch=128, side=10),
    "eigenvalue-16x784": partial(largest, batch=16, side=28),
}
