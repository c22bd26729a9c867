"""A file is the old one or the new one, whatever fails while it is written."""

from __future__ import annotations

import errno
import os
import stat
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest

from sparseggm.files import remove_leftovers, write_atomically, write_json


def write(path: str | os.PathLike[str] | bytes, content: bytes) -> None:
    write_atomically(path, lambda file: file.write(content))  # type: ignore[arg-type]


def content_of(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def full(*arguments: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    ("step", "old"),
    [
        (step, old)
        for step in ("write", "chmod", "fsync", "replace")
        for old in ({}, {"file": b"old"})
        if old or step != "chmod"
    ],
)
def test_a_failure_at_any_step_leaves_what_was_there_and_names_the_file(
    step: str, old: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    for name, content in old.items():
        write(tmp_path / name, content)
    if step != "write":
        monkeypatch.setattr(os, step, full)

    def some(file: IO[bytes]) -> None:
        file.write(b"ne")
        if step == "write":
            full()

    with pytest.raises(OSError, match="No space left") as caught:
        write_atomically(path, some)
    assert (caught.value.errno, caught.value.filename, caught.value.filename2) == (errno.ENOSPC, str(path), None)
    assert content_of(tmp_path) == old


def test_an_interrupt_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    write(tmp_path / "file", b"old")

    def interrupted(file: IO[bytes]) -> None:
        file.write(b"ne")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "file", interrupted)
    assert content_of(tmp_path) == {"file": b"old"}


def test_what_cannot_be_json_leaves_the_old_file(tmp_path: Path) -> None:
    write_json(tmp_path / "file", {"a": 1.0})
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "file", {"a": float("nan")})
    assert content_of(tmp_path) == {"file": b'{\n  "a": 1.0\n}\n'}


def test_the_name_may_be_text_bytes_or_a_path_as_long_as_the_system_allows(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 255)
    for name in (path, str(path), bytes(path)):
        write(name, b"new")
        assert content_of(tmp_path) == {path.name: b"new"}
        path.unlink()


@pytest.mark.parametrize("mode", [0o600, 0o644, 0o664, 0o755])
def test_permission_bits_are_kept(mode: int, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    path.chmod(mode)
    write(path, b"new")
    assert stat.S_IMODE(path.stat().st_mode) == mode


def test_a_new_file_has_the_permissions_that_open_gives(tmp_path: Path) -> None:
    write(tmp_path / "file", b"new")
    (tmp_path / "other").touch()
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "other").stat().st_mode


@pytest.mark.parametrize("exists", [True, False])
def test_a_link_stays_a_link_and_its_target_is_written(exists: bool, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    target, link = tmp_path / "there" / "target", tmp_path / "link"
    if exists:
        target.write_bytes(b"old")
    link.symlink_to("there/target")
    write(link, b"new")
    assert link.is_symlink()
    assert content_of(target.parent) == {"target": b"new"}


def test_a_pipe_is_written_to_and_not_replaced(tmp_path: Path) -> None:
    path, received = tmp_path / "pipe", []
    os.mkfifo(path)
    reader = threading.Thread(target=lambda: received.append(path.read_bytes()))
    reader.start()
    write(path, b"new")
    reader.join()
    assert received == [b"new"]
    assert stat.S_ISFIFO(path.stat().st_mode)


@pytest.fixture
def others_directory() -> Iterator[Path]:
    """A directory that every user may write into, and a user who is not root."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o777)
        user = os.geteuid()
        if user == 0:
            os.seteuid(65534)
        try:
            yield Path(name)
        finally:
            os.seteuid(user)


def test_a_write_protected_file_is_refused(others_directory: Path) -> None:
    path = others_directory / "file"
    write(path, b"old")
    path.chmod(0o444)
    with pytest.raises(PermissionError) as caught:
        write(path, b"new")
    assert caught.value.filename == str(path)
    assert content_of(others_directory) == {"file": b"old"}


def test_a_directory_in_place_of_a_file_is_the_systems_error(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError):
        write(tmp_path, b"new")
    with pytest.raises(FileNotFoundError):
        write(tmp_path / "nowhere" / "file", b"new")
    assert not content_of(tmp_path)


def test_two_writers_of_one_file_do_not_mix(tmp_path: Path) -> None:
    path, inside = tmp_path / "file", threading.Barrier(2, timeout=60)

    def half(letter: bytes) -> None:
        def fill(file: IO[bytes]) -> None:
            for _ in range(2):
                file.write(letter * 1000)
                file.flush()
                inside.wait()

        write_atomically(path, fill)

    writers = [threading.Thread(target=half, args=(letter,)) for letter in (b"a", b"b")]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert path.read_bytes() in (b"a" * 2000, b"b" * 2000)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_what_a_killed_process_left_is_swept(tmp_path: Path) -> None:
    read, written = os.pipe()
    child = os.fork()
    if child == 0:  # pragma: no cover

        def killed(file: IO[bytes]) -> None:
            file.write(b"ne")
            os.write(written, b"!")
            threading.Event().wait()

        try:
            write_atomically(tmp_path / "file", killed)
        finally:
            os._exit(0)
    os.read(read, 1)
    os.kill(child, 9)
    os.waitpid(child, 0)
    os.close(read)
    os.close(written)
    left = content_of(tmp_path)
    assert len(left) == 1
    assert "file" not in left
    write(tmp_path / "file", b"new")
    remove_leftovers(tmp_path)
    assert content_of(tmp_path) == {"file": b"new"}
