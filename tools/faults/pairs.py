"""kill -9 of one of two processes: the other ends by itself, with an error, and both resume to the bit."""

from __future__ import annotations

import functools
import os
import random
import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from forked import Child

from faults import runs
from faults.trial import Tally, Trial, expect

LIMIT = 60.0  # seconds within which the other process ends
TWO = ("--trainer.devices", "2", "--trainer.strategy", "ddp")


def trials(shared: Path, seed: int, short: bool) -> Iterator[Trial]:
    """Yield a killed first and a killed second process for each kind of run; none in the short form."""
    for kind in () if short else runs.KINDS:
        for rank in (0, 1):
            run = functools.partial(kill_one, shared, kind, rank, f"{seed}/{kind}/{rank}")
            yield Trial("pairs", f"{kind}, process {rank} killed", run)
    if not short:
        yield Trial("pairs", "sft, both stopped by SIGTERM to one", functools.partial(stop_both, shared, str(seed)))


def start_pair(arguments: Sequence[str], folder: Path, name: str) -> list[Child]:
    """Run a command in two processes that find each other by a file."""
    meeting = folder / f"meeting_{name}"

    def join() -> None:
        import torch

        rank = int(os.environ["RANK"])
        torch.distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)

    return [
        runs.start(arguments, folder / f"{name}_rank{rank}.log", before=join, RANK=str(rank), LOCAL_RANK=str(rank),
                   WORLD_SIZE="2", TORCHELASTIC_RUN_ID=name)
        for rank in range(2)
    ]  # fmt: skip


def finish_pair(children: list[Child]) -> None:
    """Wait for two processes that must both succeed."""
    for child in children:
        runs.finish(child)


def reference(kind: str, shared: Path) -> Path:
    """Return the folder of an undisturbed run in two processes."""

    def train(partial: Path) -> None:
        finish_pair(start_pair(runs.command(kind, runs.prepare(shared / "inputs"), partial, *TWO), partial, "whole"))

    return runs.made_once(shared / "references" / f"{kind}_two", train)


def kill_one(shared: Path, kind: str, rank: int, seed: str, folder: Path) -> Tally:
    """Kill a process at two random moments, and resume both each time."""
    expected, rng = reference(kind, shared), random.Random(seed)
    arguments = runs.command(kind, shared / "inputs", folder / "run", *TWO, "--ckpt_path", "last")
    kills, waits = 0, []
    for attempt in range(2):
        children = start_pair(arguments, folder, f"run{attempt}")
        if attempt:  # the first kill is at any moment
            runs.wait_for_checkpoint(children[rank], folder / "run")
        if children[rank].wait(rng.uniform(0.05, 0.3 if attempt else 0.9) * runs.duration(expected)) is not None:
            finish_pair(children)
            break
        children[rank].end()
        kills += 1
        begun = time.monotonic()
        code = children[1 - rank].wait(LIMIT)
        waits.append(round(time.monotonic() - begun, 1))
        children[1 - rank].end()
        complete = code == 0 and runs.step_of(folder / "run") == runs.STEPS[kind]  # killed when all was done
        expect(complete or code not in (None, 0), f"the other process ended with {code} after {waits[-1]} s")
    finish_pair(start_pair(arguments, folder, "last"))
    return runs.tally(kills, folder / "run", expected, f"the other ended after {waits} s")


def stop_both(shared: Path, seed: str, folder: Path) -> Tally:
    """Send SIGTERM to one of two processes: both save the same step and exit with 143."""
    expected, rng = reference("sft", shared), random.Random(seed)
    arguments = runs.command("sft", shared / "inputs", folder / "run", *TWO, "--ckpt_path", "last")
    children = start_pair(arguments, folder, "run")
    runs.wait_for_checkpoint(children[0], folder / "run", 100)
    children[rng.randint(0, 1)].send(signal.SIGTERM)
    codes = [child.wait(LIMIT) for child in children]
    for child in children:
        child.end()
    expect(codes == [143, 143], f"exit codes {codes}")
    finish_pair(start_pair(arguments, folder, "last"))
    return runs.tally(1, folder / "run", expected, "both ended with 143")
