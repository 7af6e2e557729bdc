"""The trap of never answering: a run at the smallest size, and its table."""

import dataclasses
import importlib
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def trap(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    module = importlib.import_module("never_answer")
    monkeypatch.setattr(module, "TEST_EPISODES", 2)
    monkeypatch.setattr(module, "STEP_LIMIT", 3)
    return module


def test_a_run_and_its_report(trap: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores of the curve are the game's own, also where training has others: three invalid actions cost 0.03."""
    setting = dataclasses.replace(trap.SETTINGS["penalty limited to 0.02"], sft_steps=1, rollouts=2, groups=1)
    row = trap.Trial(tmp_path, 0, dataclasses.replace(setting, step_cost=9.0)).run()
    assert [number for number, _ in row["curve"]] == [8, 16]
    assert all(-1.6 < figures["score"] < 1 for _, figures in row["curve"])
    again = trap.Trial(tmp_path, 0, setting).run()
    assert "SFT" not in again["minutes"] and again["SFT"] == row["SFT"]
    drawn: list[str] = []
    monkeypatch.setattr(trap, "save_figure", lambda figure, name: drawn.append(name))
    runs = {name: {"0": row, "1": row} for name in trap.SETTINGS}
    with (console := Console(width=250)).capture() as capture:
        trap.report(json.loads(json.dumps({"runs": runs})), console)
    assert all(name in capture.get() for name in ("SFT", *trap.SETTINGS)) and drawn == ["never_answer.png"]
    assert f"{row['GRPO']['sampled']['score']:.3f} ± 0.000" in capture.get()
