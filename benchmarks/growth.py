"""Growth of time and memory with sequence length, group size, number of episodes and trainable parameters.

    python benchmarks/growth.py
    python benchmarks/growth.py --cases length      # repeat one case; the others stay in the file

- length: a training step of supervised fine-tuning on one transcript of this many tokens (LoRA r 16).
- group: a GRPO step on one word problem with this many completions of 64 tokens, rollout included.
- episodes: reading this many stored ScienceWorld episodes, making their transcripts and the first batch.
- rank: a training step on 1024 tokens with LoRA of this rank; 0 trains all weights.

Also the time from the start of `lit-rft fit -c luffy/arithmetic.yaml` to its first training step, with a warm cache.
SmolLM2-135M-Instruct, bf16. Each run has its own process; medians, of the second of two training steps, and of the
first reading of episodes. Writes `benchmarks/results/growth.json` and `docs/images/growth.png`.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from experiment import lit_rft, save_figure
from peers import RESULTS, in_process, machine, medians, peak_memory, say, show, versions, write
from rich.console import Console
from timed import Clock, quiet_trainer

MODEL = "smollm2-135m-instruct"
POINTS = {
    "length": (256, 512, 1024, 2048, 4096, 8192),
    "group": (4, 8, 16, 32, 64),
    "episodes": (125, 250, 500, 1000, 2000, 4000),
    "rank": (4, 16, 64, 256, 0),
}
UNITS = {
    "length": "tokens of a transcript",
    "group": "completions of a prompt",
    "episodes": "episodes read",
    "rank": "trainable parameters",
}
MEMORY = {"episodes": "added_gb"}  # memory added by reading, small next to the process; `peak_gb` for other cases


def transcript(length: int, randoms: Any) -> Any:
    """Make a conversation of this length, with an action of 12 tokens after every 90."""
    from lit_rft.transcripts import Transcript

    made = Transcript("flat", 2)
    for turn in range(length // 102):
        more = length % 102 if turn == 0 else 0
        made.append_prompt([randoms.randrange(20, 40000) for _ in range(90 + more)])
        made.append_utterance([*(randoms.randrange(20, 40000) for _ in range(11)), 2])
    return made


def training_step(length: int, rank: int = 16) -> dict[str, float]:
    import random

    from lit_rft.agents import FlatAgent
    from lit_rft.datamodules import StepLoader
    from lit_rft.models import LoraSettings
    from lit_rft.stages import BatchingSettings, HierarchicalSFT, OptimizerSettings, PolicySettings

    lora = LoraSettings(rank, 2 * rank, 0.0, "all-linear") if rank else None
    stage = HierarchicalSFT(
        PolicySettings(MODEL, lora), OptimizerSettings(1e-4), agent=FlatAgent(), batching=BatchingSettings(length)
    )
    episodes = [[transcript(length, random.Random(seed))] for seed in range(2)]
    seconds = fit(stage, StepLoader(episodes, batch_size=1))
    weights = sum(p.numel() for p in stage.parameters() if p.requires_grad)
    return {
        "seconds": seconds, "tokens_per_second": length / seconds, "peak_gb": peak_memory(), "trainable": weights
    }  # fmt: skip


def fit(stage: Any, loader: Any) -> float:
    """Run two steps and return the seconds of the second."""
    clock = Clock()
    quiet_trainer(clock, max_steps=2, max_epochs=-1).fit(stage, loader)
    return clock.seconds[1]


def grpo_step(size: int) -> dict[str, float]:
    from lit_rft.datamodules import MathPromptDataModule
    from lit_rft.generation import SamplingSettings
    from lit_rft.models import LoraSettings
    from lit_rft.stages import (
        BatchingSettings,
        MixedPolicyGRPO,
        ObjectiveSettings,
        OptimizerSettings,
        PolicySettings,
    )

    stage = MixedPolicyGRPO(
        PolicySettings(MODEL, LoraSettings(16, 32, 0.0, "all-linear")), OptimizerSettings(1e-5),
        ObjectiveSettings(size, 0), SamplingSettings(64, 1.0), lambda texts, rows: [len(text) % 7 for text in texts],
        batching=BatchingSettings(1200),
    )  # fmt: skip
    data = MathPromptDataModule(MODEL, train_tasks={"gsm_symbolic": 2}, batch_size=1)
    data.setup("fit")
    return {"seconds": fit(stage, data.train_dataloader()), "peak_gb": peak_memory()}


def read_episodes(number: int) -> dict[str, float]:
    from dataclasses import replace

    from lit_rft.datamodules import TrajectoryDataModule
    from lit_rft.envs.scienceworld import short_tasks
    from lit_rft.episodes import write_episodes

    few = TrajectoryDataModule(train_episodes_per_task=3, suite=short_tasks(), data_dir="data/scienceworld")
    few.setup("fit")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "episodes.jsonl"
        episodes = few.episodes
        write_episodes(
            file,
            (replace(episodes[n % len(episodes)], id=f"{episodes[n % len(episodes)].id}/{n}") for n in range(number)),
        )
        data = TrajectoryDataModule(train_files=[str(file)])
        before, started = peak_memory(), time.perf_counter()
        data.setup("fit")
        next(iter(data.train_dataloader()))
        seconds = time.perf_counter() - started
    return {"seconds": seconds, "peak_gb": peak_memory(), "added_gb": peak_memory() - before}


CASES: dict[str, Any] = {
    "length": training_step,
    "group": grpo_step,
    "episodes": read_episodes,
    "rank": lambda rank: training_step(1024, rank),
}


def start_up() -> float:
    """Measure the seconds from the start of the command line to the first training step."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with tempfile.TemporaryDirectory() as folder:
        keys = {
            "trainer.default_root_dir": folder,
            "trainer.max_steps": 1,
            "trainer.limit_val_batches": 0,
            "model.init_args.sampling.max_new_tokens": 8,
        }
        started = time.time()
        subprocess.run(lit_rft("fit", ["luffy/arithmetic.yaml"], keys), check=True, capture_output=True)
        events = EventAccumulator(f"{folder}/tensorboard")
        events.Reload()
        (step,) = events.Scalars("perf/step_seconds")
        return step.wall_time - step.value - started


def plot(points: dict[str, list[dict[str, float]]]) -> None:
    """Plot with both axes from 0: linear growth is a straight line."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 5))
    for column, (case, case_points) in enumerate(points.items()):
        x = [point["trainable" if case == "rank" else "value"] for point in case_points]
        for row, (key, label) in enumerate((("seconds", "seconds"), (MEMORY.get(case, "peak_gb"), "GB"))):
            axes = figure.add_subplot(2, len(points), row * len(points) + column + 1)
            axes.plot(x, [point[key] for point in case_points], "o-")
            unit = f"{UNITS[case]}{' (GB added)' if key == 'added_gb' else ''}"
            axes.set(xlim=(0, None), ylim=(0, None), xlabel=unit if row else "", ylabel="" if column else label)
    figure.tight_layout()
    save_figure(figure, "growth.png")


def exponent(points: list[dict[str, float]], key: str, by: str) -> float:
    """Return the exponent of the power law between the two largest points: 1 is linear."""
    (a, b) = sorted(points, key=lambda point: point[by])[-2:]
    return math.log(b[key] / a[key]) / math.log(b[by] / a[by])


def exponents(points: dict[str, list[dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Return the exponents of seconds and memory by case, without rank 0 (all weights), which is another code path."""
    by_case = {}
    for case, all_points in points.items():
        case_points = [point for point in all_points if point["value"]]
        by = "trainable" if case == "rank" else "value"
        by_case[case] = {
            "seconds": exponent(case_points, "seconds", by),
            "gb": exponent(case_points, MEMORY.get(case, "peak_gb"), by),
        }
    return by_case


def measure(case: str, value: int, rounds: int) -> dict[str, float]:
    """Return the median run of a point, each run in its own process."""
    runs = [in_process(__file__, "--case", case, "--value", str(value)) for _ in range(rounds)]
    return medians(runs) | {"lowest": min(r["seconds"] for r in runs), "highest": max(r["seconds"] for r in runs)}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--cases", nargs="+", choices=tuple(POINTS), default=tuple(POINTS))
    parser.add_argument("--case", choices=tuple(POINTS), help="one run of one point only")
    parser.add_argument("--value", type=int)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder")
    options = parser.parse_args()
    if options.case:
        say(value=options.value, **CASES[options.case](options.value))
        return
    settings = {"model": MODEL, "precision": "bf16", "lora_rank": 16, "target_modules": "all-linear", "units": UNITS,
                "rounds": options.rounds}  # fmt: skip
    result: dict[str, Any] = {"machine": machine(), "versions": versions("lightning"), "settings": settings}
    points: dict[str, list[dict[str, float]]] = {}
    if set(options.cases) < set(POINTS):
        points = json.loads((options.output / "growth.json").read_text())["points"]
    start_up()  # fills the cache
    result |= {"start_up_seconds": [start_up() for _ in range(options.rounds)], "points": points}
    Console().print(f"seconds to the first step: {result['start_up_seconds']}")
    for case in options.cases:
        points[case] = []
        for value in POINTS[case]:
            points[case].append(measure(case, value, options.rounds))
            print(case, points[case][-1], flush=True)
        show(case, {str(int(point["value"])): point for point in points[case]})
        write("growth", result, options.output)
    plot(points)
    result |= {"exponents": exponents(points)}
    write("growth", result, options.output)
    show("exponents between the two largest points", result["exponents"])


if __name__ == "__main__":
    main()
