"""Records of rollouts as JSON lines: one line per group, within a limit of size, readable while a run writes them."""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from lit_rft._files import AppendedFile, replacing
from lit_rft._records import show_value
from lit_rft.records.group import GroupRecord, RolloutRecordError
from lit_rft.rows import json_lines

logger = logging.getLogger(__name__)

FOLDER = "rollouts"  # in the folder of a run
SCHEMA = 1


def read_rollouts(path: str | os.PathLike[str]) -> list[GroupRecord]:
    """Read the rollouts of a run, by file and then in the order of training.

    An incomplete last line, of a run that is writing or was killed, is left out.

    Args:
        path: folder of a run, its folder `rollouts`, or a file of it.

    Raises:
        FileNotFoundError: there is no such file.
        RolloutRecordError: a file is corrupt; the message names file, line and field.
    """
    return [group for file in rollout_files(path) for group in _read_file(file)]


def rollout_files(path: str | os.PathLike[str]) -> list[Path]:
    """Return the files of rollouts of a run.

    Args:
        path: folder of a run, its folder `rollouts`, or a file of it.

    Raises:
        FileNotFoundError: there is none.
    """
    path = Path(path)
    folder = path / FOLDER if (path / FOLDER).is_dir() else path
    files = [path] if path.is_file() else sorted(folder.glob("*.jsonl")) if folder.name == FOLDER else []
    if not files:
        raise FileNotFoundError(f"no rollouts at {path}: expected the folder of a run with {FOLDER}/*.jsonl")
    return files


def _read_file(path: Path) -> Iterator[GroupRecord]:
    for number, line in _lines(path):
        try:
            yield GroupRecord.from_dict(line)
        except RolloutRecordError as error:
            raise RolloutRecordError(error.message, error.field, str(path), number) from error


def _lines(path: Path) -> Iterator[tuple[int, Any]]:
    """Yield the groups of a file as plain values, with their line numbers; the head is checked and left out.

    Raises:
        RolloutRecordError: a line is not JSON, or the file is of another kind or version.
    """
    with path.open("rb") as stream:
        complete = (line for line in stream if line.endswith(b"\n"))
        lines = json_lines(path, complete, RolloutRecordError, finite=True)
        for number, head in itertools.islice(lines, 1):
            _check_head(path, number, head)
        yield from lines


def _check_head(path: Path, number: int, head: Any) -> float:
    """Check the head of a file, and return its share."""
    if not isinstance(head, dict) or head.get("rollouts") != SCHEMA:
        raise RolloutRecordError(
            f'expected a file of rollouts with {{"rollouts": {SCHEMA}}} in its first line, got {show_value(head)}: it '
            "is of another kind or version; move it away, or read it with the version that wrote it",
            "", str(path), number,
        )  # fmt: skip
    share: Any = head.get("share")
    if type(share) not in (int, float) or not 0 < share <= 1:
        message = f"expected the share of the groups in (0, 1], got {show_value(share)}; correct it, or move the file"
        raise RolloutRecordError(message, "share", str(path), number)
    return float(share)


class RolloutWriter:
    """Appends groups to a file of rollouts within a limit of size.

    A share of the groups is kept, chosen by their batch and number: the same ones whenever a run is repeated. At the
    limit the share is halved, for the groups in the file, too: they always cover the run evenly. A file has one writer
    at a time; a killed writer leaves at most an incomplete last line, which the next one removes.

    Args:
        path: a `.jsonl` file; its folder is created.
        share: of the groups, in (0, 1].
        max_bytes: limit of the file.

    Attributes:
        share: of the groups now.

    Raises:
        BlockingIOError: another writer holds the file.
        RolloutRecordError: the existing file is corrupt before its last line.
    """

    def __init__(self, path: str | os.PathLike[str], share: float, max_bytes: int) -> None:
        self.path, self.share, self.max_bytes = Path(path), share, max_bytes
        self._file = AppendedFile(self.path)
        try:
            self._resume()
        except BaseException:
            self._file.close()
            raise

    def _resume(self) -> None:
        """Remove an incomplete last line and take over the share, or begin a file."""
        data = self.path.read_bytes()
        self._file.truncate(data.rfind(b"\n") + 1)
        complete = data[: data.rfind(b"\n") + 1].splitlines(keepends=True)
        for number, head in json_lines(self.path, complete, RolloutRecordError, finite=True):
            self.share = min(self.share, _check_head(self.path, number, head))
            return
        self._file.truncate(0)
        self._file.append(_head(self.share))

    def wants(self, batch: int, process: int, group: int) -> bool:
        """Return whether a group is among those to keep: build no record of others."""
        return _position(batch, process, group) < self.share

    def append(self, groups: Iterable[GroupRecord]) -> None:
        """Append groups; all of them are on disk when this returns. Unwanted ones are left out.

        Raises:
            OSError: they cannot be written; the file keeps its previous contents.
        """
        lines = [(group, _to_line(group.to_dict())) for group in groups]
        for group, line in lines:
            if len(line) > self.max_bytes // 4:  # alone it would displace all others
                logger.warning("%s: left out group %d of batch %d, which has %d bytes of the file's limit of %d",
                               self.path, group.group, group.batch, len(line), self.max_bytes)  # fmt: skip
        lines = [(group, line) for group, line in lines if len(line) <= self.max_bytes // 4]
        while True:
            lines = [(group, line) for group, line in lines if self.wants(group.batch, group.process, group.group)]
            data = b"".join(line for _, line in lines)
            if not data or self._file.size + len(data) <= self.max_bytes:
                break
            self._halve()
        if data:
            self._file.append(data)

    def drop(self, is_dropped: Callable[[dict[str, Any]], bool]) -> None:
        """Remove groups, given as plain values, atomically."""
        lines = [line for _, line in _lines(self.path)]
        kept = [line for line in lines if not is_dropped(line)]
        if len(kept) < len(lines):
            self._replace(kept)

    def _halve(self) -> None:
        self.share /= 2
        lines = [line for _, line in _lines(self.path)]
        self._replace([line for line in lines if self.wants(line["batch"], line["process"], line["group"])])
        logger.info("%s is at its limit of %d bytes: from now on it has %g of all groups",
                    self.path, self.max_bytes, self.share)  # fmt: skip

    def _replace(self, lines: Iterable[dict[str, Any]]) -> None:
        with replacing(self.path) as temporary:
            temporary.write_bytes(_head(self.share) + b"".join(map(_to_line, lines)))
        self._file.close()
        self._file = AppendedFile(self.path)

    def close(self) -> None:
        self._file.close()


def _position(batch: int, process: int, group: int) -> float:
    """Return the position of a group in [0, 1), uniform over groups: those below the share are kept."""
    digest = hashlib.sha256(f"{batch}/{process}/{group}".encode()).digest()
    return int.from_bytes(digest[:7], "big") / 2**56


def _head(share: float) -> bytes:
    return _to_line({"rollouts": SCHEMA, "share": share})


def _to_line(values: dict[str, Any]) -> bytes:
    # other than ASCII is escaped: tokens may hold halves of surrogate pairs
    return json.dumps(values, allow_nan=False, separators=(",", ":")).encode() + b"\n"
