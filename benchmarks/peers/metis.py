"""METIS's nested dissection by its defaults, through pymetis."""

from __future__ import annotations

import numpy as np
import pymetis

import sparseggm as sg
from benchmarks.problems import Array


def order(topology: sg.Topology) -> Array:
    """`order[k]` is the node to eliminate k-th."""
    both = np.concatenate([topology.edges, topology.edges[:, ::-1]])
    both = both[np.lexsort(both.T[::-1])]
    starts = np.searchsorted(both[:, 0], np.arange(topology.n + 1))
    eliminated, _ = pymetis.nested_dissection(pymetis.CSRAdjacency(starts, both[:, 1]))
    return np.asarray(eliminated)
