"""What the README shows is run: its examples, and the paths it links to."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def test_there_are_two_examples_of_twelve_lines_at_most():
    lines = [sum(bool(line.strip()) for line in example.splitlines()) for example in EXAMPLES]
    assert len(lines) == 2
    assert max(lines) <= 12


@pytest.mark.parametrize("example", EXAMPLES, ids=["numpy", "torch"])
def test_an_example_runs(example):
    exec(compile(example, "README.md", "exec"), {})


@pytest.mark.parametrize("path", re.findall(r"\]\((?!http)([^)#]+)\)", README))
def test_a_linked_file_exists(path):
    assert (ROOT / path).exists()


@pytest.mark.parametrize("target", re.findall(r"`?make (\w+)", README))
def test_a_named_make_target_exists(target):
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
