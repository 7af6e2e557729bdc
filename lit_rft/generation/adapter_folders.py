"""Folders of adapters that a backend has loaded."""

import tempfile
import uuid
from collections.abc import Callable
from pathlib import Path

from lit_rft.generation.backends import ServedAdapter


class AdapterFolders:
    """Writes adapters into folders, and removes these one by one.

    Args:
        parent: of the folders; None for that of temporary files.
    """

    def __init__(self, parent: str | None = None) -> None:
        self._parent = parent
        self._folders: dict[ServedAdapter, tempfile.TemporaryDirectory[str]] = {}

    def write(self, write: Callable[[Path], Path | None]) -> ServedAdapter:
        """Write an adapter into a new folder (see `CompletionBackend.load`)."""
        if self._parent is not None:
            Path(self._parent).mkdir(parents=True, exist_ok=True)
        folder = tempfile.TemporaryDirectory(prefix="lit-rft-", dir=self._parent)
        path = Path(folder.name).absolute()
        path.chmod(0o755)  # a server may run as another user
        adapter = ServedAdapter(f"lit-rft-{uuid.uuid4().hex}", str(write(path) or path))
        self._folders[adapter] = folder
        return adapter

    def remove(self, adapter: ServedAdapter) -> bool:
        """Remove an adapter's folder; return False if this process has not written it."""
        folder = self._folders.pop(adapter, None)
        if folder is not None:
            folder.cleanup()
        return folder is not None

    @property
    def adapters(self) -> list[ServedAdapter]:
        """The adapters that this process has written, in order."""
        return list(self._folders)
