"""Files that are replaced atomically."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lit_rft._files import replacing


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
