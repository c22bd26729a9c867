"""Where compiled kernels are kept: read wherever they lie, written wherever they can be, and never in the way."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import numba
import pytest

from sparseggm.kernels import KERNEL, compilation, njit

PACKAGE = Path(__file__).resolve().parents[2] / "sparseggm"

pytestmark = pytest.mark.skipif(os.environ.get("NUMBA_DISABLE_JIT") == "1", reason="nothing is compiled")


def plus(a, b):
    return a + b


def fresh():
    """The kernel as a new process has it: nothing compiled, nothing loaded."""
    return njit(**KERNEL)(plus)


def was_loaded(kernel) -> bool:
    assert kernel(1, 2) == 3
    return bool(kernel.stats.cache_hits)


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Path]]:
    places = [tmp_path / "first", tmp_path / "second"]
    monkeypatch.setattr(compilation, "folders", lambda: places)
    compilation._warn.cache_clear()
    yield places
    compilation._warn.cache_clear()


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*")) if folder.is_dir() else []


def test_what_is_compiled_once_is_loaded_from_then_on_one_file_a_signature(folders) -> None:
    assert not was_loaded(fresh())
    assert was_loaded(fresh())
    assert fresh()(1.0, 2.0) == 3.0
    assert len(files(folders[0])) == 2
    assert not files(folders[1])


def test_a_file_that_is_damaged_anywhere_is_compiled_again_and_replaced(folders) -> None:
    kernel = fresh()
    assert not was_loaded(kernel)
    (file,) = files(folders[0])
    whole, (signature,) = file.read_bytes(), kernel.signatures
    size = len(whole)
    damaged = [whole[:length] for length in (0, 1, 63, 64, 65, size // 2, size - 1)] + [whole + b"\0", bytes(size)]
    for place in {0, 63, 64, 65, *range(0, size, size // 50), size - 1}:
        damaged.append(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    for content in damaged:
        file.write_bytes(content)
        assert compilation.KernelCache(plus).load_overload(signature, kernel.targetctx) is None
    assert not was_loaded(fresh())
    assert was_loaded(fresh())


def test_code_of_another_source_or_another_numba_is_not_loaded(folders, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not was_loaded(fresh())
    with monkeypatch.context() as other:
        other.setattr(compilation, "source_digest", lambda: "another")
        assert not was_loaded(fresh())
    with monkeypatch.context() as other:
        other.setattr(numba, "__version__", "0.0")
        assert not was_loaded(fresh())
    assert len(files(folders[0])) == 1  # each takes the place of the one before


def test_a_change_in_any_file_of_the_kernels_is_a_change_of_each(tmp_path: Path) -> None:
    """A kernel holds the code of those that it calls, whichever file they are in; Numba's own cache looks at one."""
    package = tmp_path / "kernels"
    shutil.copytree(PACKAGE / "kernels", package, ignore=shutil.ignore_patterns("__pycache__"))
    assert compilation.source_digest.__wrapped__(package) == compilation.source_digest()
    sources = sorted(package.rglob("*.py"))
    assert len(sources) > 15
    for path in sources:
        before = path.read_bytes()
        path.write_bytes(before + b"\n")
        assert compilation.source_digest.__wrapped__(package) != compilation.source_digest(), path
        path.write_bytes(before)


CALLER = """
from sparseggm.kernels import KERNEL, njit
from sparseggm.kernels.helper import helper

@njit(**KERNEL)
def caller(x):
    return helper(x)
"""


def test_a_helper_in_another_file_that_changed_is_compiled_again(installed: Path) -> None:
    """Cold, warm, with the helper changed, and warm again, each in a process of its own."""
    kernels, found = installed / "sparseggm" / "kernels", []
    (kernels / "caller.py").write_text(CALLER)
    program = "from sparseggm.kernels.caller import caller; print(caller(1.0), bool(caller.stats.cache_hits))"
    for value in (2.0, 2.0, 3.0, 3.0):
        helper = (
            f"from sparseggm.kernels import INNER, njit\n\n@njit(**INNER)\ndef helper(x):\n    return {value} * x\n"
        )
        (kernels / "helper.py").write_text(helper)
        environment = os.environ | {"PYTHONPATH": str(installed), "PYTHONDONTWRITEBYTECODE": "1"}
        environment.pop("NUMBA_CACHE_DIR", None)
        done = subprocess.run(
            [sys.executable, "-c", program], cwd=installed, env=environment, capture_output=True, text=True, check=True
        )
        found.append(done.stdout.split())
    assert found == [["2.0", "False"], ["2.0", "True"], ["3.0", "False"], ["3.0", "True"]]


def test_what_lies_in_any_folder_is_loaded_and_the_first_that_can_be_is_written_to(folders) -> None:
    folders[0].write_text("a file in the place of a folder")
    assert not was_loaded(fresh())
    assert len(files(folders[1])) == 1
    assert was_loaded(fresh())
    folders[0].unlink()
    assert was_loaded(fresh())
    assert not files(folders[0])


def test_a_file_that_cannot_be_read_is_as_good_as_absent(folders) -> None:
    assert not was_loaded(fresh())
    (file,) = files(folders[0])
    file.unlink()
    file.mkdir()
    assert not was_loaded(fresh())
    assert was_loaded(fresh())  # from the second folder


def test_a_full_disk_costs_the_cache_and_not_the_result_and_is_said_once(
    folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Path, content: bytes) -> int:
        self.touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.warns(RuntimeWarning, match=r"No space left on device.* Set NUMBA_CACHE_DIR to a folder"):
        assert not was_loaded(fresh())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not was_loaded(fresh())
    assert not files(folders[0]) + files(folders[1])


def test_without_a_source_nothing_is_kept_and_that_is_said(folders, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a frozen application, where nothing says of which version the code is."""
    monkeypatch.setattr(compilation, "source_digest", lambda: None)
    with pytest.warns(RuntimeWarning, match="no source files"):
        assert not was_loaded(fresh())
    assert not was_loaded(fresh())
    assert not files(folders[0])


def test_folders_are_those_of_numba(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(numba.config, "CACHE_DIR", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    beside, users = compilation.folders()
    assert beside == PACKAGE / "kernels" / "__pycache__"
    assert users.is_relative_to(tmp_path / "numba")
    monkeypatch.setenv("XDG_CACHE_HOME", "~/.cache")  # what `expanduser` leaves where there is no home
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    assert compilation.folders() == [beside]
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path / "given"))
    (given,) = compilation.folders()
    assert given.is_relative_to(tmp_path / "given")


# ---------------------------------------------------------------------- installed by somebody else

PROBE = """
import os, sys
import sparseggm as sg
from sparseggm.kernels import symbolic

assert sg.__file__.startswith(sys.argv[1]), sg.__file__
assert sys.argv[2] == "ours" or not os.access(sys.argv[1], os.W_OK)
ring = sg.Pattern.from_edges(5, [(0, 1), (1, 2), (2, 3), (3, 4), (4, 0)])
assert ring.filled().nnz == 12
stats = [kernel.stats for kernel in (symbolic.transpose, symbolic.fill_counts, symbolic.fill_rows)]
print(sum(len(kernel.cache_hits) for kernel in stats), sum(len(kernel.cache_misses) for kernel in stats))
"""


def without_powers() -> None:
    """The superuser, too, obeys permissions from the next `exec` on: drop CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH."""
    if os.geteuid() == 0:
        for capability in (1, 2):
            ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP


def probe(installed: Path, home: Path, *, ours: bool) -> tuple[str, str]:
    """(kernels loaded and compiled, what was said), in the process of a user who may write to nothing but `home`."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("NUMBA_", "XDG_"))}
    done = subprocess.run(
        [sys.executable, "-c", PROBE, str(installed), "ours" if ours else "another's"],
        cwd=installed,
        env=environment | {"PYTHONPATH": str(installed), "HOME": str(home), "PYTHONDONTWRITEBYTECODE": "1"},
        preexec_fn=None if ours else without_powers,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip(), done.stderr


def read_only(folder: Path, is_so: bool = True) -> None:
    for path in (folder, *folder.rglob("*")):
        if path.is_dir():
            path.chmod(0o555 if is_so else 0o755)


@pytest.fixture
def installed(tmp_path: Path) -> Iterator[Path]:
    """A copy of the package that nobody has used."""
    place = tmp_path / "site-packages"
    shutil.copytree(PACKAGE, place / "sparseggm", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "home").mkdir()
    yield place
    read_only(tmp_path, False)


@pytest.mark.skipif(sys.platform != "linux", reason="the superuser's powers are dropped as Linux does")
def test_where_nothing_can_be_written_the_package_works_and_says_once_that_it_keeps_nothing(installed: Path) -> None:
    home = installed.parent / "home"
    read_only(installed.parent)
    found, said = probe(installed, home, ours=False)
    assert found == "0 3"
    assert said.count("RuntimeWarning") == said.count("Set NUMBA_CACHE_DIR to a folder that can be written to.") == 1
    assert str(installed / "sparseggm" / "kernels" / "__pycache__") in said


@pytest.mark.skipif(sys.platform != "linux", reason="the superuser's powers are dropped as Linux does")
def test_kernels_compiled_by_who_installed_the_package_serve_everybody(installed: Path) -> None:
    home = installed.parent / "home"
    assert probe(installed, home, ours=True) == ("0 3", "")
    read_only(installed)
    assert probe(installed, home, ours=False) == ("3 0", "")
    read_only(home)
    assert probe(installed, home, ours=False) == ("3 0", "")


@pytest.mark.skipif(sys.platform != "linux", reason="the superuser's powers are dropped as Linux does")
def test_where_only_the_home_can_be_written_to_kernels_are_kept_there(installed: Path) -> None:
    home = installed.parent / "home"
    read_only(installed)
    assert probe(installed, home, ours=False) == ("0 3", "")
    assert probe(installed, home, ours=False) == ("3 0", "")
    assert len(list(home.rglob("*.nbc"))) == 3
