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
    """Return the folder for converted files: ``$LIT_RFT_CACHE``, else ``lit_rft`` in the user's cache folder."""
    if folder := os.environ.get("LIT_RFT_CACHE"):
        return Path(folder).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser().absolute() / "lit_rft"


def build_once(folder: Path, files: tuple[str, ...], build: Callable[[Path], None]) -> Path:
    """Return ``folder`` with all of ``files`` in it; if it is not there, let ``build`` make it, once.

    ``build`` fills a temporary folder beside ``folder``, which is renamed into place when it is complete and on disk: a
    process that is killed half-way leaves nothing that looks like a result, and the next call sweeps up what it left. A
    lock, which the system releases when its holder dies, lets one process build while the others wait for the result.

    Args:
        folder: the result's place; its parent is made if need be.
        files: names relative to ``folder`` that a complete result has.
        build: gets an empty folder and fills it.

    Raises:
        RuntimeError: ``build`` left out one of ``files``.
        OSError: the parent cannot be made or written to; the message names LIT_RFT_CACHE.
    """
    if _complete(folder, files):
        return folder
    with _naming_the_cache(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        return _build_locked(folder, files, build)


@contextmanager
def _naming_the_cache(folder: Path) -> Iterator[None]:
    """Add the cache's place, and how to choose another one, to errors of the file system."""
    try:
        yield
    except OSError as error:
        if error.errno is None:  # explains itself
            raise
        where = error.filename or folder
        raise OSError(
            f"{folder} cannot be made: {error.strerror} ({where}); set LIT_RFT_CACHE to a folder that can be written to"
        ) from error


def _build_locked(folder: Path, files: tuple[str, ...], build: Callable[[Path], None]) -> Path:
    with _locked(folder):
        if _complete(folder, files):  # another process made it while this one waited
            return folder
        prefix = f".{folder.name}.tmp-"
        for leftover in (folder, *folder.parent.glob(f"{prefix}*")):  # of builders that were killed: we hold their lock
            if leftover.exists():
                shutil.rmtree(leftover)
        temporary = Path(tempfile.mkdtemp(prefix=prefix, dir=folder.parent))
        try:
            build(temporary)
            if not _complete(temporary, files):
                made = sorted(path.name for path in temporary.iterdir())
                raise RuntimeError(f"building {folder} should make {', '.join(files)}, but it made {made}")
            _sync(temporary)
            os.rename(temporary, folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)  # gone already where the rename was reached
    return folder


def _complete(folder: Path, files: tuple[str, ...]) -> bool:
    return all((folder / name).is_file() for name in files)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the lock of ``folder``, after saying so if another process has it."""
    lock = filelock.FileLock(folder.parent / f".{folder.name}.lock")
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        print(f"Waiting for another process that is making {folder} ...", file=sys.stderr, flush=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _sync(folder: Path) -> None:
    """Bring the contents of ``folder`` to the disk, so that the rename cannot get there before them."""
    for path in (*folder.rglob("*"), folder):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
