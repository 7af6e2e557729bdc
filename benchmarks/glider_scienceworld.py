"""GLIDER end to end on short ScienceWorld tasks, against its flat counterpart on equal data: hours on two cores.

    python benchmarks/glider_scienceworld.py                # both training seeds; resumes an interrupted run
    python benchmarks/glider_scienceworld.py --seeds 0      # one seed

For each seed: hierarchical SFT on expert episodes of one half of the training variations, medium-quality episodes by
that policy on the other half, offline RL on both, online fine-tuning of the high level on a task unseen in earlier
stages. The baselines are flat SFT on the same expert episodes, flat AWAC on the same episodes, and flat online AWAC.
Every stage plays held-out variations of the seen tasks and of the unseen one, chosen by each of three evaluation
seeds.

Every step is a `lit-rft` command; completed ones are skipped. Commands, logs and runs are in
`runs/glider_scienceworld`, figures in `benchmarks/results/glider_scienceworld.json`, plots in `docs/images`.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiment import (
    RESULTS,
    ROOT,
    Step,
    curve,
    environment,
    listed,
    lit_rft,
    plot_curves,
    read_results,
    run,
    save_figure,
    spread,
    times,
)
from rich.console import Console
from rich.table import Table

from lit_rft._files import write_json

SEEN, UNSEEN = ["find-animal", "find-living-thing", "find-plant"], ["find-non-living-thing"]
RUNS = ROOT / "runs" / "glider_scienceworld"
FILE = RESULTS / "glider_scienceworld.json"
CONFIGS = {stage: f"glider/scienceworld/{stage}.yaml" for stage in ("sft", "offline_rl", "online")}
EVALUATION_SEEDS = (0, 1, 2)
STAGES = ("sft", "offline_rl", "online")


@dataclass(frozen=True)
class Scale:
    """The size of the experiment."""

    train_episodes_per_task: int = 24  # of each seen task, from the first half
    medium_episodes_per_task: int = 16  # of each seen task, from the second half
    eval_episodes_per_task: int = 3  # of each task and evaluation seed
    rounds: int = 8
    episodes_per_round: int = 8
    extra: tuple[str, ...] = ()  # further arguments of every command

    @property
    def medium_per_expert(self) -> float:
        return round(self.medium_episodes_per_task / self.train_episodes_per_task, 3)


def steps(seed: int, scale: Scale) -> Iterator[Step]:
    """Return the steps of a seed, in order."""
    home = RUNS / f"seed{seed}"
    expert, medium = home / "sft" / "expert", home / "sft" / "episodes" / "predicted.jsonl"
    data = {"tasks": listed(SEEN), "train_half": "first", "train_episodes_per_task": scale.train_episodes_per_task}
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
                "data.init_args.medium_files": listed([medium]),
                "data.init_args.medium_per_expert": scale.medium_per_expert,
                "model.init_args.policy.start_from": sft / "checkpoints" / "last.ckpt",
                "model.init_args.critic.cache_dir": home / "features",
            },
        )  # fmt: skip
        yield from _evaluations("offline_rl", offline, seed, scale, kind)
        yield _fit(
            "online", online, seed, scale, kind,
            **{
                "data.init_args.collect_tasks": listed(UNSEEN),
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
    configs = [CONFIGS[stage], *([f"glider/scienceworld/flat_{stage}.yaml"] if kind else [])]
    return lit_rft(verb, configs, {**fixed, **keys}, scale.extra)


def _fit(stage: str, folder: Path, seed: int, scale: Scale, kind: str, **keys: Any) -> Step:
    command = _command("fit", stage, folder, seed, scale, kind, keys)
    if (folder / "checkpoints" / "last.ckpt").exists():  # interrupted
        command += ["--ckpt_path", "last"]
    return Step(f"seed {seed}: {folder.name}: fit", command, folder / "summary_fit.json")


def _predict(sft: Path, seed: int, scale: Scale, medium: Path) -> Step:
    keys = {
        "ckpt_path": "last",
        "data.init_args.tasks": listed(SEEN),
        "data.init_args.predict_split": "train",
        "data.init_args.predict_half": "second",
        "data.init_args.predict_episodes_per_task": scale.medium_episodes_per_task,
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
            "data.init_args.tasks": listed(SEEN + UNSEEN),
            "data.init_args.eval_split": "dev",
            "data.init_args.eval_episodes_per_task": scale.eval_episodes_per_task,
            "data.init_args.eval_seed": number,  # chooses the variations
            "model.init_args.policy.start_from": "null",
        }
        command = _command("test", stage, target, seed, scale, kind, keys)
        yield Step(f"seed {seed}: {folder.name}: evaluation {number}", command, target / "scores.json")


def collect_results(scale: Scale) -> dict[str, Any]:
    """Collect all measurements so far: scores by stage, seed and evaluation, and online scores by environment step."""
    scores: dict[str, Any] = {}
    online: dict[str, Any] = {}
    for home in sorted(RUNS.glob("seed*")):
        seed = home.name.removeprefix("seed")
        for kind in ("", "flat_"):
            for stage in STAGES:
                name = f"{kind}{stage}"
                files = [home / name / f"evaluation{n}" / "scores.json" for n in EVALUATION_SEEDS]
                evaluations = [json.loads(file.read_text()) for file in files if file.exists()]
                if evaluations:
                    scores.setdefault(name, {})[str(seed)] = evaluations
            points = curve(home / f"{kind}online" / "tensorboard", "online/score")
            if points:
                online.setdefault(f"{kind}online", {})[str(seed)] = points
    known = read_results(FILE)
    for kind, values in (("scores", scores), ("online", online)):  # seeds whose runs have been removed
        for name, seeds in known.get(kind, {}).items():
            values[name] = seeds | values.get(name, {})
    return {
        "scores": scores,
        "online": online,
        "seconds": times(RUNS, known),
        "settings": {k: v for k, v in vars(scale).items() if k != "extra"} | {"seen": SEEN, "unseen": UNSEEN},
        **environment("scienceworld"),
    }


def finished(seed: int) -> bool:
    """Return whether the results have all evaluations of a seed, from this machine or another."""
    scores = read_results(FILE).get("scores", {})
    runs = [scores.get(f"{kind}{stage}", {}).get(str(seed), []) for kind in ("", "flat_") for stage in STAGES]
    return all(len(evaluations) == len(EVALUATION_SEEDS) for evaluations in runs)


def means(results: dict[str, Any], name: str, tasks: list[str]) -> list[float]:
    """Return the mean score over tasks for each evaluation of each seed."""
    runs = [run for runs in results["scores"].get(name, {}).values() for run in runs]
    scores = [[run[task]["score"] for task in tasks if run[task]["score"] is not None] for run in runs]
    return [statistics.mean(values) for values in scores if values]


def report(results: dict[str, Any], console: Console) -> None:
    """Print the table, and write both plots."""
    table = Table(title="score (0..100): mean and standard deviation over seeds and evaluations")
    for column in ("", "seen tasks", "unseen task", "evaluations"):
        table.add_column(column, justify="left" if not column else "right")
    for name in (f"{kind}{stage}" for kind in ("", "flat_") for stage in STAGES):
        seen, unseen = means(results, name, SEEN), means(results, name, UNSEEN)
        if seen:
            table.add_row(name, spread(seen), spread(unseen), str(len(seen)))
    console.print(table)
    plot_stages(results)
    plot_online(results)


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
    save_figure(figure, "glider_stages.png")


def plot_online(results: dict[str, Any]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.5))
    axes = figure.subplots()
    for name, label in (("online", "hierarchical"), ("flat_online", "flat (AWAC)")):
        curves = list(results["online"].get(name, {}).values())
        if not curves:
            continue
        plot_curves(axes, curves, f"{label}, {len(curves)} seeds")
    axes.set(xlabel="environment steps", ylabel="score of the episodes played", title="online, unseen task")
    axes.legend(frameon=False)
    save_figure(figure, "glider_online.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="training seeds (default: 0 1)")
    parser.add_argument("--report", action="store_true", help="only report what there is")
    parser.add_argument("extra", nargs="*", help="more arguments for every lit-rft command (after --)")
    options = parser.parse_args()
    console, scale = Console(), Scale(extra=tuple(options.extra))
    for seed in options.seeds if not options.report else []:
        for step in steps(seed, scale) if not finished(seed) else ():
            run(step, RUNS, console)
            write_json(FILE, collect_results(scale))
    report(read_results(FILE), console)


if __name__ == "__main__":
    main()
