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

GROWTH = 150  # MiB that the action `grow` takes


class FakeEnv(gym.Env[str, str]):
    """Counts steps. An action names what goes wrong; with ``once:FILE:``, only while FILE does not exist."""

    def __init__(self, start_error: str = "", child: bool = False, log: str = "", meet: int = 0) -> None:
        """
        Args:
            start_error: text of the error that making the environment ends in.
            child: whether to start a process.
            log: a file that gets a line for each environment that is made (`+`) and closed (`-`).
            meet: making the environment waits until so many are being made.
        """
        if start_error:
            raise OSError(start_error)
        self.log, self.memory = log, b""
        self.metrics: dict[str, Any] = {}
        self._write("+")
        while meet and Path(log).read_text().count("+") < meet:
            time.sleep(0.01)
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
        info = {
            "metrics": self.metrics,
            "steps": self.steps,
            "lock": threading.Lock() if action == "unpicklable" else None,
        }
        return action, 1.0, self.steps >= 3, False, info

    def close(self) -> None:
        self._write("-")
        if self.child:
            self.child.kill()

    def _write(self, line: str) -> None:
        if self.log:
            with open(self.log, "a") as stream:
                stream.write(f"{line}\n")

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
        elif action == "no number":
            self.metrics = {"moves": "many"}
        elif action == "bad":
            raise ValueError("the fake refuses")
        elif action == "grow":
            self.memory += b"x" * (GROWTH * 2**20)
        elif action == "grow in a grandchild":
            code = f"import time; memory = b'x' * ({GROWTH} * 2**20); print(flush=True); time.sleep(600)"
            shell = ["sh", "-c", '"$0" -c "$1" & wait', sys.executable, code]
            child = subprocess.Popen(shell, stdout=subprocess.PIPE)
            assert child.stdout is not None
            child.stdout.readline()
        elif action == "burst":
            self.memory += b"x" * (4 * GROWTH * 2**20)
            time.sleep(600)
