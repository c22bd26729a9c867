"""The dense fronts of a closed pattern, where working on these is faster than column by column."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from sparseggm.graph.derived import make_read_only
from sparseggm.kernels.fronts import tree
from sparseggm.kernels.fronts.assembly import Tree

IndexArray = npt.NDArray[np.int32]

LEAST_ENTRIES = 1 << 14
"""Entries of L below which there is nothing to gain."""

MOST_SCRATCH = 4
"""Times the entries of L: more is needed where many small parts of a graph share many nodes."""

COLUMN_WORK = 9.0
"""Multiply-adds of dense matrices that one of a sparse column is worth."""


def fronts_of(indptr: IndexArray, rows: IndexArray) -> Tree | None:
    """The tree of supernodes of a closed pattern; None where columns are as fast or need less memory. Cost O(n)."""
    n, lengths = len(indptr) - 1, np.diff(indptr).astype(np.int64)
    if rows.size < LEAST_ENTRIES:
        return None
    parent = np.where(lengths > 1, rows[np.minimum(indptr[:-1] + 1, rows.size - 1)], -1).astype(np.int64)
    last, width = parent.copy(), np.empty(n, np.int64)
    if tree.merge_columns(indptr, last, width) > COLUMN_WORK * int(lengths @ lengths):
        return None
    arrays = [np.empty(size, np.int64) for size in (n + 1, n, n + 1, n)]
    count, *sizes = tree.number_fronts(indptr, parent, last, width, *arrays)
    front_indptr, columns, child_indptr, children = arrays
    arrays = [front_indptr[: count + 1], columns, child_indptr[: count + 1], children[: child_indptr[count]]]
    kept = [make_read_only(array.copy()) for array in arrays]
    made = Tree(kept[0], kept[1], kept[2], kept[3], *sizes)
    return made if made.scratch <= MOST_SCRATCH * rows.size else None
