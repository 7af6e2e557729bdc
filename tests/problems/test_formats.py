"""Rows and files as public data sets have them: each is read to the same problem, or refused by file, row and field."""

import csv
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lit_rft.problems import Problem, ProblemError, read_problems

QUESTION, ANSWER, WORKED = "What is 3 * 6?", "18", "3 * 6 is 6 + 6 + 6.\n\\boxed{18}"
USER = {"role": "user", "content": QUESTION}
ASSISTANT = {"role": "assistant", "content": WORKED}
PLAIN = {"prompt": QUESTION, "ground_truth": ANSWER}
CHAT = {"ground_truth": ANSWER, "messages": [USER, ASSISTANT]}
SHAREGPT = [{"from": "human", "value": QUESTION}, {"from": "gpt", "value": WORKED}]

# row -> whether it has a trace
ROWS: dict[str, tuple[dict[str, Any], bool]] = {
    "target is null": ({**PLAIN, "target": None}, False),
    "target is an empty list": ({**PLAIN, "target": []}, False),
    "target is an empty text": ({**PLAIN, "target": ""}, False),
    "target is a message without text": ({**PLAIN, "target": [{"role": "assistant", "content": ""}]}, False),
    "target is a text": ({**PLAIN, "target": WORKED}, True),
    "traces is a text": ({**PLAIN, "traces": WORKED}, True),
    "traces are conversations": ({**PLAIN, "traces": [[ASSISTANT]]}, True),
    "empty system text": ({**PLAIN, "prompt": [{"role": "system", "content": ""}, USER]}, False),
    "null system text": ({**PLAIN, "prompt": [{"role": "system", "content": None}, USER]}, False),
    "a developer's empty text": ({**PLAIN, "prompt": [{"role": "developer", "content": " "}, USER]}, False),
    "reward_model as JSON": ({"prompt": [USER], "reward_model": json.dumps({"ground_truth": ANSWER})}, False),
    "a list of one truth": ({"prompt": [USER], "reward_model": {"ground_truth": [ANSWER]}}, False),
    "a list of one truth as JSON": ({"prompt": [USER], "reward_model": {"ground_truth": '["18"]'}}, False),
    "a list of one number": ({**PLAIN, "ground_truth": [18]}, False),
    "TRL, plain": ({"prompt": QUESTION, "solution": ANSWER}, False),
    "TRL, conversational": ({"prompt": [USER], "completion": [ASSISTANT], "solution": ANSWER}, True),
    "TRL, answer": ({"prompt": [USER], "answer": ANSWER}, False),
    "gsm8k": ({"question": QUESTION, "answer": "It is <<3*6=18>>18.\n#### 18"}, False),
    "MATH": ({"problem": QUESTION, "solution": WORKED, "level": "Level 1"}, False),
    "MATH-500": ({"problem": QUESTION, "solution": "Long.\nAnd longer.", "answer": ANSWER, "unique_id": "x"}, False),
    "open-r1": ({"problem": QUESTION, "solution": "Long.\nLonger.", "answer": ANSWER, "source": "", "uuid": "u",
                 "messages": [USER, ASSISTANT], "generations": [WORKED]}, True),
    "AIME, capitals": ({"ID": "2024-I-1", "Problem": QUESTION, "Solution": "Long.\nLonger.", "Answer": 18}, False),
    "nested braces": ({"problem": QUESTION, "solution": "\\boxed{1}, no: \\boxed{\\text{18}}"}, False),
    "a box without braces": ({"problem": QUESTION, "solution": "\\boxed{1} was wrong: \\boxed 18."}, False),
    "an fbox": ({"problem": QUESTION, "solution": "$\\fbox{18}$"}, False),
    "a heading behind four signs": ({"problem": QUESTION, "solution": "#### Step 1\nIt is\n\\boxed{18}"}, False),
    "ShareGPT": ({"conversations": SHAREGPT, "ground_truth": ANSWER}, True),
    "ShareGPT without an answer": ({"conversations": SHAREGPT[:1], "ground_truth": ANSWER}, False),
    "messages": (CHAT, True),
    "messages whose answer is empty": ({**CHAT, "messages": [USER, {"role": "assistant", "content": ""}]}, False),
    "ShareGPT among chats": ({"conversations": [{"role": None, "content": None, **turn} for turn in SHAREGPT],
                              "ground_truth": ANSWER}, True),
    "chats among ShareGPT": ({**CHAT, "messages": [{"from": None, "value": None, **turn} for turn in CHAT["messages"]]},
                             True),
    "content parts": ({**PLAIN, "prompt": [{"role": "user", "content": [{"type": "text", "text": "What is "},
                                                                         {"type": "text", "text": "3 * 6?"}]}]}, False),
    "a prompt as JSON": ({**PLAIN, "prompt": json.dumps([USER])}, False),
    "a prompt as JSON, indented": ({**PLAIN, "prompt": "\n" + json.dumps([USER], indent=1)}, False),
    "a prompt as Python's text of a list": ({**PLAIN, "prompt": str([USER])}, False),
    "a conversation as JSON": ({**CHAT, "messages": json.dumps({"messages": [USER, ASSISTANT]})}, True),
}  # fmt: skip


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("name", ROWS)
def test_rows_of_public_data_sets(name: str, tmp_path: Path) -> None:
    row, has_trace = ROWS[name]
    (problem,) = read_problems(write(tmp_path / "p.jsonl", [row]))
    assert problem.prompt == (USER,)
    assert problem.ground_truth.rstrip(".") == ("\\text{18}" if name == "nested braces" else ANSWER)
    assert problem.traces == ((WORKED,) if has_trace else ())


def test_braces_that_are_content_end_no_box(tmp_path: Path) -> None:
    row = {"problem": QUESTION, "solution": r"$\boxed{\left\{1,2\right.}$"}
    assert read_problems(write(tmp_path / "p.jsonl", [row]))[0].ground_truth == r"\left\{1,2\right."


def test_a_text_of_several_answers_is_one_answer(tmp_path: Path) -> None:
    (problem,) = read_problems(write(tmp_path / "p.jsonl", [{**PLAIN, "ground_truth": '["a", "b"]'}]))
    assert problem.ground_truth == '["a", "b"]'


def test_several_turns_end_with_the_trace(tmp_path: Path) -> None:
    again = [USER, ASSISTANT, {"role": "user", "content": "Again?"}, {"role": "assistant", "content": "18."}]
    (problem,) = read_problems(write(tmp_path / "p.jsonl", [{"messages": again, "answer": ANSWER}]))
    assert problem.prompt == tuple(again[:3]) and problem.traces == ("18.",)


@pytest.mark.parametrize("words", ["[asy] draw(A--B); [/asy] What is AB?", "[1, 2, 3]", "{1, 2} has how many subsets?",
                                   '["a", "b"]', "[[1, 2], [3, 4]]", '{"a": 1}'])  # fmt: skip
def test_words_in_brackets_stay_words(words: str, tmp_path: Path) -> None:
    (problem,) = read_problems(write(tmp_path / "p.jsonl", [{"prompt": words, "ground_truth": "[1, 2]"}]))
    assert problem.prompt == ({"role": "user", "content": words},) and problem.ground_truth == "[1, 2]"


@pytest.mark.parametrize(
    ("row", "field", "message"),
    [
        ({**PLAIN, "prompt": json.dumps([USER])[:-5]}, "prompt", "begins like messages and cannot be parsed"),
        ({**PLAIN, "prompt": f"[{USER}\n {USER}]"}, "prompt", "begins like messages"),  # numpy's text of an array
        ({**PLAIN, "prompt": json.dumps([{"role": "king", "content": "x"}])}, r"prompt\[0\].role", "expected one of"),
        ({**PLAIN, "prompt": [{"role": "system", "content": ""}]}, "prompt", "besides an empty system message"),
        ({**PLAIN, "prompt": [{"role": "user", "content": [{"type": "image", "url": "x"}]}]},
         r"prompt\[0\].content\[0\]", "part of type text"),
        ({**CHAT, "messages": [ASSISTANT]}, "messages", "a message of the user before"),
        ({"prompt": QUESTION, "reward_model": {"ground_truth": ["1", "2"]}}, r"reward_model\.ground_truth",
         "expected one"),
        ({"prompt": QUESTION, "reward_model": "rule"}, "reward_model", "an object or its JSON text"),
        ({"prompt": QUESTION, "solution": "We add.\nThen we are done."}, "solution", r"in \\boxed\{\} or after ####"),
        ({"text": QUESTION, "ground_truth": ANSWER}, "prompt", r"row with text, ground_truth; .*\{prompt: NAME\}"),
        ({"prompt": QUESTION, "anwser": ANSWER}, "ground_truth", "did you mean 'anwser'"),
        ({**PLAIN, "repeats": 0}, "repeats", "at least 1"),
        ({**PLAIN, "traces": "['one trace'\n 'another']"}, "traces", "with commas"),  # numpy's text of an array
        ({**PLAIN, "id": "\ud800"}, "id", "UTF-8"),
        ({**PLAIN, "source": "\ud800"}, "source", "UTF-8"),
    ],
)  # fmt: skip
def test_rows_that_mean_nothing_are_refused(row: dict[str, Any], field: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ProblemError, match=rf"p\.jsonl:3: {field}: .*{message}"):
        read_problems(write(tmp_path / "p.jsonl", [PLAIN, PLAIN, row]))


TABLE = [
    {"prompt": 'What is "3" * 6,\nin words?', "ground_truth": "eighteen", "traces": None, "id": "007"},
    {"prompt": json.dumps([USER]), "ground_truth": ANSWER, "traces": json.dumps([WORKED, "18"]), "id": "b"},
    {"prompt": "Go on: " + "x" * 200_000, "ground_truth": "0.10", "traces": WORKED, "id": "c"},
]


def _write_csv(path: Path, delimiter: str = ",", **encoding: Any) -> None:
    with path.open("w", newline="", **encoding) as stream:
        table = csv.DictWriter(stream, TABLE[0], delimiter=delimiter)
        table.writeheader()
        table.writerows(TABLE)


def _write_gzip(path: Path) -> None:
    _write_lines(plain := path.with_suffix(""))
    path.write_bytes(gzip.compress(plain.read_bytes()))
    plain.unlink()


def _write_lines(path: Path, rows: list[Any] = TABLE) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


WRITERS: dict[str, Callable[[Path], Any]] = {
    "p.jsonl": _write_lines,
    "p.jsonl.gz": _write_gzip,
    "lines.json": _write_lines,
    "list.json": lambda path: path.write_text(json.dumps(TABLE, indent=1)),
    "object.json": lambda path: path.write_text(json.dumps({"data": TABLE})),
    "bom.jsonl": lambda path: path.write_text("".join(json.dumps(r) + "\n" for r in TABLE), encoding="utf-8-sig"),
    "bom.json": lambda path: path.write_text(json.dumps(TABLE), encoding="utf-8-sig"),
    "p.csv": _write_csv,
    "bom.csv": lambda path: _write_csv(path, encoding="utf-8-sig"),
    "semicolons.csv": lambda path: _write_csv(path, ";"),
    "p.tsv": lambda path: _write_csv(path, "\t"),
    "p.PARQUET": lambda path: pq.write_table(pa.Table.from_pylist(TABLE), path),
    "saved": lambda path: datasets.Dataset.from_list(TABLE).save_to_disk(path),
}


@pytest.mark.parametrize("name", WRITERS)
def test_files_of_all_kinds_hold_the_same_problems(name: str, tmp_path: Path) -> None:
    WRITERS[name](tmp_path / name)
    first, second, third = read_problems(tmp_path / name)
    assert [first.id, second.id, third.id] == ["007", "b", "c"]
    assert first.prompt[0]["content"] == TABLE[0]["prompt"] and first.traces == ()
    assert second.prompt == (USER,) and second.traces == (WORKED, "18")
    assert third.ground_truth == "0.10" and third.traces == (WORKED,)
    assert len(third.prompt[0]["content"]) == 200_007


def test_files_by_folder_and_pattern(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "README.md").write_text("no problems")
    for name in ("b.jsonl", "a.jsonl", "c.csv", "odd [1].jsonl"):
        (tmp_path / name).write_text("prompt,answer\nc?,1\n" if name == "c.csv" else "")
        if name != "c.csv":
            write(tmp_path / name, [{"prompt": name[0] + "?", "answer": 1}])

    def prompts(source: str) -> list[str]:
        return [problem.prompt[0]["content"] for problem in read_problems(source)]

    assert prompts(str(tmp_path)) == ["a?", "b?", "c?", "o?"]
    assert prompts(f"{tmp_path}/[ab].jsonl") == ["a?", "b?"]
    assert prompts(f"{tmp_path}/odd [1].jsonl") == ["o?"]  # a file of that name comes before the pattern
    monkeypatch.setenv("HOME", str(tmp_path))
    assert prompts("~/c.csv") == ["c?"]
    with pytest.raises(FileNotFoundError, match=r"no problems at .*/\*\.parquet"):
        read_problems(f"{tmp_path}/*.parquet")
    with pytest.raises(ValueError, match=r"README\.md"):
        read_problems(tmp_path / "README.md")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.json", b'{"prompt": ', r"p\.json is not JSON"),
        ("p.json", b"3", r"p\.json: expected a list of rows, got int"),
        ("p.json", b'{"prompt": "a", "answer": 1}\n{"prompt": \n', r"p\.json:2: not a line of JSON"),
        ("p.csv", b"prompt,answer\na,1\nb\n", r"p\.csv:3: expected 2 cells, got 1"),
        ("p.csv", b'prompt,answer\n"a\n\nb",1\nc,2,3\n', r"p\.csv:5: expected 2 cells, got 3"),
        ("p.csv", b"prompt,prompt\na,1\n", r"p\.csv: expected unique column names"),
        ("p.csv", b'prompt,answer\n"a,1\n', r"p\.csv:2: not a row of CSV"),
        ("p.csv", b"prompt,answer\n\xff,1\n", r"p\.csv is not UTF-8"),
        ("p.csv", b"prompt,answer\n", r"expected at least one problem in .*p\.csv"),
        ("p.csv", b"", r"expected at least one problem in .*p\.csv"),
        ("p.jsonl.gz", b"no gzip", r"expected a complete gzip file, got .*p\.jsonl\.gz"),
        ("p.jsonl.gz", gzip.compress(b'{"prompt": "a", "answer": 1}\n' * 99)[:-9], "expected a complete gzip file"),
        ("p.jsonl", b'\n\n{"prompt": "a", "answer": 1}\n\n{"prompt": "b"}\n', r"p\.jsonl:5: ground_truth"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_damaged_files_are_named(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_problems(tmp_path / name)


def test_a_cell_limit_of_others_stays_as_it_was(tmp_path: Path) -> None:
    before = csv.field_size_limit()
    _write_csv(tmp_path / "p.csv")
    read_problems(tmp_path / "p.csv")
    assert csv.field_size_limit() == before


def test_a_saved_data_set_of_several_splits_names_them(tmp_path: Path) -> None:
    split = datasets.Dataset.from_list(TABLE)
    datasets.DatasetDict({"train": split, "test": split}).save_to_disk(tmp_path / "set")
    with pytest.raises(ValueError, match=r"several splits: .*\(test, train\)"):
        read_problems(tmp_path / "set")
    assert len(read_problems(tmp_path / "set" / "train")) == 3


@pytest.mark.parametrize("form", ["numpy", "torch"])
def test_a_saved_data_set_holds_plain_values_whatever_its_format(form: str, tmp_path: Path) -> None:
    rows = [{"prompt": [USER], "ground_truth": 2.5, "traces": ["a", "b"]}]
    datasets.Dataset.from_list(rows).with_format(form).save_to_disk(tmp_path / "set")
    (problem,) = read_problems(tmp_path / "set")
    assert (problem.prompt, problem.ground_truth, problem.traces) == ((USER,), "2.5", ("a", "b"))


@pytest.mark.parametrize(
    ("source", "asked"),
    [
        ("hf:a/b", ("a/b", "train")),
        ("hf:a/b:test", ("a/b", "test")),
        ("hf:a/b:main:test", ("a/b", "main", "test")),
        ("hf:a/b:main:test[:10]", ("a/b", "main", "test[:10]")),
        ("hf:a/b:test[5:10]", ("a/b", "test[5:10]")),
        ("hf:a/b:main:test:x", None),
        ("hf:a/b:", None),
    ],
)
def test_data_sets_of_the_hub(source: str, asked: tuple[str, ...] | None, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def load_dataset(*names: str, split: str) -> list[dict[str, Any]]:
        calls.append((*names, split))
        return [PLAIN]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    if asked is None:
        with pytest.raises(ValueError, match="expected hf:NAME, hf:NAME:SPLIT or hf:NAME:CONFIGURATION:SPLIT"):
            read_problems(source)
        return
    assert [p.ground_truth for p in read_problems(source)] == [ANSWER] and calls == [asked]


def test_a_missing_configuration_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(*names: str, split: str) -> list[dict[str, Any]]:
        raise ValueError("Config name is missing. Please pick one among the available configs: ['main', 'socratic']")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(ValueError, match=r"hf:openai/gsm8k:test.*hf:NAME:CONFIGURATION:SPLIT.*'main', 'socratic'"):
        read_problems("hf:openai/gsm8k:test")


def test_other_columns_reach_reward_functions(tmp_path: Path) -> None:
    row = {"problem": QUESTION, "solution": WORKED, "answer": ANSWER, "level": 3, "target": None}
    (problem,) = read_problems(write(tmp_path / "p.jsonl", [row]))
    assert isinstance(problem, Problem)
    assert problem.row() == {"problem": QUESTION, "solution": WORKED, "answer": ANSWER, "level": 3, "id": "1",
                             "ground_truth": ANSWER, "source": ""}  # fmt: skip
    assert problem.origin.endswith("p.jsonl:1")
