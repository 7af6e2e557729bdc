"""A full disk and a read-only folder at every kind of write: a clear error, and nothing that was there is lost."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from forked import Child

from faults import runs
from faults.trial import Tally, Trial, expect

_SIZE = 12 << 20  # bytes of the small file system
_NOT = ("Traceback", "Segmentation fault")


def trials(shared: Path, seed: int, short: bool) -> Iterator[Trial]:
    """Yield a full disk at several steps of runs, and full and read-only folders for the other commands."""
    if os.geteuid() != 0:
        print("disk: left out, as only root may mount a small file system")
        return
    for kind in ("episodes",) if short else ("sft", "online", "episodes"):
        for left in (0,) if short else (0, 3_000, 30_000, 300_000):
            for step in (4,) if short else (0, 4):
                name = f"{kind}, {left} bytes left at step {step}"
                yield Trial("disk", name, functools.partial(full, shared, kind, left, step))
    for name, verb in (
        (("read-only", "fit"),) if short else tuple((n, v) for n in ("full", "read-only") for v in _VERBS)
    ):
        yield Trial("disk", f"{name}: {verb}", functools.partial(other, shared, name, verb))


_VERBS = ("fit", "validate", "test", "predict", "collect", "show", "make-model", "configs copy")


class SmallDisk:
    """A file system in memory at a folder.

    Raises:
        PermissionError: this user may not mount one.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __enter__(self) -> SmallDisk:
        self.folder.mkdir(parents=True, exist_ok=True)
        command = ["mount", "-t", "tmpfs", "-o", f"size={_SIZE}", "faults", str(self.folder)]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode:
            raise PermissionError(f"a small file system cannot be mounted here: {result.stderr.strip()}")
        return self

    def __exit__(self, *_: object) -> None:
        subprocess.run(["umount", "-l", str(self.folder)], check=True)

    def fill(self, left: int) -> None:
        """Fill the disk up to a number of bytes."""
        with (self.folder / ".ballast").open("ab") as ballast:
            free = shutil.disk_usage(self.folder).free
            ballast.write(bytes(max(0, free - left)))

    def clear(self) -> None:
        """Make space again."""
        (self.folder / ".ballast").unlink()

    def freeze(self) -> None:
        """Forbid all writes."""
        subprocess.run(["mount", "-o", "remount,ro", str(self.folder)], check=True)


def full(shared: Path, kind: str, left: int, step: int, folder: Path) -> Tally:
    """Fill the disk before a step: the run ends with one line, or goes on; it resumes to the bit."""
    expected = runs.reference(kind, shared)
    with SmallDisk(folder / "disk") as disk:
        arguments = runs.command(kind, shared / "inputs", disk.folder / "run", "--ckpt_path", "last")
        child = runs.start(arguments, folder / "full.log", before=functools.partial(fill_at, disk, left, step))
        code = child.wait_and_end(600)
        reached = runs.step_of(disk.folder / "run")
        disk.clear()
        printed = child.printed
        expect(code in (0, 1), f"exit code {code}: {printed[-600:]}")
        expect(not any(word in printed for word in _NOT), f"a traceback: {printed[-1500:]}")
        expect(code == 0 or "space" in printed, f"the error does not name the reason: {printed[-600:]}")
        expect(reached >= step - step % 2, f"the checkpoint of step {step} is lost: {reached}")
        runs.finish(runs.start(arguments, folder / "resumed.log"))
        differing = [each for each in runs.differences(disk.folder / "run", expected, curves=code == 0 and left > 10**5)
                 if not (code == 0 and each.startswith("rollouts"))]  # fmt: skip
    expect(not differing, f"differs: {differing[:4]}")
    return _tally(code, printed)


def fill_at(disk: SmallDisk, left: int, step: int) -> None:
    """Fill the disk at the start of the first batch after a step, whose checkpoint is written, in this process."""
    from lit_rft.callbacks import RunCheckpoint

    original = RunCheckpoint.on_train_batch_start
    done = False

    def on_train_batch_start(self: RunCheckpoint, trainer: object, *rest: object) -> None:
        nonlocal done
        original(self, trainer, *rest)  # type: ignore[arg-type]
        if not done and trainer.global_step >= step:  # type: ignore[attr-defined]
            done = True
            disk.fill(left)

    RunCheckpoint.on_train_batch_start = on_train_batch_start  # type: ignore[method-assign,assignment]


def other(shared: Path, state: str, verb: str, folder: Path) -> Tally:
    """Run a command whose output folder is full or read-only: one line names the reason, and old files are intact."""
    inputs = runs.prepare(shared / "inputs")
    with SmallDisk(folder / "disk") as disk:
        run = disk.folder / "run"
        if verb not in ("fit", "collect", "make-model", "configs copy"):
            shutil.copytree(runs.reference("episodes", shared), run)
        before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
        if state == "full":
            disk.fill(0)
        else:
            disk.freeze()
        child = _start(verb, inputs, run, folder)
        code = child.wait_and_end(600)
        printed = child.printed
        intact = all(path.read_bytes() == data for path, data in before.items())
    expect(not any(word in printed for word in _NOT), f"a traceback: {printed[-1500:]}")
    expect(code == 0 or "space" in printed or "ead-only" in printed, f"exit code {code}: {printed[-600:]}")
    expect(code in (0, 1, 2), f"exit code {code}: {printed[-600:]}")
    expect(intact, "an existing file changed")
    expect(code != 0 or verb in ("validate",), f"{verb} succeeded without its output: {printed[-600:]}")
    return _tally(code, printed)


def _tally(code: int | None, printed: str) -> Tally:
    errors = [line for line in printed.splitlines() if "error" in line]
    return Tally(note=f"exit code {code}; {errors[-1][:140] if errors else 'went on'}")


def _start(verb: str, inputs: Path, run: Path, folder: Path) -> Child:
    episodes = str(inputs / "episodes.jsonl")
    special: dict[str, list[str]] = {
        "collect": ["collect", "faults.simulators.Countdown", "--expert", "faults.simulators.expert", "--episodes", "3",
                    "--out", str(run / "collected.jsonl")],
        "show": ["show", str(run), "--out", str(run / "page.html")],
        "make-model": ["make-model", episodes, "--out", str(run / "model")],
        "configs copy": ["configs", "copy", "grpo/text_env.yaml", str(run / "copy.yaml")],
    }  # fmt: skip
    more = ["--ckpt_path", "last"] if verb != "fit" else []
    predict = ["--data.init_args.predict_episodes_per_task", "2"] if verb == "predict" else []
    arguments = special.get(verb) or runs.command("episodes", inputs, run, *more, *predict, verb=verb)
    return runs.start(arguments, folder / "run.log")
