"""GLIDER's three stages on mathematics by their recipes, hierarchical and flat, as the benchmark runs them."""

import io
import json
import sys
from pathlib import Path

import pytest
from rich.console import Console

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("agent", ["hierarchical", "flat"])
def test_sft_then_offline_rl_then_online(agent: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import glider_mathematics as benchmark

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(benchmark, "FILE", tmp_path / "results.json")
    for name, number in {"TEST_PROBLEMS": 2, "PROBLEMS": 8}.items():
        monkeypatch.setattr(benchmark, name, number)
    short = {"trainer.max_steps": 1, "data.init_args.batch_size": 4}
    online = {"trainer.max_steps": -1, "data.init_args.rounds": 1, "data.init_args.episodes_per_round": 4}
    monkeypatch.setattr(benchmark, "MORE", {"sft": short, "offline_rl": short, "online": online})
    row = benchmark.Trial(0, agent, tmp_path).play()
    assert set(row["scores"]) == set(benchmark.STAGES)
    for scores in row["scores"].values():
        assert set(scores["test"]) == {"2 steps", "3 steps", "mean"} and set(scores["longer"]) == {"4 steps", "5 steps", "mean"}
        assert all(part["mean"]["env_errors"] == 0 for part in scores.values())
    assert row["medium"] == 0.0 and len(row["curve"]) == 1  # one step of training makes no solver
    folder = benchmark.folder_of(tmp_path, 0, agent)
    played = [json.loads(line) for line in (folder / "sft/episodes/predicted.jsonl").read_text().splitlines()]
    assert len(played) == 8 and all(bool(episode["subgoals"]) == (agent == "hierarchical") for episode in played)
    (folder / "row.json").write_text(json.dumps(row))
    text = io.StringIO()
    benchmark.report(benchmark.collect_results(tmp_path), Console(file=text, width=200))
    assert agent in text.getvalue() and "offline_rl" in text.getvalue() and "glider_mathematics" in sys.modules
