"""A machine without a home folder or a network: it works, or says within seconds what is missing."""

from __future__ import annotations

import ctypes
import functools
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from faults import runs
from faults.trial import Tally, Trial, expect

_NEW_NETWORK = 0x40000000  # CLONE_NEWNET
_SECONDS = 30.0


def trials(shared: Path, seed: int, short: bool) -> Iterator[Trial]:
    """Yield runs without a home folder, and names of the hub without a network."""
    if not short:
        for home in ("unset", "missing", "read-only"):
            yield Trial("surroundings", f"home folder {home}", functools.partial(without_home, shared, home))
        yield Trial("surroundings", "no network, a data set of the hub", functools.partial(offline_data, shared))
    yield Trial("surroundings", "no network, a model of the hub", functools.partial(offline_model, shared))


def without_home(shared: Path, home: str, folder: Path) -> Tally:
    """Train with the command itself in a fresh interpreter, whose home folder is not there."""
    inputs = runs.prepare(shared / "inputs")
    (folder / "sealed").mkdir()
    environment = {key: value for key, value in os.environ.items() if key not in ("HOME", "XDG_CACHE_HOME")}
    if home == "missing":
        environment["HOME"] = "/nonexistent/home"
    if home == "read-only":
        environment["HOME"] = "/proc"  # where not even root can create folders
    arguments = runs.command("episodes", inputs, folder / "run", "--trainer.max_steps", "2")
    result = subprocess.run([sys.executable, "-m", "lit_rft.cli", *arguments], env=environment, capture_output=True,
                            text=True, timeout=300, check=False)  # fmt: skip
    expect(result.returncode == 0, result.stderr[-800:])
    expect(runs.step_of(folder / "run") == 2, "no checkpoint")
    return Tally()


def leave_network() -> None:
    """Move this process into a network without interfaces; without the right to, names of hosts go nowhere."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_NEW_NETWORK):
        os.environ |= {"HF_ENDPOINT": "http://127.0.0.1:9", "http_proxy": "", "https_proxy": ""}


def _refused(arguments: list[str], word: str, folder: Path) -> Tally:
    begun = time.monotonic()
    error = runs.refused(arguments, word, folder, before=leave_network, limit=150)
    seconds = time.monotonic() - begun
    expect(seconds < _SECONDS, f"only after {seconds:.0f} s")
    return Tally(note=f"after {seconds:.0f} s: {error}")


def offline_model(shared: Path, folder: Path) -> Tally:
    """Name a model of the hub."""
    more = ["--model.init_args.policy.model", "someone/some-model"]
    arguments = runs.command("episodes", runs.prepare(shared / "inputs"), folder / "run", *more)
    return _refused(arguments, "someone/some-model", folder)


def offline_data(shared: Path, folder: Path) -> Tally:
    """Name a data set of the hub."""
    more = ["--data.init_args.train_files", "[hf:someone/some-problems]"]
    arguments = runs.command("prompts", runs.prepare(shared / "inputs"), folder / "run", *more)
    return _refused(arguments, "someone/some-problems", folder)
