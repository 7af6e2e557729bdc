"""GiGPO and HAE against plain advantages: all runs of a seed at the smallest size, and their tables."""

import dataclasses
import importlib
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def credit(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("turn_credit")


def row(scores: list[float], greedy: float = 0.0) -> dict[str, Any]:
    """Figures of a run with a rollout of 4 episodes for each score."""
    curve = [[4 * (n + 1), score, 0.0] for n, score in enumerate(scores)]
    held_out = {"sampled": {"score": scores[-1]}, "greedy": {"score": greedy}}
    return {"curve": curve, "scores": held_out, "minutes": {"test": 1.0}}


@pytest.mark.parametrize("name", ["errands", "households"])
def test_all_methods_of_a_seed(credit: Any, name: str, tmp_path: Path) -> None:
    """They start from one policy and play the same number of episodes; a second call trains no SFT."""
    import turn_credit_run

    small = {"episodes": 4, "sft_steps": 1, "step_limit": 3, "answer_tokens": 4, "steps": 2, "groups": 2, "group": 2}
    subject = dataclasses.replace(turn_credit_run.SUBJECTS[name], test_episodes=2, **small)
    folder, shared = credit.folder_of(tmp_path, name, 0), subject.sft_seed is not None
    trial = turn_credit_run.Trial(folder, subject, 0)
    rows = {method: trial.run(method) for method in credit.METHODS}
    assert rows["SFT"]["curve"] == []
    assert set(rows["SFT"]["minutes"]) == ({"test"} if shared else {"data", "sft", "test"})
    assert (credit.folder_of(tmp_path, name, subject.sft_seed or 0) / "sft" / "config.json").exists()
    for method in ("GRPO", "GiGPO", "HAE"):
        assert [point[0] for point in rows[method]["curve"]] == [4, 8]
        assert rows[method]["scores"]["greedy"]["episodes"] == 2
    assert "sft" not in turn_credit_run.Trial(folder, subject, 0).run("SFT")["minutes"]


def test_curves_are_means_of_parts_of_a_run(credit: Any) -> None:
    assert credit.learning_curve(row([float(n) for n in range(10)])) == [
        (8, 0.5), (16, 2.5), (24, 4.5), (32, 6.5), (40, 8.5)
    ]  # fmt: skip


def test_differences_are_of_the_same_seeds(credit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second seed is better by 1 with all methods, which the interval of the differences does not show."""
    methods = {
        "SFT": {"0": row([0.0])},
        "GRPO": {"0": row([0.1] * 5), "1": row([1.1] * 5), "2": row([7.0] * 5)},
        "GiGPO": {"0": row([0.3] * 5, greedy=0.5), "1": row([1.3] * 5, greedy=0.5)},
    }
    drawn: list[str] = []
    monkeypatch.setattr(credit, "save_figure", lambda figure, name: drawn.append(name))
    with (console := Console(width=250)).capture() as capture:
        credit.report(json.loads(json.dumps({"runs": {"errands": methods}})), console)
    text = capture.get()
    lines = {line.split("│")[1].strip(): line for line in text.splitlines() if line.startswith("│")}
    assert "0.200 ± 0.000" in lines["GiGPO - GRPO"]
    assert drawn == ["turn_credit.png"]
