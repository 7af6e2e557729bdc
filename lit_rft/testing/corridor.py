"""A corridor: a small real environment, importable by worker processes."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import gymnasium as gym

from lit_rft.envs.base import EpisodeSpec, Expert, Half, choose, choose_tasks
from lit_rft.envs.scienceworld.expert import GoldPaths
from lit_rft.episodes import Achieved

LENGTH = 3


class CorridorEnv(gym.Env[str, str]):
    """Walk from room 0 to room 3 ("go right"); "go left" goes back, anything else is invalid.

    `die_once`: a file; if it does not exist, the first step creates it and kills the process.
    `die_in`: a variation in which every step kills the process.
    `measure`: report the room as a metric, and leaving room 0 as another one from room 1 on.
    `wait_once`: a file; the first step creates it and waits until it is removed.
    """

    def __init__(
        self,
        step_limit: int = 6,
        die_once: str = "",
        die_always: bool = False,
        wait_once: str = "",
        die_in: int | None = None,
        measure: bool = False,
    ) -> None:
        self.step_limit, self.die_once, self.die_always = step_limit, die_once, die_always
        self.wait_once, self.die_in, self.measure = wait_once, die_in, measure

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        self.room, self.steps, self.best = 0, 0, 0
        options = options or {}
        self.variation = options.get("variation")
        info = {"env": "corridor", "env_version": "1", "task_description": f"Go to room {LENGTH}.", "achieved": []}
        if options.get("gold_path"):
            info["gold_path"] = ["go right"] * (LENGTH + 1)
        return "You are in room 0.", info

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        dies = self.die_always or (self.die_in is not None and self.variation == self.die_in)
        if dies or (self.die_once and not Path(self.die_once).exists()):
            if self.die_once:
                Path(self.die_once).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if self.wait_once:
            self._wait()
        self.steps += 1
        valid = action in ("go right", "go left")
        self.room = max(0, self.room + (action == "go right") - (action == "go left"))
        before, self.best = self.best, max(self.best, self.room)
        achieved = [Achieved(f"room:{self.best}", f"go to {self.best}")] if self.best > before else []
        done, over = self.best >= LENGTH, self.steps >= self.step_limit
        reason = "goal" if done else "step_limit" if over else None
        score = self.best / LENGTH
        info = {"score": score, "valid": valid, "achieved": achieved, "reason": reason, "success": done}
        if self.measure:
            info["metrics"] = {"room": self.room, **({"left": 1.0} if self.best else {})}
        text = f"You are in room {self.room}." if valid else "That is not possible."
        return text, score - before / LENGTH, done, over and not done, info

    def _wait(self) -> None:
        file = Path(self.wait_once)
        try:
            file.with_suffix(".begun").touch(exist_ok=False)
        except FileExistsError:
            return  # another environment waits
        file.touch()
        while file.exists():
            time.sleep(0.01)

    def close(self) -> None: ...


@dataclass(frozen=True)
class CorridorSuite:
    """The corridor as a suite of two tasks."""

    name: str = "corridor"
    step_limit: int = 6
    die_once: str = ""
    die_always: bool = False
    wait_once: str = ""
    die_in: int | None = None
    measure: bool = False

    expert: ClassVar[Expert] = GoldPaths()

    def make_env(self) -> gym.Env[str, str]:
        return CorridorEnv(self.step_limit, self.die_once, self.die_always, self.wait_once, self.die_in, self.measure)

    def episodes(
        self,
        split: str,
        *,
        tasks: Sequence[str] | None = None,
        limit: int | None = None,
        half: Half | None = None,
        seed: int = 0,
    ) -> list[EpisodeSpec]:
        available = {"train": [0, 1, 2, 3], "dev": [4, 5], "test": [6, 7, 8]}[split]
        return [
            self._spec(task, variation, split)
            for task in choose_tasks(("walk", "run"), tasks, f"{self.name!r}")
            for variation in choose(available, limit, half, f"{seed}/{task}/{split}")
        ]

    def _spec(self, task: str, variation: int, split: str) -> EpisodeSpec:
        # recorded losses depend on the ids, which seed the sampling
        name = f"scienceworld/{split}/{task}/{variation}"
        options = {"task": task, "variation": variation}
        return EpisodeSpec(name, task, split, None, options, self.step_limit, {"variation": variation})
