"""Rows of data sets: JSON, JSON lines, CSV and Parquet files, saved data sets, and the Hugging Face hub."""

from __future__ import annotations

import csv
import glob
import gzip
import io
import json
import re
import sys
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from lit_rft._records import RecordError

TEXT_SUFFIXES = (".jsonl", ".json", ".csv", ".tsv")
SUFFIXES = (".parquet", *TEXT_SUFFIXES, *(f"{suffix}.gz" for suffix in TEXT_SUFFIXES))
_BOM = b"\xef\xbb\xbf"


def find_files(source: str, content: str = "rows") -> list[str]:
    """Find the files of a source.

    Args:
        source: a file, a folder (its files by name, not recursively; or a data set saved by `datasets`), a pattern
            (``data/*.jsonl``), or a data set of the hub (``hf:...``).
        content: name of the content (for example problems), for errors.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file has an unknown type.
    """
    if source.startswith("hf:"):
        return [source]
    path = Path(source).expanduser()
    if _is_saved_data_set(path):
        return [str(path)]
    if path.is_dir():
        files = [file for file in sorted(path.iterdir()) if _is_known(file) and not file.name.startswith(".")]
    elif path.exists() or not glob.has_magic(str(path)):
        files = [path]
    else:
        files = [Path(name) for name in sorted(glob.glob(str(path), recursive=True)) if Path(name).is_file()]
    if not files:
        missing = "no file of these types in the folder" if path.is_dir() else "no such file"
        raise FileNotFoundError(f"no {content} at {source}: {missing} ({', '.join(SUFFIXES)})")
    for file in files:
        if not _is_known(file):
            raise ValueError(f"expected {content} in a {', '.join(SUFFIXES)} file or hf:NAME, got {file}")
        if not file.is_file():
            raise FileNotFoundError(f"no {content} at {file}: no such file")
    return [str(file) for file in files]


def as_list(files: list[str] | str | None) -> list[str]:
    """Return files that may be given as one name, or as none, as a list."""
    return [files] if isinstance(files, str) else list(files or [])


def _is_known(path: Path) -> bool:
    return path.name.lower().endswith(SUFFIXES)


def _is_saved_data_set(path: Path) -> bool:
    return (path / "state.json").is_file() or (path / "dataset_dict.json").is_file()


def read_rows(file: str, error: type[RecordError] = RecordError) -> Iterator[tuple[int, Any]]:
    """Read the rows of one of the files from `find_files`, each with its number (the line in JSON lines and CSV).

    Args:
        file: its name.
        error: class of the error for an invalid line; it names file and line.

    Raises:
        ValueError: the file is corrupt or has another type than its name.
    """
    if file.startswith("hf:"):
        return enumerate(_hub_rows(file), start=1)
    path = Path(file)
    if path.is_dir():
        return enumerate(_saved_rows(path), start=1)
    name = path.name.lower().removesuffix(".gz")
    if name.endswith(".parquet"):
        return enumerate(_parquet_rows(path), start=1)
    if name.endswith(".jsonl"):
        return json_lines(path, _lines(path), error)
    content = b"".join(_lines(path)).removeprefix(_BOM)
    if name.endswith(".json"):
        return _json_rows(path, content, error)
    return _csv_rows(path, content, name.endswith(".tsv"), error)


def _lines(path: Path) -> Iterator[bytes]:
    """Return the lines of a file, decompressed if its name ends in .gz."""
    if not path.name.lower().endswith(".gz"):
        with path.open("rb") as stream:
            yield from stream
        return
    try:
        with gzip.open(path, "rb") as packed:
            yield from packed
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"expected a complete gzip file, got {path}: {error}") from error


def json_lines(
    path: Path, lines: Iterable[bytes], error: type[RecordError] = RecordError, *, finite: bool = False
) -> Iterator[tuple[int, Any]]:
    """Parse JSON lines, each with its line number; empty lines are skipped.

    Args:
        path: the file, for errors.
        lines: its lines.
        error: class of the error for a line that is not JSON; it names file and line.
        finite: reject NaN and infinite numbers, which are not JSON.
    """
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            value = parse_json(line, finite=finite)
        except (ValueError, RecursionError) as cause:
            torn = "" if line.endswith(b"\n") else "; the file ends in the middle of a line: write it again"
            raise error(f"not a line of JSON: {cause}{torn}", "", str(path), number) from cause
        yield number, value


def parse_json(text: bytes | str, *, finite: bool = False) -> Any:
    """Parse JSON, with or without a byte order mark (written by editors on Windows).

    Raises:
        ValueError: it is not JSON; with `finite`, a number is NaN or infinite.
        RecursionError: it is nested too deeply.
    """
    text = text if isinstance(text, str) else text.decode("utf-8-sig")
    return json.loads(text, parse_constant=_refuse if finite else None)


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not a JSON number")


def _json_rows(path: Path, content: bytes, error: type[RecordError]) -> Iterator[tuple[int, Any]]:
    """Return the rows of a list, of an object that holds one list, or of JSON lines under another name."""
    try:
        rows = json.loads(content)
    except (ValueError, RecursionError) as cause:
        if b"\n" in content.strip() and getattr(cause, "msg", "") == "Extra data":
            yield from json_lines(path, content.splitlines(keepends=True), error)
            return
        raise ValueError(f"{path} is not JSON: {cause}") from cause
    if isinstance(rows, dict):
        lists = [value for value in rows.values() if isinstance(value, list)]
        rows = lists[0] if len(rows) == 1 and lists else [rows]
    if not isinstance(rows, list):
        raise ValueError(f"{path}: expected a list of rows, got {type(rows).__name__}")
    yield from enumerate(rows, start=1)


def _csv_rows(path: Path, content: bytes, tabs: bool, error: type[RecordError]) -> Iterator[tuple[int, Any]]:
    """Return the rows of a table with a header; empty cells have no value, all others are texts."""
    try:
        text = content.decode()
    except UnicodeDecodeError as cause:
        raise ValueError(f"{path} is not UTF-8: {cause}") from cause
    header = text.partition("\n")[0]
    delimiter = "\t" if tabs else ";" if ";" in header and "," not in header else ","
    limit = csv.field_size_limit(sys.maxsize)  # traces exceed the default limit
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        rows, start = [], 1
        for cells in reader:
            rows.append((start, cells))
            start = reader.line_num + 1
    except csv.Error as cause:
        raise error(f"not a row of CSV: {cause}", "", str(path), reader.line_num) from cause
    finally:
        csv.field_size_limit(limit)
    names = rows[0][1] if rows else []
    if len(set(names)) < len(names):
        raise ValueError(f"{path}: expected unique column names, got {', '.join(names)}")
    for number, cells in rows[1:]:
        if not cells:
            continue
        if len(cells) != len(names):
            raise error(f"expected {len(names)} cells, got {len(cells)}", "", str(path), number)
        yield number, {name: cell if cell.strip() else None for name, cell in zip(names, cells, strict=True)}


def _parquet_rows(path: Path) -> Iterator[Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=256):
                yield from batch.to_pylist()
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"{path} is an incomplete or corrupt Parquet file: {error}") from error


def _saved_rows(path: Path) -> Iterator[Any]:
    from datasets import load_from_disk
    from datasets.exceptions import DatasetsError

    if (path / "dataset_dict.json").is_file():
        splits = sorted(child.name for child in path.iterdir() if child.is_dir())
        raise ValueError(f"{path} has several splits: set the folder of one of them ({', '.join(splits)})")
    try:
        rows = load_from_disk(str(path))
    except (OSError, ValueError, DatasetsError) as error:
        raise ValueError(f"{path} is an incomplete or corrupt data set: {error}") from error
    yield from rows.with_format(None)  # plain values, whatever format it was saved with


def _hub_rows(source: str) -> Iterator[Any]:
    """Read the rows of ``hf:NAME``, ``hf:NAME:SPLIT`` or ``hf:NAME:CONFIGURATION:SPLIT``."""
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    parts = re.split(r":(?![^\[]*\])", source.removeprefix("hf:"))  # a split may contain a colon: train[:100]
    if len(parts) > 3 or not all(parts):
        raise ValueError(f"expected hf:NAME, hf:NAME:SPLIT or hf:NAME:CONFIGURATION:SPLIT, got {source}")
    name, *between, split = parts if len(parts) > 1 else [*parts, "train"]
    try:
        rows = load_dataset(name, *between, split=split)
    except (OSError, ValueError, DatasetsError) as error:
        raise ValueError(
            f"cannot read {source}, which is split {split!r} of configuration {between[0] if between else 'default'!r} "
            f"of {name} (hf:NAME:CONFIGURATION:SPLIT names both): {error}"
        ) from error
    yield from rows
