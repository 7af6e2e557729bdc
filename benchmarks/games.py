"""GRPO on the built-in text games with a small model trained from scratch: minutes per run on one CPU core.

    python benchmarks/games.py                              # all games and seeds; resumes an interrupted run
    python benchmarks/games.py --games KeyRooms --seeds 0   # one run

For each game and seed: medium-quality episodes (an expert's, with random actions in the place of some of its own), an
untrained model, supervised fine-tuning on the episodes, then GRPO. Each policy plays 200 held-out episodes at
temperature 1, and, once trained, greedily. The stages are the shipped configs, run as `lit-rft` commands in one process
per game and seed.

Runs and logs are in `runs/games`, figures in `benchmarks/results/games.json`, the plot is `docs/images/games.png`.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiment import (
    RESULTS,
    ROOT,
    Step,
    curve,
    environment,
    flags,
    interval,
    lit_rft_arguments,
    mean_score,
    read_results,
    run,
    save_figure,
    timed,
)
from rich.console import Console
from rich.table import Table

from lit_rft import cli
from lit_rft._files import write_json

RUNS, FILE = ROOT / "runs" / "games", RESULTS / "games.json"
TEST_EPISODES = 200
STAGES = {"untrained": "untrained", "sft": "SFT on medium play", "grpo": "GRPO"}
MODES = {"sampled": 1.0, "greedy": 0.0}  # temperatures


@dataclass(frozen=True)
class Game:
    """A game, its configs and its medium-quality player."""

    name: str
    module: str  # of `lit_rft.envs.games`
    config: str  # configs/grpo/{config}.yaml, {config}_sft.yaml
    step_limit: int
    random: float  # share of the medium player's random actions
    medium_episodes: int = 1000

    @property
    def optimum(self) -> float:
        score: float = importlib.import_module(f"lit_rft.envs.games.{self.module}").optimal_return()
        return score


GAMES = {
    game.name: game
    for game in (
        Game("GuessNumber", "guess", "guess_number", 3, 0.6),
        Game("KeyRooms", "rooms", "key_rooms", 20, 0.4),
        Game("PriceLookup", "prices", "price_lookup", 4, 0.3, 3000),
    )
}


class GameRun:
    """All stages of one game and seed, in this process."""

    def __init__(self, game: Game, seed: int) -> None:
        self.game, self.seed = game, seed
        self.folder = folder_of(game, seed)
        self.medium, self.model = self.folder / "medium.jsonl", self.folder / "model"
        self.minutes: dict[str, float] = {}

    def play(self) -> dict[str, Any]:
        """Run what is missing, and return the scores."""
        with self._timed("collect"):
            self._prepare()
        scores = {"untrained": self._test("untrained", self._keys(start_from="null"))}
        sft, grpo = self.folder / "sft", self.folder / "grpo"
        self._fit("sft", f"grpo/{self.game.config}_sft.yaml", sft, {"data.init_args.train_files": f"[{self.medium}]"})
        scores["sft"] = self._test("sft", self._keys(start_from=_checkpoint(sft)))
        start = {"model.init_args.policy.start_from": _checkpoint(sft)}
        self._fit("grpo", f"grpo/{self.game.config}.yaml", grpo, start)
        scores["grpo"] = self._test("grpo", self._keys(start_from=_checkpoint(grpo)))
        return {
            "scores": scores,
            "medium": mean_score(self.medium),
            "curve": curve(grpo / "tensorboard", "train/reward"),
            "episodes_per_step": self._episodes_per_step(grpo),
            "minutes": {name: round(value, 2) for name, value in self.minutes.items()},
        }

    def _prepare(self) -> None:
        if not self.medium.exists():
            path = f"lit_rft.envs.games.{self.game.name}"
            expert = f"lit_rft.envs.games.{self.game.module}.expert"
            numbers = {
                "random": self.game.random, "episodes": self.game.medium_episodes, "step_limit": self.game.step_limit,
                "seed": self.seed, "workers": 1,
            }  # fmt: skip
            self.folder.mkdir(parents=True, exist_ok=True)
            cli.main(["collect", path, "--expert", expert, "--out", str(self.medium), *flags(numbers)])
        if not (self.model / "config.json").exists():
            cli.main(["make-model", str(self.medium), "--out", str(self.model), "--seed", str(self.seed)])

    def _keys(self, **policy: Any) -> dict[str, Any]:
        keys = {"model": self.model, **policy}
        return {"seed_everything": self.seed} | {f"model.init_args.policy.{key}": v for key, v in keys.items()}

    def _fit(self, name: str, config: str, folder: Path, keys: Mapping[str, Any]) -> None:
        if (folder / "finished").exists():
            return
        keys = {**self._keys(), "trainer.default_root_dir": folder, "trainer.limit_val_batches": 0, **keys}
        resume = ["--ckpt_path", "last"] if _checkpoint(folder).exists() else []
        with self._timed(name):
            cli.main(lit_rft_arguments("fit", [config], keys, resume))
        (folder / "finished").touch()

    def _test(self, name: str, keys: Mapping[str, Any]) -> dict[str, float]:
        """Return the mean scores by mode of a policy."""
        scores = {}
        for mode, temperature in MODES.items():
            if name == "untrained" and mode == "greedy":
                continue  # random tokens either way
            folder = self.folder / f"test_{name}_{mode}"
            if not (folder / "scores.json").exists():
                settings = {
                    "trainer.default_root_dir": folder,
                    "data.init_args.eval_split": "test",
                    "data.init_args.eval_episodes_per_task": TEST_EPISODES,
                    "model.init_args.acting.sampling.temperature": temperature,
                }
                with self._timed(f"test {name}"):
                    cli.main(lit_rft_arguments("test", [f"grpo/{self.game.config}.yaml"], {**keys, **settings}))
            scores[mode] = json.loads((folder / "scores.json").read_text())["mean"]["score"] / 100
        return scores

    def _episodes_per_step(self, folder: Path) -> int:
        import yaml

        config = yaml.safe_load((folder / "config.yaml").read_text())
        groups: int = config["data"]["init_args"]["batch_size"]
        size: int = config["model"]["init_args"]["objective"]["group_size"]
        return groups * size

    def _timed(self, name: str) -> contextlib.AbstractContextManager[None]:
        return timed(self.minutes, name, time.time)


def folder_of(game: Game, seed: int) -> Path:
    return RUNS / game.config / f"seed{seed}"


def _checkpoint(folder: Path) -> Path:
    return folder / "checkpoints" / "last.ckpt"


def report(results: Mapping[str, Any], console: Console) -> None:
    """Print the table of all runs, and write the plot."""
    table = Table(title="mean score, 95% interval over seeds")
    for column in ("game", "seeds", "policy", "sampled", "greedy", "medium player", "optimum", "minutes"):
        table.add_column(column)
    runs = results["runs"]
    for game in GAMES.values():
        rows = list(runs.get(game.name, {}).values())
        for stage, label in STAGES.items() if rows else ():
            scores = [row["scores"][stage] for row in rows]
            modes = [interval([score[mode] for score in scores]) if mode in scores[0] else "" for mode in MODES]
            medium = f"{statistics.mean(row['medium'] for row in rows):.3f}"
            minutes = f"{statistics.mean(sum(row['minutes'].values()) for row in rows):.1f}"
            table.add_row(game.name, str(len(rows)), label, *modes, medium, f"{game.optimum:.3f}", minutes)
    console.print(table)
    plot(runs)


def plot(runs: Mapping[str, Any]) -> None:
    """Plot rewards of training episodes against their number, with the optimum and the medium player's score."""
    from matplotlib.figure import Figure

    games = [game for game in GAMES.values() if runs.get(game.name)]
    figure = Figure(figsize=(4 * len(games), 3.2))
    for axes, game in zip(figure.subplots(1, len(games), squeeze=False)[0], games, strict=True):
        rows = list(runs[game.name].values())
        curves = [_smoothed(row["curve"], row["episodes_per_step"]) for row in rows]
        for points in curves:
            axes.plot(*zip(*points, strict=True), color="tab:blue", alpha=0.25, linewidth=0.8)
        length = min(map(len, curves))
        steps = [curves[0][i][0] for i in range(length)]
        means = [statistics.mean(points[i][1] for points in curves) for i in range(length)]
        axes.plot(steps, means, color="tab:blue", label=f"GRPO, {len(curves)} seed" + "s" * (len(curves) > 1))
        axes.axhline(game.optimum, color="tab:green", linestyle="--", label="optimum")
        axes.axhline(
            statistics.mean(row["medium"] for row in rows), color="tab:gray", linestyle=":", label="medium player"
        )
        axes.set(title=game.name, xlabel="episodes", ylabel="score")
    figure.axes[-1].legend(frameon=False, loc="lower right")
    figure.tight_layout()
    save_figure(figure, "games.png")


def _smoothed(points: Sequence[tuple[int, float]], episodes_per_step: int, width: int = 10) -> list[tuple[int, float]]:
    """Return the means of blocks of steps, against the number of episodes."""
    blocks = [points[i : i + width] for i in range(0, len(points) - width + 1, width)]
    return [((block[-1][0] + 1) * episodes_per_step, statistics.mean(value for _, value in block)) for block in blocks]


def collect_results() -> dict[str, Any]:
    """Return the finished runs, of this machine and of the results so far."""
    runs: dict[str, Any] = read_results(FILE).get("runs", {})
    for game in GAMES.values():
        for path in sorted((RUNS / game.config).glob("seed*/row.json")):
            runs.setdefault(game.name, {})[path.parent.name.removeprefix("seed")] = json.loads(path.read_text())
    games = {game.name: {"random": game.random, "medium_episodes": game.medium_episodes} for game in GAMES.values()}
    return {"runs": runs, "settings": games | {"test_episodes": TEST_EPISODES}, **environment()}


def run_all(games: Sequence[str], seeds: Sequence[int], console: Console) -> None:
    """Run what is missing, a process for each game and seed, with the time left."""
    known = read_results(FILE).get("runs", {})
    missing = [(name, seed) for seed in seeds for name in games if str(seed) not in known.get(name, {})]
    started = time.time()
    for number, (name, seed) in enumerate(missing):
        command = [sys.executable, __file__, "--run", name, str(seed)]
        run(Step(f"{name} seed {seed}", command, folder_of(GAMES[name], seed) / "row.json"), RUNS, console)
        write_json(FILE, collect_results())
        per_run = (time.time() - started) / 60 / (number + 1)
        console.print(f"{number + 1} of {len(missing)} runs, {per_run * (len(missing) - number - 1):.0f} minutes left")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--games", nargs="+", default=list(GAMES), choices=list(GAMES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--report", action="store_true", help="only report what there is")
    parser.add_argument("--run", nargs=2, metavar=("GAME", "SEED"), help="one run in this process")
    options = parser.parse_args()
    console = Console()
    if options.run:
        game, seed = GAMES[options.run[0]], int(options.run[1])
        write_json(folder_of(game, seed) / "row.json", GameRun(game, seed).play())
        return
    if not options.report:
        run_all(options.games, options.seeds, console)
    report(read_results(FILE), console)


if __name__ == "__main__":
    main()
