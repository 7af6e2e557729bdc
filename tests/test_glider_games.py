"""The experiment on errands: its medium player, its parts at the smallest size, and its tables."""

import importlib
import json
import statistics
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from lit_rft.episodes.pairs import problem_of
from lit_rft.models import load_tokenizer
from lit_rft.transcripts import ChatFormat

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def games(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("glider_games")


def test_the_medium_player_has_its_faults(games: Any, tmp_path: Path) -> None:
    """Without faults it is the expert; impatience buys out of turn, noise walks about; the best quarter is better."""
    from glider_games_data import best_episodes, play_medium, write_problems

    from lit_rft.envs.games.errands import optimal_return

    problems = write_problems(tmp_path / "problems.jsonl", 0, 60, games.SEEN)
    scores, wrong = {}, {}
    for name, impatience, noise in (("expert", 0.0, 0.0), ("impatient", 0.5, 0.0), ("random", 0.0, 0.3)):
        episodes = play_medium(tmp_path / f"{name}.jsonl", problems, impatience, noise, 0)
        scores[name] = statistics.mean(episode.outcome.score for episode in episodes)
        wrong[name] = sum(step.observation.startswith("Not ") for episode in episodes for step in episode.steps)
        assert all(episode.subgoals for episode in episodes)
    assert scores["expert"] == pytest.approx(optimal_return(), abs=0.02) and wrong["expert"] == 0
    assert max(scores["impatient"], scores["random"]) < scores["expert"] - 0.05 and wrong["impatient"] > 20
    best = best_episodes(play_medium(tmp_path / "impatient.jsonl", problems, 0.5, 0.0, 0), 0.25)
    assert len(best) == 15 and {episode.task for episode in best} == {"2 items", "3 items", "5 items"}
    assert statistics.mean(episode.outcome.score for episode in best) > scores["impatient"] + 0.05


@pytest.mark.slow  # 15 s
def test_all_parts_of_a_seed_and_its_report(games: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a step or two of each stage; the tables name every policy, and the plot is written."""
    import glider_games_report
    import glider_games_run

    for name, value in (("EPISODES", 12), ("HELD_OUT", 6), ("TEST_EPISODES", 6)):
        monkeypatch.setattr(games, name, value)
    monkeypatch.setattr(glider_games_run, "STEP_LIMIT", 3)  # of evaluations: untrained policies use all that they have
    settings = glider_games_run.Settings(sft_steps=2, rl_steps=2, rounds=2, round_episodes=4, batch=4)
    trial = games.Seed(tmp_path, 0, settings)
    seed = {kind: trial.offline(kind) for kind in ("hierarchical", "flat")}
    seed |= {"returns": trial.returns(), "online": trial.online(), "ablations": trial.ablations()}
    seed |= {"matched": trial.matched(), "matched_q": trial.matched_q(), "isolated": trial.isolated()}
    results = json.loads(json.dumps({"seeds": {"0": seed, "1": seed}}))
    for kind, levels in (("hierarchical", ("high", "low")), ("flat", ("flat",))):
        figures = results["seeds"]["0"][kind]["diagnostics"]
        assert all(-1 <= figures[f"{level} rank correlation"] <= 1 for level in levels)
        assert all(0 < figures[f"{level} effective share"] <= 1.0001 for level in levels)
        steps, scores = zip(*results["seeds"]["0"]["online"][kind]["curve"], strict=True)
        assert len(scores) == 2 and 0 < steps[0] < steps[1]
    drawn: list[str] = []
    monkeypatch.setattr(glider_games_report, "save_figure", lambda figure, name: drawn.append(name))
    with (console := Console(width=250)).capture() as capture:
        glider_games_report.report(results, console)
    text = capture.get()
    assert all(policy in text for policy in glider_games_report.POLICIES) and "± 0.000" in text
    assert drawn == ["glider_games.png", "glider_ablations.png"]
    check_online_runs(trial, games.Seed(tmp_path, 0, settings), monkeypatch)


def check_online_runs(trial: Any, again: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Start from the policies of the seed's folder; scores are the game's own where training has other rewards."""
    import glider_games_online as online
    import glider_games_online_report

    trial.unseen_test = trial.test  # fewer problems
    rows = {kind: online.run_kind(trial, kind, {"lowest": 9.0}) for kind in online.KINDS}
    assert all(-0.4 < point["score"] < 1 for row in rows.values() for _, point in row["curve"])
    (again.folder / "flat_returns.ckpt").unlink()
    for kind in online.KINDS:
        online.prepare(again, kind)
    assert again.trials.minutes.keys() == {"flat_returns"}
    drawn: list[str] = []
    monkeypatch.setattr(glider_games_online_report, "save_figure", lambda figure, name: drawn.append(name))
    seed = {online.name_of(setting, kind): rows[kind] for setting in online.SETTINGS for kind in online.KINDS}
    with (console := Console(width=300)).capture() as capture:
        glider_games_online_report.report(json.loads(json.dumps({"seeds": {"0": seed, "1": seed}})), console)
    assert drawn == ["glider_games_online.png"] and "2 seeds" in capture.get()
    assert f"{rows['flat']['after']['unseen']['score']:.3f} ± 0.000" in capture.get()


def test_learning_curves_and_subgoals(games: Any, tmp_path: Path) -> None:
    """Figures up to a number of steps, and the steps to a level; the expert carries out its subgoals."""
    from glider_games_data import play_medium, write_problems
    from glider_games_online import figures
    from glider_games_online_report import latest, steps_to, up_to

    curve = [(10 * (i + 1), {"score": float(i)}) for i in range(5)]
    assert up_to(curve, "score", 35) == 1.0 and latest(curve, "score") == 3.0
    assert steps_to(curve, "score", 2.0) == 40 and steps_to(curve, "score", 3.1) is None
    problems = write_problems(tmp_path / "problems.jsonl", 0, 6, games.SEEN)
    episodes = play_medium(tmp_path / "expert.jsonl", problems, 0.0, 0.0, 0)
    expert = figures(episodes)
    assert expert["carried out"] == expert["solved"] == 1
    assert expert["rarest"] == pytest.approx(1 / 5)  # of the longest lists
    assert expert["right"] == expert["subgoals"] == pytest.approx(20 / 6, abs=1e-3)
    episodes[0].subgoals[0].goal = "buy shoes" if episodes[0].subgoals[0].goal != "buy shoes" else "buy meat"
    assert figures(episodes)["carried out"] == pytest.approx(19 / 20)


@pytest.mark.slow  # 20 s
def test_the_trained_baselines_and_their_report(games: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each trains its policy, with a step or two; the table has it beside GLIDER's policies of the same seeds."""
    import glider_games_baselines_report as baselines_report
    import glider_games_baselines_run as baselines
    import glider_games_run

    for name, value in (("EPISODES", 12), ("HELD_OUT", 6), ("TEST_EPISODES", 6)):
        monkeypatch.setattr(games, name, value)
    monkeypatch.setattr(glider_games_run, "STEP_LIMIT", 3)
    monkeypatch.setattr(baselines, "ROUND_EPISODES", 4)
    seed = games.Seed(tmp_path, 0, glider_games_run.Settings(sft_steps=2, rl_steps=3, batch=4))
    settings = baselines.Settings(mini_batches=1)
    paired: list[Any] = []
    pairs_of = baselines.Baselines.pairs
    monkeypatch.setattr(baselines.Baselines, "pairs", lambda *a: paired.append(pairs_of(*a)) or paired[-1])
    rows = {row: baselines.run_row(seed, row, settings) for row in baselines.METHODS}
    assert rows.keys() == baselines_report.TITLES.keys()
    assert rows["nat"]["env_steps"] == rows["ilql"]["env_steps"] == 0 < rows["ppo"]["env_steps"]
    assert rows["dpo"]["env_steps"] == rows["eto"]["env_steps"] == 12 * 3  # each problem once
    for pair in (pair for pairs in paired for pair in pairs):  # of one problem
        assert problem_of(pair.chosen) == problem_of(pair.rejected) and pair.margin > 0
        assert pair.chosen.initial_observation == pair.rejected.initial_observation
    assert len(paired) == 4 and all(paired)
    marked, chat = seed.trials.agents["NAT"], ChatFormat(load_tokenizer(str(seed.model)))
    of_marker = Counter((episode.task, marked.marker_of(episode).text) for episode in seed.episodes)
    assert sorted(of_marker.values()) == [1] * 3 + [3] * 3  # a quarter of the four episodes of each length
    for episode in seed.episodes:
        (transcript,) = marked.transcripts(episode, chat)
        words = chat.tokenizer.decode(transcript.input_ids).split()
        assert [word for word in words if word in ("done", "continue")] == [marked.marker_of(episode).text]
    offline = {"scores": dict.fromkeys(baselines_report.POLICIES, rows["nat"]["scores"])}
    later = {"scores": dict.fromkeys(("flat", "hierarchical"), offline["scores"])}
    seeds = {name: {"flat": offline, "hierarchical": offline, "returns": later} for name in "01"}
    monkeypatch.setattr(baselines_report, "read_results", lambda path: {"seeds": seeds})
    drawn: list[str] = []
    monkeypatch.setattr(baselines_report, "save_figure", lambda figure, name: drawn.append(name))
    with (console := Console(width=250)).capture() as capture:
        baselines_report.report(json.loads(json.dumps({"seeds": {"0": rows, "1": rows, "2": {}}})), console)
    text = capture.get()
    assert "over 2 seeds" in text and all(title in text for title in baselines_report.TITLES.values())
    assert drawn == ["glider_games_baselines.png"]
