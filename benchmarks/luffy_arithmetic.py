"""LUFFY and what it is compared with, on sums that the untrained model nearly always gets wrong: hours on two cores.

    python benchmarks/luffy_arithmetic.py                   # all seeds; resumes where it was stopped
    python benchmarks/luffy_arithmetic.py --seeds 0         # one of them
    python benchmarks/luffy_arithmetic.py --report          # only the table and the plot

Sums of three numbers of two digits, out of reasoning-gym, with built traces. Every method sees the same prompts in the
same order for the same number of optimiser steps: GRPO, LUFFY, LUFFY without policy shaping, and supervised fine-tuning
on the traces. Held-out problems are answered during training and, more of them, at its end.

Everything runs through `lit-rft`, one command a step; what is done is not done again. Commands, logs and runs are under
`runs/luffy_arithmetic`, figures in `benchmarks/results/luffy_arithmetic.json`, the plot in `docs/images`.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator
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
    times,
)
from rich.console import Console
from rich.table import Table

from lit_rft._files import write_json

RUNS = ROOT / "runs" / "luffy_arithmetic"
FILE = RESULTS / "luffy_arithmetic.json"
STEPS, PROMPTS, HELD_OUT = 60, 8, 200
METHODS: dict[str, dict[str, Any]] = {  # what each differs in from `luffy/arithmetic.yaml`
    "GRPO": {"objective.traces_per_group": 0},
    "LUFFY": {},
    "LUFFY without shaping": {"objective.policy_shaping": "null"},
    "SFT": {"objective.sft_steps": STEPS},
}
SETTINGS = {
    "trainer.max_steps": STEPS,
    "trainer.val_check_interval": 15,
    "trainer.limit_val_batches": 2,
    "model.init_args.optimizer.learning_rate": 5e-4,
    "model.init_args.optimizer.warmup_steps": 5,
    "model.init_args.sampling.max_new_tokens": 40,
    "model.init_args.answering.sampling.max_new_tokens": 40,
    "data.init_args.train_tasks": f"{{chain_sum: {STEPS * PROMPTS}}}",
    "data.init_args.eval_tasks": f"{{chain_sum: {HELD_OUT}}}",
    "data.init_args.task_settings": "{chain_sum: {min_terms: 3, max_terms: 3, min_digits: 2, max_digits: 2}}",
    "data.init_args.batch_size": PROMPTS,
    "data.init_args.eval_batch_size": 50,
}


def home(method: str, seed: int) -> Path:
    return RUNS / f"{method.replace(' ', '_')}-{seed}"


def steps(method: str, seed: int, extra: list[str]) -> Iterator[Step]:
    """What one method and seed take, in order."""
    folder, test = home(method, seed), home(method, seed) / "test"
    own = {f"model.init_args.{key}": value for key, value in METHODS[method].items()}
    # a seed has problems, adapters and samples of its own
    seeds = {"seed_everything": seed, "model.init_args.seed": seed, "data.init_args.seed": seed}
    fixed = {**SETTINGS, **own, **seeds}
    fit = lit_rft("fit", ["luffy/arithmetic.yaml"], {"trainer.default_root_dir": folder, **fixed}, extra)
    if (folder / "checkpoints" / "last.ckpt").exists():  # stopped in the middle
        fit += ["--ckpt_path", "last"]
    yield Step(f"{method}: seed {seed}: fit", fit, folder / "adapter" / "adapter_config.json")
    keys = {"trainer.default_root_dir": test, "ckpt_path": folder / "checkpoints" / "last.ckpt", **fixed}
    yield Step(
        f"{method}: seed {seed}: test", lit_rft("test", ["luffy/arithmetic.yaml"], keys, extra), test / "scores.json"
    )


def untrained(extra: list[str]) -> Step:
    keys = {"trainer.default_root_dir": RUNS / "untrained", **SETTINGS}
    return Step(
        "untrained: test", lit_rft("test", ["luffy/arithmetic.yaml"], keys, extra), RUNS / "untrained/scores.json"
    )


def collect_results() -> dict[str, Any]:
    """Everything measured so far: held-out scores at the end, and curves."""
    known = read_results(FILE)
    scores, curves = known.get("scores", {}), known.get("curves", {})
    for method in ("untrained", *METHODS):
        for seed in range(10):
            folder = home(method, seed) / "test" if method != "untrained" else RUNS / "untrained"
            found = read_results(folder / "scores.json")
            if found:
                scores.setdefault(method, {})[str(seed)] = found["mean"] | found["chain_sum"]
            for tag in ("val/average", "train/reward", "train/no_signal_fraction", "train/trace_prob_mean"):
                points = curve(folder.parent / "tensorboard", tag) if method != "untrained" else []
                if points:
                    curves.setdefault(method, {}).setdefault(tag, {})[str(seed)] = points
            if method == "untrained":
                break
    settings = {"steps": STEPS, "prompts": PROMPTS, "held_out": HELD_OUT, **SETTINGS}
    return {
        "scores": scores, "curves": curves, "seconds": times(RUNS, known), "settings": settings,
        **environment("reasoning-gym", "math-verify"),
    }  # fmt: skip


def report(results: dict[str, Any], console: Console) -> None:
    """The table, and the plot."""
    table = Table(title=f"held-out accuracy after {STEPS} steps of {PROMPTS} prompts")
    for column in ("", "seeds", "accuracy", "by seed", "95% intervals", "groups without signal"):
        table.add_column(column, justify="left" if not column else "right")
    for method in ("untrained", *METHODS):
        rows = list(results["scores"].get(method, {}).values())
        if not rows:
            continue
        values = [100 * row["average"] for row in rows]
        deviation = statistics.stdev(values) if len(values) > 1 else 0.0
        intervals = "; ".join(f"{100 * row['low']:.1f}..{100 * row['high']:.1f}" for row in rows)
        silent = results["curves"].get(method, {}).get("train/no_signal_fraction", {}).values()
        means = [statistics.mean(value for _, value in points) for points in silent]
        table.add_row(
            method, str(len(rows)), f"{statistics.mean(values):.1f} ± {deviation:.1f}",
            ", ".join(f"{value:.1f}" for value in values), intervals,
            f"{100 * statistics.mean(means):.0f}%" if means else "-",
        )  # fmt: skip
    console.print(table)
    plot(results)


def plot(results: dict[str, Any]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.4))
    left, right = figure.subplots(1, 2)
    for axes, tag, title in ((left, "val/average", "held-out accuracy"), (right, "train/reward", "reward of rollouts")):
        for method in METHODS:
            found = list(results["curves"].get(method, {}).get(tag, {}).values())
            if found:
                plot_curves(axes, found, method)
        axes.set(xlabel="optimiser steps", title=title, ylim=(0, 1))
    left.legend(frameon=False, fontsize=8)
    save_figure(figure, "luffy_arithmetic.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="training seeds (default: 0 1 2)")
    parser.add_argument("--report", action="store_true", help="only report what there is")
    parser.add_argument("extra", nargs="*", help="more arguments for every lit-rft command (after --)")
    options = parser.parse_args()
    console = Console()
    todo = [untrained(options.extra)]
    for seed in options.seeds if not options.report else []:
        for method in METHODS:
            if str(seed) not in read_results(FILE).get("scores", {}).get(method, {}):
                todo += steps(method, seed, options.extra)
    for step in todo if not options.report else []:
        run(step, RUNS, console)
        write_json(FILE, collect_results())
    report(read_results(FILE), console)


if __name__ == "__main__":
    main()
