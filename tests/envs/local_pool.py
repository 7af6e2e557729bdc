"""A corridor of six doors with its expert, and `EnvPool`'s interface in this process."""

from types import TracebackType
from typing import Any

import gymnasium as gym

from lit_rft.envs.base import EpisodeSpec, ScriptedExpert
from lit_rft.envs.episode_env import EpisodeEnv
from lit_rft.envs.pool import PoolEvent
from lit_rft.episodes import Achieved

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

    name = "corridor"
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


def corridor_spec(task: str, number: int) -> EpisodeSpec:
    options, limit = {"task": task, "variation": number}, 20 if task == "walk" else 4
    return EpisodeSpec(f"corridor/{task}/{number}", task, "train", None, options, limit, {"variation": number})


def corridor_jobs(number: int, task: str = "walk") -> list[EpisodeSpec]:
    return [corridor_spec(task, i) for i in range(number)]
