"""The benchmark of few demonstrations: its problems, its plan, and one run of each kind at a tiny size."""

import dataclasses
import importlib
import json
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def sums(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("letter_sums")


@pytest.fixture
def benchmark(sums: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    module = importlib.import_module("luffy_demonstrations")
    for name, second in (("SUMS", False), ("FAMILIES", True)):
        experiment = module.Experiment(tmp_path / name, tmp_path / f"{name.lower()}.json", second)
        monkeypatch.setattr(module, name, experiment)
    return module


def test_traces_are_right_unless_they_are_to_be_wrong(sums: ModuleType) -> None:
    rows = sums.training_rows(60, 40, seed=1, wrong=0.25)
    graded = [sums.FinalDigit()(row["traces"], [row] * len(row["traces"])) for row in rows]
    assert graded == [[0.0]] * 10 + [[1.0]] * 30 + [[]] * 20
    letters = rows[20]["prompt"].removeprefix("sum ")
    steps = rows[20]["traces"][0].split("=")[0]
    total = 0
    for place, letter in enumerate(letters):
        total = (total + sums.VALUES[letter]) % 10
        assert steps[3 * place : 3 * place + 3] == f"{letter}{sums.VALUES[letter]}{total}"


def test_the_reward_reads_the_last_digit_only(sums: ModuleType) -> None:
    texts = ["A66=6", "A66=6 ", "=6", "=16", "6", "A66=5", "=6A", ""]
    assert sums.FinalDigit()(texts, [{"ground_truth": "6"}] * 8) == [1, 1, 1, 0, 0, 0, 0, 0]


def test_the_first_error_of_an_answer(sums: ModuleType) -> None:
    right = sums.trace("ABC")
    values = {letter: (sums.VALUES[letter] + 1) % 10 for letter in "ABC"}
    assert sums.first_error("ABC", right) == sums.first_error("ABC", sums.trace("CAB")) == "right"
    assert sums.first_error("ABC", f"={sums.total('ABC')}") == "right"
    assert sums.first_error("ABC", f"={(sums.total('ABC') + 1) % 10}") == "guess"
    assert sums.first_error("ABC", right[:-2]) == sums.first_error("ABC", right + "A") == "form"
    assert sums.first_error("ABC", sums.trace("ABD")) == sums.first_error("ABC", sums.trace("AB")) == "letters"
    assert sums.first_error("ABC", right[0] + str(values["A"]) + right[2:]) == "values"
    assert sums.first_error("ABC", right[:-1] + str((int(right[-1]) + 1) % 10)) == "sums"


def test_training_prompts_are_the_same_for_any_demonstrations_and_none_is_held_out(sums: ModuleType) -> None:
    few, many = (sums.training_rows(300, number, seed=2) for number in (4, 64))
    assert [row["prompt"] for row in few] == [row["prompt"] for row in many]
    assert [row["traces"] for row in few][:4] == [row["traces"] for row in many][:4]
    prompts = {row["prompt"] for row in few}
    assert len(prompts) == 300 and prompts != {row["prompt"] for row in sums.training_rows(300, 4, seed=3)}
    held_out = {split: sums.held_out_rows(sums.HELD_OUT, split) for split in ("dev", "test")}
    assert not prompts & {row["prompt"] for rows in held_out.values() for row in rows}
    trained = {letter for prompt in prompts for letter in prompt.removeprefix("sum ")}
    unseen = {letter for row in held_out["test"] if row["source"] == "unseen letters" for letter in row["prompt"][4:]}
    assert trained == set(sums.FAMILIAR) and unseen == set(sums.UNSEEN) and not trained & unseen
    longest = max(len(prompt) for prompt in prompts)
    assert all(len(row["prompt"]) > longest for row in held_out["test"] if row["source"] == "longer sums")


def test_the_base_policy_rarely_sees_steps_of_long_sums(sums: ModuleType) -> None:
    rows = sums.base_rows(4000, 0, 0.05)
    long = [row for row in rows if row["prompt"].startswith("sum") and len(row["prompt"]) > 6]
    share = sum(len(row["traces"][0]) > 2 for row in long) / len(long)
    assert 0.02 < share < 0.08
    assert all(len(row["traces"][0]) > 2 for row in rows if row["prompt"].startswith("add"))


def test_every_kind_of_run_ends_in_a_row_and_none_is_repeated(
    benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (
        ("BASE_STEPS", 2),
        ("BASE_ROWS", 200),
        ("PROMPTS", 4),
        ("GROUP", 2),
        ("POOL", 40),
        ("HELD_OUT", 8),
    ):
        monkeypatch.setattr(benchmark, name, value)
    short = {name: dataclasses.replace(method, steps=2) for name, method in benchmark.METHODS.items()}
    monkeypatch.setattr(benchmark, "METHODS", short)
    run = benchmark.Run("SFT, then GRPO", 4, 0)  # three fits: base policy, SFT, GRPO
    row = benchmark.SUMS.play(run)
    assert set(row["scores"]) == set(benchmark.TESTS) and all(0 <= value <= 1 for value in row["scores"].values())
    results = benchmark.SUMS.collect_results()
    assert sorted(results["runs"]) == ["SFT_stopped_early-4-0.0", "SFT_then_GRPO-4-0.0"]
    assert list(results["bases"]) == ["0"]
    errors = results["runs"]["SFT_then_GRPO-4-0.0"]["0"]["errors"]
    assert errors and all(sum(kinds.values()) == pytest.approx(1, abs=0.01) for kinds in errors.values())
    monkeypatch.setattr(benchmark.cli, "main", lambda arguments: pytest.fail("a finished run was repeated"))
    assert benchmark.SUMS.play(run) == row


def test_the_second_family_is_known_to_the_base_policy_and_never_trained(sums: ModuleType) -> None:
    first, second = sums.base_rows(2000, 0, 0.05), sums.base_rows(2000, 0, 0.05, second_family=True)
    kinds = [sum(row["prompt"].startswith("alt ") for row in rows) for rows in (first, second)]
    assert kinds[0] == 0 and 480 < kinds[1] < 720  # half of the 60% that are not worded "add"
    assert sums.trace("FKBN", wording=sums.ALTERNATE) == "F33K49B65N50=0"
    held_out = sums.held_out_rows(30, "test", second_family=True)
    assert held_out[:-30] == sums.held_out_rows(30, "test")
    assert {row["source"] for row in held_out[-30:]} == {sums.SECOND_FAMILY}
    for row in held_out[-30:]:
        a, b, c, *d = (sums.VALUES[letter] for letter in row["prompt"].removeprefix("alt "))
        assert row["ground_truth"] == str((a - b + c - sum(d)) % 10)
        (letters,) = row["prompt"].split()[1:]
        right = sums.trace(letters, wording=sums.ALTERNATE)
        assert sums.first_error(letters, right, sums.ALTERNATE) == "right"
        assert sums.first_error(letters, right[:3] + right[6:], sums.ALTERNATE) == "letters"
    assert sums.first_error("FKBN", sums.trace("FKBN"), sums.ALTERNATE) == "rule"  # the first family's
    assert sums.first_error("FKBN", "F33K49B65N51=1", sums.ALTERNATE) == "sums"
    assert sums.first_error("FK", sums.trace("KF", wording=sums.ALTERNATE), sums.ALTERNATE) == "order"
    assert all(row["prompt"].startswith("sum ") for row in sums.training_rows(50, 4, seed=0))


def test_runs_with_the_second_family_test_it_and_keep_figures_of_their_own(
    benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("BASE_STEPS", 2), ("BASE_ROWS", 200), ("POOL", 40), ("HELD_OUT", 8)):
        monkeypatch.setattr(benchmark, name, value)
    methods = {"SFT": dataclasses.replace(benchmark.METHODS["SFT"], steps=2)}
    monkeypatch.setattr(benchmark, "METHODS", methods)
    monkeypatch.setattr(benchmark, "family_runs", lambda seeds, numbers: [benchmark.Run("SFT", 4, 0)])
    monkeypatch.setattr(importlib.import_module("luffy_report"), "save_figure", lambda figure, name: None)
    monkeypatch.setattr("sys.argv", ["luffy_demonstrations.py", "--second-family"])
    benchmark.main()
    results = json.loads(benchmark.FAMILIES.file.read_text())
    tests = set(benchmark.FAMILIES.tests)
    assert "second family" in tests and set(results["settings"]["tests"]) == tests
    assert set(results["runs"]["SFT-4-0.0"]["0"]["scores"]) == set(results["bases"]["0"]["scores"]) == tests
    assert not benchmark.SUMS.file.exists()


def test_errors_of_the_second_family_are_read_by_its_own_rule(
    sums: ModuleType, benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    answers = {"FKBN": sums.trace("FKBN", wording=sums.ALTERNATE), "NKBF": sums.trace("NKBF")}
    groups = [
        SimpleNamespace(
            task="second family", rollouts=[SimpleNamespace(id=f"second family-{sums.ALTERNATE}-{letters}", text=text)]
        )
        for letters, text in answers.items()
    ]
    (tmp_path / "rollouts").mkdir()
    (tmp_path / "rollouts" / "validation.jsonl").touch()
    monkeypatch.setattr(benchmark, "read_rollouts", lambda file: groups)
    assert benchmark.error_shares(tmp_path) == {"second family": {"right": 0.5, "rule": 0.5}}


def test_the_report_pairs_seeds(benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    figures = []
    reporting = importlib.import_module("luffy_report")
    monkeypatch.setattr(reporting, "save_figure", lambda figure, name: figures.append((figure, name)))

    def row(score: float) -> dict[str, object]:
        return {"scores": dict.fromkeys(benchmark.TESTS, score), "seconds": 1, "rewards": []}

    runs = {
        "LUFFY-16-0.0": {"0": row(0.5), "1": row(0.7)}, "LUFFY-64-0.0": {"0": row(0.9)},
        "SFT-16-0.0": {"0": row(0.4), "1": row(0.4)}, "GRPO-16-0.0": {"1": row(0.2)},
    }  # fmt: skip
    results = {"runs": runs, "bases": {"0": row(0.1), "1": row(0.1)}}
    assert reporting.accuracies(results, "SFT-16-0.0", benchmark.TESTS[0]) == {"0": 40.0, "1": 40.0}
    assert reporting.interval([10.0, 30.0], 1) == "20.0 ± 127.1" and reporting.interval([10.0], 1) == "10.0"
    benchmark.report(results, reporting.Console(quiet=True), "luffy_demonstrations.png")
    ((figure, name),) = figures
    assert name == "luffy_demonstrations.png" and len(figure.axes) == len(benchmark.TESTS)
    lines = {line.get_label(): list(line.get_ydata()) for line in figure.axes[0].lines if "_" not in line.get_label()}
    assert lines["GRPO"] == [20.0, 20.0]
    luffy = [c.lines[0].get_ydata() for c in figure.axes[0].containers if c.get_label() == "LUFFY"]
    assert list(luffy[0]) == [60.0, 90.0]
    benchmark.SUMS.file.write_text(json.dumps(results))
    monkeypatch.setattr("sys.argv", ["luffy_demonstrations.py", "--report"])
    benchmark.main()
    assert json.loads(benchmark.SUMS.file.read_text()) == results  # not as measured on this machine


def test_the_plan_begins_with_the_question(benchmark: ModuleType) -> None:
    runs = benchmark.all_runs([0, 1], [16, 64, 256])
    assert len(runs) == len(set(runs)) and {run.method for run in runs} == set(benchmark.METHODS)
    assert {run.demonstrations for run in runs[:18]} == {16, 256} and {run.seed for run in runs[:18]} == {0, 1}
    assert json.loads(json.dumps([run.name for run in runs]))
