"""The counting-legs experiment of `benchmarks/luffy_arithmetic.py`: seeds of LUFFY, SFT and GRPO as time allows.

    python benchmarks/gpu/learn.py --output runs/gpu
    python benchmarks/gpu/learn.py --output runs/gpu --demonstrations 16       # of 1,600 training problems
    python benchmarks/gpu/learn.py --write-problems benchmarks/gpu/carry/problems      # needs reasoning-gym

SmolLM2-135M-Instruct, the same settings, 100 optimiser steps of 16 prompts; held-out problems are answered every 20
steps and at the end. With few demonstrations, a quarter of each batch has one (SFT: all), and held-out problems with
three kinds of animals, where training has two, are answered as well; one method is SFT for a third of the steps, then
GRPO.

Runs share one GPU, each in its own process. Problems are read from files, so reasoning-gym is not needed. Runs that are
unfinished at the time limit count with their last validation; every 15 seconds the figures so far are written, under
`running`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kit import DEVICE, Kit, begin, environment  # first: it adds the shared modules to the path

from experiment import curve, read_results, write_json_lines  # isort: skip
from luffy_arithmetic import HELD_OUT, METHODS, PROMPTS, TASKS
from luffy_plan import SFT_ONLY
from made_up import make_model

LEGS, SEEDS = TASKS["legs"], (0, 1, 2)
COMPARED = ("LUFFY", "GRPO", "SFT")  # SFT, which samples nothing, fits into the remaining time
COMPARED_ON_FEW = ("LUFFY", "SFT, then GRPO", "SFT")
SHARE, EARLY = 0.25, 33  # few demonstrations: share of prompts with one in each batch, and steps of SFT before GRPO
PLACES, MICRO_BATCH_TOKENS, WRITE_EVERY = 4, 16384, 15.0  # processes only alternate on one GPU: few of them
CARRIED = Path(__file__).parent / "carry" / "problems"
VALIDATED = "val/{}/average"


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

    from lit_rft.problems import generate_problems, generate_training_problems, write_problems

    ranges = [part.split(": ") for part in LEGS.settings.strip("{}").split(", ")]
    settings = {name: ast.literal_eval(value) for name, value in ranges}
    held_out = generate_problems(LEGS.problems, number or HELD_OUT, seed=1_000_003, **settings)
    for seed in seeds:
        total = number or LEGS.steps * PROMPTS
        problems = generate_training_problems(LEGS.problems, total, held_out, seed=seed, **settings)
        write_problems(folder / f"train-{seed}.jsonl", problems)
    for name, animals in (("held-out", 2), ("longer", 3)):
        settings |= {"min_animals": animals, "max_animals": animals}
        problems = generate_problems(LEGS.problems, number or HELD_OUT, seed=1_000_003, **settings)
        write_problems(folder / f"{name}.jsonl", [replace(problem, source=name) for problem in problems])


def write_few(problems: Path, seed: int, demonstrations: int, folder: Path) -> Path:
    """Write the training problems of a seed, of which only the first ones have their traces."""
    rows = [json.loads(line) for line in (problems / f"train-{seed}.jsonl").read_text().splitlines()]
    for row in rows[demonstrations:]:
        row["traces"] = []
    return write_json_lines(folder / f"train-{seed}.jsonl", rows)


@dataclass(frozen=True)
class Work:
    """Settings that all runs of this step share.

    Args:
        folder: of the runs.
        problems: folder of the training problems and the held-out ones.
        demonstrations: number of training problems with a trace; None for all.
        tiny_model: in place of SmolLM2, for a trial.
    """

    folder: Path
    problems: Path
    demonstrations: int | None
    tiny_model: Path | None


def keys(method: str, seed: int, folder: Path, work: Work) -> dict[str, Any]:
    """Return the differences from `luffy/arithmetic.yaml`."""
    data, few = "data.init_args", work.demonstrations is not None
    arguments = {
        name: value for name, value in LEGS.keys().items() if "_tasks" not in name and "task_settings" not in name
    }
    arguments |= {f"model.init_args.{name}": value for name, value in METHODS[method].items()}
    arguments |= {"seed_everything": seed, "model.init_args.seed": seed, f"{data}.seed": seed}
    held_out = [work.problems / f"{name}.jsonl" for name in (("held-out", "longer") if few else ("held-out",))]
    train = work.problems / f"train-{seed}.jsonl"
    if work.demonstrations is not None:
        train = write_few(work.problems, seed, work.demonstrations, folder)
        if method != "GRPO":
            arguments[f"{data}.trace_share"] = dict(SFT_ONLY)[f"{data}.trace_share"] if method == "SFT" else SHARE
    arguments |= {
        "trainer.default_root_dir": folder, "trainer.limit_val_batches": 1.0,
        "model.init_args.answering.max_concurrent": HELD_OUT,
        "model.init_args.answering.sampling.max_new_tokens": LEGS.new_tokens * 3 // 2,
        "model.init_args.batching.micro_batch_tokens": MICRO_BATCH_TOKENS,
        f"{data}.train_tasks": "null", f"{data}.eval_tasks": "null",
        f"{data}.eval_batch_size": len(held_out) * HELD_OUT,
        f"{data}.train_files": f"[{train}]", f"{data}.eval_files": f"[{','.join(map(str, held_out))}]",
    }  # fmt: skip
    if work.tiny_model is not None:
        arguments |= {
            "model.init_args.policy.model": work.tiny_model, "trainer.max_steps": 1, "trainer.val_check_interval": 1,
            f"{data}.batch_size": 4, "model.init_args.sampling.max_new_tokens": 4,
            "model.init_args.answering.sampling.max_new_tokens": 4,
        }  # fmt: skip
    return arguments


def start(method: str, seed: int, work: Work) -> Run:
    """Start a process that trains one method, in stages if its name has two, and tests the last one."""
    home = work.folder / f"{method.replace(', ', '-').replace(' ', '-')}-{seed}"
    home.mkdir(parents=True)
    stages = [keys(method, seed, home, work)] if ", then " not in method else two_stages(method, seed, home, work)
    with (home / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, __file__, "--run", *(json.dumps(stage, default=str) for stage in stages)], stdout=log,
            stderr=log, env=os.environ | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip
    return Run(method, seed, home, process, time.monotonic())


def two_stages(method: str, seed: int, home: Path, work: Work) -> list[dict[str, Any]]:
    """Return the settings of a method that another one starts from; together they take the steps of one."""
    earlier, later = method.split(", then ")
    first, second = keys(earlier, seed, home / "first", work), keys(later, seed, home, work)
    steps = "trainer.max_steps"
    if work.tiny_model is None:
        second[steps] -= EARLY
        first |= {steps: EARLY, "trainer.val_check_interval": EARLY}
    return [first, second | {"model.init_args.policy.start_from": home / "first" / "checkpoints" / "last.ckpt"}]


def run_one(stages: Sequence[Mapping[str, Any]]) -> None:
    """Train each stage, then test the last one, in this process."""
    from lit_rft.cli import main as lit_rft

    for stage in stages:
        arguments = ["-c", "luffy/arithmetic.yaml", *(f"--{name}={value}" for name, value in stage.items())]
        lit_rft(["fit", *arguments])
    lit_rft(["test", *arguments, f"--ckpt_path={stage['trainer.default_root_dir']}/checkpoints/last.ckpt"])


def figures(run: Run) -> dict[str, Any]:
    """Return a run's final scores, or its last validation."""
    logs, scores = run.folder / "tensorboard", read_results(run.folder / "scores.json")
    validated, longer = (curve(logs, VALIDATED.format(name)) for name in ("held-out", "longer"))
    summary: dict[str, Any] = {
        "seed": run.seed, "seconds": round(time.monotonic() - run.started, 1), "held_out_curve": validated,
        "longer_curve": longer,
        "first_curve": curve(run.folder / "first" / "tensorboard", VALIDATED.format("held-out")),
        "reward_curve": curve(logs, "train/reward"), "finished": bool(scores),
    }  # fmt: skip
    summary = {name: value for name, value in summary.items() if value != []}
    if scores:
        row = scores["held-out"]
        summary |= {name: row[name] for name in ("average", "pass", "low", "high") if name in row}
        row = scores.get("longer", {})
        summary |= {f"longer_{name}": row[name] for name in ("average", "low", "high") if name in row}
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


def side_by_side(kit: Kit, work: Work, waiting: list[tuple[str, int]], places: int) -> None:
    """Start runs whenever there is a free process, until all have ended or time is up."""
    running: list[Run] = []
    written = time.monotonic()
    while waiting or running:
        while waiting and len(running) < places and kit.seconds_left() > 20:
            running.append(start(*waiting.pop(0), work))
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
        run_one([json.loads(stage) for stage in sys.argv[2:]])
        return
    kit, options = begin(
        "learn", __doc__,
        lambda parser: parser.add_argument("--write-problems", type=Path, help="write the problems here, and end"),
        lambda parser: parser.add_argument("--side-by-side", type=int, help="runs at the same time"),
        lambda parser: parser.add_argument("--demonstrations", type=int, help="training problems with a trace"),
    )  # fmt: skip
    if options.write_problems:
        write_problems(options.write_problems)
        return
    cores = os.cpu_count() or 2
    places = options.side_by_side or (min(PLACES, max(1, cores // 2)) if DEVICE.type == "cuda" else 1)
    settings = {"steps": LEGS.steps, "prompts": PROMPTS, "held_out": HELD_OUT, "side_by_side": places}
    kit.figures |= environment() | {"settings": settings | {"demonstrations": options.demonstrations}}
    kit.write()
    with tempfile.TemporaryDirectory() as name:
        folder, problems, tiny_model = Path(name), CARRIED, None
        compared = COMPARED if options.demonstrations is None else COMPARED_ON_FEW
        waiting = [(method, seed) for seed in SEEDS for method in compared]
        if kit.tiny:
            waiting, tiny_model = [(method, 0) for method in compared[:2]], make_model("tiny", folder)
        if kit.tiny and not problems.is_dir():
            problems = folder / "problems"
            write_problems(problems, (0,), 4)
        elif not problems.is_dir():
            raise SystemExit(f"there are no problems in {problems}: run benchmarks/gpu/prepare.sh first")
        elif not kit.tiny:  # unpack the model once, not in each process
            from lit_rft.models.backbone import resolve_model

            resolve_model("smollm2-135m-instruct")
        side_by_side(kit, Work(folder, problems, options.demonstrations, tiny_model), waiting, places)
    kit.finish()


if __name__ == "__main__":
    main()
