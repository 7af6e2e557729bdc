"""Environments of the comparison, and the `lit-rft` commands that train and play in them."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from experiment import Step, listed, lit_rft

Keys = Mapping[str, Any]
_FOLDER = Path(__file__).parent / "talk"
_DATA = "data.init_args."


@dataclass(frozen=True)
class Game:
    """One of the environments, with the episodes that each method learns from and is compared on.

    Attributes:
        configs: folder of its recipes, in `glider/` and `baselines/`.
        suite: import path of the suite, whose expert makes examples for prompts.
        train: keys of the data to train on.
        explore: keys of `predict` for the games that a policy explores; none of them is played in the comparison.
        seen: keys of `predict` for held-out games of the kind that is trained on.
        unseen: keys of `predict` for games of another kind: another task, or other floor plans.
        online: keys of the data of on-policy stages.
        examples: further arguments of `collect` for the expert episodes that prompts show.
        long: names of its longer tasks, which take the expert more than eight actions on average.
    """

    name: str
    configs: str
    suite: str
    train: Keys
    explore: Keys
    seen: Keys
    unseen: Keys
    online: Keys = field(default_factory=dict)
    examples: tuple[str, ...] = ()
    long: tuple[str, ...] = ()


_TRAINED = listed(["find-animal", "find-living-thing", "find-plant"])
GAMES = {
    "scienceworld": Game(
        name="ScienceWorld, short tasks",
        configs="scienceworld",
        suite="lit_rft.envs.scienceworld.short_tasks",
        train={"tasks": _TRAINED, "train_half": "first"},
        explore={"tasks": _TRAINED, "predict_split": "train", "predict_half": "second"},
        seen={"tasks": _TRAINED, "predict_split": "dev"},
        unseen={"tasks": listed(["find-non-living-thing"]), "predict_split": "dev"},
        online={"tasks": _TRAINED},
    ),
    # trained, explored and shown in prompts: games of the first half (explored with another seed, so most are others
    # than the experts'); seen floor plans are those of the second half
    "alfworld": Game(
        name="ALFWorld, synthetic",
        configs="alfworld",
        suite="lit_rft.envs.alfworld.small_households",
        train={"train_half": "first"},
        explore={"predict_split": "train", "predict_half": "first", "seed": 1000},
        seen={"predict_split": "train", "predict_half": "second"},
        unseen={"predict_split": "dev"},
        online={"collect_half": "first"},
        examples=("--half", "first"),
        long=(
            "pick_clean_then_place_in_recep",
            "pick_heat_then_place_in_recep",
            "pick_cool_then_place_in_recep",
            "pick_two_obj_and_place",
        ),
    ),
}


@dataclass(frozen=True)
class Place:
    """Folder and size of the runs of one environment and seed; its methods make the commands of rows.

    Attributes:
        game: the environment.
        scale: `tiny`, `small` or `paper`: overlays of the commands, in `talk/`.
        seed: of training.
        home: folder of all rows of this environment and seed, which use one another's runs.
        general: file of general instruction data, for AgentTuning.
        extra: further arguments of every command.
    """

    game: Game
    scale: str
    seed: int
    home: Path
    general: Path
    extra: tuple[str, ...] = ()

    def fit(self, run: str, *configs: str, start: str | None = None, model: Keys | None = None, **data: Any) -> Step:
        """Train a stage into the folder `run`, from the weights of the run `start`."""
        folder = self.home / run
        keys: dict[str, Any] = {_DATA + key: value for key, value in data.items()} | dict(model or {})
        keys["model.init_args.policy.start_from"] = self.weights(start) if start else "null"
        command = [*self.command("fit", folder, configs, keys), "--ckpt_path", "last"]  # of an interrupted run
        done, costs = folder / "summary_fit.json", folder / "costs_fit.json"
        return Step(f"{self.home.name}: {run}: fit", command, done, (costs,))

    def examples(self) -> Step:
        """Collect expert episodes of the training split, shown in prompts."""
        arguments = ["collect", self.game.suite, "--episodes", "3", *self.game.examples]
        command = [sys.executable, "-m", "lit_rft.cli", *arguments, "--out", str(self.examples_file)]
        return Step(f"{self.home.name}: examples: collect", command, self.examples_file.with_suffix(".done"))

    @property
    def examples_file(self) -> Path:
        return self.home / "data" / "examples.jsonl"

    def eto(self, run: str, start: str) -> Step:
        """Run ETO's iterations from the weights of a run."""
        keys: dict[str, Any] = {_DATA + key: value for key, value in self.game.train.items()}
        keys["model.init_args.policy.start_from"] = self.weights(start)
        keys[_DATA + "predict_episodes_per_task"] = "null"  # explore the experts' problems
        command = self.command("eto", self.home / run, ("baselines/{}/eto.yaml",), keys)
        command[command.index("--trainer.default_root_dir")] = "--folder"  # each iteration has its own
        command += ["--later", "baselines/eto_later.yaml"]
        parts = [self.home / run / f"iteration_{number}" for number in range(1, 4)]
        explored = [part / "explore" / "episodes" / "predicted.jsonl" for part in parts]
        costs = (*explored, *(part / "costs_fit.json" for part in parts))
        return Step(f"{self.home.name}: {run}: fit", command, self.home / run / "iterations.done", costs)

    def explore(self, run: str, *configs: str) -> Step:
        """Let the policy of a run play games of the training split, at a temperature."""
        keys = {"ckpt_path": self.weights(run), "model.init_args.acting.sampling.temperature": 0.7}
        keys |= {_DATA + key: value for key, value in self.game.explore.items()}
        command = self.command("predict", self.home / run / "explored", configs, keys, "explore")
        episodes = self.explored(run)
        return Step(f"{self.home.name}: {run}: explore", command, episodes.with_suffix(".done"), (episodes,))

    def explored(self, run: str) -> Path:
        """Return the file of the explored episodes."""
        return self.home / run / "explored" / "episodes" / "predicted.jsonl"

    def play(self, row: str, run: str | None, *configs: str, **more: Any) -> Iterator[Step]:
        """Play the held-out games by the policy of a run (None: the pretrained model)."""
        for kind, games in (("seen", self.game.seen), ("unseen", self.game.unseen)):
            keys: dict[str, Any] = {_DATA + key: value for key, value in {"seed": 0, **games}.items()}
            keys |= {"ckpt_path": self.weights(run)} if run else {}
            keys |= {"model.init_args.policy.start_from": "null", **more}
            folder = self.played(row, kind)
            command = self.command("predict", folder, configs, keys)
            episodes = folder / "episodes" / "predicted.jsonl"
            yield Step(f"{self.home.name}: {row}: {kind}", command, episodes.with_suffix(".done"), (episodes,))

    def played(self, row: str, kind: str) -> Path:
        """Return the folder with a row's episodes on the held-out games of a kind."""
        return self.home / "played" / row / kind

    def weights(self, run: str) -> Path:
        return self.home / run / "checkpoints" / "last.ckpt"

    def command(self, verb: str, folder: Path, configs: tuple[str, ...], keys: Keys, *more: str) -> list[str]:
        fixed = {
            "trainer.default_root_dir": folder,
            "seed_everything": self.seed,
            "trainer.limit_val_batches": 0,
            f"{_DATA}data_dir": self.home / "data",
        }
        recipes = [config.format(self.game.configs) for config in configs]
        names = (self.scale, *(f"{self.scale}-{name}" for name in (Path(configs[0]).stem, *more)))
        existing = [str(file) for name in names if (file := _FOLDER / f"{name}.yaml").exists()]
        return lit_rft(verb, [*recipes, *existing], {**fixed, **keys}, self.extra)
