"""What leaves the repository: the description on a package index, and what is said where an extra is missing."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def run_without(package: str, code: str) -> subprocess.CompletedProcess[str]:
    """Run code where that package cannot be imported."""
    hidden = f"import sys; sys.modules[{package!r}] = None; {code}"
    return subprocess.run([sys.executable, "-c", hidden], cwd=ROOT, capture_output=True, text=True)


def test_nothing_in_the_description_on_an_index_leads_nowhere() -> None:
    pytest.importorskip("setuptools", reason="setuptools is not installed")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = runpy.run_path(str(ROOT / "setup.py"))["for_an_index"](readme)
    assert not re.findall(r"\]\((?!https?://)", shown)
    linked = set(re.findall(r"\]\((?!https?://)([^)#]+)\)", readme))
    assert {path for path in linked if not path.endswith(".png")} <= set(re.findall(r"`([^`\s]+)`", shown))
    assert shown.count("\n| ") == readme.count("\n| ")


def test_the_adapter_without_torch_names_the_extra() -> None:
    failed = run_without("torch", "import sparseggm; print('core'); import sparseggm.torch")
    assert failed.stdout == "core\n"
    assert failed.stderr.splitlines()[-1] == (
        "ModuleNotFoundError: sparseggm.torch: needs the package torch, which is not installed. "
        "Get it by: pip install 'sparseggm[torch]'"
    )


@pytest.mark.parametrize("package", ["jsonargparse", "torch", "tqdm"])
def test_the_command_without_a_package_names_the_extra(package: str) -> None:
    for name in {package, "jsonargparse", "torch"}:
        pytest.importorskip(name, reason="needs the other packages of the extra")
    failed = run_without(package, "from sparseggm.cli import main; sys.exit(main(['evaluate', 'nowhere']))")
    assert failed.returncode == 2
    assert failed.stderr == f"sparseggm: needed the package {package}. Get it by: pip install 'sparseggm[train]'\n"
