"""Shared parts of the experiments: steps that are `lit-rft` commands, run once, with logs, times and results."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console

from lit_rft._files import replacing, write_json

ROOT = Path(__file__).parents[1]
RESULTS, IMAGES = Path(__file__).parent / "results", ROOT / "docs" / "images"
T_95 = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57, 7: 2.45, 8: 2.36, 9: 2.31, 10: 2.26}  # Student's t by seeds


@dataclass(frozen=True)
class Step:
    """A command, complete when its output file exists.

    Attributes:
        name: of the log, and in the table of times.
        command: with its arguments.
        result: the output file.
        costs: files that tell what it has taken: played episodes, or `costs_fit.json` of training.
    """

    name: str
    command: list[str]
    result: Path
    costs: tuple[Path, ...] = ()


def lit_rft(verb: str, configs: Sequence[str], keys: Mapping[str, Any], extra: Sequence[str] = ()) -> list[str]:
    """Make a `lit-rft` command."""
    return [sys.executable, "-m", "lit_rft.cli", *lit_rft_arguments(verb, configs, keys, extra)]


def lit_rft_arguments(
    verb: str, configs: Sequence[str], keys: Mapping[str, Any], extra: Sequence[str] = ()
) -> list[str]:
    """Make the arguments of a `lit-rft` command."""
    return [verb, *(part for config in configs for part in ("-c", config)), *flags(keys), *extra]


def flags(keys: Mapping[str, Any]) -> list[str]:
    return [part for key, value in keys.items() for part in (f"--{key}", str(value))]


def listed(items: Sequence[Any]) -> str:
    return "[" + ",".join(map(str, items)) + "]"


def run(step: Step, runs: Path, console: Console) -> None:
    """Run a step unless it is complete; logs, commands and times are kept in the folder `runs`.

    One command runs at a time in the folder. One that has outlived its experiment (which was killed) is waited for.
    The time of a step includes that of its interrupted attempts.

    Raises:
        RuntimeError: If the command fails; the message has the log's name. If the step is complete, by another command:
            its result would be taken for that of this one.
    """
    log = runs / "logs" / (step.name.replace(": ", "-").replace(" ", "_") + ".log")
    log.parent.mkdir(parents=True, exist_ok=True)
    with _only_command_in(runs, console) as lock:
        if step.result.exists():
            _check_command(step, log)
            return
        before = _seconds(log)
        _write_time(log, step, before, time.time())
        with console.status(f"{step.name} (log: {log})"), log.open("ab") as stream:
            # the command holds the lock as long as it runs, even if this process is killed
            code = subprocess.run(step.command, stdout=stream, stderr=stream, pass_fds=[lock]).returncode
        log.touch()  # its time is that of the attempt's end
        if code:
            raise RuntimeError(f"{step.name} failed with code {code}: see {log}; run again to resume")
        seconds = _seconds(log)
        _write_time(log, step, seconds, None)
        if step.result.suffix == ".done":
            step.result.touch()
    console.print(f"{step.name}: {seconds / 60:.1f} minutes")


@contextlib.contextmanager
def _only_command_in(folder: Path, console: Console) -> Iterator[int]:
    """Hold the lock of a folder, and yield its file descriptor, for the processes that are to hold it as well."""
    with (folder / "lock").open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            console.print(f"another command runs in {folder}: waiting for its end")
            fcntl.flock(stream, fcntl.LOCK_EX)
        yield stream.fileno()


def _write_time(log: Path, step: Step, seconds: float, started: float | None) -> None:
    """Write the seconds of a step's earlier attempts, and the start of the one that runs (None: it has ended)."""
    state = {"step": step.name, "command": _arguments(step), "seconds": round(seconds, 1), "started": started}
    write_json(log.with_suffix(".json"), state)


def _arguments(step: Step) -> list[str]:
    """Return a step's command without the interpreter, and without the option that resumes an interrupted run."""
    parts = step.command[1:]
    resumes = [i for i in range(len(parts)) if parts[i : i + 2] == ["--ckpt_path", "last"]]
    return [part for i, part in enumerate(parts) if not {i, i - 1} & set(resumes)]


def _check_command(step: Step, log: Path) -> None:
    file = log.with_suffix(".json")
    earlier = json.loads(file.read_text()).get("command") if file.exists() else None
    now = _arguments(step)
    if earlier is None or earlier == now:
        return
    removed, added = [p for p in earlier if p not in now], [p for p in now if p not in earlier]
    raise RuntimeError(
        f"{step.name} is complete, but by another command: it had {' '.join(removed) or 'other places'}, and now has "
        f"{' '.join(added) or 'other places'}; remove {step.result} and what it was made of to run it again, or use "
        "another folder"
    )


def _seconds(log: Path) -> float:
    """Return the seconds of all attempts of a step; one that was killed ended with its last output."""
    file = log.with_suffix(".json")
    if not file.exists():
        return 0.0
    attempts = json.loads(file.read_text())
    started = attempts["started"]
    return float(attempts["seconds"] + (max(0.0, log.stat().st_mtime - started) if started is not None else 0.0))


def times(runs: Path, known: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the seconds of all steps, from earlier results and from the runs on this machine."""
    by_step = {time["step"]: time for time in known.get("seconds", [])}
    for log in sorted((runs / "logs").glob("*.log")):
        if (file := log.with_suffix(".json")).exists():
            name = json.loads(file.read_text())["step"]
            by_step[name] = {"step": name, "seconds": round(_seconds(log), 1)}
    return list(by_step.values())


@contextlib.contextmanager
def timed(minutes: dict[str, float], name: str, clock: Callable[[], float]) -> Iterator[None]:
    """Add the minutes of a block by a clock in seconds to those of a name."""
    started = clock()
    yield
    minutes[name] = minutes.get(name, 0.0) + (clock() - started) / 60


def mean_score(episodes: Path) -> float:
    """Return the mean score of the episodes in a file of JSON lines."""
    return statistics.mean(json.loads(line)["outcome"]["score"] for line in episodes.read_text().splitlines())


def environment(*more: str) -> dict[str, Any]:
    """Describe machine and versions."""
    names = ("lit-rft", "torch", "transformers", "peft", "lightning", *more)
    return {
        "machine": {"system": platform.platform(), "cores": os.cpu_count()},
        "versions": {name: version(name) for name in names} | {"python": platform.python_version()},
    }


def read_results(path: Path) -> dict[str, Any]:
    """Read the results of an earlier run; empty if there are none."""
    results: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return results


def write_json_lines(path: Path, rows: Iterable[Any]) -> Path:
    """Write a line of JSON for each row, creating folders, and return the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def curve(folder: Path, tag: str) -> list[tuple[int, float]]:
    """Read a scalar of a run, four digits behind the point; empty if there is none."""
    from lit_rft.viewer.curves import read_scalars

    return [(step, round(value, 4)) for step, value in read_scalars(folder).get(tag, [])]


def spread(values: Sequence[float]) -> str:
    return f"{statistics.mean(values):.1f} ± {_deviation(values):.1f}"


def half_width(values: Sequence[float]) -> float:
    """Return the half width of Student's 95% interval of the mean; 0 for one value, or more than 10."""
    return T_95[len(values)] * statistics.stdev(values) / len(values) ** 0.5 if len(values) in T_95 else 0.0


def interval(values: Sequence[float], digits: int = 3) -> str:
    """Return the mean, with the half width of Student's 95% interval if there is one."""
    mean = f"{statistics.mean(values):.{digits}f}"
    return f"{mean} ± {half_width(values):.{digits}f}" if len(values) in T_95 else mean


def bootstrap(values: Sequence[float], resamples: int = 2000) -> tuple[float, float, float]:
    """Return the mean and its 95% interval by a bootstrap."""
    rng = random.Random(0)
    means = sorted(statistics.fmean(rng.choices(values, k=len(values))) for _ in range(resamples))
    return statistics.fmean(values), means[int(0.025 * resamples)], means[int(0.975 * resamples) - 1]


def _deviation(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


def plot_curves(
    axes: Any,
    curves: Sequence[Sequence[tuple[float, float]]],
    label: str,
    width: Callable[[Sequence[float]], float] = _deviation,
    *,
    color: str | None = None,
    alpha: float = 0.2,
) -> None:
    """Plot the mean of several curves with a band, up to the end of the shortest.

    Args:
        axes: of matplotlib.
        curves: points of each.
        label: of the mean.
        width: half the width of the band, from the curves' values at a place; without it one standard deviation.
        color: of mean and band; None for the next one.
        alpha: opacity of the band.
    """
    length = min(map(len, curves))
    steps = [statistics.mean(curve[i][0] for curve in curves) for i in range(length)]
    values = [[curve[i][1] for curve in curves] for i in range(length)]
    middle, widths = [statistics.mean(v) for v in values], [width(v) for v in values]
    (line,) = axes.plot(steps, middle, label=label, color=color)
    low, high = ([m + sign * w for m, w in zip(middle, widths, strict=True)] for sign in (-1, 1))
    axes.fill_between(steps, low, high, alpha=alpha, color=line.get_color(), linewidth=0)


def save_figure(figure: Any, name: str) -> None:
    IMAGES.mkdir(parents=True, exist_ok=True)
    figure.savefig(IMAGES / name, dpi=120, bbox_inches="tight")
