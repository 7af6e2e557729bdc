"""GLIDER from end to end on short ScienceWorld tasks, against its flat counterpart on equal data: hours on two cores.

    python benchmarks/glider_scienceworld.py                # all seeds; resumes where it was stopped
    python benchmarks/glider_scienceworld.py --seeds 0      # one of them

For each seed: hierarchical SFT on expert episodes of one half of the training variations, mediocre episodes by that
policy on the other half, offline RL on both, online fine-tuning of the high level on a task that no earlier stage has
seen. Beside it flat SFT on the same expert episodes, flat AWAC on the same expert and mediocre ones, and flat online
AWAC. Every stage plays held-out variations of the seen tasks and of the unseen one, chosen anew by each of three
evaluation seeds.

Everything runs through `lit-rft`, one command a step; what is done is not done again. Commands, logs and runs are under
`runs/glider_scienceworld`, figures in `benchmarks/results/glider_scienceworld.json`, plots in `docs/images`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from lit_rft._files import write_json

SEEN, UNSEEN = ["find-animal", "find-living-thing", "find-plant"], ["find-non-living-thing"]
ROOT = Path(__file__).parents[1]
RUNS = ROOT / "runs" / "glider_scienceworld"
RESULTS = Path(__file__).parent / "results" / "glider_scienceworld.json"
IMAGES = ROOT / "docs" / "images"
CONFIGS = {stage: f"glider/scienceworld/{stage}.yaml" for stage in ("sft", "offline_rl", "online")}
EVALUATION_SEEDS = (0, 1, 2)
STAGES = ("sft", "offline_rl", "online")


@dataclass(frozen=True)
class Scale:
    """How much of everything."""

    train_variations: int = 24  # of each seen task, from the first half
    medium_variations: int = 16  # of each seen task, from the second half
    eval_variations: int = 3  # of each task and evaluation seed
    rounds: int = 8
    episodes_per_round: int = 8
    extra: tuple[str, ...] = ()  # more arguments for every command


@dataclass(frozen=True)
class Step:
    """One command; it is done when the file is there."""

    name: str
    command: list[str]
    result: Path


def steps(seed: int, scale: Scale) -> Iterator[Step]:
    """What a seed takes, in order."""
    home = RUNS / f"seed{seed}"
    expert, medium = home / "sft" / "expert", home / "sft" / "episodes" / "predicted.jsonl"
    data = {"tasks": _listed(SEEN), "train_half": "first", "train_variations": scale.train_variations}
    for kind in ("", "flat_"):
        sft, offline, online = (home / f"{kind}{stage}" for stage in STAGES)
        yield _fit("sft", sft, seed, scale, kind, **{f"data.init_args.{k}": v for k, v in data.items()},
                   **{"data.init_args.data_dir": expert})  # fmt: skip
        yield from _evaluations("sft", sft, seed, scale, kind)
        if not kind:
            yield _predict(sft, seed, scale, medium)
        yield _fit(
            "offline_rl", offline, seed, scale, kind, **{f"data.init_args.{k}": v for k, v in data.items()},
            **{
                "data.init_args.data_dir": expert,
                "data.init_args.medium_files": _listed([medium]),
                "data.init_args.medium_per_expert": round(scale.medium_variations / scale.train_variations, 3),
                "model.init_args.policy.start_from": sft / "checkpoints" / "last.ckpt",
                "model.init_args.critic.cache_dir": home / "features",
            },
        )  # fmt: skip
        yield from _evaluations("offline_rl", offline, seed, scale, kind)
        yield _fit(
            "online", online, seed, scale, kind,
            **{
                "data.init_args.collect_tasks": _listed(UNSEEN),
                "data.init_args.rounds": scale.rounds,
                "data.init_args.episodes_per_round": scale.episodes_per_round,
                "model.init_args.policy.start_from": offline / "checkpoints" / "last.ckpt",
                "model.init_args.critic.cache_dir": home / "features",
                "model.init_args.online.seed": seed,
            },
        )  # fmt: skip
        yield from _evaluations("online", online, seed, scale, kind)


def _command(verb: str, stage: str, folder: Path, seed: int, scale: Scale, kind: str, keys: Any) -> list[str]:
    fixed = {"trainer.default_root_dir": folder, "seed_everything": seed, "trainer.limit_val_batches": 0}
    flat = [part for key, value in {**fixed, **keys}.items() for part in (f"--{key}", str(value))]
    overlay = ["-c", f"glider/scienceworld/flat_{stage}.yaml"] if kind else []
    return [sys.executable, "-m", "lit_rft.cli", verb, "-c", CONFIGS[stage], *overlay, *flat, *scale.extra]


def _fit(stage: str, folder: Path, seed: int, scale: Scale, kind: str, **keys: Any) -> Step:
    command = _command("fit", stage, folder, seed, scale, kind, keys)
    if (folder / "checkpoints" / "last.ckpt").exists():  # stopped in the middle
        command += ["--ckpt_path", "last"]
    return Step(f"seed {seed}: {folder.name}: fit", command, folder / "adapter" / "adapter_config.json")


def _predict(sft: Path, seed: int, scale: Scale, medium: Path) -> Step:
    keys = {
        "ckpt_path": "last",
        "data.init_args.tasks": _listed(SEEN),
        "data.init_args.predict_split": "train",
        "data.init_args.predict_half": "second",
        "data.init_args.predict_variations": scale.medium_variations,
        "model.init_args.acting.sampling.temperature": 0.7,
        "model.init_args.acting.seed": seed,
    }
    done = medium.with_suffix(".done")
    return Step(f"seed {seed}: mediocre episodes", _command("predict", "sft", sft, seed, scale, "", keys), done)


def _evaluations(stage: str, folder: Path, seed: int, scale: Scale, kind: str) -> Iterator[Step]:
    for number in EVALUATION_SEEDS:
        target = folder / f"evaluation{number}"
        keys = {
            "ckpt_path": folder / "checkpoints" / "last.ckpt",
            "data.init_args.tasks": _listed(SEEN + UNSEEN),
            "data.init_args.eval_split": "dev",
            "data.init_args.eval_variations": scale.eval_variations,
            "data.init_args.seed": number,  # chooses the variations
            "model.init_args.policy.start_from": "null",
        }
        command = _command("test", stage, target, seed, scale, kind, keys)
        yield Step(f"seed {seed}: {folder.name}: evaluation {number}", command, target / "scores.json")


def _listed(items: list[Any]) -> str:
    return "[" + ",".join(map(str, items)) + "]"


def run(step: Step, console: Console) -> None:
    """Run a step unless it is done.

    Raises: RuntimeError with the log's name if the command fails.
    """
    if step.result.exists():
        return
    log = RUNS / "logs" / (step.name.replace(": ", "-").replace(" ", "_") + ".log")
    log.parent.mkdir(parents=True, exist_ok=True)
    started = time.time()
    with console.status(f"{step.name} (log: {log})"), log.open("ab") as stream:
        code = subprocess.run(step.command, stdout=stream, stderr=stream).returncode
    if code:
        raise RuntimeError(f"{step.name} failed with code {code}: see {log}; run again to go on from here")
    if step.result.suffix == ".done":
        step.result.touch()
    seconds = time.time() - started
    console.print(f"{step.name}: {seconds / 60:.1f} minutes")
    with (RUNS / "times.jsonl").open("a") as stream:
        stream.write(json.dumps({"step": step.name, "seconds": round(seconds, 1)}) + "\n")


def collect_results(scale: Scale) -> dict[str, Any]:
    """Everything measured so far: scores by stage, seed and evaluation, and online scores by environment step."""
    scores: dict[str, Any] = {}
    online: dict[str, Any] = {}
    for home in sorted(RUNS.glob("seed*")):
        seed = home.name.removeprefix("seed")
        for kind in ("", "flat_"):
            for stage in STAGES:
                name = f"{kind}{stage}"
                files = [home / name / f"evaluation{n}" / "scores.json" for n in EVALUATION_SEEDS]
                found = [json.loads(file.read_text()) for file in files if file.exists()]
                if found:
                    scores.setdefault(name, {})[str(seed)] = found
            curve = _online_curve(home / f"{kind}online" / "tensorboard")
            if curve:
                online.setdefault(f"{kind}online", {})[str(seed)] = curve
    known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for kind, found in (("scores", scores), ("online", online)):  # seeds whose runs are no longer here
        for name, seeds in known.get(kind, {}).items():
            found[name] = seeds | found.get(name, {})
    times = {time["step"]: time for time in known.get("seconds", [])}
    for line in _lines(RUNS / "times.jsonl"):
        times[json.loads(line)["step"]] = json.loads(line)
    names = ("lit-rft", "torch", "transformers", "peft", "lightning", "scienceworld")
    return {
        "scores": scores,
        "online": online,
        "seconds": list(times.values()),
        "settings": {k: v for k, v in vars(scale).items() if k != "extra"} | {"seen": SEEN, "unseen": UNSEEN},
        "machine": {"system": platform.platform(), "cores": os.cpu_count()},
        "versions": {name: version(name) for name in names} | {"python": platform.python_version()},
    }


def finished(seed: int) -> bool:
    """Whether the results have all evaluations of a seed, made here or elsewhere."""
    scores = json.loads(RESULTS.read_text())["scores"] if RESULTS.exists() else {}
    runs = [scores.get(f"{kind}{stage}", {}).get(str(seed), []) for kind in ("", "flat_") for stage in STAGES]
    return all(len(found) == len(EVALUATION_SEEDS) for found in runs)


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def _online_curve(folder: Path) -> list[tuple[int, float]]:
    if not folder.is_dir():
        return []
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    if "online/score" not in events.Tags()["scalars"]:
        return []
    points = {point.step: round(point.value, 2) for point in events.Scalars("online/score")}  # the last of each step
    return sorted(points.items())


def means(results: dict[str, Any], name: str, tasks: list[str]) -> list[float]:
    """Mean score over tasks of each evaluation of each seed."""
    runs = [run for runs in results["scores"].get(name, {}).values() for run in runs]
    scores = [[run[task]["score"] for task in tasks if run[task]["score"] is not None] for run in runs]
    return [statistics.mean(values) for values in scores if values]


def report(results: dict[str, Any], console: Console) -> None:
    """The table, and both plots."""
    table = Table(title="score (0..100): mean and standard deviation over seeds and evaluations")
    for column in ("", "seen tasks", "unseen task", "evaluations"):
        table.add_column(column, justify="left" if not column else "right")
    for name in (f"{kind}{stage}" for kind in ("", "flat_") for stage in STAGES):
        seen, unseen = means(results, name, SEEN), means(results, name, UNSEEN)
        if seen:
            table.add_row(name, _spread(seen), _spread(unseen), str(len(seen)))
    console.print(table)
    plot_stages(results)
    plot_online(results)


def _spread(values: list[float]) -> str:
    return f"{statistics.mean(values):.1f} ± {statistics.stdev(values) if len(values) > 1 else 0:.1f}"


def plot_stages(results: dict[str, Any]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.2))
    for axes, (title, tasks) in zip(
        figure.subplots(1, 2, sharey=True), (("seen tasks", SEEN), ("unseen task", UNSEEN)), strict=True
    ):
        for offset, (kind, label) in enumerate((("", "hierarchical"), ("flat_", "flat"))):
            values = [means(results, f"{kind}{stage}", tasks) for stage in STAGES]
            heights = [statistics.mean(v) if v else 0.0 for v in values]
            errors = [statistics.stdev(v) if len(v) > 1 else 0.0 for v in values]
            axes.bar([i + 0.4 * offset for i in range(3)], heights, 0.38, yerr=errors, label=label, capsize=3)
        axes.set_xticks([0.2, 1.2, 2.2], ["SFT", "offline RL", "online"])
        axes.set_title(title)
    figure.axes[0].set_ylabel("score")
    figure.axes[1].legend(frameon=False)
    _save(figure, "glider_stages.png")


def plot_online(results: dict[str, Any]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.5))
    axes = figure.subplots()
    for name, label in (("online", "hierarchical"), ("flat_online", "flat (AWAC)")):
        curves = list(results["online"].get(name, {}).values())
        if not curves:
            continue
        length = min(map(len, curves))
        steps_taken = [statistics.mean(curve[i][0] for curve in curves) for i in range(length)]
        values = [[curve[i][1] for curve in curves] for i in range(length)]
        middle = [statistics.mean(v) for v in values]
        spread = [statistics.stdev(v) if len(v) > 1 else 0.0 for v in values]
        (line,) = axes.plot(steps_taken, middle, label=f"{label}, {len(curves)} seeds")
        low, high = ([m + sign * s for m, s in zip(middle, spread, strict=True)] for sign in (-1, 1))
        axes.fill_between(steps_taken, low, high, alpha=0.2, color=line.get_color(), linewidth=0)
    axes.set(xlabel="environment steps", ylabel="score of the episodes played", title="online, unseen task")
    axes.legend(frameon=False)
    _save(figure, "glider_online.png")


def _save(figure: Any, name: str) -> None:
    IMAGES.mkdir(parents=True, exist_ok=True)
    figure.savefig(IMAGES / name, dpi=120, bbox_inches="tight")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="training seeds (default: 0 1 2)")
    parser.add_argument("--report", action="store_true", help="only report what there is")
    parser.add_argument("extra", nargs="*", help="more arguments for every lit-rft command (after --)")
    options = parser.parse_args()
    console, scale = Console(), Scale(extra=tuple(options.extra))
    for seed in options.seeds if not options.report else []:
        for step in steps(seed, scale) if not finished(seed) else ():
            run(step, console)
            write_json(RESULTS, collect_results(scale))
    report(json.loads(RESULTS.read_text()), console)


if __name__ == "__main__":
    main()
