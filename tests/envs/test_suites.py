"""ScienceWorld's suites: which tasks, which variations, under which limits."""

import dataclasses
import pickle
from typing import Any

import pytest

from lit_rft.envs import EpisodeEnv, EpisodeSpec, ScienceWorldEnv, ScienceWorldSuite
from lit_rft.envs.scienceworld import eto, glider, short_tasks


class Tasks:
    """Two tasks: one with 20, 10 and 5 variations in train, dev and test, one with 3 in each."""

    def tasks(self) -> list[str]:
        return ["long", "short"]

    def variations(self, task: str, split: str) -> list[int]:
        if task == "short":
            return {"train": [0, 1, 2], "dev": [3, 4, 5], "test": [6, 7, 8]}[split]
        return {"train": list(range(20)), "dev": list(range(20, 30)), "test": list(range(30, 35))}[split]

    def close(self) -> None: ...


class Suite(ScienceWorldSuite):
    """A suite without a simulator."""

    def make_env(self) -> Any:
        return Tasks()


PLAIN = Suite("plain", 40, "openDoors", task_step_limits={"short": 7})


def test_jobs_say_all_that_a_record_needs() -> None:
    jobs = PLAIN.episodes("dev", limit=2)
    assert all(isinstance(job, EpisodeSpec) for job in jobs)
    assert [job.options["task"] for job in jobs] == ["long", "long", "short", "short"]
    assert [job.step_limit for job in jobs] == [40, 40, 7, 7]
    assert {(job.split, job.meta["simplification"]) for job in jobs} == {("dev", "openDoors")}
    assert [(job.task, job.meta["variation"]) for job in jobs] == [tuple(job.options.values()) for job in jobs]
    assert jobs[0].id == f"scienceworld-openDoors/dev/long/{jobs[0].options['variation']}"
    assert len({job.id for job in jobs}) == 4
    assert len(PLAIN.episodes("train")) == 23


@pytest.mark.parametrize("number", [1, 2, 3, 7, 19, 20, 21])
@pytest.mark.parametrize("seed", range(5))
def test_variations_are_spread_evenly_over_the_split(number: int, seed: int) -> None:
    jobs = PLAIN.episodes("train", tasks=["long"], limit=number, seed=seed)
    chosen = [job.options["variation"] for job in jobs]
    assert len(chosen) == len(set(chosen)) == min(number, 20)
    assert chosen == sorted(chosen)
    parts = [variation * number // 20 for variation in chosen]  # each variation is in or next to its own part
    assert all(abs(part - i * number // len(chosen)) <= 1 for i, part in enumerate(parts))
    again = PLAIN.episodes("train", tasks=["long"], limit=number, seed=seed)
    assert jobs == again


def test_the_seed_chooses_the_variations() -> None:
    choices = {
        tuple(job.options["variation"] for job in PLAIN.episodes("train", limit=4, seed=seed)) for seed in range(20)
    }
    assert len(choices) > 10


def test_limits_per_task_and_names_of_splits() -> None:
    suite = Suite("own", 10, splits={"seen": "dev"}, max_variations_per_task={"dev": 4}, excluded=("short",))
    assert [job.split for job in suite.episodes("seen")] == ["dev"] * 4
    assert suite.episodes("dev") == suite.episodes("seen")
    with pytest.raises(ValueError, match="'own' has the splits seen, got 'test'"):
        suite.episodes("test")
    with pytest.raises(ValueError, match="'own' leaves out the task 'short'; it has long"):
        suite.episodes("seen", tasks=["short"])
    with pytest.raises(ValueError, match="unknown task 'lnog'; 'own' has long"):
        suite.episodes("seen", tasks=["lnog"])
    with pytest.raises(ValueError, match="limit must be at least 1, got 0"):
        suite.episodes("seen", limit=0)


@pytest.mark.parametrize("make", [glider, eto, short_tasks])
def test_suites_can_be_sent_to_workers(make: Any) -> None:
    assert pickle.loads(pickle.dumps(make().make_env)).__self__ == make()
    assert make(simplification="openDoors").simplification == "openDoors"


@pytest.mark.slow  # the simulator's list of all variations
def test_the_shipped_settings_on_the_simulator() -> None:
    env = ScienceWorldEnv()
    try:
        names = env.tasks()
        of_glider, of_eto, short = glider(), eto(), short_tasks()
        assert of_glider.excluded == tuple(names[i] for i in (14, 15, 16, 21, 23, 24))
        assert set(of_eto.tasks) == set(names) - set(of_glider.excluded)
        assert (of_glider.step_limit, of_glider.simplification, of_eto.simplification) == (50, "", "easy")
        for split, official in (("seen", "dev"), ("unseen", "test")):
            jobs = of_glider.episodes(split)
            assert {job.options["task"] for job in jobs} == set(of_eto.tasks)
            for task in of_eto.tasks:
                played = [job.options["variation"] for job in jobs if job.options["task"] == task]
                available = env.variations(task, official)  # type: ignore[arg-type]
                assert len(played) == min(10, len(available))
                assert set(played) <= set(available)
        assert {job.step_limit for job in of_eto.episodes("unseen", tasks=["boil", "find-plant"])} == {100, 15}
        train, held_out, test = (
            {(job.options["task"], job.options["variation"]) for job in short.episodes(split)}
            for split in ("train", "held_out", "test")
        )
        assert train and held_out and test and not (train & held_out or train & test or held_out & test)
        with pytest.raises(ValueError, match="has the splits train, held_out, test, got 'unseen'"):
            short.episodes("unseen")
    finally:
        env.close()


def test_each_task_is_played_under_its_own_limit() -> None:
    suite = dataclasses.replace(eto(), task_step_limits={"find-plant": 2, "boil": 3})
    env = EpisodeEnv(suite.make_env())
    try:
        for task, limit in (("find-plant", 2), ("boil", 3), ("find-plant", 2)):
            env.reset(suite.episode(task, 0, "train"))
            steps = [env.step("look around") for _ in range(limit)]
            assert [truncated for _, _, _, truncated, _ in steps] == [False] * (limit - 1) + [True]
            assert steps[-1][-1]["reason"] == "step_limit"
    finally:
        env.close()
