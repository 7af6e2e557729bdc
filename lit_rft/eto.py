"""ETO by one command (arXiv 2403.02502): explore, pair by return, DPO from the current policy, repeat."""

from __future__ import annotations

import argparse
import hashlib
import json
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lit_rft._files import write_json
from lit_rft.cli import config_folder, resolve_configs
from lit_rft.config_files import named_classes, read_configs
from lit_rft.error_messages import OneLineParser, UsageError

PAIRS = "pairs.json"  # written by `EpisodePairDataModule` into the run's folder
_COUNTS = ("pairs", "too_long", "won", "tied", "lost", "unmatched", "surplus")
Run = Callable[[list[str]], None]  # runs the arguments of one `lit-rft` command


def run_eto(arguments: Sequence[str]) -> None:
    """Run the command `lit-rft eto`.

    Raises:
        UsageError: For wrong arguments, or a folder of another run.
    """
    given, settings = _parser().parse_known_args(list(arguments))
    if given.iterations < 1:
        raise UsageError(f"--iterations must be >= 1, got {given.iterations}")
    _check_data(settings)
    iterate(
        Path(given.folder), settings, iterations=given.iterations, explore=_as_configs(given.explore),
        later=_as_configs(given.later),
    )  # fmt: skip


def iterate(
    folder: Path,
    settings: list[str],
    *,
    iterations: int = 3,
    explore: Sequence[str] = (),
    later: Sequence[str] = (),
    run: Run | None = None,
) -> list[dict[str, Any]]:
    """Make the iterations that are not yet done.

    Each iteration is two ordinary commands: `predict` plays the training problems with the current policy, and `fit`
    trains on pairs of its episodes with the experts'. The reference of DPO is the policy at the start of the iteration
    (`policy.start_from`). A run that was killed goes on: finished commands are not repeated, `predict` keeps the
    episodes in its file, and `fit` resumes its last checkpoint. A signal that stops this process stops its command
    first.

    Args:
        folder: of the run; each iteration gets a folder in it, `eto.json` holds the state and the report.
        settings: arguments of both commands: `-c CONFIG`, `--KEY VALUE`; the policy starts from `policy.start_from`.
        iterations: number of iterations.
        explore: further arguments of `predict`.
        later: further arguments of `fit` from the second iteration on.
        run: runs one command; None starts a new process for each.

    Returns:
        The report: pairs to train on, pairs too long for the context, and explored episodes won, tied and lost against
        the experts', of each iteration.

    Raises:
        UsageError: The folder holds a run with other arguments, or configs that have changed since.
        SystemExit: A command has failed, or was stopped by a signal, with its exit code.
    """
    run = run or run_process
    state = _state(folder, digest_of(settings, explore, later))
    start: list[str] = []
    for number in range(1, iterations + 1):
        here = folder / f"iteration_{number}"
        if len(state["iterations"]) < number:
            _explore(here / "explore", [*settings, *explore, *start], run)
            _train(here, [*settings, *(later if number > 1 else ()), *start], run)
            if not (here / PAIRS).exists():
                raise UsageError(f"no {here / PAIRS}: expected EpisodePairDataModule as data, and a trainer.logger")
            report = json.loads((here / PAIRS).read_text(encoding="utf-8"))
            state["iterations"].append({name: report[name] for name in _COUNTS})
            write_json(folder / "eto.json", state)
        counts = state["iterations"][number - 1]
        print(f"iteration {number}: " + ", ".join(f"{value} {name}" for name, value in counts.items()))
        start = ["--model.init_args.policy.start_from", str(here / "checkpoints" / "last.ckpt")]
    reports: list[dict[str, Any]] = state["iterations"]
    return reports


def _explore(folder: Path, arguments: list[str], run: Run) -> None:
    done = folder / "done"
    if not done.exists():
        run(["predict", *arguments, "--trainer.default_root_dir", str(folder)])
        write_json(done, {})


def _train(folder: Path, arguments: list[str], run: Run) -> None:
    explored = json.dumps([str(folder / "explore" / "episodes")])
    here = ["--trainer.default_root_dir", str(folder), "--data.init_args.explored_files", explored]
    command = ["fit", *arguments, *here]
    resumes = (folder / "checkpoints" / "last.ckpt").exists()
    run([*command, "--ckpt_path", "last"] if resumes else command)


def _state(folder: Path, digest: str) -> dict[str, Any]:
    file = folder / "eto.json"
    if not file.exists():
        write_json(file, {"digest": digest, "iterations": []})
    state: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    if state["digest"] != digest:
        raise UsageError(
            f"{folder} holds a run of ETO with other arguments, or configs that have changed: repeat them, or "
            "set another --folder"
        )
    return state


def digest_of(*parts: Sequence[str]) -> str:
    """Return a short digest of arguments, with the contents of their configs and of the files that these build on.

    Args:
        parts: lists of arguments; shipped configs by name.

    Raises:
        UsageError: For a config that is not valid.
    """
    digest = hashlib.sha256((config_folder() / "base.yaml").read_bytes())  # every command reads it
    for part in parts:
        arguments: list[Any] = resolve_configs(list(part))
        for file in list(read_configs(arguments)):
            arguments[file.position] = [file.written, file.content]  # the second with its bases
        digest.update(json.dumps(arguments, sort_keys=True, default=str).encode())
    return digest.hexdigest()[:16]


_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)


def run_process(arguments: list[str]) -> None:
    """Run a command, which gets the signals of this process, and reports its own errors.

    It has a session of its own, or Ctrl-C in a terminal would reach it twice, and the second one stops it without a
    checkpoint.

    Raises:
        SystemExit: It has failed, or was stopped.
    """
    received: list[int] = []
    process: subprocess.Popen[bytes] | None = None

    def forward(number: int, frame: Any) -> None:
        received.append(number)
        if process is not None:
            process.send_signal(number)

    in_main = threading.current_thread() is threading.main_thread()  # elsewhere Python takes no handlers
    heard = [number for number in _SIGNALS if in_main and signal.getsignal(number) is not signal.SIG_IGN]  # nohup
    before = {number: signal.signal(number, forward) for number in heard}
    try:
        process = subprocess.Popen([sys.executable, "-m", "lit_rft.cli", *arguments], start_new_session=True)
        if received:  # while it was started
            process.send_signal(received[0])
        code = process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
    if received:
        print("stopped by a signal; repeat the command to go on", file=sys.stderr)
        sys.exit(128 + received[0])
    if code:
        sys.exit(code if code > 0 else 128 - code)


def _check_data(settings: list[str]) -> None:
    """Check that the data module makes pairs, before a policy explores for another one.

    Raises:
        UsageError: It is another one of this library's.
    """
    import lit_rft.datamodules

    arguments = resolve_configs(settings)
    name = named_classes(read_configs(arguments), arguments).get("data", "").rpartition(".")[2]
    if name in lit_rft.datamodules.__all__ and name != "EpisodePairDataModule":
        raise UsageError(
            "lit-rft eto: data: expected EpisodePairDataModule, which pairs explored episodes with experts', got "
            f"{name}: see baselines/scienceworld/eto.yaml"
        )


def _as_configs(names: Sequence[str] | None) -> list[str]:
    return [part for name in names or () for part in ("-c", name)]


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        "lit-rft eto",
        description="Explore, pair with the experts' episodes and train by DPO, several times. All other arguments are "
        "those of `lit-rft fit`: -c baselines/scienceworld/eto.yaml, --KEY VALUE.",
        allow_abbrev=False,
    )
    parser.add_argument("--folder", default="runs/eto", help="of the run (runs/eto); repeat the command to resume it")
    parser.add_argument("--iterations", type=int, default=3, help="number of iterations (3)")
    parser.add_argument("--explore", action="append", metavar="CONFIG", help="overlay for exploration only")
    parser.add_argument("--later", action="append", metavar="CONFIG", help="overlay from the second iteration on")
    return parser
