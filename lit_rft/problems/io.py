"""Read problems from files and data sets in common schemas (docs/problems.md), and write them as JSON lines."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lit_rft._files import replacing
from lit_rft._records import is_finite, show_value
from lit_rft.problems.columns import Columns, is_empty
from lit_rft.problems.messages import check_messages, messages_from_text, parse_literal, split_conversation
from lit_rft.problems.record import Problem, ProblemError, check_text
from lit_rft.problems.repeats import merge_repeats
from lit_rft.rows import find_files, read_rows

_BOX = re.compile(r"\\(?:boxed|fbox)(?![a-zA-Z])\s*(?:\{|(?P<token>-?[\w.]+))")
_LONGEST_ANSWER = 100  # maximum characters of a `solution` that is itself the answer


def read_problems(
    sources: str | Path | Sequence[str | Path], columns: Mapping[str, str | None] | None = None
) -> list[Problem]:
    """Read problems from files that belong together: ids are unique over all of them, repeats are kept once.

    Args:
        sources: files, folders, patterns, or data sets of the Hugging Face hub; see `find_files`.
        columns: field of a problem -> column that holds it, in place of the common names; see `Columns`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a file has an unknown type, is corrupt or empty, or does not match `columns`.
        ProblemError: a row is invalid; the message names file, row and field.
    """
    names = [sources] if isinstance(sources, (str, Path)) else list(sources)
    problems = [p for name in names for file in find_files(str(name), "problems") for p in _read_file(file, columns)]
    return merge_repeats(problems)


def _read_file(file: str, mapping: Mapping[str, str | None] | None) -> list[Problem]:
    columns = Columns(mapping)
    problems = []
    given: dict[tuple[str, str], tuple[str, int]] = {}  # ids in the file -> content, row
    for number, row in read_rows(file, ProblemError):
        try:
            problem, has_id = problem_from_row(row, number, columns, origin=f"{file}:{number}")
            if has_id:
                content = problem.fingerprint()
                first, earlier = given.setdefault((problem.source, problem.id), (content, number))
                if first != content:
                    raise ProblemError(
                        f"expected a unique id, got {problem.id!r}, the id of another problem in row {earlier}; "
                        "correct it, or number the rows instead (columns: {id: null})",
                        "id",
                    )
        except ProblemError as error:
            raise ProblemError(error.message, error.field, file, number) from error
        problems.append(problem)
    if not problems:
        raise ValueError(f"expected at least one problem in {file}, got none")
    columns.check(file)
    return problems


def problem_from_row(row: Any, number: int, columns: Columns, origin: str = "") -> tuple[Problem, bool]:
    """Make a problem from a row.

    Args:
        row: columns by name.
        number: number of the row, used as id if it has none.
        columns: maps fields of problems to columns.
        origin: file and row.

    Returns:
        The problem, and whether its id is from the row.

    Raises:
        ProblemError: The message names the field.
    """
    if not isinstance(row, dict):
        raise ProblemError(f"expected an object, got {type(row).__name__}")
    columns.see(row)
    prompt, answered = _prompt(row, columns)
    source = columns.find(row, "source")[1]
    source = "" if is_empty(source) else check_text(str(source), "source")
    index = _index(row, columns)
    traces = _traces(*columns.find(row, "traces")) or (() if "traces" in columns.mapping else answered)
    identity = columns.find(row, "id")[1]
    if is_empty(identity):
        identity = f"{source}/{number if index is None else index}" if source else number if index is None else index
        has_id = index is not None
    else:
        has_id = True
    problem = Problem(
        id=check_text(identity, "id"),
        prompt=prompt,
        ground_truth=_ground_truth(*columns.require(row, "ground_truth")),
        traces=traces,
        trace_log_probs=_trace_log_probs(columns.find(row, "trace_log_probs")[1], len(traces)),
        source=source,
        repeats=_repeats(columns.find(row, "repeats")[1]),
        extra=columns.extra(row),
        origin=origin,
    )
    return problem, has_id


def _prompt(row: dict[str, Any], columns: Columns) -> tuple[tuple[dict[str, str], ...], tuple[str, ...]]:
    """Return the prompt, and the answer to it if the column holds a complete conversation."""
    column, value = columns.require(row, "prompt")
    if column.lower() == "prompt":
        return check_messages(value, column, "user"), ()
    return split_conversation(value, column)


def _index(row: dict[str, Any], columns: Columns) -> int | str | None:
    """Return `extra_info.index` of LUFFY and verl; negative numbers are placeholders."""
    if "id" in columns.mapping or is_empty(row.get("extra_info")):
        return None
    information = row["extra_info"]
    if isinstance(information, str):
        information = parse_literal(information)
    index = information.get("index") if isinstance(information, dict) else None
    if is_empty(index) or isinstance(index, bool) or not isinstance(index, (int, str)):
        return None
    return None if isinstance(index, int) and index < 0 else index


def _ground_truth(column: str, value: Any) -> str:
    """Return the final answer, which some columns hold at the end of a worked solution."""
    if isinstance(value, str) and value.lstrip().startswith(('["', "['")):
        parsed = parse_literal(value)  # the text of a list with one answer; several answers in one text are words
        value = parsed[0] if isinstance(parsed, list) and len(parsed) == 1 else value
    if isinstance(value, list):
        if len(value) != 1:
            raise ProblemError(f"expected one ground truth, got {show_value(value)}", column)
        value = value[0]
    text = check_text(value, column)
    if column.lower() in ("ground_truth", "reward_model.ground_truth"):
        return text
    marked = text.rpartition("####")[2].strip() if "####" in text else ""  # GSM8K; in other data it begins a heading
    answer = marked if marked and "\n" not in marked and not last_box(marked) else last_box(text)
    if answer:
        return answer
    if column.lower() == "solution" and ("\n" in text.strip() or len(text) > _LONGEST_ANSWER):
        raise ProblemError(
            f"expected a final answer, in \\boxed{{}} or after ####, got {show_value(text)}; if another column "
            "holds it, name it (columns: {ground_truth: NAME})",
            column,
        )
    return text


def last_box(text: str) -> str:
    r"""Return the content of the last \boxed{...}, \fbox{...} or \boxed 5; an empty text if there is none."""
    for box in reversed(list(_BOX.finditer(text))):
        content = box["token"] or _braced(text, box.end())
        if content.strip():
            return content.strip()
    return ""


def _braced(text: str, start: int) -> str:
    """Return the text up to the brace that closes the one just before `start`; an empty text without one."""
    depth = 1
    for brace in re.compile(r"\\.|[{}]", re.DOTALL).finditer(text, start):
        depth += {"{": 1, "}": -1}.get(brace.group(), 0)
        if depth == 0:
            return text[start : brace.start()]
    return ""


def _traces(column: str, value: Any) -> tuple[str, ...]:
    """Return traces from texts, or from messages that end with the assistant's; one or a list."""
    value = messages_from_text(value, column)
    if isinstance(value, str) and value.lstrip().startswith(("['", '["', "[[", "[ ")):
        parsed = parse_literal(value)  # a list in a CSV cell
        if isinstance(parsed, list) and all(isinstance(part, (str, list)) for part in parsed):
            value = parsed
        elif parsed is None and value.lstrip().startswith(("['", '["')) and value.rstrip().endswith("]"):
            expected = "expected a list of texts, as JSON or with commas between them"  # numpy writes no commas
            raise ProblemError(f"{expected}, got {show_value(value)}", column)
    if is_empty(value):
        return ()
    if isinstance(value, str):
        return (check_text(value, column),)
    if not isinstance(value, list):
        raise ProblemError(f"expected a list of texts, got {show_value(value)}", column)
    if isinstance(value[0], dict):
        return _last_answer(value, column)
    traces: list[str] = []
    for i, trace in enumerate(value):
        where = f"{column}[{i}]"
        traces += _last_answer(trace, where) if isinstance(trace, list) else (check_text(trace, where),)
    return tuple(traces)


def _last_answer(messages: list[Any], name: str) -> tuple[str, ...]:
    """Return the assistant's last message, if it has a text."""
    if len(messages) == 1 and isinstance(messages[0], dict) and is_empty(messages[0].get("content", "x")):
        return ()
    return (check_messages(messages, name, "assistant")[-1]["content"],)


def _trace_log_probs(value: Any, number: int) -> tuple[tuple[float, ...], ...]:
    name, text = "trace_log_probs", value
    value = parse_literal(value) if isinstance(value, str) else value
    if isinstance(text, str) and value is None and text.strip().lower() not in ("", "null", "none"):
        raise ProblemError(f"expected a list of numbers for each trace, got {show_value(text)}", name)
    if value is None:
        return ()
    if not isinstance(value, list) or len(value) not in (0, number):
        raise ProblemError(f"expected a list of numbers for each of {number} traces, got {show_value(value)}", name)
    for i, numbers in enumerate(value):
        is_list = isinstance(numbers, list)
        if not is_list or not all(type(n) in (int, float) and is_finite(n) and n <= 0 for n in numbers):
            expected = "expected a list of finite numbers of at most 0, one for each token"
            raise ProblemError(f"{expected}, got {show_value(numbers)}", f"{name}[{i}]")
    return tuple(tuple(float(n) for n in numbers) for numbers in value)


def _repeats(value: Any) -> int:
    if is_empty(value):
        return 1
    number = int(value) if isinstance(value, str) and value.strip().isdecimal() else value
    # floats in columns with empty cells
    number = int(number) if isinstance(number, float) and number.is_integer() else number
    if not isinstance(number, int) or isinstance(number, bool) or number < 1:
        raise ProblemError(f"expected a number of at least 1, got {show_value(value)}", "repeats")
    return number


def write_problems(path: str | Path, problems: Iterable[Problem]) -> None:
    """Write JSON lines in the plain schema, atomically."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as stream:
        for problem in problems:
            plain = asdict(problem)
            extra = plain.pop("extra")
            del plain["origin"]
            stream.write(json.dumps({**extra, **plain}, ensure_ascii=False) + "\n")
