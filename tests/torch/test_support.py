"""docs/torch-support.md tells what is found."""

from __future__ import annotations

import pytest

from tests.torch.support import OPERATIONS, TABLE, TOPOLOGIES, cell, lines


def committed() -> list[str]:
    return TABLE.read_text(encoding="utf-8").splitlines()


def test_the_table_has_every_operation_and_topology():
    rows = (row.split("|")[:2] if row.startswith("| `") else row for row in lines(lambda name, topology: ""))
    assert list(rows) == [row.split("|")[:2] if row.startswith("| `") else row for row in committed()]


# One topology a row, another in each: all cells take minutes, and the command tries them.
@pytest.mark.parametrize(("name", "column"), [(name, i % len(TOPOLOGIES)) for i, name in enumerate(OPERATIONS)])
def test_a_cell_of_the_table_is_what_is_found(name, column):
    (row,) = [line for line in committed() if line.startswith(f"| `{name}` |")]
    assert cell(name, TOPOLOGIES[column]) == row.split("|")[2 + column].strip()
