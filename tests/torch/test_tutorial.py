"""The tutorial's code runs, from its first block to its last, and its change is of five lines."""

from __future__ import annotations

import re
from pathlib import Path

TUTORIAL = Path(__file__).resolve().parents[2] / "docs" / "tutorial-torch.md"


def blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", TUTORIAL.read_text(encoding="utf-8"), flags=re.DOTALL)


def test_every_block_runs(capsys) -> None:
    namespace: dict[str, object] = {"__name__": "tutorial"}
    for block in blocks():
        exec(compile(block, str(TUTORIAL), "exec"), namespace)
    printed = capsys.readouterr().out
    assert "Independents: ELBO" in printed
    assert "Structured: ELBO" in printed


def test_the_change_is_of_five_lines() -> None:
    before, after = (set(map(str.strip, block.splitlines())) for block in blocks()[:2])
    changed = {re.sub(r"\s*#.*", "", line) for line in after} - {re.sub(r"\s*#.*", "", line) for line in before}
    frame = {"class Structured(Independents):", ""}
    assert len(changed - frame) == 5
