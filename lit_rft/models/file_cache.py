"""A cache of downloaded and converted files: folders built once, published atomically, by one process at a time."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock


def cache_dir() -> Path:
    """Return the folder of converted files: ``$LIT_RFT_CACHE``, else ``lit_rft`` in the user's cache folder."""
    if folder := os.environ.get("LIT_RFT_CACHE"):
        return Path(folder).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser().absolute() / "lit_rft"


def build_once(folder: Path, files: tuple[str, ...], build: Callable[[Path], None]) -> Path:
    """Return ``folder`` with all of ``files`` in it, after building it if it does not exist.

    ``build`` fills a temporary folder beside ``folder``, which is renamed when it is complete and on disk: a process
    killed half-way leaves no incomplete result, and the next call removes its temporary folder. A lock, released by
    the system when its holder dies, lets one process build while the others wait.

    Args:
        folder: path of the result; its parent is created if necessary.
        files: names of a complete result's files, relative to ``folder``.
        build: fills an empty folder.

    Raises:
        RuntimeError: ``build`` left out one of ``files``.
        OSError: the parent cannot be created or written to; the message names LIT_RFT_CACHE.
    """
    if _complete(folder, files):
        return folder
    with _naming_the_cache(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        return _build_locked(folder, files, build)


@contextmanager
def _naming_the_cache(folder: Path) -> Iterator[None]:
    """Add the cache's path, and how to change it, to errors of the file system."""
    try:
        yield
    except OSError as error:
        if error.errno is None:  # has a message of its own
            raise
        where = error.filename or folder
        raise OSError(
            f"cannot create {folder}: {error.strerror} ({where}); set LIT_RFT_CACHE to a writable folder"
        ) from error


def _build_locked(folder: Path, files: tuple[str, ...], build: Callable[[Path], None]) -> Path:
    with _locked(folder):
        if _complete(folder, files):  # built by another process in the meantime
            return folder
        prefix = f".{folder.name}.tmp-"
        for leftover in (folder, *folder.parent.glob(f"{prefix}*")):  # of killed builders: this process holds the lock
            if leftover.exists():
                shutil.rmtree(leftover)
        temporary = Path(tempfile.mkdtemp(prefix=prefix, dir=folder.parent))
        try:
            build(temporary)
            if not _complete(temporary, files):
                made = sorted(path.name for path in temporary.iterdir())
                raise RuntimeError(f"building {folder} must create {', '.join(files)}, but it created {made}")
            _sync(temporary)
            os.rename(temporary, folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)  # renamed already after a successful build
    return folder


def _complete(folder: Path, files: tuple[str, ...]) -> bool:
    return all((folder / name).is_file() for name in files)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the lock of ``folder``; print a message before waiting for another process."""
    lock = filelock.FileLock(folder.parent / f".{folder.name}.lock")
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        print(f"Waiting for another process that is building {folder} ...", file=sys.stderr, flush=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _sync(folder: Path) -> None:
    """Flush the contents of ``folder`` to disk before it is renamed."""
    for path in (*folder.rglob("*"), folder):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
