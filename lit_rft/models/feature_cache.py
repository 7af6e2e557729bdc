"""Features of the frozen backbone, computed once per transcript and kept on disk."""

import contextlib
import hashlib
import logging
import time
import uuid
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lit_rft._files import replacing
from lit_rft.transcripts import Transcript

logger = logging.getLogger(__name__)

_LEFTOVER_SECONDS = 3600  # since the last write to a temporary file

VERSION = "2"  # increase it when the computation of features changes


class FeatureCache:
    """A map from transcripts to features [3, K, D]; entries on disk are read on access.

    Keys are the contents of transcripts, in a folder per model and code version: stale features are never used.
    Files are written atomically, one per `flush`, with unique names, so processes can share a folder. Damaged files
    are removed and their features computed again.

    Args:
        folder: of the files; None for memory only.
        model_key: identifies the model, see `backbone_fingerprint`.
    """

    def __init__(self, folder: str | Path | None, model_key: str) -> None:
        self._new: dict[str, Tensor] = {}
        self._places: dict[str, Path] = {}
        self.folder: Path | None = None
        if folder is not None:
            key = hashlib.sha256(f"{VERSION}/{model_key}".encode()).hexdigest()[:16]
            self.folder = Path(folder) / key
            self.folder.mkdir(parents=True, exist_ok=True)
            _remove_leftovers(self.folder)
            for path in sorted(self.folder.glob("*.safetensors")):
                self._index(path)

    @property
    def size(self) -> int:
        """Number of transcripts whose features are kept, in memory or on disk."""
        return len(self._new.keys() | self._places.keys())

    def get(self, transcript: Transcript) -> Tensor | None:
        """Return the features [3, K, D], or None if they are not cached."""
        key = transcript_key(transcript)
        if key in self._new:
            return self._new[key]
        path = self._places.get(key)
        if path is None:
            return None
        try:
            with safe_open(path, "pt") as file:
                return file.get_tensor(key)
        except SafetensorError as error:
            self._drop(path, error)
        except OSError:  # removed or unreadable
            self._forget(path)
        return None

    def put(self, transcripts: Sequence[Transcript], features: Sequence[Tensor]) -> None:
        """Add features, in memory until the next `flush`."""
        for transcript, values in zip(transcripts, features, strict=True):
            self._new[transcript_key(transcript)] = values.detach().cpu().contiguous().clone()

    def flush(self) -> None:
        """Write the new features to a file."""
        if self.folder is None or not self._new:
            return
        path = self.folder / f"{uuid.uuid4().hex}.safetensors"
        with replacing(path) as temporary:
            save_file(self._new, temporary)
        self._places.update(dict.fromkeys(self._new, path))
        self._new = {}

    def retain(self, transcripts: Iterable[Transcript]) -> None:
        """Drop all features from memory but those of these transcripts."""
        wanted = {transcript_key(transcript) for transcript in transcripts}
        self._new = {key: value for key, value in self._new.items() if key in wanted}

    def _index(self, path: Path) -> None:
        try:
            with safe_open(path, "pt") as file:
                self._places.update(dict.fromkeys(file.keys(), path))
        except SafetensorError as error:
            self._drop(path, error)
        except OSError as error:
            logger.warning("%s cannot be read (%s): its features are computed again", path, error)

    def _drop(self, path: Path, error: Exception) -> None:
        logger.warning("%s is damaged (%s): its features are computed again", path, error)
        path.unlink(missing_ok=True)
        self._forget(path)

    def _forget(self, path: Path) -> None:
        self._places = {key: place for key, place in self._places.items() if place != path}


def _remove_leftovers(folder: Path) -> None:
    """Remove temporary files of killed processes, perhaps on another host: nothing has written to them for long."""
    for path in folder.glob(".*.tmp"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime > _LEFTOVER_SECONDS:
                path.unlink()


def transcript_key(transcript: Transcript) -> str:
    """Return a key of the transcript's features: its ids and the positions of its decisions."""
    places = [transcript.utterance_starts, transcript.utterance_ends, transcript.next_state_ends]
    numbers = torch.tensor([len(transcript), *transcript.input_ids, *(i for row in places for i in row)])
    return hashlib.sha256(numbers.numpy().tobytes()).hexdigest()
