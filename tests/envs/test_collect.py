"""Collecting episodes: the loop on a toy environment in this process, then the whole on the simulator."""

import logging
from pathlib import Path
from typing import Any

import pytest
from local_pool import LENGTH, SUITE, CorridorSuite, LocalPool, corridor_jobs

from lit_rft.envs.collect import collect_expert_episodes, collect_perturbed_episodes
from lit_rft.envs.perturbation import Perturbation
from lit_rft.envs.scienceworld import short_tasks
from lit_rft.episodes import Episode
from lit_rft.episodes.io import read_episodes
from lit_rft.episodes.subgoals import annotate_events


def test_the_gold_path_is_cut_at_completion_and_annotated(tmp_path: Path, pool: type[LocalPool]) -> None:
    path = tmp_path / "gold.parquet"
    episodes = collect_expert_episodes(SUITE, corridor_jobs(3), path, progress=False)
    assert read_episodes(path) == episodes
    assert [episode.id for episode in episodes] == [f"corridor/walk/{i}/gold" for i in range(3)]
    for i, episode in enumerate(episodes):
        assert [step.action for step in episode.steps] == [f"go {i}" for i in range(LENGTH)]
        assert (episode.outcome.reason, episode.outcome.success, episode.outcome.truncated) == ("goal", True, False)
        assert [(s.end, s.goal) for s in episode.subgoals] == [(2, "go to 2"), (4, "go to 4"), (6, "go to 6")]
        assert (episode.meta["variation"], episode.split, episode.step_limit) == (i, "train", 20)
        assert episode.source["kind"] == "gold"
        assert episode.source["settings"] == {"suite": {"class_path": "local_pool.CorridorSuite", "init_args": {}}}
    assert list(tmp_path.iterdir()) == [path]


def test_an_interrupted_collection_is_resumed(tmp_path: Path, pool: type[LocalPool]) -> None:
    path, jobs = tmp_path / "gold.jsonl", corridor_jobs(5)
    annotated: list[str] = []

    def interrupted(episode: Episode) -> Any:
        if len(annotated) == 2:
            raise KeyboardInterrupt
        annotated.append(episode.id)
        return annotate_events(episode)

    with pytest.raises(KeyboardInterrupt):
        collect_expert_episodes(SUITE, jobs, path, annotate=interrupted, progress=False)
    assert not path.exists()
    partial = tmp_path / "gold.jsonl.partial"
    partial.write_bytes(partial.read_bytes() + b'{"schema": 2, "id": "corr')  # as if killed in mid-write
    pool.played.clear()
    episodes = collect_expert_episodes(SUITE, jobs, path, progress=False)
    assert sorted([f"{name}/gold" for name in pool.played] + annotated) == [f"{job.id}/gold" for job in jobs]
    assert [episode.id for episode in read_episodes(path)] == [episode.id for episode in episodes]
    assert [episode.meta["variation"] for episode in episodes] == [0, 1, 2, 3, 4]
    assert list(tmp_path.iterdir()) == [path]


def test_more_jobs_extend_a_finished_file(tmp_path: Path, pool: type[LocalPool]) -> None:
    path = tmp_path / "gold.jsonl"
    collect_expert_episodes(SUITE, corridor_jobs(2), path, progress=False)
    pool.played.clear()
    collect_expert_episodes(SUITE, corridor_jobs(4), path, progress=False)
    assert pool.played == ["corridor/walk/2", "corridor/walk/3"]
    collect_perturbed_episodes(SUITE, corridor_jobs(1), path, Perturbation(0.5), progress=False)
    assert len(read_episodes(path)) == 5
    before, written = path.read_bytes(), len(pool.played)
    assert len(collect_expert_episodes(SUITE, corridor_jobs(4), path, progress=False)) == 4
    assert len(pool.played) == written
    assert sorted(path.read_bytes().splitlines()) == sorted(before.splitlines())


def test_lost_episodes_are_played_again_and_failed_ones_are_left_out(
    tmp_path: Path, pool: type[LocalPool], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path, jobs = tmp_path / "gold.jsonl", corridor_jobs(4)
    monkeypatch.setattr(pool, "failures", {jobs[1].id: "lost", jobs[2].id: "error"})
    with caplog.at_level(logging.WARNING):
        episodes = collect_expert_episodes(SUITE, jobs, path, progress=False)
    assert [episode.meta["variation"] for episode in episodes] == [0, 1, 3]
    assert all(len(episode.steps) == LENGTH for episode in episodes)
    assert "1 of 4 episodes are missing" in caplog.text
    monkeypatch.setattr(pool, "failures", {})
    assert len(collect_expert_episodes(SUITE, jobs, path, progress=False)) == 4


def test_no_episode_at_all_is_an_error(tmp_path: Path, pool: type[LocalPool], monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = corridor_jobs(1)
    monkeypatch.setattr(pool, "failures", {jobs[0].id: "error"})
    with pytest.raises(RuntimeError, match="none of 1 episodes could be played"):
        collect_expert_episodes(SUITE, jobs, tmp_path / "gold.jsonl", progress=False)
    assert not (tmp_path / "gold.jsonl").exists()


def test_an_expert_cut_by_the_step_limit_is_marked(
    tmp_path: Path, pool: type[LocalPool], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        (episode,) = collect_expert_episodes(SUITE, corridor_jobs(1, "run"), tmp_path / "e.jsonl", progress=False)
    assert (episode.outcome.truncated, episode.outcome.terminated) == (True, False)
    assert episode.outcome.reason == "step_limit"
    assert (len(episode.steps), episode.subgoals[-1].completed) == (4, True)
    assert "raise the step limit" in caplog.text


def test_a_suite_without_an_expert_is_refused(tmp_path: Path, pool: type[LocalPool], monkeypatch: Any) -> None:
    monkeypatch.delattr(CorridorSuite, "expert")
    with pytest.raises(ValueError, match="the suite 'corridor' has no expert"):
        collect_expert_episodes(SUITE, corridor_jobs(1), tmp_path / "gold.jsonl", progress=False)


def test_a_bad_path_is_refused_before_the_work(tmp_path: Path, pool: type[LocalPool]) -> None:
    with pytest.raises(ValueError, match="expected a file that ends in"):
        collect_expert_episodes(SUITE, corridor_jobs(1), tmp_path / "gold.json", progress=False)
    assert pool.played == []


@pytest.mark.slow  # half a minute
def test_collection_from_the_simulator(tmp_path: Path) -> None:
    suite = short_tasks()
    jobs = [
        suite.episode(task, variation, "train")
        for task, variation in (("find-non-living-thing", 0), ("find-non-living-thing", 70), ("find-plant", 3))
    ]
    path = tmp_path / "episodes.jsonl"
    gold = collect_expert_episodes(suite, jobs, path, progress=False)
    for episode, job in zip(gold, jobs, strict=True):
        assert episode.outcome.success
        assert episode.outcome.score == 1.0
        assert (episode.task, episode.meta["variation"]) == (job.task, job.meta["variation"])
        assert (episode.env, episode.meta["simplification"], episode.split) == ("scienceworld", "easy", "train")
        assert all(subgoal.completed for subgoal in episode.subgoals)
        assert len(episode.subgoals) >= 3
        assert any("focus on a" in subgoal.goal for subgoal in episode.subgoals)
    perturbed = collect_perturbed_episodes(suite, jobs, path, Perturbation(0.5), num_workers=1, progress=False)
    assert read_episodes(path) == perturbed + gold
    assert sum(episode.outcome.score for episode in perturbed) < 0.9 * len(perturbed)
