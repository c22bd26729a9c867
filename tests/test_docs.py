"""The Python code of the pages in docs/ runs, from the first block to the last; links between pages lead somewhere.

The tutorial, whose code needs torch, has tests of its own.
"""

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGES = sorted(DOCS.glob("*.md"))
BLOCK = re.compile(r"```python\n(.*?)```", flags=re.DOTALL)
WITH_CODE = [page for page in PAGES if page.name != "tutorial-torch.md" and BLOCK.search(page.read_text("utf-8"))]


@pytest.mark.parametrize("page", WITH_CODE, ids=lambda page: page.name)
def test_the_code_of_a_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": page.stem}
    for block in BLOCK.findall(page.read_text("utf-8")):
        exec(compile(block, page.name, "exec"), namespace)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_link_leads_to_a_file(page):
    for target in re.findall(r"\]\((?!http|#)([^)#\s]+)", page.read_text("utf-8")):
        assert (DOCS / target).exists(), target
