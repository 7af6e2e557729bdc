"""Environments with one fault each, for `check_env`."""

from __future__ import annotations

import itertools
import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import gymnasium as gym

_count = itertools.count()


class Plain(gym.Env[str, str]):
    """Nothing is wrong with it. `fault` changes that."""

    def __init__(self, fault: str = "") -> None:
        self.fault = fault
        if fault == "constructor":
            raise RuntimeError("no licence")
        if fault == "box":
            self.observation_space: Any = gym.spaces.Discrete(3)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        if self.fault != "no super":
            super().reset(seed=seed)
        self.steps = 0
        start = int(self.np_random.integers(10**6))
        if self.fault == "unseeded":
            start = next(_count)
        if self.fault == "options" and (options or {}).get("level") == 9:
            raise ValueError("no level 9")
        if self.fault == "no reset":
            raise RuntimeError("no game")
        answers = {
            "array": (3, {}),
            "none": None,
            "surrogate": ("\ud800", {}),
            "no info": ("a", None),
            "empty": ("", {}),
        }
        return answers.get(self.fault, (f"Start {start}.", {}))

    def step(self, action: str) -> Any:
        self.steps += 1
        if self.fault == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.fault == "hang":
            time.sleep(600)
        if self.fault == "raise":
            raise KeyError("lost")
        if self.fault == "int only" and not action.isdecimal():
            return f"{int(action)}", 0.0, False, False, {}
        infos = {
            "score": {"score": "high"}, "nan score": {"score": float("nan")}, "admissible": {"admissible": [1]},
            "success": {"success": 1}, "achieved": {"achieved": [{"key": "a"}]}, "metrics": {"metrics": {"a": "b"}},
            "lock": {"lock": threading.Lock()}, "spelling": {"admisible": ["a"]},
            "late task": {"task_description": "Do it."},
        }  # fmt: skip
        reward = {"nan": float("nan"), "text reward": "1"}.get(self.fault, float(self.steps == 2))
        ends = "no" if self.fault == "flags" else self.steps == 2 and self.fault != "endless"
        if self.fault == "four":
            return "a", 0.0, False, {}
        drift = next(_count) if self.fault == "drift" else ""
        drift = "half a \ud800" if self.fault == "broken step" else drift
        return f"Step {self.steps}{drift}.", reward, ends, False, infos.get(self.fault, {})

    def close(self) -> None:
        if self.fault == "close":
            raise OSError("cannot close")
        if self.fault == "close hangs":
            time.sleep(600)


class Telling(gym.Env[str, str]):
    """Reports keys of its own, of which an expert may make use."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)
        return "Start.", {"answer": 7, "achieved": ["start"]}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        return "End.", 1.0, False, False, {"answer": "none"}


class NoSize(Plain):
    """Its constructor has a bug."""

    def __init__(self) -> None:
        self.size = {}["SIZE"]  # type: ignore[var-annotated]


class NoLevel(Plain):
    """Its `reset` has a bug, in a function of the standard library that it calls."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        return super().reset(seed=seed, options=json.loads("{"))


class OldReset(Plain):
    """From before gymnasium: `reset` takes no seed."""

    def reset(self) -> Any:  # type: ignore[override]
        return "Start."


class NoEnv:
    """Not a gymnasium.Env."""


class Detailed(LookupError):
    """Has no constructor for a message."""

    def __init__(self, level: int, file: str) -> None:
        super().__init__(f"level {level} is not in {file}")


def write_info(observation: str, info: Any) -> str | None:
    """An expert that writes what it is given, and stops after an action."""
    with Path(os.environ["INFOS"]).open("a") as stream:
        stream.write(f"{observation} {sorted(info.items(), key=str)}\n")
    return "act" if observation == "Start." else None
