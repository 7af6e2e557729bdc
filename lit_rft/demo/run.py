"""The demo's phases. Each continues where an earlier call was stopped."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import time
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_rft._files import write_json

if TYPE_CHECKING:
    from rich.console import Console

_PACKAGES = ("lit-rft", "torch", "lightning", "transformers", "peft", "alfworld")
_CONFIGS = ("glider/alfworld/sft.yaml", "glider/alfworld/flat_sft.yaml", "glider/alfworld/demo.yaml")
_OUTPUT = ("demo.json", "summary.json", "demo.png", "report.md", "episodes/before.jsonl", "episodes/after.jsonl")


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the demo, or the rest of an interrupted one; a finished one is only shown again.

    Args:
        arguments: of the command line; those that the demo does not know are keys of the configuration.

    Returns:
        The contents of `summary.json`.

    Raises:
        ValueError: If the folder has a demo with another seed or other settings.
        FileExistsError: If the folder has another run.
    """
    options, overrides = _parser().parse_known_args(arguments)
    folder = Path(options.folder)

    from rich.console import Console

    from lit_rft.demo.report import score_table

    console = Console()
    console.rule("[bold]lit-rft: a language model learns household tasks")
    summary = folder / "summary.json"
    if options.overwrite or not summary.exists():
        _play_and_train(_Progress(folder, options.seed, overrides, options.overwrite, console))
    else:
        _Progress(folder, options.seed, overrides, False, console)
        console.print(f"{folder} has a finished demo, shown again here; --overwrite repeats it")
    contents: dict[str, Any] = json.loads(summary.read_text())
    console.print(_example(folder))
    console.print(score_table(contents["results"]))
    minutes, cpu = (sum(contents[name].values()) / 60 for name in ("seconds", "cpu_seconds"))
    console.print(f"{minutes:.1f} minutes in total, {cpu:.1f} minutes of CPU time. Output:")
    for name, path in {
        "picture": folder / "demo.png",
        "report": folder / "report.md",
        "figures": summary,
        "played episodes": folder / "episodes",
        "PEFT adapter": folder / "adapter",
        "TensorBoard": f"tensorboard --logdir {folder / 'tensorboard'}",
    }.items():
        console.print(f"  {name:16} {path}")
    return contents


def _parser() -> argparse.ArgumentParser:
    from lit_rft import demo

    description = (demo.__doc__ or "").split("\n\n")[1]
    parser = argparse.ArgumentParser(prog="python -m lit_rft.demo", description=description, allow_abbrev=False)
    parser.add_argument("--folder", default="runs/demo", help="where everything goes (default: %(default)s)")
    parser.add_argument(
        "--seed", type=int, default=0, help="of everything random: games, adapters, order (default: %(default)s)"
    )
    parser.add_argument("--overwrite", action="store_true", help="begin again in a folder with an earlier demo")
    return parser


class _Progress:
    """The state of a demo in its folder, `demo.json`: settings, and the time that each phase has taken so far."""

    def __init__(self, folder: Path, seed: int, overrides: Sequence[str], overwrite: bool, console: Console) -> None:
        self.folder, self.seed, self.overrides, self.console = folder, seed, list(overrides), console
        self.file = folder / "demo.json"
        self.new = overwrite or not self.file.exists()
        self.overwrite = overwrite
        self.state: dict[str, Any] = {
            "seed": seed, "settings": self.overrides, "finished": [], "seconds": {}, "cpu_seconds": {},
        }  # fmt: skip
        if self.new:
            return
        saved = json.loads(self.file.read_text())
        for name, value in (("seed", seed), ("settings", self.overrides)):
            if saved[name] != value:
                raise ValueError(
                    f"expected the {name} of the demo in {folder}, {saved[name]}, got {value}: name another --folder, "
                    "or --overwrite it"
                )
        self.state = saved

    def begin(self, trainer: Any) -> None:
        """Remove an earlier demo that is to be overwritten.

        Raises:
            FileExistsError: If the folder has another run.
        """
        from lit_rft.callbacks.run_checkpoint import RunCheckpoint

        for callback in (part for part in trainer.callbacks if isinstance(part, RunCheckpoint)):
            if self.overwrite:
                callback.remove_run(trainer, at_once=True)  # a demo that is stopped must not continue the earlier one
            callback.check_folder(trainer, None if self.new else "last")
        if self.overwrite:
            for name in _OUTPUT:
                (self.folder / name).unlink(missing_ok=True)
        write_json(self.file, self.state)

    @property
    def finished(self) -> list[str]:
        """Names of the phases that need not be repeated."""
        names: list[str] = self.state["finished"]
        return names

    @contextlib.contextmanager
    def phase(self, name: str, title: str) -> Iterator[None]:
        """Show the title of a phase, add its time, and note its end."""
        self.console.rule(title)
        started, started_cpu = time.time(), _cpu_seconds()
        try:
            yield
            self.state["finished"] = [*self.finished, name]
        finally:
            for key, value in (("seconds", time.time() - started), ("cpu_seconds", _cpu_seconds() - started_cpu)):
                self.state[key][name] = round(self.state[key].get(name, 0.0) + value, 1)
            write_json(self.file, self.state)


def _cpu_seconds() -> float:
    """Return the CPU time of this process and of its finished children."""
    return sum(os.times()[:4])


def _play_and_train(progress: _Progress) -> None:
    """Go through the phases, and write the results."""
    from lit_rft.cli import resolve_configs
    from lit_rft.command_line import build

    folder = progress.folder
    progress.console.print("Loading libraries, model and configuration ...")
    configs = [part for config in _CONFIGS for part in ("-c", config)]
    keys = ["--trainer.default_root_dir", str(folder), "--seed_everything", str(progress.seed)]
    cli = build(resolve_configs([*configs, *keys, *progress.overrides]), run=False)
    stage, data, trainer = cli.model, cli.datamodule, cli.trainer
    progress.begin(trainer)
    with progress.phase("collect", "1 of 4: expert episodes on training floor plans"):
        expert = data.collect()
        progress.console.print(f"{len(expert)} expert episodes are in {data.expert_file}")
    if "before" not in progress.finished:
        with progress.phase("before", "2 of 4: the untrained model plays games on held-out floor plans (a minute)"):
            _play(trainer, stage, data, folder / "episodes" / "before.jsonl")
    with progress.phase("train", "3 of 4: supervised fine-tuning of low-rank adapters (3 minutes)"):
        has_checkpoint = any((folder / "checkpoints").glob("last.ckpt"))
        trainer.fit(stage, datamodule=data, ckpt_path="last" if has_checkpoint else None)
    with progress.phase("after", "4 of 4: the trained model plays the same games (a minute)"):
        _play(trainer, stage, data, folder / "episodes" / "after.jsonl")
    model = Path(str(cli.config["model"]["init_args"]["policy"]["model"])).name
    _write_results(progress, len(expert), model)


def _play(trainer: Any, stage: Any, data: Any, path: Path) -> None:
    """Play the held-out games; those in the file are not played again."""
    from lit_rft.callbacks import EpisodeFiles

    (files,) = (part for part in trainer.callbacks if isinstance(part, EpisodeFiles))
    files.path = str(path)
    trainer.predict(stage, datamodule=data, return_predictions=False)


def _write_results(progress: _Progress, expert_episodes: int, model: str) -> None:
    from lit_rft.demo.comparison import choose_example, compare
    from lit_rft.demo.picture import plot, read_losses
    from lit_rft.demo.report import report_markdown

    folder, pairs = progress.folder, _pairs(progress.folder)
    results = {row.task: row.as_json() for row in compare(pairs)}
    contents = {
        "model": model,
        "seed": progress.seed,
        "expert_episodes": expert_episodes,
        "results": results,
        "seconds": progress.state["seconds"],
        "cpu_seconds": progress.state["cpu_seconds"],
        "versions": {name: version(name) for name in _PACKAGES} | {"python": platform.python_version()},
        "machine": {"system": platform.platform(), "processor": platform.machine(), "cores": os.cpu_count()},
    }
    plot(results, read_losses(folder / "tensorboard"), folder / "demo.png")
    (folder / "report.md").write_text(report_markdown(contents, choose_example(pairs)), encoding="utf-8")
    write_json(folder / "summary.json", contents)  # the last file: with it the demo is finished


def _pairs(folder: Path) -> Any:
    from lit_rft.demo.comparison import pair_games
    from lit_rft.episodes import read_episodes

    return pair_games(*(read_episodes(folder / "episodes" / f"{name}.jsonl") for name in ("before", "after")))


def _example(folder: Path) -> Any:
    from lit_rft.demo.comparison import choose_example
    from lit_rft.demo.report import example_table

    return example_table(choose_example(_pairs(folder)))
