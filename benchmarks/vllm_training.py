"""LUFFY with vLLM's samples, by adapters or by merged weights, and with the library's own: rewards and seconds.

    make .venv-vllm/.ready
    .venv-vllm/bin/python benchmarks/vllm_training.py             # resumes after the last complete run
    .venv-vllm/bin/python benchmarks/vllm_training.py --report    # only the table

20 steps of `luffy/arithmetic.yaml` (SmolLM2-135M-Instruct with LoRA, sums of two numbers) for each engine and seed,
8 prompts with a trace and three completions each; with vLLM the overlay `luffy/vllm_in_process.yaml`, whose importance
weights the other side has as well. All engines see the same prompts in the same order. Intervals: Student's over seeds,
and a bootstrap over the steps (24 completions each) of all seeds. Runs are in `runs/vllm_training`, figures in
`benchmarks/results/vllm_training.json`.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiment import RESULTS, ROOT, Step, bootstrap, curve, environment, interval, lit_rft, read_results, run
from rich.console import Console
from rich.table import Table

from lit_rft._files import write_json
from lit_rft.records import read_rollouts

RUNS, FILE = ROOT / "runs" / "vllm_training", RESULTS / "vllm_training.json"
OVERLAY = ["luffy/vllm_in_process.yaml"]
MERGED = {"model.init_args.answering.server.init_args.weights": "merged"}
ENGINES: dict[str, tuple[list[str], dict[str, str]]] = {  # overlays and keys
    "own": ([], {}),
    "vLLM": (OVERLAY, {}),
    "vLLM, merged": (OVERLAY, MERGED),
}
STEPS, SEEDS = 20, (0, 1, 2)
KEYS = {
    "trainer.max_steps": STEPS,
    "trainer.limit_val_batches": 0,
    "trainer.log_every_n_steps": 1,
    "trainer.precision": "bf16-mixed",
    "trainer.accelerator": "cpu",
    "model.init_args.objective.group_size": 4,
    "model.init_args.sampling.max_new_tokens": 48,
    "model.init_args.loss.class_path": "lit_rft.rollouts.MixedPolicyLoss",
    "model.init_args.loss.init_args.importance_cap": 2.0,
    "data.init_args.train_tasks": f"{{chain_sum: {8 * STEPS}}}",
    "data.init_args.task_settings": "{chain_sum: {min_terms: 2, max_terms: 2, min_digits: 1, max_digits: 2}}",
}


def step(engine: str, seed: int, runs: Path) -> Step:
    """Return the command of one run."""
    folder = runs / f"{engine.replace(', ', '_')}-{seed}"
    overlays, more = ENGINES[engine]
    seeds = {"seed_everything": seed, "model.init_args.seed": seed, "data.init_args.seed": seed}
    keys = {"trainer.default_root_dir": folder, **KEYS, **seeds, **more}
    command = lit_rft("fit", ["luffy/arithmetic.yaml", *overlays], keys)
    if (folder / "checkpoints" / "last.ckpt").exists():  # interrupted
        command += ["--ckpt_path", "last"]
    return Step(f"{engine}: seed {seed}", command, folder / "fit.done")


def figures(folder: Path) -> dict[str, Any]:
    """Return a run's mean reward, seconds per step, and mean importance weight and difference of the sampled tokens."""
    logs = folder / "tensorboard"
    rewards = [value for _, value in curve(logs, "train/reward")]
    seconds = {name: [value for _, value in curve(logs, f"perf/{name}_seconds")] for name in ("rollout", "update")}
    differences = [
        now - sampled
        for group in read_rollouts(folder)
        for rollout in group.rollouts
        for part in rollout.conversations
        if not rollout.trace
        for now, sampled in zip(part.old_log_probs or part.log_probs, part.sampled_log_probs, strict=True)
    ]
    return {
        "steps": len(rewards),
        "reward": statistics.mean(rewards),
        "last_five": statistics.mean(rewards[-5:]),
        "rewards": rewards,
        **{f"{name}_seconds": statistics.median(values) for name, values in seconds.items() if values},
        "tokens": len(differences),
        "weight": statistics.mean(math.exp(difference) for difference in differences),
        "difference": statistics.mean(abs(difference) for difference in differences),
    }


def compare(rows: dict[str, Any], engine: str) -> dict[str, str]:
    """Return an engine's mean reward over its seeds, and its difference from the own engine's, step by step."""
    of_seed = {name.rpartition("-")[2]: row for name, row in rows.items() if name.rpartition("-")[0] == engine}
    steps = [reward for row in of_seed.values() for reward in row["rewards"]]
    differences = [
        theirs - ours
        for seed, row in of_seed.items()
        for theirs, ours in zip(row["rewards"], rows.get(f"own-{seed}", {}).get("rewards", []), strict=False)
    ]
    mean = interval([row["reward"] for row in of_seed.values()])
    columns = {"engine": engine, "seeds": str(len(of_seed)), "over seeds": mean, "over steps": shown(steps)}
    return columns | {"minus own": shown(differences) if differences and engine != "own" else ""}


def shown(values: Sequence[float]) -> str:
    """Return the mean, and its interval by the bootstrap."""
    return "{:.3f} ({:.3f} to {:.3f})".format(*bootstrap(values))


def report(results: dict[str, Any], console: Console) -> None:
    columns = ("steps", "reward", "last_five", "rollout_seconds", "update_seconds", "tokens", "weight", "difference")
    rows = results.get("runs", {})
    table = Table(title="LUFFY")
    for column in ("engine", "seed", *columns):
        table.add_column(column.replace("_", " "), justify="right")
    for name, row in rows.items():
        table.add_row(*name.rsplit("-", 1), *(f"{row[column]:.4g}" if column in row else "" for column in columns))
    console.print(table)
    engines = [compare(rows, engine) for engine in ENGINES if any(name.startswith(f"{engine}-") for name in rows)]
    summary = Table("engine", "seeds", "over seeds", "over steps", "minus own", title="Mean reward, 95% intervals")
    for engine in engines:
        summary.add_row(*engine.values())
    console.print(summary)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--engines", nargs="+", choices=list(ENGINES), default=list(ENGINES))
    parser.add_argument("--runs", type=Path, default=RUNS)
    parser.add_argument("--report", action="store_true", help="only report what there is")
    options = parser.parse_args(arguments)
    console = Console()
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GB
    for seed in options.seeds if not options.report else ():
        for engine in options.engines:
            command = step(engine, seed, options.runs)
            run(command, options.runs, console)
            known = read_results(FILE).get("runs", {})
            row = {f"{engine}-{seed}": figures(command.result.parent)}
            write_json(FILE, {"runs": {**known, **row}, "settings": KEYS, **environment()})
    report(read_results(FILE), console)


if __name__ == "__main__":
    main()
