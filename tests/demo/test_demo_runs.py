"""Several runs of the demo: their table, their mean, and what they miss of their aims."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lit_rft.demo.comparison import Row

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def demo_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import demo_runs
    import experiment

    monkeypatch.setattr(demo_runs, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(experiment, "IMAGES", tmp_path / "images")
    yield demo_runs


def summary(seed: int, before: int, after: int, games: int = 42) -> dict[str, Any]:
    """What a run writes, with that many games solved."""
    solved = tuple(number < before for number in range(games)), tuple(number < after for number in range(games))
    results = {task: Row(task, *solved, 20.0, 11.0).as_json() for task in ("synthetic-pick_and_place_simple", "all")}
    return {"seed": seed, "results": results, "seconds": {"train": 240.0}, "cpu_seconds": {"train": 600.0}}


def test_the_table_has_every_run_and_their_mean(demo_runs: Any) -> None:
    lines = demo_runs.runs_table({seed: summary(seed, 0, 21 + 7 * seed) for seed in (0, 1)}).splitlines()
    assert lines[2] == "| seed 0 | 0% | 50% | +50 (+33 to +64) | 4.0 | 10.0 |"
    assert lines[-1] == "| mean | 0% | 58% | +58 ± 12 |  |  |"
    tasks = demo_runs.tasks_table({seed: summary(seed, 0, 21 + 7 * seed) for seed in (0, 1)})
    assert tasks.splitlines()[2] == "| pick and place | 84 | 0% | 58% |"


def test_shortfalls_are_named(demo_runs: Any) -> None:
    assert demo_runs.shortfalls({0: summary(0, 0, 20), 1: summary(1, 0, 30)}) == []
    first, second = demo_runs.shortfalls({0: summary(0, 2, 10), 1: summary(1, 0, 14)})
    assert first.startswith("seed 0: the gain's interval begins at ") and second == "the mean gain is 26 points"


def test_finished_runs_are_reported(demo_runs: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="expected finished runs"):
        demo_runs.main(["--report", "--folder", str(tmp_path / "runs")])
    for seed in (1, 0):
        place = tmp_path / "runs" / f"seed-{seed}"
        place.mkdir(parents=True)
        (place / "summary.json").write_text(json.dumps(summary(seed, 0, 30)))
    (tmp_path / "runs" / "seed-2").mkdir()  # not finished
    demo_runs.main(["--report", "--folder", str(tmp_path / "runs")])
    written = json.loads((tmp_path / "results" / "demo.json").read_text())
    assert [run["seed"] for run in written["runs"]] == [0, 1] and written["shortfalls"] == []
    assert (tmp_path / "images" / "demo_runs.png").read_bytes().startswith(b"\x89PNG")
    assert "| mean | 0% | 71% |" in capsys.readouterr().out


def test_a_run_is_one_command_that_is_not_repeated(demo_runs: Any, tmp_path: Path) -> None:
    step = demo_runs.step(5, tmp_path, ["--trainer.accelerator", "cpu"])
    assert step.command[1:] == [
        "-m", "lit_rft.demo", "--seed", "5", "--folder", str(tmp_path / "seed-5"), "--trainer.accelerator", "cpu",
    ]  # fmt: skip
    assert step.result == tmp_path / "seed-5" / "summary.json"
