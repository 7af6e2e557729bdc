"""Resuming in odd situations: exact, or refused with the reason."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from faults import runs
from faults.pairs import TWO, finish_pair, start_pair
from faults.trial import Tally, Trial, expect

_HALF = 6  # steps of the run that is resumed
# each process draws the masks of dropout for its share: with another number of processes they are others
_NO_DROPOUT = ("--model.init_args.policy.lora.dropout", "0")
_ROUNDING = 1e-6  # of sums in another order; measured: 7.5e-9 to 1.1e-8, where dropout makes 8e-5


def trials(shared: Path, seed: int, short: bool) -> Iterator[Trial]:
    """Yield one trial for each situation."""
    situations: dict[str, Callable[[Path, Path], Tally]] = {
        "another batch size": functools.partial(refused, ["--data.init_args.batch_size", "2"], "batch_size"),
        "another seed of the data": functools.partial(refused, ["--data.init_args.seed", "5"], "seed"),
        "another rank of the adapter": functools.partial(refused, ["--model.init_args.policy.lora.rank", "8"], "rank"),
        "a moved folder": moved,
        "a deleted logger folder": functools.partial(deleted, "tensorboard"),
        "deleted rollouts": functools.partial(deleted, "rollouts"),
        "a changed learning rate": changed,
        "a finished run with more epochs": more_epochs,
        "half a checkpoint file": half_file,
        "the checkpoint of another stage": other_stage,
        "one process, then two": one_then_two,
        "two processes, then one": two_then_one,
    }
    if short:
        situations = {name: situations[name] for name in ("another batch size", "a moved folder")}
    for name, run in situations.items():
        yield Trial("resumes", name, functools.partial(run, shared))


def half_run(shared: Path, folder: Path, *more: str, dropout: bool = True) -> list[str]:
    """Train half of the steps, and return the command that resumes."""
    inputs = runs.prepare(shared / "inputs")
    steps, more = ("--trainer.max_steps", str(_HALF)), (*more, *(() if dropout else _NO_DROPOUT))
    name = "episodes_half" if dropout else "episodes_half_without_dropout"
    source = runs.reference("episodes", shared, *steps, *(() if dropout else _NO_DROPOUT), name=name)
    shutil.copytree(source, folder / "run")
    return runs.command("episodes", inputs, folder / "run", "--ckpt_path", "last", *more)


def refused(keys: list[str], word: str, shared: Path, folder: Path) -> Tally:
    """A setting that defines the state is refused, in one line that names it."""
    return _refused(half_run(shared, folder, *keys), word, folder)


def _refused(arguments: list[str], word: str, folder: Path) -> Tally:
    return Tally(note=f"refused: {runs.refused(arguments, word, folder)}")


def moved(shared: Path, folder: Path) -> Tally:
    """A run continues in a folder that was moved."""
    arguments = half_run(shared, folder)
    (folder / "run").rename(folder / "elsewhere")
    arguments = [part.replace(str(folder / "run"), str(folder / "elsewhere")) for part in arguments]
    runs.finish(runs.start(arguments, folder / "run.log"))
    runs.expect_same(folder / "elsewhere", runs.reference("episodes", shared))
    return Tally(note="exact")


def deleted(name: str, shared: Path, folder: Path) -> Tally:
    """A run continues without the files of its logger or its rollouts."""
    arguments = half_run(shared, folder)
    shutil.rmtree(folder / "run" / name)
    runs.finish(runs.start(arguments, folder / "run.log"))
    differing = runs.differences(folder / "run", runs.reference("episodes", shared), curves=False)
    differing = [each for each in differing if not (name == "rollouts" and each.startswith("rollouts"))]
    expect(not differing, f"differs: {differing[:4]}")
    return Tally(note="exact, from the checkpoint on")


def changed(shared: Path, folder: Path) -> Tally:
    """A changed setting that may change is reported, old and new."""
    arguments = half_run(shared, folder, "--model.init_args.optimizer.learning_rate", "0.002")
    child = runs.start(arguments, folder / "run.log")
    runs.finish(child)
    printed = " ".join(child.printed.split())
    expect("learning_rate" in printed and "0.002" in printed and "->" in printed,
           f"the change is not reported: {printed[-800:]}")  # fmt: skip
    return Tally(note="takes effect, reported")


def more_epochs(shared: Path, folder: Path) -> Tally:
    """A finished run with more epochs equals a longer one."""
    inputs = runs.prepare(shared / "inputs")

    def arguments(run: Path, epochs: int) -> list[str]:
        more = ["--trainer.max_steps", "-1", "--trainer.max_epochs", str(epochs), "--ckpt_path", "last"]
        more += ["--model.init_args.optimizer.schedule", "constant"]
        return runs.command("sft", inputs, run, *more)

    runs.finish(runs.start(arguments(folder / "long", 3), folder / "long.log"))
    for epochs in (1, 3):
        runs.finish(runs.start(arguments(folder / "run", epochs), folder / f"run{epochs}.log"))
    runs.expect_same(folder / "run", folder / "long")
    return Tally(note="exact")


def half_file(shared: Path, folder: Path) -> Tally:
    """Half a checkpoint is refused by name."""
    arguments = half_run(shared, folder)
    path = folder / "run" / "checkpoints" / "last.ckpt"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return _refused(arguments, "last.ckpt", folder)


def other_stage(shared: Path, folder: Path) -> Tally:
    """The checkpoint of another stage is refused."""
    arguments = half_run(shared, folder)
    path = folder / "run" / "checkpoints" / "last.ckpt"
    shutil.copy(runs.reference("sft", shared) / "checkpoints" / "last.ckpt", path)
    return _refused(arguments, "HierarchicalSFT", folder)


def _close_to_one_process(run: Path, shared: Path) -> Tally:
    expected = runs.reference("episodes", shared, *_NO_DROPOUT, name="episodes_without_dropout")
    states = [torch.load(path / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
              for path in (run, expected)]  # fmt: skip
    largest = max(float((states[0][name] - states[1][name]).abs().max()) for name in states[0])
    expect(largest < _ROUNDING, f"weights differ by {largest:.1e}")
    return Tally(note=f"equal up to the order of sums: weights differ by at most {largest:.1e}")


def one_then_two(shared: Path, folder: Path) -> Tally:
    """A run of one process continues in two."""
    finish_pair(start_pair(half_run(shared, folder, *TWO, dropout=False), folder, "two"))
    return _close_to_one_process(folder / "run", shared)


def two_then_one(shared: Path, folder: Path) -> Tally:
    """A run of two processes continues in one."""
    inputs = runs.prepare(shared / "inputs")
    more = ["--ckpt_path", "last", *_NO_DROPOUT]
    two = runs.command("episodes", inputs, folder / "run", *more, *TWO, "--trainer.max_steps", str(_HALF))
    finish_pair(start_pair(two, folder, "two"))
    runs.finish(runs.start(runs.command("episodes", inputs, folder / "run", *more), folder / "one.log"))
    return _close_to_one_process(folder / "run", shared)
