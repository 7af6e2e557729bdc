"""Columns by the usual names, by a mapping, and misspelt."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from lit_rft.problems import ProblemError, read_problems

ROW = {"question": "3*6?", "answer": "18", "solution": "It is \\boxed{18}.", "meta": {"final": "18.0", "n": 4}}


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_mapping_takes_the_place_of_the_usual_names(tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", [{**ROW, "prompt": "no", "level": "hard", "uuid": "u7"}])
    columns = {"prompt": "question", "ground_truth": "meta.final", "traces": "solution", "source": "level",
               "id": "uuid", "repeats": "meta.n"}  # fmt: skip
    (problem,) = read_problems(path, columns)
    assert problem.prompt[0]["content"] == "3*6?" and problem.ground_truth == "18.0"
    assert (problem.traces, problem.source, problem.id, problem.repeats) == (("It is \\boxed{18}.",), "hard", "u7", 4)


def test_null_takes_no_column(tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", [{**ROW, "target": "18", "source": "x", "id": "y"}])
    (problem,) = read_problems(path, {"traces": None, "source": None, "id": None})
    assert (problem.traces, problem.source, problem.id) == ((), "", "1")
    conversation = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "18"}]
    path = write(tmp_path / "q.jsonl", [{"messages": conversation, "answer": 18}])
    assert read_problems(path)[0].traces == ("18",) and read_problems(path, {"traces": None})[0].traces == ()


def test_a_mapping_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", [ROW])
    with pytest.raises(ValueError, match=r"columns has 'promt', expected prompt, .*; did you mean 'prompt'\?"):
        read_problems(path, {"promt": "question"})
    with pytest.raises(ProblemError, match=r"p\.jsonl:1: prompt: expected questoin, got a row with question, answer, "
                                           r".*did you mean 'question'\?"):  # fmt: skip
        read_problems(path, {"prompt": "questoin"})
    with pytest.raises(ValueError, match=r"p\.jsonl: columns\.traces is 'solutoin', expected one of the file's columns"
                                         r": question, answer, solution, meta; did you mean 'solution'\?"):  # fmt: skip
        read_problems(path, {"traces": "solutoin"})
    with pytest.raises(ProblemError, match=r"p\.jsonl:1: ground_truth: expected a column"):
        read_problems(path, {"ground_truth": None})


def test_a_dotted_name_must_lead_somewhere(tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", [ROW])
    with pytest.raises(ValueError, match=r"columns\.traces is 'meta\.trace', expected one of the file's columns: "):
        read_problems(path, {"traces": "meta.trace"})


def test_a_mapped_column_may_be_missing_in_some_rows(tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", [ROW, {**ROW, "question": "b?", "worked": "18"}])
    assert [len(p.traces) for p in read_problems(path, {"traces": "worked"})] == [0, 1]


@pytest.mark.parametrize(
    ("name", "meant"),
    [("trace", "traces"), ("tarces", "traces"), ("targets", "target"), ("Trace_s", "traces"),
     ("completions", "completion"), ("trace_logprobs", "trace_log_probs"), ("repeat", "repeats")],
)  # fmt: skip
def test_a_misspelt_column_is_named(name: str, meant: str, tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", [{**ROW, name: None}, {**ROW, name: ["18"]}])
    with pytest.raises(ValueError, match=rf"p\.jsonl: unknown column '{name}'; did you mean '{meant}'\?"):
        read_problems(path)


@pytest.mark.parametrize("name", ["trace_id", "target_length", "question_type", "prompt_id", "topic", "sources_used"])
def test_other_columns_are_not_taken_for_misspelt_ones(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "lit_rft.problems"):
        (problem,) = read_problems(write(tmp_path / "p.jsonl", [{**ROW, name: "x"}]))
    assert problem.extra[name] == "x"
    assert "prompt from question, ground_truth from answer; other columns" in caplog.text
    assert f"for reward functions only: solution, meta, {name}" in caplog.text


def test_a_column_nearly_called_traces_can_be_kept_for_other_ends(tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", [{**ROW, "trace": "/tmp/log"}])
    assert read_problems(path, {"traces": None})[0].extra["trace"] == "/tmp/log"
    assert read_problems(path, {"traces": "trace"})[0].traces == ("/tmp/log",)
