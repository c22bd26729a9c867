"""The rows of the table, by name and in its order. A row is made when its turn comes, so only one is in memory."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.contest import Result, Setting
from benchmarks.rows import (
    dtypes,
    eigenvalues,
    fields,
    grids,
    idiom,
    importance,
    levels,
    long_chain,
    residual,
    slopes,
    solves,
    startup,
    steps,
    training,
)

Row = Callable[[Setting], Result]

ROWS: dict[str, Row] = {
    **solves.ROWS,
    **steps.ROWS,
    **idiom.ROWS,
    **residual.ROWS,
    **grids.ROWS,
    **fields.ROWS,
    **eigenvalues.ROWS,
    **slopes.ROWS,
    **long_chain.ROWS,
    **importance.ROWS,
    **levels.ROWS,
    **dtypes.ROWS,
    **training.ROWS,
    **startup.ROWS,
}
