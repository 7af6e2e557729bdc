"""The complete workflow on a laptop: `python -m lit_rft.demo`, or `make demo`.

It collects expert episodes from the ScienceWorld simulator, tests the untrained model on held-out variations, runs
hierarchical SFT, and tests again. The same with the command line:

    lit-rft test -c glider/scienceworld/sft.yaml
    lit-rft fit  -c glider/scienceworld/sft.yaml
    lit-rft test -c glider/scienceworld/sft.yaml --ckpt_path last
"""

import argparse
import os
import platform
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lit_rft.cli import resolve_configs

_PACKAGES = ("lit-rft", "torch", "lightning", "transformers", "peft", "scienceworld")
_CONFIG = "glider/scienceworld/sft.yaml"


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the demo.

    Returns:
        The contents of `summary.json`.
    """
    description = (__doc__ or "").split("\n\n")[1]
    parser = argparse.ArgumentParser(prog="python -m lit_rft.demo", description=description, allow_abbrev=False)
    parser.add_argument("--folder", default="runs/demo", help="where everything goes (default: %(default)s)")
    options, overrides = parser.parse_known_args(arguments)
    folder = Path(options.folder)
    started = time.time()

    from rich.console import Console

    from lit_rft._files import write_json
    from lit_rft.callbacks.run_checkpoint import RunCheckpoint
    from lit_rft.command_line import build

    console = Console()
    console.rule("[bold]lit-rft: hierarchical SFT on ScienceWorld")
    console.print("Loading libraries, model and configuration ...")
    arguments = resolve_configs(["-c", _CONFIG])
    # tests come before and after
    fixed = ["--trainer.default_root_dir", str(folder), "--trainer.limit_val_batches", "0"]
    cli = build([*arguments, *fixed, *overrides], run=False)
    stage, data, trainer = cli.model, cli.datamodule, cli.trainer

    for callback in getattr(trainer, "callbacks", ()):
        if isinstance(callback, RunCheckpoint):
            if (folder / "episodes" / "before.jsonl").exists():  # from an earlier demo
                callback.remove_run(trainer)
            callback.check_folder(trainer, None)

    console.rule("1. expert episodes from the simulator")
    expert = data.collect()
    console.print(f"{len(expert)} expert episodes are in {data.expert_file}")
    console.rule("2. the untrained model plays held-out variations")
    before = _play(trainer, stage, data, folder / "episodes" / "before.jsonl")
    console.rule("3. hierarchical SFT")
    trainer.fit(stage, datamodule=data)
    console.rule("4. the trained model plays the same variations")
    after = _play(trainer, stage, data, folder / "episodes" / "after.jsonl")

    summary = _summary(before, after, len(expert), time.time() - started)
    write_json(folder / "summary.json", summary)
    _plot_learning_curve(folder / "tensorboard", folder / "learning_curve.png")
    _report(console, summary, folder)
    return summary


def _play(trainer: Any, stage: Any, data: Any, path: Path) -> dict[str, dict[str, float]]:
    """Test, and write the episodes."""
    from lit_rft.episodes.io import write_episodes

    trainer.test(stage, datamodule=data, verbose=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_episodes(path, [played.episode for played in stage.evaluator.results])
    scores: dict[str, dict[str, float]] = stage.evaluator.table
    return scores


def _summary(before: dict[str, Any], after: dict[str, Any], episodes: int, seconds: float) -> dict[str, Any]:
    def column(scores: dict[str, Any], name: str) -> dict[str, float]:
        return {task: round(row[name], 4) for task, row in scores.items()}

    return {
        "score_before": column(before, "score"),
        "score_after": column(after, "score"),
        "success_before": column(before, "success"),
        "success_after": column(after, "success"),
        "episodes": episodes,
        "seconds": round(seconds, 1),
        "versions": {name: version(name) for name in _PACKAGES} | {"python": platform.python_version()},
        "machine": {"system": platform.platform(), "processor": platform.machine(), "cores": os.cpu_count()},
    }


def _plot_learning_curve(logs: Path, picture: Path) -> None:
    """Plot the losses of the latest fit in a TensorBoard folder."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for file in sorted(logs.glob("events.*"), key=os.path.getmtime):
        accumulator = EventAccumulator(str(file))
        accumulator.Reload()
        if "train/loss" in accumulator.Tags()["scalars"]:
            events = accumulator
    figure, axes = plt.subplots(figsize=(6, 3.5))
    for tag, label in (("train/high/loss", "high level: subgoals"), ("train/low/loss", "low level: actions")):
        points = events.Scalars(tag)
        axes.plot([p.step for p in points], [p.value for p in points], label=label)
    axes.set(xlabel="optimiser step", ylabel="negative log-likelihood per token", yscale="log")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(picture, dpi=120, bbox_inches="tight")
    plt.close(figure)


def _report(console: Any, summary: dict[str, Any], folder: Path) -> None:
    from rich.table import Table

    table = Table(title="held-out variations, before and after")
    for name in ("task", "score before", "score after", "success before", "success after"):
        table.add_column(name, justify="left" if name == "task" else "right", no_wrap=name == "task")
    for task in summary["score_after"]:
        if task == "mean":
            table.add_section()
        scores = [f"{summary[key][task]:.1f}" for key in ("score_before", "score_after")]
        shares = [f"{summary[key][task]:.0%}" for key in ("success_before", "success_after")]
        table.add_row(task, *scores, *shares, style="bold" if task == "mean" else None)
    console.print(table)
    console.print(f"{summary['seconds'] / 60:.1f} minutes in total. Output:")
    for name, path in {
        "TensorBoard": f"tensorboard --logdir {folder / 'tensorboard'}",
        "learning curve": folder / "learning_curve.png",
        "PEFT adapter": folder / "adapter",
        "played episodes": folder / "episodes",
        "figures": folder / "summary.json",
    }.items():
        console.print(f"  {name:16} {path}")


if __name__ == "__main__":
    from lit_rft.error_messages import one_line_errors

    with one_line_errors():
        main()
    sys.exit(0)
