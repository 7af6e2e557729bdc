"""Collecting episodes: the loop on a toy environment in this process, then the whole on the simulator."""

import dataclasses
import logging
import random
from pathlib import Path
from types import TracebackType
from typing import Any

import gymnasium as gym
import pytest

from lit_rft.envs import collect
from lit_rft.envs.base import EpisodeSpec, ScriptedExpert
from lit_rft.envs.collect import Perturbation, collect_expert_episodes, collect_perturbed_episodes
from lit_rft.envs.episode_env import EpisodeEnv
from lit_rft.envs.pool import PoolEvent
from lit_rft.envs.scienceworld import short_tasks
from lit_rft.episodes import Achieved, Episode
from lit_rft.episodes.io import read_episodes
from lit_rft.episodes.subgoals import UNFINISHED_GOAL, annotate_events

LENGTH = 6


class Corridor(gym.Env[str, str]):
    """Six doors in a row: ``go i`` opens door i if it is the next one; ``focus`` on anything fails."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        options = options or {}
        assert options.keys() <= {"task", "variation"}
        self.door, self.steps, self.limit = 0, 0, 20 if options["task"] == "walk" else 4
        return "a corridor", {"task_description": "walk", "admissible": self.admissible()}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        before = self.door
        self.door += action == f"go {self.door}"
        reason = "step_limit" if self.steps >= self.limit else None
        reason = "goal" if self.door == LENGTH else "failed" if action.startswith("focus") else reason
        score = 0.0 if reason == "failed" else self.door / LENGTH
        achieved = (
            [Achieved(f"room:{self.door}", f"go to {self.door}")] if self.door > before and self.door % 2 == 0 else []
        )
        info = {"score": score, "valid": True, "achieved": achieved, "reason": reason}
        info |= {"success": reason == "goal", "admissible": self.admissible()}
        return "walls", score - before / LENGTH, reason in ("goal", "failed"), reason == "step_limit", info

    def admissible(self) -> list[str]:
        return ["wait", "focus on door", f"go {self.door}"]


class CorridorSuite:
    """What collecting needs of a suite."""

    name, metric = "corridor", "score"
    expert = ScriptedExpert(lambda spec: [*(f"go {i}" for i in range(LENGTH)), "go on"], "gold", ("focus",))

    def make_env(self) -> gym.Env[str, str]:
        return Corridor()

    def episodes(self, split: str, **options: Any) -> list[EpisodeSpec]:
        raise NotImplementedError


SUITE: Any = CorridorSuite()


class LocalPool:
    """`EnvPool` in this process. The ids in `failures` name what happens to a job: "lost" once, or "error"."""

    failures: dict[str, str] = {}  # noqa: RUF012 (set by a test)
    played: list[str] = []  # noqa: RUF012

    def __init__(self, make_env: Any, num_workers: int) -> None:
        self.envs = [EpisodeEnv(make_env()) for _ in range(num_workers)]
        self.jobs: list[EpisodeSpec | None] = [None] * num_workers
        self.queue: list[EpisodeSpec] = []
        self.events: list[PoolEvent] = []
        self.failing = dict(self.failures)

    def __enter__(self) -> "LocalPool":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        pass

    @property
    def outstanding(self) -> int:
        return len(self.queue) + sum(job is not None for job in self.jobs)

    def submit(self, job: EpisodeSpec) -> None:
        self.queue.append(job)
        self.dispatch()

    def dispatch(self) -> None:
        for worker, job in enumerate(self.jobs):
            if job is None and self.queue:
                started = self.jobs[worker] = self.queue.pop(0)
                payload = self.envs[worker].reset(started)
                self.events.append(PoolEvent("reset", worker, started, payload))

    def step(self, worker: int, action: str) -> None:
        job = self.jobs[worker]
        assert job is not None
        failure: Any = self.failing.pop(job.id, None)
        if failure is None:
            self.events.append(PoolEvent("step", worker, job, self.envs[worker].step(action)))
            return
        self.events.append(PoolEvent(failure, worker, job, "it died"))
        self.jobs[worker] = None
        if failure == "lost":
            self.queue.insert(0, job)
        self.dispatch()

    def finish(self, worker: int) -> None:
        job, self.jobs[worker] = self.jobs[worker], None
        assert job is not None
        self.played.append(job.id)
        self.dispatch()

    def wait(self) -> list[PoolEvent]:
        events, self.events = self.events, []
        assert events
        return events


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch) -> type[LocalPool]:
    monkeypatch.setattr(collect, "EnvPool", LocalPool)
    monkeypatch.setattr(LocalPool, "failures", {})
    monkeypatch.setattr(LocalPool, "played", [])
    return LocalPool


def corridor_spec(task: str, number: int) -> EpisodeSpec:
    options, limit = {"task": task, "variation": number}, 20 if task == "walk" else 4
    return EpisodeSpec(f"corridor/{task}/{number}", task, "train", None, options, limit, {"variation": number})


def corridor_jobs(number: int, task: str = "walk") -> list[EpisodeSpec]:
    return [corridor_spec(task, i) for i in range(number)]


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
        assert episode.source == {"kind": "gold"}
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


def test_random_actions_need_admissible_ones(tmp_path: Path, pool: type[LocalPool], monkeypatch: Any) -> None:
    def reset(env: Corridor, *, seed: int | None = None, options: Any = None) -> tuple[str, dict[str, Any]]:
        env.door, env.steps, env.limit = 0, 0, 20
        return "a corridor", {}

    monkeypatch.setattr(Corridor, "reset", reset)
    with pytest.raises(ValueError, match="Corridor reports no admissible actions"):
        collect_perturbed_episodes(SUITE, corridor_jobs(1), tmp_path / "e.jsonl", Perturbation(1.0), progress=False)


def test_a_bad_path_is_refused_before_the_work(tmp_path: Path, pool: type[LocalPool]) -> None:
    with pytest.raises(ValueError, match="expected a file that ends in"):
        collect_expert_episodes(SUITE, corridor_jobs(1), tmp_path / "gold.json", progress=False)
    assert pool.played == []


@pytest.mark.parametrize("insert", [False, True])
def test_no_perturbation_leaves_the_gold_path(tmp_path: Path, pool: type[LocalPool], insert: bool) -> None:
    jobs = corridor_jobs(1)
    (episode,) = collect_perturbed_episodes(
        SUITE, jobs, tmp_path / "e.jsonl", Perturbation(0.0, insert), progress=False
    )
    assert [step.action for step in episode.steps] == [f"go {i}" for i in range(LENGTH)]


def test_replaced_and_inserted_actions(tmp_path: Path, pool: type[LocalPool]) -> None:
    jobs = corridor_jobs(40)
    replaced = collect_perturbed_episodes(SUITE, jobs, tmp_path / "r.jsonl", Perturbation(0.4, seed=3), progress=False)
    inserted = collect_perturbed_episodes(
        SUITE, jobs, tmp_path / "i.jsonl", Perturbation(0.4, insert=True, seed=3), progress=False
    )
    assert replaced[0].id == "corridor/walk/0/perturbed-replace-0.4-3"
    assert replaced[0].source == {"kind": "perturbed", "probability": 0.4, "insert": False, "seed": 3}
    assert {e.outcome.reason for e in replaced} == {"goal", "failed", "path_end"}
    for episode in replaced:
        assert len(episode.steps) <= LENGTH + 1  # each in the place of an action of the path
        assert episode.outcome.truncated == (episode.outcome.reason == "path_end")
        if episode.outcome.reason == "path_end":
            assert (episode.subgoals[-1].goal == UNFINISHED_GOAL) == (not episode.steps[-1].achieved)
    for episode in inserted:
        assert not any(step.action.startswith("focus") for step in episode.steps)
    # The whole path is played, and an inserted "go i" only leaves nothing to do for the path's own.
    assert sum(e.outcome.success for e in inserted) == len(inserted)
    assert any(len(episode.steps) > LENGTH for episode in inserted)


def test_only_random_actions_bring_the_step_limit(tmp_path: Path, pool: type[LocalPool]) -> None:
    (episode,) = collect_perturbed_episodes(
        SUITE, corridor_jobs(1, "run"), tmp_path / "e.jsonl", Perturbation(1.0, insert=True), progress=False
    )
    assert (len(episode.steps), episode.outcome.reason, episode.outcome.truncated) == (4, "step_limit", True)


def test_random_choices_depend_on_seed_and_job_only(tmp_path: Path, pool: type[LocalPool]) -> None:
    def actions(number: int, seed: int, name: str) -> dict[str, list[str]]:
        episodes = collect_perturbed_episodes(
            SUITE, corridor_jobs(number), tmp_path / name, Perturbation(0.5, True, seed), progress=False
        )
        return {
            episode.task + str(episode.meta["variation"]): [step.action for step in episode.steps]
            for episode in episodes
        }

    few, many, other = actions(5, 0, "a.jsonl"), actions(9, 0, "b.jsonl"), actions(5, 1, "c.jsonl")
    assert few == {name: many[name] for name in few}
    assert few != other
    assert len({tuple(path) for path in many.values()}) > 1


def test_a_perturbation_checks_its_probability_and_needs_a_step_limit(tmp_path: Path, pool: type[LocalPool]) -> None:
    with pytest.raises(ValueError, match=r"probability must be in 0\.\.1, got 1\.5"):
        Perturbation(1.5)
    job = dataclasses.replace(corridor_jobs(1)[0], step_limit=0)
    with pytest.raises(ValueError, match="needs a step limit to plan"):
        collect_perturbed_episodes(SUITE, [job], tmp_path / "e.jsonl", Perturbation(0.5), progress=False)


def test_random_steps_come_with_the_given_probability() -> None:
    steps = Perturbation(0.3).random_steps(random.Random(0), 10_000)
    assert abs(len(steps) / 10_000 - 0.3) < 0.02
    actions = ["focus on a", "focus on b"]
    assert Perturbation(0.3, insert=True).choose(random.Random(0), actions, ("focus",)) is None
    assert Perturbation(0.3, insert=True).choose(random.Random(0), actions, ()) in actions
    assert Perturbation(0.3).choose(random.Random(0), actions, ("focus",)) in actions


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
