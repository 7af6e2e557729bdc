"""Ids are unique over all that is read together; repeats are counted and kept once."""

import json
import logging
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lit_rft.problems import ProblemError, read_problems, write_problems

LOGGER = "lit_rft.problems"


def row(index: int, source: str = "", **more: Any) -> dict[str, Any]:
    """In the release's schema."""
    return {
        "data_source": source,
        "prompt": [{"role": "system", "content": "Think."}, {"role": "user", "content": f"{source}: {index}+1?"}],
        "ability": "math",
        "reward_model": {"ground_truth": str(index + 1), "style": "rule"},
        "extra_info": {"index": index, "split": "default"},
        **more,
    }


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def plain(name: Any, question: str, truth: Any = 1, **more: Any) -> dict[str, Any]:
    return {"id": name, "prompt": question, "ground_truth": truth, **more}


def test_the_releases_evaluation_file_with_its_repeats(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [row(n, "math") for n in range(20)]
    rows += [row(n, source) for source, number in (("aime", 3), ("amc", 5)) for _ in range(32) for n in range(number)]
    with caplog.at_level(logging.INFO, LOGGER):
        problems = read_problems(write(tmp_path / "valid.all.parquet", rows))
    assert len(problems) == 28 and len({p.id for p in problems}) == 28
    assert {(p.source, p.repeats) for p in problems} == {("math", 1), ("aime", 32), ("amc", 32)}
    assert problems[20].id == "aime/0" and problems[20].ground_truth == "1"
    assert "248 of 276 rows are repeats" in caplog.text
    assert "aime: 3 repeated, 32 rows each; amc: 5 repeated, 32 rows each" in caplog.text


def test_training_rows_that_stand_a_hundred_times(tmp_path: Path) -> None:
    names = ["9a9b6eb4", "4b7c9d2e", "77aa0f31"]
    rows = [row(0, name, extra_info={"index": name}) for _ in range(100) for name in names]
    problems = read_problems(write(tmp_path / "dapo.parquet", rows))
    assert [(p.id, p.repeats) for p in problems] == [(f"{name}/{name}", 100) for name in names]


@pytest.mark.parametrize("with_index", [True, False])
def test_problems_of_two_files_that_bear_the_same_number_stay_apart(tmp_path: Path, with_index: bool) -> None:
    def rows(letter: str) -> list[dict[str, Any]]:
        return [plain(n, f"{letter}{n}?") if with_index else plain(None, f"{letter}{n}?") for n in range(1, 5)]

    a, b = (write(tmp_path / f"{letter}.jsonl", rows(letter)) for letter in "ab")
    problems = read_problems([a, b])
    assert [p.prompt[0]["content"] for p in problems] == [f"{letter}{n}?" for letter in "ab" for n in range(1, 5)]
    assert len({p.id for p in problems}) == 8 and all(p.repeats == 1 for p in problems)
    assert all(p.id.split("#")[0] == p.prompt[0]["content"][1] for p in problems)  # still to be recognised
    assert {p.id for p in read_problems([b, a])} == {p.id for p in problems}  # whatever the order
    assert [p.id for p in read_problems(a)] == ["1", "2", "3", "4"]


def test_ids_stay_unique_whatever_a_file_calls_its_own(tmp_path: Path) -> None:
    first = write(tmp_path / "a.jsonl", [plain("0", "a?")])
    second = write(tmp_path / "b.jsonl", [plain("0", "b?")])
    taken = [p.id for p in read_problems([first, second])]
    third = write(tmp_path / "c.jsonl", [plain(taken[0], "c?"), plain(taken[1], "d?")])
    assert len({p.id for p in read_problems([first, second, third])}) == 4


def test_a_problem_in_two_files_is_one(tmp_path: Path) -> None:
    a = write(tmp_path / "a.jsonl", [plain(0, "1+1?", 2), plain(1, "1+2?", 3)])
    b = write(tmp_path / "b.jsonl", [plain(7, "1+1?", 2), plain(1, "1+2?", 4)])
    problems = read_problems([a, b])
    assert [(p.prompt[0]["content"], p.ground_truth, p.repeats) for p in problems] == [
        ("1+1?", "2", 2), ("1+2?", "3", 1), ("1+2?", "4", 1),
    ]  # fmt: skip
    assert problems[0].id == "0"


def test_benchmarks_share_problems_and_numbers(tmp_path: Path) -> None:
    rows = [plain(0, "1+1?", 2, source="aime24"), plain(0, "1+1?", 2, source="math"), plain(0, "1+2?", 3, source="amc")]
    problems = read_problems(write(tmp_path / "p.jsonl", rows))
    assert [p.source for p in problems] == ["aime24", "math", "amc"] and len({p.id for p in problems}) == 3


def test_an_id_of_two_contents_in_one_file_is_an_error(tmp_path: Path) -> None:
    for change in ({"prompt": "1+2?"}, {"ground_truth": 3}):
        same = plain("x", "1+1?", 2)
        path = write(tmp_path / "p.jsonl", [same, same, same | change])
        with pytest.raises(ProblemError, match=r"p\.jsonl:3: id: .*'x', .* another problem in row 1.*\{id: null\}"):
            read_problems(path)
        assert len(read_problems(path, {"id": None})) == 2
    path = write(tmp_path / "p.parquet", [row(0, "amc"), row(0, "amc", prompt=[{"role": "user", "content": "?"}])])
    with pytest.raises(ProblemError, match="'amc/0', the id of another problem in row 1"):
        read_problems(path)


def test_rows_without_a_number_do_not_meet_ids_of_others(tmp_path: Path) -> None:
    rows = [plain("2", "a?"), plain(None, "b?"), row(-1), row(-1, prompt="c?"), row(-1, prompt="d?", extra_info=None)]
    problems = read_problems(write(tmp_path / "p.jsonl", rows))
    assert len({p.id for p in problems}) == 5


def test_repeats_bring_their_traces_together(tmp_path: Path) -> None:
    rows = [
        plain(0, "1+1?", 2, traces=["It is 2.", "2"], trace_log_probs=[[-0.5], []]),
        plain(0, "1+1?", 2, traces=["2", "Two."]),
        plain(0, "1+1?", 2, traces=["Two."], trace_log_probs=[[-0.25]]),
    ]
    (problem,) = read_problems(write(tmp_path / "p.jsonl", rows))
    assert problem.traces == ("It is 2.", "2", "Two.") and problem.trace_log_probs == ((-0.5,), (), (-0.25,))


def test_repeats_that_differ_elsewhere_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [row(0, level=1, extra_info={"index": 0}), row(0, level=2, extra_info={"index": 1})]
    with caplog.at_level(logging.INFO, LOGGER):
        (problem,) = read_problems(write(tmp_path / "p.jsonl", rows))
    assert problem.extra["level"] == 1
    assert "repeats differ in the columns level: the values of the first row are kept" in caplog.text


def test_repeats_are_written_and_read(tmp_path: Path) -> None:
    problems = read_problems(write(tmp_path / "p.jsonl", [row(n) for n in (0, 1, 1)]))
    write_problems(tmp_path / "again.jsonl", problems)
    again = read_problems(tmp_path / "again.jsonl")
    assert again == problems and [p.repeats for p in again] == [1, 2]
