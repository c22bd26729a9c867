"""docs/torch-support.md tells what is found."""

from __future__ import annotations

import pytest

from tests.torch.support import OPERATIONS, PROBES, TABLE, TOPOLOGIES, cell, lines, lost, write


def committed() -> list[str]:
    return TABLE.read_text(encoding="utf-8").splitlines()


def test_the_table_has_every_operation_and_topology():
    rows = (row.split("|")[:2] if row.startswith("| `") else row for row in lines(lambda name, topology: ""))
    expected = [row.split("|")[:2] if row.startswith("| `") else row for row in committed()]
    assert list(rows) == expected, "write it: python -m tests.torch.support, with --only for the rows that are new"


TRIED = [(name, 5 * i % len(TOPOLOGIES)) for i, name in enumerate(OPERATIONS)][::3]


# A topology of every third row: all cells take minutes, and `make verify` tries them.
@pytest.mark.parametrize(("name", "column"), TRIED)
def test_a_cell_of_the_table_is_what_is_found(name, column):
    (row,) = [line for line in committed() if line.startswith(f"| `{name}` |")]
    assert cell(name, TOPOLOGIES[column]) == row.split("|")[2 + column].strip()


def worsened(row: str, letter: str) -> str:
    name, cells = row.split("` | ")
    return f"{name}` | {cells.replace(letter, '·')}"


@pytest.mark.parametrize("letter", PROBES)
def test_the_table_does_not_lose_a_letter_without_being_told_to(letter, tmp_path):
    path = tmp_path / "table.md"
    path.write_text("\n".join(committed()) + "\n", encoding="utf-8")
    before = path.read_text(encoding="utf-8")
    worse = [line if "`rsample`" not in line else worsened(line, letter) for line in committed()]
    assert len(lost(committed(), worse)) == len(TOPOLOGIES)
    with pytest.raises(SystemExit, match=r"rsample on Diagonal: ghvc → .*·[\s\S]*or pass --accept"):
        write(path, worse, accept=False)
    assert path.read_text(encoding="utf-8") == before
    write(path, worse, accept=True)
    assert path.read_text(encoding="utf-8").splitlines() == worse


def test_letters_that_are_won_are_written(tmp_path):
    path = tmp_path / "table.md"
    path.write_text("\n".join(committed()).replace("ghvc", "g···") + "\n", encoding="utf-8")
    write(path, committed(), accept=False)
    assert path.read_text(encoding="utf-8").splitlines() == committed()


def test_a_row_that_is_gone_is_a_loss():
    fewer = [line for line in committed() if not line.startswith("| `rsample` |")]
    assert len(lost(committed(), fewer)) == len(TOPOLOGIES)
