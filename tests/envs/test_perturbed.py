"""Perturbed episodes: random actions in the expert's path."""

import dataclasses
import random
from pathlib import Path
from typing import Any

import pytest
from local_pool import LENGTH, SUITE, Corridor, LocalPool, corridor_jobs

from lit_rft.envs.collect import collect_perturbed_episodes
from lit_rft.envs.perturbation import Perturbation
from lit_rft.episodes.subgoals import UNFINISHED_GOAL


def test_random_actions_need_admissible_ones(tmp_path: Path, pool: type[LocalPool], monkeypatch: Any) -> None:
    def reset(env: Corridor, *, seed: int | None = None, options: Any = None) -> tuple[str, dict[str, Any]]:
        env.door, env.steps, env.limit = 0, 0, 20
        return "a corridor", {}

    monkeypatch.setattr(Corridor, "reset", reset)
    with pytest.raises(ValueError, match="Corridor reports no admissible actions"):
        collect_perturbed_episodes(SUITE, corridor_jobs(1), tmp_path / "e.jsonl", Perturbation(1.0), progress=False)


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
    source = dict(replaced[0].source)
    assert source.pop("settings") == {"suite": {"class_path": "local_pool.CorridorSuite", "init_args": {}}}
    assert source == {"kind": "perturbed", "probability": 0.4, "insert": False, "seed": 3}
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
