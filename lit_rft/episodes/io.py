"""Episodes on disk: JSON lines or Parquet, by suffix. Nothing is ever unpickled.

Files are written atomically (`write_episodes`), or appended to line by line (`EpisodeWriter`): a process killed while
it writes loses only the current line.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from lit_rft._files import AppendedFile, replacing
from lit_rft.episodes.record import Episode, EpisodeError
from lit_rft.rows import json_lines, parse_json

if TYPE_CHECKING:
    import pyarrow as pa

logger = logging.getLogger(__name__)

SUFFIXES = (".jsonl", ".parquet")
_JSON_COLUMNS = ("source", "meta", "extra")  # free-form dictionaries: a column of JSON text in Parquet


def read_episodes(path: str | os.PathLike[str]) -> list[Episode]:
    """Read a ``.jsonl`` or ``.parquet`` file, or all such files of a folder (by name, not recursively).

    Raises:
        FileNotFoundError: there is no such path, or no such file in the folder.
        EpisodeError: a file is incomplete or corrupt, a record is invalid, or an id is duplicate; the message names
            file, line (row) and field.
    """
    path = Path(path)
    seen: dict[str, str] = {}
    episodes = []
    for file in _files(path):
        for line, episode in _read_parquet(file) if file.suffix == ".parquet" else _read_lines(file):
            if episode.id in seen:
                raise EpisodeError(f"duplicate id {episode.id!r}, already in {seen[episode.id]}", "id", str(file), line)
            seen[episode.id] = f"{file}:{line}"
            episodes.append(episode)
    return episodes


def write_episodes(path: str | os.PathLike[str], episodes: Iterable[Episode]) -> None:
    """Write a ``.jsonl`` or ``.parquet`` file atomically: readers see the old file or the new one, never a part.

    Raises:
        ValueError: the suffix is neither.
        EpisodeError: a record is invalid or an id is duplicate; nothing is written.
        OSError: the file cannot be written; an existing file is unchanged.
    """
    path = Path(path)
    check_suffix(path)
    records: dict[str, Episode] = {}
    for episode in episodes:
        episode.validate()
        if episode.id in records:
            raise EpisodeError(f"duplicate id {episode.id!r}", "id")
        records[episode.id] = episode
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        if path.suffix == ".parquet":
            _write_parquet(temporary, records.values())
        else:
            with temporary.open("wb") as stream:
                stream.writelines(_to_line(episode) for episode in records.values())


def check_suffix(path: Path) -> None:
    """Check the suffix of a file of episodes.

    Raises:
        ValueError: the file is neither ``.jsonl`` nor ``.parquet``.
    """
    if path.suffix not in SUFFIXES:
        raise ValueError(f"expected a file that ends in {' or '.join(SUFFIXES)}, got {path}")


class EpisodeWriter:
    """Append episodes to a file of JSON lines; each is safely on disk when `append` returns.

    An existing file is resumed: its records are checked, and an incomplete last line (of a killed process) is dropped
    with a warning. A file can have only one writer at a time.

    Attributes:
        path: the file.
        episodes: records in the file when it was opened.
        ids: ids of all records in the file, including those appended since.
        dropped: incomplete lines dropped on opening, 0 or 1.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Open the file.

        Raises:
            EpisodeError: the existing file is corrupt before its last line.
            BlockingIOError: another writer holds the file.
        """
        self.path = Path(path)
        self._file = AppendedFile(self.path)
        try:
            self.dropped = self._drop_unfinished_line()
            self.episodes = [episode for _, episode in _read_lines(self.path)]
        except BaseException:
            self._file.close()
            raise
        self.ids = {episode.id for episode in self.episodes}

    def append(self, episode: Episode) -> None:
        """Append a record.

        Raises:
            EpisodeError: the record is invalid, or its id is already in the file.
            OSError: it cannot be written; the file keeps its previous contents.
        """
        episode.validate()
        if episode.id in self.ids:
            raise EpisodeError(f"duplicate id {episode.id!r}, already in {self.path}", "id")
        self._file.append(_to_line(episode))
        self.ids.add(episode.id)

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> EpisodeWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _drop_unfinished_line(self) -> int:
        data = self.path.read_bytes()
        end = data.rfind(b"\n") + 1
        if end == len(data):
            return 0
        try:
            list(_parse_lines([data[end:]], self.path))
        except EpisodeError:
            self._file.truncate(end)
            logger.warning("%s: dropped an incomplete last line (%d bytes)", self.path, len(data) - end)
            return 1
        self._file.append(b"\n")  # complete but for the line end
        return 0


def _files(path: Path) -> list[Path]:
    if not path.exists():
        raise FileNotFoundError(f"no episodes at {path}: there is no such file or folder")
    if not path.is_dir():
        check_suffix(path)
        return [path]
    files = sorted(f for f in path.iterdir() if f.suffix in SUFFIXES and not f.name.startswith("."))
    if not files:
        raise FileNotFoundError(f"no episodes in {path}: expected files that end in {' or '.join(SUFFIXES)}")
    return files


def _to_line(episode: Episode) -> bytes:
    return json.dumps(episode.to_dict(), ensure_ascii=False, allow_nan=False).encode() + b"\n"


def _read_lines(path: Path) -> Iterator[tuple[int, Episode]]:
    with path.open("rb") as stream:
        yield from _parse_lines(stream, path)


def _parse_lines(lines: Iterable[bytes], path: Path) -> Iterator[tuple[int, Episode]]:
    for number, data in json_lines(path, lines, EpisodeError, finite=True):
        yield number, _to_episode(data, path, number)


def _to_episode(data: Any, path: Path, number: int | None) -> Episode:
    try:
        return Episode.from_dict(data)
    except EpisodeError as error:
        raise EpisodeError(error.message, error.field, str(path), number) from error


def _parquet_schema() -> pa.Schema:
    import pyarrow as pa

    text, number, flag, integer = pa.string(), pa.float64(), pa.bool_(), pa.int64()
    achieved = pa.list_(pa.struct({"key": text, "text": text}))
    step = {"action": text, "observation": text, "reward": number, "score": number, "valid": flag, "achieved": achieved}
    subgoal = {"start": integer, "end": integer, "goal": text, "completed": flag, "annotator": text}
    outcome = {"score": number, "success": flag, "terminated": flag, "truncated": flag, "reason": text}
    columns = {"schema": integer, "id": text, "env": text, "env_version": text, "task": text}
    columns |= dict.fromkeys(("split", "source", "task_description", "initial_observation"), text)
    columns |= {"steps": pa.list_(pa.struct(step)), "subgoals": pa.list_(pa.struct(subgoal))}
    columns |= {"outcome": pa.struct(outcome), "step_limit": integer, "meta": text, "extra": text}
    return pa.schema(columns)


def _write_parquet(path: Path, episodes: Iterable[Episode]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [episode.to_dict() for episode in episodes]
    for row in rows:
        row.update({name: json.dumps(row[name], ensure_ascii=False, allow_nan=False) for name in _JSON_COLUMNS})
    pq.write_table(pa.Table.from_pylist(rows, schema=_parquet_schema()), path)


def _read_parquet(path: Path) -> Iterator[tuple[int, Episode]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        rows = pq.ParquetFile(path).read().to_pylist()
    except (pa.ArrowException, OSError, ValueError) as error:
        message = f"not a whole Parquet file ({error}); it was cut short or damaged: write it again"
        raise EpisodeError(message, "", str(path)) from error
    for number, row in enumerate(rows, start=1):
        for name in _JSON_COLUMNS:
            if isinstance(row.get(name), str):
                try:
                    row[name] = parse_json(row[name], finite=True)
                except (ValueError, RecursionError) as error:
                    raise EpisodeError(f"not JSON ({error})", name, str(path), number) from error
        yield number, _to_episode(row, path, number)
