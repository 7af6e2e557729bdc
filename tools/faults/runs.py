"""Runs of `lit-rft` with a tiny model, one for each kind of training, and the comparison of two of them."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from forked import Child
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from faults.trial import Tally, expect
from lit_rft.episodes import write_episodes
from lit_rft.problems import Problem, write_problems
from lit_rft.testing import make_episode, save_tiny_model

KINDS = ("sft", "offline", "online", "prompts", "episodes")
STEPS = {"sft": 12, "offline": 10, "online": 12, "prompts": 8, "episodes": 8}
_CONFIG = {
    "sft": "glider/scienceworld/sft.yaml",
    "offline": "glider/scienceworld/offline_rl.yaml",
    "online": "glider/scienceworld/online.yaml",
    "prompts": "luffy/arithmetic.yaml",
    "episodes": "grpo/text_env.yaml",
}
_CORRIDOR = {"class_path": "lit_rft.testing.corridor.CorridorSuite"}
_GAME = {
    "class_path": "lit_rft.envs.GymSuite",
    "init_args": {"env": "lit_rft.envs.games.GuessNumber", "step_limit": 3, "seeds": {"train": 12, "dev": 3}},
}
_MEASURED = ("perf/", "time/", "seconds", "memory", "mfu")  # parts of the names of metrics that no two runs share
_PART_STATES = ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "parts")


def prepare(folder: Path) -> Path:
    """Write the model and the data of all runs."""
    if not (folder / "problems.jsonl").exists():
        folder.mkdir(parents=True, exist_ok=True)
        save_tiny_model(folder / "model")
        write_episodes(folder / "episodes.jsonl", [make_episode(seed, 1 + seed % 4) for seed in range(9)])
        write_problems(folder / "problems.jsonl",
                       [Problem(f"p{n}", ({"role": "user", "content": "Why? " * (1 + n % 3)},), "1", ("yes",))
                        for n in range(6)])  # fmt: skip
    return folder


def settings(kind: str, inputs: Path, folder: Path) -> dict[str, Any]:
    """Return the configuration of a run, as keys that override the shipped recipe's."""
    episodes = [str(inputs / "episodes.jsonl")]
    sampling = {"max_new_tokens": 5}
    trainer: dict[str, Any] = {
        "default_root_dir": str(folder), "accelerator": "cpu", "precision": "32-true", "max_epochs": -1,
        "max_steps": STEPS[kind], "check_val_every_n_epoch": None, "val_check_interval": 3, "limit_val_batches": 2,
        "enable_progress_bar": False,
        "callbacks+": [
            {"class_path": "lit_rft.callbacks.RunCheckpoint", "init_args": {"every_n_steps": 2}},
            {"class_path": "lit_rft.callbacks.RolloutFiles", "init_args": {"share": 1.0}},
        ],
    }  # fmt: skip
    model: dict[str, Any] = {
        "policy": {"model": str(inputs / "model"), "start_from": None,
                   "lora": {"rank": 4, "alpha": 8, "dropout": 0.1, "target_modules": "all-linear"}},
        "batching": {"micro_batch_tokens": 700},
    }  # fmt: skip
    data: dict[str, Any] = {}
    if kind in ("sft", "offline", "online"):
        model |= {"acting": {"parallel_episodes": 2, "sampling": sampling, "pool": {"threads": True}}}
        data |= {"suite": _CORRIDOR, "data_dir": str(inputs / "collected"), "eval_episodes_per_task": 1,
                 "train_files": episodes}  # fmt: skip
    if kind in ("sft", "offline"):
        data |= {"batch_size": 2}
    if kind in ("offline", "online"):
        model |= {"critic": {"cache_dir": None}}
    if kind == "offline":
        data |= {"medium_files": episodes, "medium_per_expert": 0.5}
    if kind == "online":
        model |= {"online": {"buffer_episodes": 4, "updates_per_episode": 1.0, "batch_episodes": 2,
                             "exploration": {"max_new_tokens": 5, "temperature": 1.0}}}  # fmt: skip
        data |= {"rounds": 2, "episodes_per_round": 2, "collect_tasks": ["walk"]}
        trainer |= {"val_check_interval": 2}
    if kind in ("prompts", "episodes"):
        model |= {"objective": {"group_size": 3, "mini_batches": 2}}
        data |= {"batch_size": 3}
        trainer |= {"val_check_interval": 2}
    if kind == "prompts":
        model |= {"reward": "faults.rewards.vowels", "sampling": {"max_new_tokens": 8},
                  "answering": {"sampling": sampling}}  # fmt: skip
        data |= {"train_tasks": None, "eval_tasks": None, "train_files": [str(inputs / "problems.jsonl")],
                 "eval_files": [str(inputs / "problems.jsonl")]}  # fmt: skip
    if kind == "episodes":
        model |= {"acting": {"parallel_episodes": 3, "sampling": sampling, "pool": {"threads": True}},
                  "exploration": sampling}  # fmt: skip
        data |= {"suite": _GAME, "data_dir": str(inputs / "collected")}
    return {"trainer": trainer, "model": {"init_args": model}, "data": {"init_args": data}}


def command(kind: str, inputs: Path, folder: Path, *more: str, verb: str = "fit") -> list[str]:
    """Return the arguments of `lit-rft` for a run."""
    return [verb, "-c", _CONFIG[kind], "-c", json.dumps(settings(kind, inputs, folder)), *more]


def start(arguments: Sequence[str], log: Path, before: Callable[[], Any] | None = None, **variables: str) -> Child:
    """Run `lit-rft` in a forked process.

    Args:
        arguments: of the command.
        log: file for its output.
        before: called first, in the child.
        **variables: of the environment.
    """

    def run() -> None:
        from lit_rft import cli

        torch.set_num_threads(1)
        if before is not None:
            before()
        cli.main(arguments)

    return Child(run, log, variables)


def finish(child: Child, limit: float = 600.0) -> None:
    """Wait for a run that must succeed."""
    code = child.wait_and_end(limit)
    expect(code == 0, f"a run ended with {code}, see {child.log}: {child.printed[-600:]}")


def reference(kind: str, shared: Path, *more: str, name: str = "") -> Path:
    """Return the folder of an undisturbed run, after running it on the first call. `seconds.json` has its time."""

    def train(partial: Path) -> None:
        finish(start(command(kind, prepare(shared / "inputs"), partial, *more), partial / "run.log"))

    return made_once(shared / "references" / (name or kind), train)


def made_once(folder: Path, train: Callable[[Path], None]) -> Path:
    """Return the folder of an undisturbed run, which `train` makes in the folder it gets unless it is there."""
    if not folder.exists():
        partial = folder.with_name(f".{folder.name}.{os.getpid()}")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        begun = time.monotonic()
        train(partial)
        (partial / "seconds.json").write_text(json.dumps(time.monotonic() - begun))
        partial.rename(folder)
    return folder


def duration(folder: Path) -> float:
    """Return the seconds that a reference run took."""
    return float(json.loads((folder / "seconds.json").read_text()))


def wait_for_checkpoint(child: Child, folder: Path, limit: float = 400.0) -> bool:
    """Wait until a run writes a checkpoint; return False if it ends before."""
    path, end = folder / "checkpoints" / "last.ckpt", time.monotonic() + limit
    before = path.stat().st_mtime_ns if path.exists() else 0
    while time.monotonic() < end:
        if child.wait(0.03) is not None:
            return False
        if path.exists() and path.stat().st_mtime_ns > before:
            return True
    return True


def step_of(folder: Path) -> int:
    """Return the step of a run's last checkpoint; 0 without one."""
    path = folder / "checkpoints" / "last.ckpt"
    return int(torch.load(path, weights_only=True)["global_step"]) if path.exists() else 0


def scalars(folder: Path) -> dict[str, dict[int, float]]:
    """Return the curves of a run, except measured times: the last value at each step."""
    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: {point.step: point.value for point in events.Scalars(tag)}
            for tag in events.Tags()["scalars"] if not any(part in tag for part in _MEASURED)}  # fmt: skip


def differences(folder: Path, expected: Path, curves: bool = True) -> list[str]:
    """Compare a run with an undisturbed one, to the bit.

    Args:
        folder: of the run.
        expected: folder of the undisturbed run.
        curves: compare the logged metrics as well.

    Returns:
        What differs of weights, optimizer, buffer, random states, rollouts and curves.
    """
    ours, theirs = (torch.load(path / "checkpoints" / "last.ckpt", weights_only=True) for path in (folder, expected))
    expect(theirs["state_dict"] and theirs["optimizer_states"], f"{expected} has no weights")
    differing = [name for name in _PART_STATES if not same(ours.get(name), theirs.get(name))]
    randoms = [[value for key, value in state["callbacks"].items() if "RandomState" in key] for state in (ours, theirs)]
    differing += [] if same(*randoms) and randoms[0] else ["random states"]
    names = sorted({path.name for each in (folder, expected) for path in (each / "rollouts").glob("*.jsonl")})
    files = [[each / "rollouts" / name for each in (folder, expected)] for name in names]
    differing += [f"rollouts/{a.name}" for a, b in files if not (a.exists() and b.exists() and _same_rollouts(a, b))]
    if curves:
        a, b = scalars(folder), scalars(expected)
        differing += [f"curve {tag}" for tag in sorted(a.keys() | b.keys()) if not same(a.get(tag), b.get(tag))]
    return differing


def _same_rollouts(a: Path, b: Path) -> bool:
    """Compare rollouts, token-wise values up to a unit of their last digit.

    Which episodes share a forward pass depends on the time that their environments take, and with them the rounding of
    log-probabilities: of five undisturbed runs of online fine-tuning one had a last digit of its own.
    """
    lines = [path.read_text(encoding="utf-8").splitlines() for path in (a, b)]
    return lines[0] == lines[1] or (
        len(lines[0]) == len(lines[1])
        and all(_alike(json.loads(x), json.loads(y)) for x, y in zip(*lines, strict=True) if x != y)
    )


def _alike(a: Any, b: Any) -> bool:
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_alike(a[key], b[key]) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_alike, a, b))
    if isinstance(a, float) and isinstance(b, float):
        return abs(a - b) < 1.5e-4  # they have four digits
    return type(a) is type(b) and bool(a == b)


def expect_same(folder: Path, expected: Path) -> None:
    """Check that a run equals an undisturbed one to the bit.

    Raises:
        LostError: it differs.
    """
    differing = differences(folder, expected)
    expect(not differing, f"differs: {differing[:4]}")


def tally(faults: int, folder: Path, expected: Path, note: str) -> Tally:
    """Return the result of faults from which a run has recovered: none is survived if it differs."""
    differing = differences(folder, expected)
    return Tally(faults, 0 if differing else faults, f"{note}; differs: {differing[:4]}" if differing else note)


def refused(arguments: Sequence[str], word: str, folder: Path, before: Callable[[], Any] | None = None,
            limit: float = 600.0) -> str:  # fmt: skip
    """Run `lit-rft`, which must refuse the command in one line.

    Args:
        arguments: of the command.
        word: in the error.
        folder: for the log.
        before: called first, in the child.
        limit: seconds within which it ends.

    Returns:
        The error.
    """
    child = start(arguments, folder / "run.log", before)
    code = child.wait_and_end(limit)
    expect(code in (1, 2) and "Traceback" not in child.printed, f"exit code {code}: {child.printed[-1200:]}")
    errors = [line for line in child.printed.splitlines() if "lit-rft: error:" in line]
    expect(len(errors) == 1 and word in errors[0], f"not one error that names {word!r}: {child.printed[-800:]}")
    return errors[0].partition("error: ")[2][:160]


def same(a: Any, b: Any) -> bool:
    """Return whether plain values with tensors are equal to the bit; NaN equals NaN."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and bool(torch.equal(a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b or (a != a and b != b))
