"""The counting-legs experiment of `benchmarks/luffy_arithmetic.py`: seeds of LUFFY, SFT and GRPO as time allows.

    python benchmarks/gpu/learn.py --output runs/gpu
    python benchmarks/gpu/learn.py --write-problems benchmarks/gpu/carry/problems      # needs reasoning-gym

SmolLM2-135M-Instruct, the same settings, 100 optimiser steps of 16 prompts; held-out problems are answered every 20
steps and at the end. Runs share one GPU, each in its own process. Problems are read from files, so reasoning-gym is not
needed. Runs that are unfinished at the time limit count with their last validation; every 15 seconds the figures so far
are written, under `running`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kit import DEVICE, Kit, begin, environment  # first: it adds the shared modules to the path

from experiment import curve, read_results  # isort: skip
from luffy_arithmetic import HELD_OUT, METHODS, PROMPTS, TASKS
from made_up import make_model

LEGS, SEEDS = TASKS["legs"], (0, 1, 2)
COMPARED = ("LUFFY", "GRPO", "SFT")  # SFT, which samples nothing, fits into the remaining time
PLACES, MICRO_BATCH_TOKENS, WRITE_EVERY = 4, 16384, 15.0  # processes only alternate on one GPU: few of them
CARRIED = Path(__file__).parent / "carry" / "problems"
VALIDATED = "val/average"


@dataclass
class Run:
    """The process of a method and a seed."""

    method: str
    seed: int
    folder: Path
    process: Any
    started: float
    stopped: bool = False  # at the time limit


def write_problems(folder: Path, seeds: tuple[int, ...] = SEEDS, number: int | None = None) -> None:
    """Write the training problems of each seed, and the held-out ones, as JSON lines."""
    import ast

    from lit_rft.problems import generate_problems, write_problems

    ranges = [part.split(": ") for part in LEGS.settings.strip("{}").split(", ")]
    settings = {name: ast.literal_eval(value) for name, value in ranges}
    for seed in seeds:
        problems = generate_problems(LEGS.problems, number or LEGS.steps * PROMPTS, seed=seed, **settings)
        write_problems(folder / f"train-{seed}.jsonl", problems)
    held_out = generate_problems(LEGS.problems, number or HELD_OUT, seed=1_000_003, **settings)
    write_problems(folder / "held-out.jsonl", held_out)


def keys(method: str, seed: int, folder: Path, problems: Path, tiny_model: Path | None) -> dict[str, Any]:
    """Return the differences from `luffy/arithmetic.yaml`."""
    data = "data.init_args"
    arguments = {
        name: value for name, value in LEGS.keys().items() if "_tasks" not in name and "task_settings" not in name
    }
    arguments |= {f"model.init_args.{name}": value for name, value in METHODS[method].items()}
    arguments |= {"seed_everything": seed, "model.init_args.seed": seed, f"{data}.seed": seed}
    arguments |= {
        "trainer.default_root_dir": folder, "trainer.limit_val_batches": 1.0,
        "model.init_args.answering.max_concurrent": HELD_OUT,
        "model.init_args.batching.micro_batch_tokens": MICRO_BATCH_TOKENS,
        f"{data}.train_tasks": "null", f"{data}.eval_tasks": "null", f"{data}.eval_batch_size": HELD_OUT,
        f"{data}.train_files": f"[{problems / f'train-{seed}.jsonl'}]",
        f"{data}.eval_files": f"[{problems / 'held-out.jsonl'}]",
    }  # fmt: skip
    if tiny_model is not None:
        arguments |= {
            "model.init_args.policy.model": tiny_model, "trainer.max_steps": 1, "trainer.val_check_interval": 1,
            f"{data}.batch_size": 2, "model.init_args.sampling.max_new_tokens": 4,
            "model.init_args.answering.sampling.max_new_tokens": 4,
        }  # fmt: skip
    return arguments


def start(method: str, seed: int, folder: Path, problems: Path, tiny_model: Path | None) -> Run:
    home = folder / f"{method}-{seed}"
    home.mkdir(parents=True)
    arguments = [f"--{name}={value}" for name, value in keys(method, seed, home, problems, tiny_model).items()]
    with (home / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, __file__, "--run", *arguments], stdout=log, stderr=log,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip
    return Run(method, seed, home, process, time.monotonic())


def run_one(arguments: list[str]) -> None:
    """Train, then test, in this process."""
    from lit_rft.cli import main as lit_rft

    folder = next(a.split("=", 1)[1] for a in arguments if a.startswith("--trainer.default_root_dir="))
    lit_rft(["fit", "-c", "luffy/arithmetic.yaml", *arguments])
    last = f"--ckpt_path={folder}/checkpoints/last.ckpt"
    lit_rft(["test", "-c", "luffy/arithmetic.yaml", *arguments, last])


def figures(run: Run) -> dict[str, Any]:
    """Return a run's final scores, or its last validation."""
    logs = run.folder / "tensorboard"
    validated, scores = curve(logs, VALIDATED), read_results(run.folder / "scores.json")
    summary: dict[str, Any] = {
        "seed": run.seed, "seconds": round(time.monotonic() - run.started, 1), "held_out_curve": validated,
        "reward_curve": curve(logs, "train/reward"), "finished": bool(scores),
    }  # fmt: skip
    if scores:
        row = scores.get(LEGS.problems, {}) | scores["mean"]
        summary |= {name: row[name] for name in ("average", "pass", "low", "high") if name in row}
    elif validated:
        summary["average"] = validated[-1][1]
    elif run.process.poll() is not None:
        summary["failed"] = (run.folder / "log").read_text(errors="replace")[-2000:]
        summary["error"] = not run.stopped and run.process.returncode not in (0, -15)
    return summary


def write_running(kit: Kit, running: Sequence[Run]) -> None:
    """Write the figures of unfinished runs, to keep them if the step is interrupted."""
    kit.figures["running"] = {f"{run.method}, seed {run.seed}": figures(run) for run in running}
    kit.write()


def stop(running: Sequence[Run]) -> None:
    """Stop runs at the time limit, which is not a failure."""
    for run in running:
        if run.process.poll() is None:
            run.stopped = True
            run.process.kill()
            run.process.wait()


def side_by_side(
    kit: Kit, folder: Path, problems: Path, waiting: list[tuple[str, int]], places: int, tiny_model: Path | None
) -> None:
    """Start runs whenever there is a free process, until all have ended or time is up."""
    running: list[Run] = []
    written = time.monotonic()
    while waiting or running:
        while waiting and len(running) < places and kit.seconds_left() > 20:
            running.append(start(*waiting.pop(0), folder, problems, tiny_model))
        if kit.seconds_left() <= 8:
            stop(running)
        ended = [run for run in running if run.process.poll() is not None]
        for run in ended:
            running.remove(run)
            kit.measure(f"{run.method}, seed {run.seed}", lambda run=run: figures(run))
        if waiting and not running and kit.seconds_left() <= 20:
            kit.figures["not_started"] = waiting
            break
        if time.monotonic() - written > WRITE_EVERY:
            write_running(kit, running)
            written = time.monotonic()
        time.sleep(0.2)
    kit.figures.pop("running", None)
    kit.write()


def main() -> None:
    if "--run" in sys.argv:
        run_one(sys.argv[2:])
        return
    kit, options = begin(
        "learn", __doc__,
        lambda parser: parser.add_argument("--write-problems", type=Path, help="write the problems here, and end"),
        lambda parser: parser.add_argument("--side-by-side", type=int, help="runs at the same time"),
    )  # fmt: skip
    if options.write_problems:
        write_problems(options.write_problems)
        return
    cores = os.cpu_count() or 2
    places = options.side_by_side or (min(PLACES, max(1, cores // 2)) if DEVICE.type == "cuda" else 1)
    kit.figures |= environment() | {"settings": {"steps": LEGS.steps, "prompts": PROMPTS, "held_out": HELD_OUT,
                                                 "side_by_side": places}}  # fmt: skip
    kit.write()
    with tempfile.TemporaryDirectory() as name:
        folder, problems, tiny_model = Path(name), CARRIED, None
        waiting = [(method, seed) for seed in SEEDS for method in COMPARED]
        if kit.tiny:
            waiting, tiny_model = [("LUFFY", 0)], make_model("tiny", folder)
        if kit.tiny and not problems.is_dir():
            problems = folder / "problems"
            write_problems(problems, (0,), 4)
        elif not problems.is_dir():
            raise SystemExit(f"there are no problems in {problems}: run benchmarks/gpu/prepare.sh first")
        elif not kit.tiny:  # unpack the model once, not in each process
            from lit_rft.models.backbone import resolve_model

            resolve_model("smollm2-135m-instruct")
        side_by_side(kit, folder, problems, waiting, places, tiny_model)
    kit.finish()


if __name__ == "__main__":
    main()
