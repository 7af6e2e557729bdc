"""Problems from files: the schema of LUFFY's release in Parquet or JSON lines, and a plain one; Hugging Face data sets.

Release: `data_source`, `prompt` (messages), `target` (messages: the trace; absent in evaluation sets), `ability`,
`reward_model` {`ground_truth`, `style`}, `extra_info` {`index`, `split`}. Plain: `prompt` (messages or a text),
`ground_truth`, and as one likes `traces` (texts), `trace_log_probs`, `source`, `id`. Other columns go to reward
functions as they are.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lit_rft._files import replacing
from lit_rft._records import show_value
from lit_rft.problems.record import Problem, ProblemError, check_messages, check_text

SUFFIXES = (".parquet", ".jsonl")
_KNOWN = (
    "id",
    "prompt",
    "ground_truth",
    "traces",
    "trace_log_probs",
    "target",
    "source",
    "data_source",
    "reward_model",
)


def read_problems(source: str | Path) -> list[Problem]:
    """Problems of a `.parquet` or `.jsonl` file, or of a Hugging Face data set ("hf:name" or "hf:name:split").

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file's kind is unknown, or it holds no problem.
        ProblemError: a row is wrong; it names file, row and field.
    """
    rows = _hub_rows(str(source)[3:]) if str(source).startswith("hf:") else _file_rows(Path(source))
    problems = []
    seen: set[str] = set()
    for number, row in enumerate(rows, start=1):
        try:
            problem = problem_from_row(row, number)
            if problem.id in seen:
                raise ProblemError(f"expected an id of its own, {problem.id!r} came before", "id")
        except ProblemError as error:
            raise ProblemError(error.message, error.field, str(source), number) from error
        seen.add(problem.id)
        problems.append(problem)
    if not problems:
        raise ValueError(f"{source} holds no problem")
    return problems


def problem_from_row(row: Any, number: int) -> Problem:
    """A row in either schema.

    Args:
        number: of the row, for its id where it has none.
    Raises: ProblemError naming the field.
    """
    if not isinstance(row, dict):
        raise ProblemError(f"expected an object, got {type(row).__name__}")
    model = row.get("reward_model") if isinstance(row.get("reward_model"), dict) else {}
    if "ground_truth" in row:
        truth = check_text(row["ground_truth"], "ground_truth")
    else:
        truth = check_text((model or {}).get("ground_truth"), "reward_model.ground_truth")
    source = row.get("source") or row.get("data_source") or ""
    index = (row.get("extra_info") or {}).get("index", number) if isinstance(row.get("extra_info"), dict) else number
    traces = _traces(row)
    return Problem(
        id=str(row["id"] if row.get("id") is not None else f"{source}/{index}" if source else index),
        prompt=check_messages(row.get("prompt"), "prompt", "user"),
        ground_truth=truth,
        traces=traces,
        trace_log_probs=_trace_log_probs(row.get("trace_log_probs"), len(traces)),
        source=str(source),
        extra={key: value for key, value in row.items() if key not in _KNOWN},
    )


def _traces(row: dict[str, Any]) -> tuple[str, ...]:
    if row.get("traces") is not None:
        if not isinstance(row["traces"], list):
            raise ProblemError(f"expected a list of texts, got {type(row['traces']).__name__}", "traces")
        return tuple(check_text(trace, f"traces[{i}]") for i, trace in enumerate(row["traces"]))
    if row.get("target") is None:
        return ()
    return (check_messages(row["target"], "target", "assistant")[-1]["content"],)


def _trace_log_probs(value: Any, number: int) -> tuple[tuple[float, ...], ...]:
    if value is None:
        return ()
    name = "trace_log_probs"
    if not isinstance(value, list) or len(value) not in (0, number):
        raise ProblemError(f"expected a list of numbers for each of {number} traces, got {show_value(value)}", name)
    for i, numbers in enumerate(value):
        if not isinstance(numbers, list) or not all(isinstance(n, (int, float)) and n <= 0 for n in numbers):
            raise ProblemError(f"expected numbers of at most 0, got {show_value(numbers)}", f"{name}[{i}]")
    return tuple(tuple(float(n) for n in numbers) for numbers in value)


def write_problems(path: str | Path, problems: Iterable[Problem]) -> None:
    """Write JSON lines in the plain schema, whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as stream:
        for problem in problems:
            plain = asdict(problem)
            extra = plain.pop("extra")
            stream.write(json.dumps({**extra, **plain}, ensure_ascii=False) + "\n")


def _file_rows(path: Path) -> Iterator[Any]:
    if path.suffix not in SUFFIXES:
        raise ValueError(f"problems come from {' or '.join(SUFFIXES)} files (or hf:NAME), got {path}")
    if not path.is_file():
        raise FileNotFoundError(f"no problems at {path}: there is no such file")
    return _parquet_rows(path) if path.suffix == ".parquet" else _json_rows(path)


def _json_rows(path: Path) -> Iterator[Any]:
    with path.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            if not line.strip():
                continue
            try:
                yield json.loads(line)
            except ValueError as error:
                raise ProblemError(f"not a line of JSON: {error}", "", str(path), number) from error


def _parquet_rows(path: Path) -> Iterator[Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=256):
                yield from batch.to_pylist()
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"{path} is no whole Parquet file: {error}") from error


def _hub_rows(name: str) -> Iterator[Any]:
    from datasets import load_dataset

    dataset, _, split = name.partition(":")
    yield from load_dataset(dataset, split=split or "train")
