"""Evaluation settings: which tasks, which variations, under which limits."""

import dataclasses
import pickle

import pytest

from lit_rft.envs.pool import Job
from lit_rft.envs.protocols import PROTOCOLS, Protocol, episode_jobs
from lit_rft.envs.scienceworld import ScienceWorldEnv


class Tasks:
    """Two tasks: one with 20, 10 and 5 variations in train, dev and test, one with 3 in each."""

    def tasks(self) -> list[str]:
        return ["long", "short"]

    def variations(self, task: str, split: str) -> list[int]:
        if task == "short":
            return {"train": [0, 1, 2], "dev": [3, 4, 5], "test": [6, 7, 8]}[split]
        return {"train": list(range(20)), "dev": list(range(20, 30)), "test": list(range(30, 35))}[split]


PLAIN = Protocol("plain", 40, "openDoors", task_step_limits={"short": 7})


def test_jobs_say_all_that_a_record_needs() -> None:
    jobs = episode_jobs(PLAIN, Tasks(), "dev", max_variations=2)
    assert all(isinstance(job, Job) for job in jobs)
    assert [job.options["task"] for job in jobs] == ["long", "long", "short", "short"]
    assert [job.step_limit for job in jobs] == [40, 40, 7, 7]
    assert {(job.split, job.simplification) for job in jobs} == {("dev", "openDoors")}
    assert jobs[0].id == f"scienceworld-openDoors/dev/long/{jobs[0].options['variation']}"
    assert len({job.id for job in jobs}) == 4
    assert len(episode_jobs(PLAIN, Tasks(), "train")) == 23


@pytest.mark.parametrize("number", [1, 2, 3, 7, 19, 20, 21])
@pytest.mark.parametrize("seed", range(5))
def test_variations_are_spread_evenly_over_the_split(number: int, seed: int) -> None:
    jobs = episode_jobs(PLAIN, Tasks(), "train", ["long"], max_variations=number, seed=seed)
    chosen = [job.options["variation"] for job in jobs]
    assert len(chosen) == len(set(chosen)) == min(number, 20)
    assert chosen == sorted(chosen)
    parts = [variation * number // 20 for variation in chosen]  # each variation is in or next to its own part
    assert all(abs(part - i * number // len(chosen)) <= 1 for i, part in enumerate(parts))
    again = episode_jobs(PLAIN, Tasks(), "train", ["long"], max_variations=number, seed=seed)
    assert jobs == again


def test_the_seed_chooses_the_variations() -> None:
    choices = {
        tuple(job.options["variation"] for job in episode_jobs(PLAIN, Tasks(), "train", max_variations=4, seed=seed))
        for seed in range(20)
    }
    assert len(choices) > 10


def test_limits_per_task_and_names_of_splits() -> None:
    protocol = Protocol("own", 10, splits={"seen": "dev"}, max_variations_per_task={"dev": 4}, excluded=("short",))
    assert [job.split for job in episode_jobs(protocol, Tasks(), "seen")] == ["dev"] * 4
    assert episode_jobs(protocol, Tasks(), "dev") == episode_jobs(protocol, Tasks(), "seen")
    with pytest.raises(ValueError, match="'own' has the splits seen, got 'test'"):
        episode_jobs(protocol, Tasks(), "test")
    with pytest.raises(ValueError, match="'own' leaves out the task 'short'; it has long"):
        episode_jobs(protocol, Tasks(), "seen", ["short"])
    with pytest.raises(ValueError, match="unknown task 'lnog'; the environment has long, short"):
        episode_jobs(protocol, Tasks(), "seen", ["lnog"])
    with pytest.raises(ValueError, match="max_variations must be at least 1, got 0"):
        episode_jobs(protocol, Tasks(), "seen", max_variations=0)


@pytest.mark.parametrize("name", list(PROTOCOLS))
def test_settings_are_named_and_can_be_sent_to_workers(name: str) -> None:
    assert PROTOCOLS[name].name == name
    assert pickle.loads(pickle.dumps(PROTOCOLS[name].make_env)).__self__ == PROTOCOLS[name]


def test_the_shipped_settings_on_the_simulator() -> None:
    env = ScienceWorldEnv()
    try:
        names = env.tasks()
        glider, eto, short = PROTOCOLS["glider"], PROTOCOLS["eto"], PROTOCOLS["short-tasks"]
        assert glider.excluded == tuple(names[i] for i in (14, 15, 16, 21, 23, 24))
        assert set(eto.tasks) == set(names) - set(glider.excluded)
        assert (glider.step_limit, glider.simplification, eto.simplification) == (50, "", "easy")
        for split, official in (("seen", "dev"), ("unseen", "test")):
            jobs = episode_jobs(glider, env, split)
            assert {job.options["task"] for job in jobs} == set(eto.tasks)
            for task in eto.tasks:
                played = [job.options["variation"] for job in jobs if job.options["task"] == task]
                available = env.variations(task, official)  # type: ignore[arg-type]
                assert len(played) == min(10, len(available))
                assert set(played) <= set(available)
        assert {job.step_limit for job in episode_jobs(eto, env, "unseen", ["boil", "find-plant"])} == {100, 15}
        train, held_out = (
            {(job.options["task"], job.options["variation"]) for job in episode_jobs(short, env, split)}
            for split in ("train", "held_out")
        )
        assert train and held_out and not train & held_out
        with pytest.raises(ValueError, match="has the splits train, held_out"):
            episode_jobs(short, env, "test")
    finally:
        env.close()


def test_each_task_is_played_under_its_own_limit() -> None:
    protocol = dataclasses.replace(PROTOCOLS["eto"], task_step_limits={"find-plant": 2, "boil": 3})
    env = protocol.make_env()
    try:
        for task, limit in (("find-plant", 2), ("boil", 3), ("find-plant", 2)):
            env.reset(options={"task": task, "variation": 0})
            truncated = [env.step("look around")[3] for _ in range(limit)]
            assert truncated == [False] * (limit - 1) + [True]
    finally:
        env.close()
