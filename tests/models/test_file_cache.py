"""Folders are built once and atomically, also when the builder is killed or the result damaged."""

import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from lit_rft.models.file_cache import build_once, cache_dir

FILES = ("a", "b")


def write_both(folder: Path) -> None:
    (folder / "a").write_text("complete")
    (folder / "b").write_text("complete")


def write_one_and_hang(folder: Path) -> None:
    (folder / "a").write_text("torn")
    time.sleep(600)


def never(folder: Path) -> None:
    raise AssertionError("it is there already")


def test_it_is_built_once(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "result"
    assert build_once(folder, FILES, write_both) == folder
    assert build_once(folder, FILES, never) == folder
    assert {path.name for path in folder.iterdir()} == {"a", "b"}


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_build_that_fails_leaves_nothing(tmp_path: Path, error: BaseException) -> None:
    def fail(folder: Path) -> None:
        (folder / "a").write_text("torn")
        raise error

    with pytest.raises(type(error)):
        build_once(tmp_path / "result", FILES, fail)
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []
    build_once(tmp_path / "result", FILES, write_both)  # the lock is free again


def test_a_build_that_forgets_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"must create a, b, but it created \['a'\]"):
        build_once(tmp_path / "result", FILES, lambda folder: (folder / "a").touch())
    assert not (tmp_path / "result").exists()


def test_a_damaged_result_is_built_again(tmp_path: Path) -> None:
    folder = build_once(tmp_path / "result", FILES, write_both)
    (folder / "b").unlink()
    (folder / "a").write_text("old")
    build_once(folder, FILES, write_both)
    assert (folder / "a").read_text() == (folder / "b").read_text() == "complete"


def test_what_a_killed_builder_left_is_swept_up(tmp_path: Path) -> None:
    folder = tmp_path / "result"
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    builder = context.Process(target=build_once, args=(folder, FILES, write_one_and_hang))
    builder.start()
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".result.tmp-*/a")):
        assert time.monotonic() < deadline, "the builder did not start"
        time.sleep(0.01)
    assert builder.pid is not None
    os.kill(builder.pid, signal.SIGKILL)
    builder.join()

    assert not folder.exists()
    build_once(folder, FILES, write_both)
    assert (folder / "a").read_text() == "complete"
    assert list(tmp_path.glob(".result.tmp-*")) == []


def test_cache_dir_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("LIT_RFT_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_dir() == tmp_path / "home/.cache/lit_rft"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_dir() == tmp_path / "xdg/lit_rft"
    monkeypatch.setenv("LIT_RFT_CACHE", "~/mine")
    assert cache_dir() == tmp_path / "home/mine"


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_cache_that_cannot_be_made_names_the_variable(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"cannot create .*; set LIT_RFT_CACHE to a writable folder"):
        build_once(tmp_path / place / "result", FILES, write_both)


def test_a_full_device_names_the_variable(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match=r"No space left on device .*LIT_RFT_CACHE"):
        build_once(tmp_path / "result", FILES, fail)
