"""The orders of elimination beside METIS's: `python -m benchmarks.orders` prints their table of docs/costs.md."""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np
from scipy.spatial import Delaunay

import sparseggm as sg
from benchmarks.peers import MissingPeerError, peer_module


def triangulated(points: int) -> sg.Graph:
    """The Delaunay graph of random points in the unit square."""
    places = np.random.default_rng(0).random((points, 2))
    corners = Delaunay(places).simplices
    sides = np.concatenate([corners[:, [0, 1]], corners[:, [1, 2]], corners[:, [0, 2]]])
    return sg.Graph(points, np.unique(np.sort(sides, axis=1), axis=0))


TOPOLOGIES: dict[str, Callable[[int], sg.Topology]] = {
    "`Grid(28, 28)`": lambda scale: sg.Grid(28 // scale, 28 // scale),
    "`Grid(512, 512)`": lambda scale: sg.Grid(512 // scale, 512 // scale),
    "`Grid(28, 28, 28)`": lambda scale: sg.Grid(28 // scale, 28 // scale, 28 // scale),
    "`Torus(256, 256)`": lambda scale: sg.Torus(256 // scale, 256 // scale),
    "`Graph` of 10⁵ random points, triangulated": lambda scale: triangulated(100_000 // scale**2),
}


def cells(topology: sg.Topology) -> tuple[str, str]:
    """nnz(L), and Σ_j c_j² for c_j entries in column j."""
    pattern = topology.factor_pattern
    lengths = np.diff(pattern.indptr).astype(float)
    return f"{pattern.nnz:,}", f"{float(lengths @ lengths):.3g}"


def main(arguments: list[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.orders", description=__doc__)
    parser.add_argument("--scale", type=int, default=1, help="divides the sides, for a quick look")
    options = parser.parse_args(arguments)
    try:
        metis = peer_module("metis", "pymetis")
    except MissingPeerError as missing:
        metis = None
        print(missing)
    print("| topology | nnz(L) | METIS | Σ c_j² | METIS |")
    print("|---|---|---|---|---|")
    for name, make in TOPOLOGIES.items():
        topology = make(options.scale)
        ours = cells(topology)
        theirs = cells(sg.Graph(topology.n, topology.edges, order=metis.order(topology))) if metis else ("–", "–")
        print(f"| {name} | {ours[0]} | {theirs[0]} | {ours[1]} | {theirs[1]} |", flush=True)


if __name__ == "__main__":
    main()
