"""Rows of the comparison: which `lit-rft` commands train and play each method, on equal data and exploration."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
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
    """

    name: str
    configs: str
    suite: str
    train: Keys
    explore: Keys
    seen: Keys
    unseen: Keys
    online: Keys = field(default_factory=dict)


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
    # games of the first half that training has not chosen are explored (another seed), seen floor plans are those of
    # the second half
    "alfworld": Game(
        name="ALFWorld, synthetic",
        configs="alfworld",
        suite="lit_rft.envs.alfworld.small_households",
        train={"train_half": "first"},
        explore={"predict_split": "train", "predict_half": "first", "seed": 1000},
        seen={"predict_split": "train", "predict_half": "second"},
        unseen={"predict_split": "dev"},
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
        folder, checkpoint = self.home / run, self.home / run / "checkpoints" / "last.ckpt"
        keys: dict[str, Any] = {_DATA + key: value for key, value in data.items()} | dict(model or {})
        keys["model.init_args.policy.start_from"] = self.weights(start) if start else "null"
        command = self.command("fit", folder, configs, keys)
        if checkpoint.exists():  # of an interrupted run
            command += ["--ckpt_path", "last"]
        return Step(f"{self.home.name}: {run}: fit", command, folder / "adapter" / "adapter_config.json")

    def examples(self) -> Step:
        """Collect expert episodes of the training split, shown in prompts."""
        arguments = ["collect", self.game.suite, "--episodes", "3", "--out", str(self.examples_file)]
        command = [sys.executable, "-m", "lit_rft.cli", *arguments]
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
        done = self.home / run / "iterations.done"
        return Step(f"{self.home.name}: {run}: fit", command, done)

    def explore(self, run: str, *configs: str) -> Step:
        """Let the policy of a run play games of the training split, at a temperature."""
        keys = {"ckpt_path": self.weights(run), "model.init_args.acting.sampling.temperature": 0.7}
        keys |= {_DATA + key: value for key, value in self.game.explore.items()}
        folder = self.home / run / "explored"
        command = self.command("predict", folder, configs, keys)
        return Step(f"{self.home.name}: {run}: explore", command, folder / "episodes" / "predicted.done")

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
            yield Step(f"{self.home.name}: {row}: {kind}", command, folder / "episodes" / "predicted.done")

    def played(self, row: str, kind: str) -> Path:
        """Return the folder with a row's episodes on the held-out games of a kind."""
        return self.home / "played" / row / kind

    def weights(self, run: str) -> Path:
        return self.home / run / "checkpoints" / "last.ckpt"

    def command(self, verb: str, folder: Path, configs: tuple[str, ...], keys: Keys) -> list[str]:
        fixed = {
            "trainer.default_root_dir": folder,
            "seed_everything": self.seed,
            "trainer.limit_val_batches": 0,
            f"{_DATA}data_dir": self.home / "data",
        }
        recipes = [config.format(self.game.configs) for config in configs]
        overlays = (_FOLDER / f"{self.scale}.yaml", _FOLDER / f"{self.scale}-{Path(configs[0]).stem}.yaml")
        existing = [str(overlay) for overlay in overlays if overlay.exists()]
        return lit_rft(verb, [*recipes, *existing], {**fixed, **keys}, self.extra)


FLAT = ("glider/{}/sft.yaml", "glider/{}/flat_sft.yaml")
HIERARCHICAL = ("glider/{}/sft.yaml",)


def untrained(place: Place) -> Iterator[Step]:
    yield from place.play("untrained", None, *FLAT)


def sft(place: Place) -> Iterator[Step]:
    """Behaviour cloning of the experts."""
    yield place.fit("sft", *FLAT, **place.game.train)
    yield from place.play("sft", "sft", *FLAT)


def _explored(place: Place) -> Iterator[Step]:
    """The exploration that all offline methods learn from: by the cloned policy."""
    yield place.fit("sft", *FLAT, **place.game.train)
    yield place.explore("sft", *FLAT)


def awac(place: Place) -> Iterator[Step]:
    yield from _explored(place)
    configs = ("glider/{}/offline_rl.yaml", "glider/{}/flat_offline_rl.yaml")
    data = {**place.game.train, "medium_files": listed([place.explored("sft")])}
    yield place.fit("awac", *configs, start="sft", **data)
    yield from place.play("awac", "awac", *configs)


def glider_sft(place: Place) -> Iterator[Step]:
    yield place.fit("glider_sft", *HIERARCHICAL, **place.game.train)
    yield from place.play("glider_sft", "glider_sft", *HIERARCHICAL)


def glider(place: Place) -> Iterator[Step]:
    """Hierarchical SFT, then offline RL, without playing online."""
    yield place.fit("glider_sft", *HIERARCHICAL, **place.game.train)
    yield from _offline(place, "glider", "glider_sft")


def glider_without_sft(place: Place) -> Iterator[Step]:
    yield place.fit("glider_sft", *HIERARCHICAL, **place.game.train)
    yield from _offline(place, "glider_without_sft", None)


def _offline(place: Place, row: str, start: str | None) -> Iterator[Step]:
    yield place.explore("glider_sft", *HIERARCHICAL)
    data = {**place.game.train, "medium_files": listed([place.explored("glider_sft")])}
    yield place.fit(row, "glider/{}/offline_rl.yaml", start=start, **data)
    yield from place.play(row, row, "glider/{}/offline_rl.yaml")


def glider_online(place: Place) -> Iterator[Step]:
    """All three stages; the third one plays the training tasks."""
    yield from glider(place)
    yield place.fit("glider_online", "glider/{}/online.yaml", start="glider", **place.game.online)
    yield from place.play("glider_online", "glider_online", "glider/{}/online.yaml")


def react(place: Place) -> Iterator[Step]:
    yield place.examples()
    examples = {"model.init_args.agent.init_args.examples.files": listed([place.examples_file])}
    yield from place.play("react", None, "baselines/{}/react.yaml", **examples)


def reflexion(place: Place) -> Iterator[Step]:
    yield place.examples()
    examples = {"model.init_args.agent.init_args.agent.examples.files": listed([place.examples_file])}
    yield from place.play("reflexion", None, "baselines/{}/reflexion.yaml", **examples)


def swift_sage(place: Place) -> Iterator[Step]:
    """Swift by imitation; Sage is the same policy, with examples."""
    yield place.examples()
    examples = {"model.init_args.agent.init_args.examples.files": listed([place.examples_file])}
    yield place.fit("swift_sage", "baselines/{}/swift_sage.yaml", model=examples, **place.game.train)
    yield from place.play("swift_sage", "swift_sage", "baselines/{}/swift_sage.yaml", **examples)


def nat(place: Place) -> Iterator[Step]:
    yield from _explored(place)
    data = {**place.game.train, "medium_files": listed([place.explored("sft")])}
    yield place.fit("nat", "baselines/{}/nat.yaml", **data)
    yield from place.play("nat", "nat", "baselines/{}/nat.yaml")


def eto(place: Place) -> Iterator[Step]:
    yield place.fit("sft", *FLAT, **place.game.train)
    yield place.eto("eto", start="sft")
    yield from place.play("eto", "eto/iteration_3", "baselines/{}/eto.yaml")


def agent_tuning(place: Place) -> Iterator[Step]:
    data = {**place.game.train, "general_files": listed([place.general])}
    yield place.fit("agent_tuning", "baselines/{}/agent_tuning.yaml", **data)
    yield from place.play("agent_tuning", "agent_tuning", "baselines/{}/agent_tuning.yaml")


def ppo(place: Place) -> Iterator[Step]:
    yield place.fit("sft", *FLAT, **place.game.train)
    yield place.fit("ppo", "baselines/{}/ppo.yaml", start="sft", **place.game.online)
    yield from place.play("ppo", "ppo", "baselines/{}/ppo.yaml")


def ilql(place: Place) -> Iterator[Step]:
    yield from _explored(place)
    data = {**place.game.train, "medium_files": listed([place.explored("sft")])}
    yield place.fit("ilql", "baselines/{}/ilql.yaml", start="sft", **data)
    yield from place.play("ilql", "ilql", "baselines/{}/ilql.yaml")


@dataclass(frozen=True)
class Row:
    """One method.

    Attributes:
        title: its name in the table.
        steps: its commands, in order; those that another row has completed are not run again.
    """

    title: str
    steps: Callable[[Place], Iterator[Step]]


ROWS = {
    "untrained": Row("pretrained model", untrained),
    "react": Row("ReAct", react),
    "reflexion": Row("Reflexion, last trial", reflexion),
    "swift_sage": Row("SwiftSage", swift_sage),
    "sft": Row("SFT (behaviour cloning)", sft),
    "agent_tuning": Row("AgentTuning", agent_tuning),
    "nat": Row("NAT", nat),
    "eto": Row("ETO", eto),
    "ppo": Row("PPO", ppo),
    "ilql": Row("ILQL", ilql),
    "awac": Row("AWAC", awac),
    "glider_sft": Row("GLIDER, SFT only", glider_sft),
    "glider_without_sft": Row("GLIDER without SFT", glider_without_sft),
    "glider": Row("GLIDER, SFT + offline RL", glider),
    "glider_online": Row("GLIDER, all stages", glider_online),
}
