"""Atomic writes, files that one process appends to, and checkpoints in folders."""

from __future__ import annotations

import contextlib
import fcntl
import glob
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary file in the same folder that replaces `path` if the block ends without an error.

    Temporary files that killed processes left are removed.
    """
    _remove_leftovers(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the renaming as well
    finally:
        os.close(folder)


def _remove_leftovers(path: Path) -> None:
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        process = leftover.name.split(".")[-2]
        if process.isdecimal() and not _is_running(int(process)):
            leftover.unlink(missing_ok=True)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        return True
    return True


class AppendedFile:
    """A file that grows by complete pieces, and has one writer at a time.

    Args:
        path: the file; its folder is created.

    Raises:
        BlockingIOError: another writer holds the file.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._stream = path.open("ab", buffering=0)
        try:
            _lock(self._stream.fileno())
        except BlockingIOError as error:
            self._stream.close()
            message = f"{path} is being written by another process: wait for it, or choose another path"
            raise BlockingIOError(error.errno, message) from error

    @property
    def size(self) -> int:
        """Bytes so far."""
        return os.fstat(self._stream.fileno()).st_size

    def append(self, data: bytes) -> None:
        """Append data, which is on disk when this returns.

        Raises:
            OSError: it cannot be written; the file keeps its previous contents.
        """
        size = self.size
        try:
            written = 0
            while written < len(data):
                written += self._stream.write(data[written:]) or 0
            os.fsync(self._stream.fileno())
        except OSError:
            self.truncate(size)  # an incomplete line would corrupt the next one
            raise

    def truncate(self, size: int) -> None:
        """Remove what is beyond this many bytes."""
        os.ftruncate(self._stream.fileno(), size)

    def close(self) -> None:
        if not self._stream.closed:
            _unlock(self._stream.fileno())
        self._stream.close()


class FolderLock:
    """A lock of a folder, which the system releases when its holder dies; it leaves no file.

    Args:
        folder: is created.

    Raises:
        BlockingIOError: another process holds it.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._descriptor = os.open(folder, os.O_RDONLY)
        try:
            _lock(self._descriptor)
        except BlockingIOError:
            os.close(self._descriptor)
            raise

    def release(self) -> None:
        _unlock(self._descriptor)
        os.close(self._descriptor)


def _lock(descriptor: int) -> None:
    """Lock a file or folder, if its file system has locks.

    Raises:
        BlockingIOError: another process holds it.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:
        pass


def _unlock(descriptor: int) -> None:
    """Release a lock that forked processes, such as workers of data loaders, would keep until they end."""
    with contextlib.suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_UN)


def checkpoints_below(folder: Path) -> str:
    """Return advice for the folder of a run where a checkpoint is expected: `; name one of its checkpoints, ...`.

    It is empty for any other folder.
    """
    names = [*sorted(map(str, folder.glob("checkpoints/*.ckpt"))), *sorted(map(str, folder.glob("*.ckpt")))]
    return f"; name one of the checkpoints in it: {', '.join(names)}" if names else ""


def write_json(path: Path, content: Any) -> None:
    """Write plain values as readable JSON, creating folders; NaN is written as null."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(_without_nan(content), indent=2) + "\n")


def _without_nan(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _without_nan(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_without_nan(value) for value in content]
    return None if isinstance(content, float) and math.isnan(content) else content
