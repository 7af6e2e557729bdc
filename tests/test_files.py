"""Files that are replaced atomically, and files that are appended to."""

import contextlib
import errno
import fcntl
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lit_rft._files import AppendedFile, FolderLock, replacing


def test_an_error_leaves_the_old_file_and_no_temporary_one(tmp_path: Path) -> None:
    path = tmp_path / "scores.json"
    with replacing(path) as temporary:
        temporary.write_text("old")
    with pytest.raises(ZeroDivisionError), replacing(path) as temporary:
        temporary.write_text("new")
        raise ZeroDivisionError
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_what_killed_processes_left_is_removed_and_what_others_write_is_not(tmp_path: Path) -> None:
    path, ended = tmp_path / "scores.json", subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    left = tmp_path / f".scores.json.{ended.pid}.tmp"
    kept = [tmp_path / f".scores.json.{os.getppid()}.tmp", tmp_path / f".other.json.{ended.pid}.tmp",
            tmp_path / ".scores.json.of-a-user.tmp"]  # fmt: skip
    for file in (left, *kept):
        file.write_text("half")
    with replacing(path) as temporary:
        temporary.write_text("new")
    assert path.read_text() == "new" and set(tmp_path.iterdir()) == {path, *kept}


@contextlib.contextmanager
def files_limited_to(size: int) -> Iterator[None]:
    """Let no file of this process grow beyond a size: a write ends there, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_failed_write_leaves_an_appended_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    file = AppendedFile(path)
    file.append(b"first\n")
    with pytest.raises(OSError, match="File too large"), files_limited_to(9):
        file.append(b"second\n")  # of which three bytes fit
    assert path.read_bytes() == b"first\n" and file.size == 6
    file.append(b"third\n")
    file.close()
    assert path.read_bytes() == b"first\nthird\n"


def test_data_that_does_not_reach_the_disk_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = AppendedFile(tmp_path / "rows.jsonl")
    file.append(b"first\n")

    def fail(descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="Input/output"):
        patch.setattr(os, "fsync", fail)
        file.append(b"second\n")
    file.close()
    assert (tmp_path / "rows.jsonl").read_bytes() == b"first\n"


@pytest.mark.parametrize("make", [FolderLock, AppendedFile])
def test_a_lock_ends_although_a_forked_process_lives(make: Any, tmp_path: Path) -> None:
    """Workers of data loaders and simulators outlive a run in a notebook, and have its open files."""
    first = make(tmp_path / "held")
    with pytest.raises(BlockingIOError):
        make(tmp_path / "held")
    worker = os.fork()
    if worker == 0:
        signal.pause()
    try:
        first.release() if isinstance(first, FolderLock) else first.close()
        make(tmp_path / "held")
    finally:
        os.kill(worker, signal.SIGKILL)
        os.waitpid(worker, 0)


@pytest.mark.parametrize("make", [FolderLock, AppendedFile])
def test_a_file_system_without_locks_will_do(make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", refuse)
    made = make(tmp_path / "held")
    made.release() if isinstance(made, FolderLock) else made.close()
