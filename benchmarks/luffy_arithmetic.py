"""LUFFY and its baselines on problems that the untrained model nearly always gets wrong: hours.

    python benchmarks/luffy_arithmetic.py                         # everything; resumes an interrupted run
    python benchmarks/luffy_arithmetic.py --seeds 0 --tasks legs  # a part of it
    python benchmarks/luffy_arithmetic.py --report                # only the tables and the plots

`legs`: the total number of legs of two kinds of animals (leg_counting of reasoning-gym), with built traces, whose
knowledge rollouts cannot find by chance. `gsm`: word problems (gsm_symbolic) with worked solutions, one seed. Every
method sees the same prompts in the same order for the same number of optimiser steps: GRPO, LUFFY, LUFFY without policy
shaping, and supervised fine-tuning on the traces. Held-out problems are answered during training, and more of them at
its end.

Advantages are relative to the on-policy completions of a group, and not divided by their standard deviation: while all
of them are wrong, theirs are 0 and that of the trace is 1. With statistics over the full group (the paper's) all wrong
completions are pushed away equally at each step; over batches as small as these that is noise, in which nothing was
learnt (docs/results_trials.md). No entropy bonus, except in the methods that are named after it.

Every step is a `lit-rft` command; completed ones are skipped. Commands, logs and runs are in `runs/luffy_arithmetic`,
figures in `benchmarks/results/luffy_arithmetic.json`, plots in `docs/images`.
"""

from __future__ import annotations

import argparse
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

RUNS = ROOT / "runs" / "luffy_arithmetic"
FILE = RESULTS / "luffy_arithmetic.json"
PROMPTS, GROUP, HELD_OUT = 16, 4, 200
METHODS: dict[str, dict[str, Any]] = {  # differences from LUFFY
    "GRPO": {"objective.traces_per_group": 0},
    "LUFFY": {},
    "LUFFY without shaping": {
        "loss.class_path": "lit_rft.rollouts.MixedPolicyLoss",
        "loss.init_args.policy_shaping": "null",
    },
    "LUFFY with SFT loss": {"objective.sft_coef": 0.1},
    "LUFFY again": {},  # later: no held-out problem is in the training problems any more
    "LUFFY with entropy bonus": {"objective.entropy_coef": 0.01},  # the paper's
    "LUFFY with entropy bonus of 0.001": {"objective.entropy_coef": 0.001},
    "RL with SFT loss": {"objective.traces_per_group": 0, "objective.sft_coef": 1.0},
    "SFT": {"objective.sft_steps": 10**6},
}


@dataclass(frozen=True)
class Task:
    """Problems of one kind, and the length of training on them.

    Args:
        problems: reasoning-gym's name.
        steps: number of optimiser steps.
        validate_every: steps between validations on half of the held-out problems, always the same ones.
        new_tokens: maximum tokens per completion.
        seeds: maximum number of seeds.
        settings: of the problems.
    """

    problems: str
    steps: int
    validate_every: int
    new_tokens: int
    seeds: int
    settings: str = "{}"

    def keys(self) -> dict[str, Any]:
        """Return the differences from `luffy/arithmetic.yaml`."""
        return {
            "trainer.max_steps": self.steps,
            "trainer.val_check_interval": self.validate_every,
            "trainer.limit_val_batches": 2,
            "model.init_args.optimizer.learning_rate": 2e-4,
            "model.init_args.optimizer.warmup_steps": 5,
            "model.init_args.objective.group_size": GROUP,
            "model.init_args.advantages.class_path": "lit_rft.rollouts.GroupAdvantages",
            "model.init_args.advantages.init_args.scale_by_std": False,
            "model.init_args.advantages.init_args.on_policy_statistics": True,
            "model.init_args.objective.entropy_coef": 0.0,
            "model.init_args.batching.micro_batch_tokens": 1200,
            "model.init_args.sampling.max_new_tokens": self.new_tokens,
            "model.init_args.answering.sampling.max_new_tokens": self.new_tokens,
            "data.init_args.train_tasks": f"{{{self.problems}: {self.steps * PROMPTS}}}",
            "data.init_args.eval_tasks": f"{{{self.problems}: {HELD_OUT}}}",
            "data.init_args.task_settings": f"{{{self.problems}: {self.settings}}}",
            "data.init_args.max_trace_length": 192,
            "data.init_args.batch_size": PROMPTS,
            "data.init_args.eval_batch_size": 50,
        }


TASKS = {
    "legs": Task(
        "leg_counting", 100, 20, 48, 3, "{min_animals: 2, max_animals: 2, min_instances: 1, max_instances: 4}"
    ),
    "gsm": Task("gsm_symbolic", 16, 8, 160, 1),
}


def home(task: str, method: str, seed: int) -> Path:
    return RUNS / task / f"{method.replace(' ', '_')}-{seed}"


def steps(task: str, method: str, seed: int, extra: list[str]) -> Iterator[Step]:
    """Return the steps of one method and seed, in order."""
    folder = home(task, method, seed)
    method_keys = {f"model.init_args.{key}": value for key, value in METHODS.get(method, {}).items()}
    # each seed has its own problems, adapters and samples
    seeds = {"seed_everything": seed, "model.init_args.seed": seed, "data.init_args.seed": seed}
    fixed, name = {**TASKS[task].keys(), **method_keys, **seeds}, f"{task}: {method}: seed {seed}"
    keys = {"trainer.default_root_dir": folder / "test", **fixed}
    if method != "untrained":
        fit = lit_rft("fit", ["luffy/arithmetic.yaml"], {"trainer.default_root_dir": folder, **fixed}, extra)
        if (folder / "checkpoints" / "last.ckpt").exists():  # interrupted
            fit += ["--ckpt_path", "last"]
        yield Step(f"{name}: fit", fit, folder / "summary_fit.json")
        keys["ckpt_path"] = folder / "checkpoints" / "last.ckpt"
    test = lit_rft("test", ["luffy/arithmetic.yaml"], keys, extra)
    yield Step(f"{name}: test", test, folder / "test" / "scores.json")


def collect_results() -> dict[str, Any]:
    """Collect all measurements so far: held-out scores at the end, and curves."""
    known = read_results(FILE)
    tasks: dict[str, Any] = known.get("tasks", {})
    for task, settings in TASKS.items():
        task_results = tasks.setdefault(task, {"scores": {}, "curves": {}})
        task_results["settings"] = settings.keys()
        for method in ("untrained", *METHODS):
            for seed in range(settings.seeds):
                folder = home(task, method, seed)
                scores = read_results(folder / "test" / "scores.json")
                if scores:
                    row = scores["mean"] | scores[settings.problems]
                    task_results["scores"].setdefault(method, {})[str(seed)] = row
                for tag in ("val/average", "train/reward", "train/no_signal_fraction", "train/trace_prob_mean"):
                    points = curve(folder / "tensorboard", tag)
                    if points:
                        task_results["curves"].setdefault(method, {}).setdefault(tag, {})[str(seed)] = points
    more = environment("reasoning-gym", "math-verify")
    return {
        "tasks": tasks,
        "seconds": times(RUNS, known),
        "prompts": PROMPTS,
        "group_size": GROUP,
        "held_out": HELD_OUT,
        **more,
    }


def report(results: dict[str, Any], console: Console) -> None:
    """Print the tables, and write the plots."""
    for task, task_results in results.get("tasks", {}).items():
        if not task_results["scores"]:
            continue
        table = Table(title=f"{task}: held-out accuracy after {TASKS[task].steps} steps of {PROMPTS} prompts")
        for column in ("", "seeds", "accuracy", "by seed", "95% intervals", "groups without signal"):
            table.add_column(column, justify="left" if not column else "right")
        for method in ("untrained", *METHODS):
            rows = list(task_results["scores"].get(method, {}).values())
            if not rows:
                continue
            values = [100 * row["average"] for row in rows]
            intervals = "; ".join(f"{100 * row['low']:.1f}..{100 * row['high']:.1f}" for row in rows)
            silent = task_results["curves"].get(method, {}).get("train/no_signal_fraction", {}).values()
            means = [statistics.mean(value for _, value in points) for points in silent]
            table.add_row(
                method, str(len(rows)), spread(values), ", ".join(f"{value:.1f}" for value in values), intervals,
                f"{100 * statistics.mean(means):.0f}%" if means else "-",
            )  # fmt: skip
        console.print(table)
        plot(task, task_results["curves"])


def plot(task: str, curves: dict[str, Any]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.4))
    left, right = figure.subplots(1, 2)
    for axes, tag, title in ((left, "val/average", "held-out accuracy"), (right, "train/reward", "reward of rollouts")):
        for method in METHODS:
            seed_curves = list(curves.get(method, {}).get(tag, {}).values())
            if seed_curves:
                plot_curves(axes, seed_curves, f"{method}, {len(seed_curves)} seed{'s' * (len(seed_curves) > 1)}")
        axes.set(xlabel="optimiser steps", title=title, ylim=(0, 1))
    lines = left.get_legend_handles_labels()
    figure.legend(*lines, loc="upper center", bbox_to_anchor=(0.5, 0), ncols=3, frameon=False, fontsize=8)
    save_figure(figure, f"luffy_{task}.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="training seeds (default: 0 1 2)")
    parser.add_argument("--tasks", nargs="+", choices=sorted(TASKS), default=list(TASKS))
    parser.add_argument("--methods", nargs="+", choices=["untrained", *METHODS], default=["untrained", *METHODS])
    parser.add_argument("--report", action="store_true", help="only report what there is")
    parser.add_argument("extra", nargs="*", help="more arguments for every lit-rft command (after --)")
    options = parser.parse_args()
    console = Console()
    for task in options.tasks if not options.report else []:
        for seed in [seed for seed in options.seeds if seed < TASKS[task].seeds]:
            for method in [name for name in options.methods if seed == 0 or name != "untrained"]:
                known = read_results(FILE).get("tasks", {}).get(task, {}).get("scores", {})
                for step in steps(task, method, seed, options.extra) if str(seed) not in known.get(method, {}) else ():
                    run(step, RUNS, console)
                    write_json(FILE, collect_results())
    report(read_results(FILE), console)


if __name__ == "__main__":
    main()
