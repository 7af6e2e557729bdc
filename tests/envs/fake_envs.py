"""A tiny environment that fails on command, for the pool's tests."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import gymnasium as gym


class FakeEnv(gym.Env[str, str]):
    """Counts steps. An action names what goes wrong; with ``once:FILE:``, only while FILE does not exist."""

    def __init__(self, start_error: str = "", child: bool = False) -> None:
        if start_error:
            raise OSError(start_error)
        self.child = subprocess.Popen(["sleep", "600"]) if child else None
        self.steps = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)
        self.steps = 0
        self._do((options or {}).get("do", ""))
        child = self.child.pid if self.child else None
        return "start", {"pid": os.getpid(), "child": child, "torch": "torch" in sys.modules}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        self._do(action)
        self.steps += 1
        info = {"steps": self.steps, "lock": threading.Lock() if action == "unpicklable" else None}
        return action, 1.0, self.steps >= 3, False, info

    def close(self) -> None:
        if self.child:
            self.child.kill()

    def _do(self, action: str) -> None:
        if action.startswith("once:"):
            _, marker, action = action.split(":")
            if Path(marker).exists():
                return
            Path(marker).touch()
        if action == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        elif action == "hang":
            time.sleep(600)
        elif action == "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        elif action == "raise":
            raise RuntimeError("the fake failed")
        elif action == "bad":
            raise ValueError("the fake refuses")
