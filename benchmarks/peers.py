"""Shared parts of the speed benchmarks: alternating rounds of two sides on the same work, each in its own process."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from lit_rft._machine import describe_machine

RESULTS = Path(__file__).parent / "results"
_FIGURES = "figures: "


def machine() -> dict[str, Any]:
    import torch

    described = describe_machine()
    cpuinfo = [line.partition(":") for line in Path("/proc/cpuinfo").read_text().splitlines()]
    facts = {name.strip(): value.split() for name, _, value in cpuinfo}
    half = [flag for flag in facts.get("flags", []) if "bf16" in flag]  # bf16 products have a large effect
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "cpu": described["cpu"]["name"], "cores": described["cpu"]["cores"],
        "threads": torch.get_num_threads(), "bf16": half, "gpu": device,
        "memory_gb": described["memory_gb"],
        "load_average_before": os.getloadavg()[0],
    }  # fmt: skip


def versions(*names: str) -> dict[str, str]:
    names = ("torch", "transformers", "peft", *names)
    return {name: version(name) for name in names} | {"python": platform.python_version()}


def peak_memory() -> float:
    """Return the peak memory of this process in GB: on the GPU if it has used one."""
    import torch

    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated() / 1e9
    # not getrusage, which includes the parent's memory at the start
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024 / 1e9


def say(**figures: Any) -> None:
    """Print a side's figures, on a separate line that `in_turns` reads."""
    print("\n" + _FIGURES + json.dumps(figures), flush=True)


def in_turns(script: str, sides: Sequence[str], rounds: int, *arguments: str) -> dict[str, list[dict[str, Any]]]:
    """Run the sides of a script alternately; "{round}" in an argument is the number of the round.

    Raises:
        RuntimeError: A side failed; the message has the end of its output.
    """
    runs: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    for number in range(rounds):
        for side in sides:
            started = time.time()
            print(f"round {number + 1} of {rounds}: {side} ...", end=" ", flush=True)
            runs[side].append(in_process(script, "--side", side, *(part.format(round=number) for part in arguments)))
            print(f"{time.time() - started:.0f} s", flush=True)
    return runs


def in_process(script: str, *arguments: str) -> dict[str, Any]:
    """Run a script in its own process and return its figures.

    Raises:
        RuntimeError: It failed; the message has the end of its output.
    """
    result = subprocess.run([sys.executable, script, *arguments], capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"{' '.join(arguments)} failed:\n{result.stdout[-2000:]}{result.stderr[-4000:]}")
    (line,) = (line for line in result.stdout.splitlines() if line.startswith(_FIGURES))
    figures: dict[str, Any] = json.loads(line.removeprefix(_FIGURES))
    return figures


def choose_path(model: Any, name: str, on: bool) -> None:
    """Let a model use all fast paths, or all but one."""
    from lit_rft.models import FAST_PATHS, accelerate

    accelerate(model, [path for path in FAST_PATHS if on or path != name])


def without_and_with(
    model: Any, path: str, play: Callable[[], dict[str, float]], rounds: int
) -> tuple[list[dict[str, float]], list[dict[str, float]]]:
    """Return the figures of rounds without and with a fast path, in turns, after one of each that packs weights."""
    sides: dict[bool, list[dict[str, float]]] = {False: [], True: []}
    for _ in range(1 + rounds):
        for on, figures in sides.items():
            choose_path(model, path, on)
            figures.append(play())
    return sides[False][1:], sides[True][1:]


def ratios(slow: Sequence[float], fast: Sequence[float]) -> dict[str, float]:
    """Return the median ratio of seconds in each round, the lowest and the highest."""
    values = sorted(a / b for a, b in zip(slow, fast, strict=True))
    return {"ratio": statistics.median(values), "lowest": values[0], "highest": values[-1]}


def medians(runs: list[dict[str, Any]]) -> dict[str, float]:
    return {name: statistics.median(run[name] for run in runs) for name in runs[0]}


def write(name: str, result: dict[str, Any], folder: Path = RESULTS) -> None:
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")


def show(title: str, rows: dict[str, dict[str, float]]) -> None:
    """Print a table of named rows, transposed if it would be wider than long."""
    columns = list(next(iter(rows.values())))
    if len(columns) > len(rows) + 1:
        rows, columns = {column: {name: row[column] for name, row in rows.items()} for column in columns}, list(rows)
    table = Table(title=title)
    for column in ("", *columns):
        table.add_column(column, justify="right" if column else "left")
    for name, row in rows.items():
        table.add_row(name, *(f"{row[column]:.4g}" for column in columns))
    Console().print(table)
