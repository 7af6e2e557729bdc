"""Problems: both schemas, bad rows by file, row and field, generated ones with traces that are right."""

import json
import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lit_rft.problems import (
    Problem,
    ProblemError,
    generate_problems,
    generate_training_problems,
    read_problems,
    write_problems,
)
from lit_rft.problems.record import check_text
from lit_rft.problems.traces import TRACES

DATA = Path(__file__).parents[3] / "shared" / "data" / "math_eval_luffy_schema.parquet"
RELEASE = {
    "data_source": "aime",
    "prompt": [{"role": "system", "content": "Think."}, {"role": "user", "content": "1+1?"}],
    "target": [{"role": "assistant", "content": "<think>\nEasy.\n</think>\n\\boxed{2}"}],
    "ability": "math",
    "reward_model": {"ground_truth": "2", "style": "rule"},
    "extra_info": {"index": 7, "split": "train"},
}
PLAIN = {"prompt": "1+1?", "ground_truth": 2, "traces": ["\\boxed{2}", "It is 2."], "id": "x", "level": 3}


def write(path: Path, rows: list[Any]) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
def test_the_releases_schema(tmp_path: Path, suffix: str) -> None:
    (problem,) = read_problems(write(tmp_path / f"p{suffix}", [RELEASE]))
    assert problem.id == "aime/7" and problem.source == "aime" and problem.ground_truth == "2"
    assert problem.prompt == tuple(RELEASE["prompt"])  # type: ignore[arg-type]
    assert problem.traces == ("<think>\nEasy.\n</think>\n\\boxed{2}",)
    assert problem.row()["ability"] == "math"


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
def test_the_plain_schema(tmp_path: Path, suffix: str) -> None:
    (problem,) = read_problems(write(tmp_path / f"p{suffix}", [PLAIN]))
    assert problem.prompt == ({"role": "user", "content": "1+1?"},)
    assert (problem.id, problem.ground_truth, len(problem.traces), problem.row()["level"]) == ("x", "2", 2, 3)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    problems = [*read_problems(write(tmp_path / "p.jsonl", [RELEASE, PLAIN]))]
    write_problems(tmp_path / "again.jsonl", problems)
    assert read_problems(tmp_path / "again.jsonl") == problems


@pytest.mark.skipif(not DATA.is_file(), reason="the evaluation data is not at hand")
def test_real_evaluation_data(tmp_path: Path) -> None:
    table = pq.read_table(DATA)
    rows = [row for row in table.to_pylist() for _ in range(1 if row["data_source"] == "math" else 32)]
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), tmp_path / "valid.all.parquet")
    repeated = read_problems(tmp_path / "valid.all.parquet")
    assert {(p.source, p.repeats) for p in repeated} == {("math", 1), ("amc", 32), ("aime", 32)}
    problems = read_problems(DATA)
    assert [p.id for p in repeated] == [p.id for p in problems]
    assert len(problems) == 613
    assert {p.source for p in problems} == {"math", "amc", "aime"}
    assert not any(p.traces for p in problems)
    assert all(p.prompt[-1]["role"] == "user" for p in problems)


@pytest.mark.parametrize(
    ("change", "field", "message"),
    [
        ({"prompt": None}, "prompt", "list of messages"),
        ({"prompt": []}, "prompt", "list of messages"),
        ({"prompt": ""}, "prompt", "empty"),
        ({"prompt": [{"role": "king", "content": "x"}]}, r"prompt\[0\].role", "system, user, assistant"),
        ({"prompt": [{"role": "user", "content": 3}]}, r"prompt\[0\].content", "expected a text"),
        ({"prompt": [{"role": "assistant", "content": "x"}]}, "prompt", "last message to be the user's"),
        ({"ground_truth": None}, "ground_truth", "expected a text"),
        ({"ground_truth": " "}, "ground_truth", "empty"),
        ({"ground_truth": float("nan")}, "ground_truth", "expected a text or a finite number, got nan"),
        ({"ground_truth": float("-inf")}, "ground_truth", "expected a text or a finite number, got -inf"),
        ({"traces": 3}, "traces", "list of texts"),
        ({"traces": [""]}, r"traces\[0\]", "empty"),
        ({"traces": ["x"], "trace_log_probs": "unknown"}, "trace_log_probs", "a list of numbers for each trace"),
        ({"traces": ["x"], "trace_log_probs": [-0.1]}, r"trace_log_probs\[0\]", "a list of finite numbers .* got -0.1"),
        ({"traces": ["x"], "trace_log_probs": [[False]]}, r"trace_log_probs\[0\]", "finite numbers of at most 0"),
        ({"traces": ["x"], "trace_log_probs": [[-math.inf]]}, r"trace_log_probs\[0\]", "finite numbers of at most 0"),
        ({"id": True}, "id", "expected a text, got True"),
        ({"traces": ["x"], "trace_log_probs": [[-(10**400)]]}, r"trace_log_probs\[0\]", "finite numbers of at most 0"),
        ({"id": math.inf}, "id", "expected a text or a finite number, got inf"),
        ({"id": {"number": 3}}, "id", "expected a text, got {'number': 3}"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, change: dict[str, Any], field: str, message: str) -> None:
    path = write(tmp_path / "p.jsonl", [{**PLAIN, "id": "first"}, {**PLAIN, **change}])
    with pytest.raises(ProblemError, match=rf"p\.jsonl:2: {field}: .*{message}"):
        read_problems(path)


def test_bad_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_problems(tmp_path / "none.jsonl")
    with pytest.raises(ValueError, match=r"\.parquet, \.jsonl, .* file or hf:NAME, got .*p\.txt"):
        read_problems(write(tmp_path / "p.txt", []))
    with pytest.raises(ValueError, match="expected at least one problem in"):
        read_problems(write(tmp_path / "empty.jsonl", []))
    (tmp_path / "torn.jsonl").write_text('{"prompt": ')
    with pytest.raises(ProblemError, match=r"torn\.jsonl:1: not a line of JSON"):
        read_problems(tmp_path / "torn.jsonl")
    (tmp_path / "torn.parquet").write_bytes(b"PAR1 and nothing more")
    with pytest.raises(ValueError, match="incomplete or corrupt Parquet file"):
        read_problems(tmp_path / "torn.parquet")
    with pytest.raises(ProblemError, match=r"p\.jsonl:2: id: .*'x', the id of another problem in row 1"):
        read_problems(write(tmp_path / "p.jsonl", [PLAIN, {**PLAIN, "prompt": "1+2?"}]))


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0.00001, "0.00001"),
        (1e16, "10000000000000000"),
        (-2.5e-7, "-0.00000025"),
        (5.0, "5.0"),
        (10**9, "1000000000"),
        (10**309, "1" + "0" * 309),
    ],
)
def test_numbers_as_ground_truths_are_written_out(number: float, text: str) -> None:
    assert check_text(number, "ground_truth") == text


@pytest.mark.parametrize("task", sorted(TRACES))
def test_generated_traces_are_right(task: str) -> None:
    from lit_rft.rewards import Verdict, VerifierPool

    problems = generate_problems(task, 12, seed=3)
    assert problems == generate_problems(task, 12, seed=3) != generate_problems(task, 12, seed=4)
    assert len({p.id for p in problems}) == 12 and all(len(p.traces) == 1 for p in problems)
    if task == "prime_factorization":  # the ground truth is a product in words of its own
        assert all(p.traces[0].endswith(f"\\boxed{{{p.ground_truth}}}") for p in problems)
        return
    pool = VerifierPool(time_limit=5.0)
    try:
        verdicts = pool.verify([p.ground_truth for p in problems], [p.traces[0] for p in problems])
    finally:
        pool.close()
    assert verdicts == [Verdict.RIGHT] * 12


def test_steps_of_a_chain_are_worked_out_one_by_one() -> None:
    (problem,) = generate_problems("chain_sum", 1, seed=0, min_terms=3, max_terms=3, min_digits=1, max_digits=1)
    lines = problem.traces[0].splitlines()
    assert len(lines) == 3
    for line in lines[:-1]:
        left, right = line.split(" = ")
        assert eval(left) == int(right)  # our own digits


def test_problems_that_differ_from_process_to_process_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONHASHSEED", raising=False)
    with pytest.raises(ValueError, match=r"problems of ransom_note depend on .* variable PYTHONHASHSEED to 0"):
        generate_problems("ransom_note", 2)
    monkeypatch.setenv("PYTHONHASHSEED", "0")
    assert len(generate_problems("ransom_note", 2)) == 2


def test_generated_training_problems_are_not_held_out() -> None:
    sizes = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}
    held_out = generate_problems("chain_sum", 50, seed=1, **sizes)
    questions = {problem.prompt[-1]["content"] for problem in held_out}
    plain = generate_problems("chain_sum", 60, seed=2, **sizes)
    others = [problem for problem in plain if problem.prompt[-1]["content"] not in questions]
    problems = generate_training_problems("chain_sum", 60, held_out, seed=2, **sizes)
    assert len(others) < len(problems) == 60 and problems[: len(others)] == others
    assert not questions & {problem.prompt[-1]["content"] for problem in problems}
    assert generate_training_problems("chain_sum", 60, (), seed=2, **sizes) == plain
    every = generate_problems("chain_sum", 3000, **sizes)
    with pytest.raises(ValueError, match="expected 5 training problems of chain_sum that are not held out, got 0 of"):
        generate_training_problems("chain_sum", 5, every, seed=2, **sizes)


def test_unknown_tasks_are_refused() -> None:
    with pytest.raises(ValueError, match=r"unknown task 'chain_sums'; reasoning-gym has .*chain_sum"):
        generate_problems("chain_sums", 1)
    with pytest.raises(ValueError, match="number must be >= 1"):
        generate_problems("chain_sum", 0)
    assert Problem("a", ({"role": "user", "content": "x"},), "1").row() == {
        "id": "a",
        "ground_truth": "1",
        "source": "",
    }


def test_equations_and_expressions_are_worked_out_one_by_one() -> None:
    equation = {"metadata": {"equation": "7 - 3*x + 2 = -6", "variable": "x"}, "answer": "5"}
    assert TRACES["simple_equations"](equation) == "-3*x = -6 - 9 = -15\nx = -15 / -3 = 5\n\\boxed{5}"
    expression = {"metadata": {"expression": "( 8 - -( 2 * 3 ) ) / 7"}, "answer": "2"}
    assert TRACES["basic_arithmetic"](expression) == "2 * 3 = 6\n8 - -6 = 14\n14 / 7 = 2\n\\boxed{2}"
    numbers = {"metadata": {"numbers": [12, 18, 8]}, "answer": "2"}
    assert TRACES["gcd"](numbers).splitlines() == [
        "18 = 1 * 12 + 6",
        "12 = 2 * 6 + 0",
        "8 = 1 * 6 + 2",
        "6 = 3 * 2 + 0",
        "\\boxed{2}",
    ]


def test_seeds_side_by_side_have_other_problems() -> None:
    prompts = [{p.prompt[0]["content"] for p in generate_problems("chain_sum", 50, seed=seed)} for seed in (0, 1)]
    assert len(prompts[0] & prompts[1]) < 5


def test_an_id_of_zero_is_an_id(tmp_path: Path) -> None:
    path = tmp_path / "problems.jsonl"
    rows = [{"id": n, "prompt": f"1+{n}?", "ground_truth": n + 1} for n in range(3)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [problem.id for problem in read_problems(path)] == ["0", "1", "2"]
