"""GLIDER's three stages on mathematics by their recipes, and the benchmark that compares them."""

import io
import json
from pathlib import Path

import pytest
from command import flags, main
from rich.console import Console

from lit_rft.episodes import read_episodes

ROOT = Path(__file__).parents[1]
SUITE = "lit_rft.envs.mathematics.ExpressionSuite"


@pytest.mark.slow  # 13 s
def test_the_recipes_follow_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the documented commands and default paths, with fewer problems."""
    monkeypatch.chdir(tmp_path)
    Path("data/mathematics").mkdir(parents=True)
    file = "data/mathematics/expert.jsonl"
    problems = ["--args", '{"problems": {"train": 2000}}', "--half", "first", "--episodes", "4", "--workers", "1"]
    main(["collect", SUITE, *problems, "--out", file])
    main(["make-model", file, "--out", "data/mathematics/model", *flags(hidden_size=16, layers=1, heads=2)])
    recipes = {name: f"glider/mathematics/{name}.yaml" for name in ("sft", "offline_rl", "online")}
    lines = flags(data__init_args__suite__init_args__step_limit=3)  # an untrained policy writes up to the limit
    short = flags(trainer__max_steps=1, trainer__limit_val_batches=0, data__init_args__batch_size=4)
    main(["fit", "-c", recipes["sft"], *short])
    few = flags(data__init_args__predict_episodes_per_task=2)
    main(["predict", "-c", recipes["sft"], "--ckpt_path", "last", *few, *lines])
    played = read_episodes("runs/glider/mathematics/sft/episodes/predicted.jsonl")
    expert = read_episodes(file)
    assert len(played) == 4 and not {e.meta["seed"] for e in played} & {e.meta["seed"] for e in expert}
    main(["fit", "-c", recipes["offline_rl"], *short])
    rounds = flags(data__init_args__rounds=1, data__init_args__episodes_per_round=4, trainer__limit_val_batches=0)
    main(["fit", "-c", recipes["online"], *rounds, *lines])
    few = flags(data__init_args__eval_episodes_per_task=2, data__init_args__eval_split="longer")
    main(["test", "-c", recipes["online"], "--ckpt_path", "last", *few, *lines])
    scores = json.loads(Path("runs/glider/mathematics/online/scores.json").read_text())
    assert set(scores) == {"4 steps", "5 steps", "mean"} and scores["mean"]["env_errors"] == 0
    assert 0 <= scores["mean"]["metrics/right_steps"] <= 1


@pytest.mark.slow  # half a minute each
@pytest.mark.parametrize("agent", ["hierarchical", "flat"])
def test_the_benchmark_runs_all_stages(agent: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
        assert set(scores["test"]) == {"2 steps", "3 steps", "mean"}
        assert set(scores["longer"]) == {"4 steps", "5 steps", "mean"}
        assert all(part["mean"]["env_errors"] == 0 for part in scores.values())
    assert 0 <= row["medium"] <= 1 and len(row["curve"]) == 1
    folder = benchmark.folder_of(tmp_path, 0, agent)
    played = [json.loads(line) for line in (folder / "sft/episodes/predicted.jsonl").read_text().splitlines()]
    assert len(played) == 2 and all(bool(episode["subgoals"]) == (agent == "hierarchical") for episode in played)
    (folder / "row.json").write_text(json.dumps(row))
    text = io.StringIO()
    benchmark.report(benchmark.collect_results(tmp_path), Console(file=text, width=200))
    assert agent in text.getvalue() and "offline_rl" in text.getvalue()
