"""Offline RL from a pretrained model's SFT policy, on games that it has played: what the `offline_*.py` share.

A subject is a kind of games with an SFT policy. For each seed that policy plays training games at temperature 1. From
it, for as many optimiser steps each: offline RL on these games, by lambda-returns and by Q; SFT on the best ones; SFT
on all of them; more SFT on its expert episodes. Every policy then plays the same held-out games: greedily, at
temperature 0.7, and at 1, as the games to learn from were played.

Every step is a command; completed ones are skipped.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from experiment import RESULTS, ROOT, Step, environment, listed, lit_rft, read_results, run, times
from offline_pretrained_report import TEMPERATURES, Measure, diagnostics, failures, report
from rich.console import Console

from lit_rft._files import write_json
from lit_rft.episodes import Episode, read_episodes, write_episodes

DATA, MODEL = "data.init_args.", "model.init_args."
LEARNING_RATE, MAX_GRAD_NORM = MODEL + "optimizer.learning_rate", MODEL + "optimizer.max_grad_norm"
MAX_STEPS = "trainer.max_steps"
MEDIUM_TEMPERATURE, MEDIUM_PER_TASK = 1.0, 75
BATCH, STEPS, RATE, DISCOUNT = 3, 100, 5e-4, 0.97


@dataclass(frozen=True)
class Method:
    """Training from the SFT policy.

    Attributes:
        title: in tables.
        stage: `sft` or `offline_rl`.
        files: `all` of the played games, the best of them (`solved`), or those of another file; None for none of them.
        expert: train on expert episodes, too, one for two of the others.
        keys: further keys of the command.
    """

    title: str
    stage: str
    files: str | None = "all"
    expert: bool = False
    keys: Mapping[str, Any] = field(default_factory=dict)


def _critic(update: str, **settings: Any) -> dict[str, Any]:
    """Return keys of the critics; their features are those of the policy's own pass, which SFT has trained."""
    critic = {"features": "adapted", "cache_dir": "null", "learning_rate": 3e-3, "discount": DISCOUNT}
    update = json.dumps({"class_path": f"lit_rft.stages.{update}", "init_args": settings})
    return {MODEL + f"critic.{name}": value for name, value in critic.items()} | {MODEL + "critic_update": update}


def returns(
    title: str,
    files: str = "all",
    *,
    td_lambda: float = 0.95,
    temperature: float = 0.3,
    rate: float = RATE,
    critic_rate: float = 3e-3,
    expert: bool = False,
    more: Mapping[str, Any] | None = None,
) -> Method:
    """Return offline RL by lambda-returns; a lambda of 0 is one step."""
    keys = _critic("TDUpdate", td_lambda=td_lambda, advantage_temperature=temperature, expectile=0.5)
    keys |= {LEARNING_RATE: rate, MODEL + "critic.learning_rate": critic_rate}
    return Method(title, "offline_rl", files, expert, keys | dict(more or {}))


METHODS = {
    "returns": returns("+ offline RL, lambda-returns"),
    "solved": Method("+ SFT on the best games", "sft", "solved"),
    "by_q": Method(
        "+ offline RL, by Q", "offline_rl", keys=_critic("IQLUpdate", advantage_temperature=0.1, expectile=0.7)
    ),
    "more": Method("+ SFT on all games", "sft"),
    "expert": Method("+ SFT on expert episodes", "sft", None, expert=True),
}
WITH_EXPERT = returns("+ offline RL, lambda-returns, expert episodes too", expert=True)  # as GLIDER's second stage
FIRST = ("sft", "returns", "solved")  # of all seeds, before the others


def solved(episodes: Sequence[Episode]) -> list[Episode]:
    return [episode for episode in episodes if episode.outcome.success]


@dataclass(frozen=True)
class Subject:
    """Games and an SFT policy of them.

    Attributes:
        name: of the results file and of the folder of runs.
        configs: of a stage (`sft`, `offline_rl`).
        start: returns the step that trains a place's SFT policy, and the checkpoint that it writes.
        expert: returns the keys of the data that choose a place's expert episodes.
        per_task: held-out games of each task.
        medium: keys of the data that choose the games to learn from, besides their number and seed.
        keys: of every command.
        measure: success or score, by which policies are compared.
        trials: other settings than those of METHODS, on the validation seed only.
        best: selects the best of the played games; by default those that succeed.
    """

    name: str
    configs: Callable[[str], list[str]]
    start: Callable[[Place], tuple[Step, Path]]
    expert: Callable[[Place], Mapping[str, Any]]
    per_task: int
    medium: Mapping[str, Any] = field(default_factory=dict)
    keys: Mapping[str, Any] = field(default_factory=dict)
    measure: Measure = "success"
    trials: Mapping[str, Method] = field(default_factory=dict)
    best: Callable[[Sequence[Episode]], list[Episode]] = solved

    @property
    def methods(self) -> dict[str, Method]:
        return {**METHODS, **self.trials}


@dataclass(frozen=True)
class Place:
    """Folders of a seed's runs.

    Attributes:
        subject: the games.
        seed: of training, and of the choice of games.
        home: folder of its runs.
        split: of the held-out games.
        extra: further arguments of every command.
    """

    subject: Subject
    seed: int
    home: Path
    split: str
    extra: tuple[str, ...] = ()

    def weights(self, name: str) -> Path:
        return self.subject.start(self)[1] if name == "sft" else self.home / name / "checkpoints" / "last.ckpt"

    def medium(self) -> Step:
        """Let the SFT policy play training games."""
        keys = {"predict_split": "train", "predict_episodes_per_task": MEDIUM_PER_TASK, "seed": 1000 + self.seed}
        return self._play("medium", "sft", MEDIUM_TEMPERATURE, {**keys, **self.subject.medium})

    def play(self, name: str, temperature: float) -> Step:
        """Let a policy play the held-out games."""
        keys = {"predict_split": self.split, "predict_episodes_per_task": self.subject.per_task, "seed": self.seed}
        return self._play(f"played/{name}-{temperature:g}", name, temperature, keys)

    def _play(self, folder: str, name: str, temperature: float, data: Mapping[str, Any]) -> Step:
        keys = {DATA + key: value for key, value in data.items()}
        keys[MODEL + "acting.sampling.temperature"] = temperature
        command = self._command("predict", folder, "sft", keys, self.weights(name))
        episodes = self.home / folder / "episodes" / "predicted.done"
        return Step(f"{self.home.name}: {folder.replace('/', ' ')}", command, episodes)

    def fit(self, name: str, method: Method) -> Step:
        """Train from the SFT policy; episodes are seen once, or, if there are fewer, for as many optimiser steps."""
        keys = {
            "trainer.max_epochs": -1,
            MAX_STEPS: STEPS,
            **self._episodes(method),
            DATA + "batch_size": BATCH,
            LEARNING_RATE: RATE,
        }
        if method.stage == "offline_rl":
            keys.setdefault(DATA + "medium_files", "null")
        return self.training(name, method.stage, {**keys, **method.keys}, self.weights("sft"))

    def _episodes(self, method: Method) -> dict[str, Any]:
        """Return the keys of the episodes that a method trains on."""
        played = listed([self.home / "medium" / f"{method.files}.jsonl"]) if method.files else None
        if not method.expert:
            return {DATA + "train_files": played}
        mixed = {"medium_files": played, "medium_per_expert": 2.0} if played else {}
        return self.expert() | {DATA + key: value for key, value in mixed.items()}

    def expert(self) -> dict[str, Any]:
        """Return the keys of the expert episodes."""
        return {DATA + key: value for key, value in self.subject.expert(self).items()}

    def training(self, name: str, stage: str, keys: Mapping[str, Any], start: Path | None = None) -> Step:
        """Return a step of training, from a checkpoint or from the pretrained model; it resumes an interrupted run."""
        command = [*self._command("fit", name, stage, keys, start), "--ckpt_path", "last"]
        return Step(f"{self.home.name}: {name}", command, self.home / name / "summary_fit.json")

    def _command(self, verb: str, folder: str, stage: str, keys: Mapping[str, Any], start: Path | None) -> list[str]:
        fixed = {"trainer.default_root_dir": self.home / folder, "seed_everything": self.seed}
        fixed |= {MODEL + "policy.start_from": start} if start else {}
        fixed |= self.subject.keys
        return lit_rft(verb, self.subject.configs(stage), {**fixed, **keys}, self.extra)

    def select(self) -> None:
        """Write the training files from the played games.

        The limit of steps is part of the task: a game that it cuts has failed. As it is recorded, critics would
        bootstrap from the state after it.
        """
        folder = self.home / "medium"
        if (folder / "solved.jsonl").exists():
            return
        episodes = read_episodes(folder / "episodes" / "predicted.jsonl")
        write_episodes(folder / "all.jsonl", map(with_end, episodes))
        write_episodes(folder / "solved.jsonl", self.subject.best(episodes))


def with_end(episode: Episode) -> Episode:
    """Return an episode that ends with its last step, also if the limit of steps has cut it."""
    return dataclasses.replace(episode, outcome=dataclasses.replace(episode.outcome, terminated=True, truncated=False))


def plan(places: Sequence[Place], validation: bool) -> Iterator[tuple[Place, Step]]:
    """Return the steps of all seeds in order, those of the main comparison first, in validation the trials last."""
    subject = places[0].subject
    others = [name for name in (subject.methods if validation else METHODS) if name not in FIRST]
    groups = [FIRST, *((name,) for name in others)]
    for names, temperature in itertools.product(groups, TEMPERATURES):
        for place in places:
            yield place, subject.start(place)[0]
            yield place, place.medium()
            for name in names:
                if name != "sft":
                    yield place, place.fit(name, subject.methods[name])
                yield place, place.play(name, temperature)


def collect(places: Sequence[Place], runs: Path, known: Mapping[str, Any]) -> dict[str, Any]:
    """Return all results so far: games by policy and temperature, and diagnostics, of each seed."""
    seeds, subject = dict(known.get("seeds", {})), places[0].subject
    for place in places:
        record = seeds.setdefault(str(place.seed), {"split": place.split, "games": {}, "diagnostics": {}})
        for done in sorted(place.home.glob("**/episodes/predicted.done")):
            episodes = sorted(read_episodes(done.with_suffix(".jsonl")), key=lambda episode: episode.id)
            games = {e.id: [e.outcome.success, len(e.steps), e.outcome.score] for e in episodes}
            record["games"][done.parents[1].name] = games
            record.setdefault("failures", {})[done.parents[1].name] = failures(episodes)
        for name in subject.methods:
            if (place.home / name / "summary_fit.json").exists():
                decisions = sum(length for _, length, *_ in record["games"]["medium"].values()) / STEPS
                record["diagnostics"][name] = diagnostics(place.home / name, decisions)
    methods = {name: dataclasses.asdict(method) for name, method in subject.methods.items()}
    settings = {"learning_rate": RATE, "steps": STEPS, "batch": BATCH, "medium_temperature": MEDIUM_TEMPERATURE}
    settings |= {"measure": subject.measure, "methods": {"sft": {"title": "SFT"}, **methods}}
    return {"seeds": seeds, "settings": settings, "seconds": times(runs, known), **environment()}


def make_parser(name: str, description: str) -> argparse.ArgumentParser:
    """Return the parser of a subject's options."""
    parser = argparse.ArgumentParser(description=description.split("\n\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", help="training seeds (default: 4 5 6; in validation 0)")
    parser.add_argument("--validation", action="store_true", help="play on `dev`, the trials' policies, too")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / name)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--report", action="store_true", help="only report what there is")
    parser.add_argument("--dry-run", action="store_true", help="print the commands")
    parser.add_argument("extra", nargs="*", help="more arguments for every lit-rft command (after --)")
    return parser


def main(subject: Subject, options: argparse.Namespace) -> None:
    """Make the missing runs, then write the results and print the tables."""
    split = "dev" if options.validation else "test"
    places = [
        Place(subject, seed, options.runs / f"seed-{seed}", split, tuple(options.extra))
        for seed in options.seeds or ([0] if options.validation else [4, 5, 6])
    ]
    planned, file, console = plan(places, options.validation), options.results / f"{subject.name}.json", Console()
    if options.dry_run:
        print(*dict.fromkeys(shlex.join(step.command) for _, step in planned), sep="\n")
        return
    for place, step in planned if not options.report else ():
        if "fit" in step.command and (place.home / "medium" / "episodes" / "predicted.done").exists():
            place.select()
        run(step, options.runs, console)
        write_json(file, collect(places, options.runs, read_results(file)))
    report(read_results(file))
