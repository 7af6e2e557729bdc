"""Does offline RL improve on SFT with a pretrained model? On synthetic households, from where `make demo` ends.

    python benchmarks/offline_households.py                 # seeds 4, 5 and 6 on `test`; resumes an interrupted run
    python benchmarks/offline_households.py --validation    # seed 0 on `dev`, and the trials that decided the settings
    python benchmarks/offline_households.py --report        # the tables of the runs so far

For each seed: flat SFT on expert episodes (`demo_runs.py`, in the folder `--demo`; trained here if it is missing). Its
policy plays 300 games on training floor plans. From it, for as many optimiser steps each: offline RL on these games, by
lambda-returns and by Q; SFT on the solved ones; SFT on all of them. Every policy then plays the same held-out games.

Every step is a command; completed ones are skipped. Runs and logs are in `--runs`, results in
`benchmarks/results/offline_households.json`.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import demo_runs
from experiment import RESULTS, ROOT, Step, environment, listed, lit_rft, read_results, run, times
from offline_households_report import GREEDY, SAMPLED, diagnostics, failures, report
from rich.console import Console

from lit_rft._files import write_json
from lit_rft.episodes import Episode, read_episodes, write_episodes

_DATA, _MODEL = "data.init_args.", "model.init_args."
_RATE = _MODEL + "optimizer.learning_rate"
MEDIUM_TEMPERATURE, MEDIUM_PER_TASK, GAMES_PER_TASK = 1.0, 75, 22
BATCH, STEPS, RATE = 3, 100, 5e-4


@dataclass(frozen=True)
class Method:
    """Training from the SFT policy.

    Attributes:
        title: in tables.
        stage: `sft` or `offline_rl`.
        files: `all` of the played games, the `solved` ones, or those of another file.
        keys: further keys of the command.
    """

    title: str
    stage: str
    files: str = "all"
    keys: Mapping[str, Any] = field(default_factory=dict)


def _critic(update: str, **settings: Any) -> dict[str, Any]:
    """Return keys of the critics; their features are those of the policy's own pass, which SFT has trained."""
    critic = {"features": "adapted", "cache_dir": "null", "learning_rate": 3e-3, "discount": 0.97}
    update = json.dumps({"class_path": f"lit_rft.stages.{update}", "init_args": settings})
    return {_MODEL + f"critic.{name}": value for name, value in critic.items()} | {_MODEL + "critic_update": update}


def _returns(
    title: str, files: str = "all", *, temperature: float = 0.3, rate: float = RATE, critic_rate: float = 3e-3
) -> Method:
    keys = _critic("TDUpdate", td_lambda=0.95, advantage_temperature=temperature, expectile=0.5)
    return Method(title, "offline_rl", files, {**keys, _RATE: rate, _MODEL + "critic.learning_rate": critic_rate})


METHODS = {
    "returns": _returns("+ offline RL, lambda-returns"),
    "solved": Method("+ SFT on the solved games", "sft", "solved"),
    "more": Method("+ SFT on all games", "sft"),
    "by_q": Method(
        "+ offline RL, by Q", "offline_rl", keys=_critic("IQLUpdate", advantage_temperature=0.1, expectile=0.7)
    ),
}
TRIALS = {  # other settings, on the validation seed only
    "sharper": _returns("lambda-returns, temperature 0.1", temperature=0.1),
    "steadier": _returns("lambda-returns, temperature 0.1, critic 1e-3", temperature=0.1, critic_rate=1e-3),
    "faster": _returns("lambda-returns, temperature 0.1, learning rate 1e-3", temperature=0.1, rate=1e-3),
    "solved_faster": Method("the solved games, learning rate 1e-3", "sft", "solved", {_RATE: 1e-3}),
    "bootstrapped": _returns("lambda-returns, cut games are bootstrapped", "episodes/predicted"),
}
FIRST = ("sft", "returns", "solved")  # of all seeds, before the others


@dataclass(frozen=True)
class Place:
    """Folders of a seed's runs.

    Attributes:
        seed: of training, and of the choice of games.
        home: folder of its runs.
        demo: folder of the SFT runs.
        split: floor plans of the held-out games.
        extra: further arguments of every command.
    """

    seed: int
    home: Path
    demo: Path
    split: str
    extra: tuple[str, ...] = ()

    def weights(self, name: str) -> Path:
        folder = self.demo / f"seed-{self.seed}" if name == "sft" else self.home / name
        return folder / "checkpoints" / "last.ckpt"

    def medium(self) -> Step:
        """Let the SFT policy play games on training floor plans, most of them other ones than the expert's."""
        keys = {"predict_split": "train", "predict_episodes_per_task": MEDIUM_PER_TASK, "seed": 1000 + self.seed}
        return self._play("medium", "sft", MEDIUM_TEMPERATURE, keys)

    def play(self, name: str, temperature: float) -> Step:
        """Let a policy play the held-out games."""
        keys = {"predict_split": self.split, "predict_episodes_per_task": GAMES_PER_TASK, "seed": self.seed}
        return self._play(f"played/{name}-{temperature:g}", name, temperature, keys)

    def _play(self, folder: str, name: str, temperature: float, data: Mapping[str, Any]) -> Step:
        keys = {_DATA + key: value for key, value in data.items()}
        keys[_MODEL + "acting.sampling.temperature"] = temperature
        command = self._command("predict", folder, "sft", name, keys)
        episodes = self.home / folder / "episodes" / "predicted.done"
        return Step(f"{self.home.name}: {folder.replace('/', ' ')}", command, episodes)

    def fit(self, name: str, method: Method) -> Step:
        """Train from the SFT policy; episodes are seen once, or, if there are fewer, for as many optimiser steps."""
        keys = {
            "trainer.max_epochs": -1,
            "trainer.max_steps": STEPS,
            _DATA + "train_files": listed([self.home / "medium" / f"{method.files}.jsonl"]),
            _DATA + "batch_size": BATCH,
            _RATE: RATE,
        }
        keys |= {_DATA + "medium_files": "null"} if method.stage == "offline_rl" else {}
        command = self._command("fit", name, method.stage, "sft", {**keys, **method.keys})
        done = self.home / name / "summary_fit.json"
        return Step(f"{self.home.name}: {name}", [*command, "--ckpt_path", "last"], done)  # of an interrupted run

    def _command(self, verb: str, folder: str, stage: str, start: str, keys: Mapping[str, Any]) -> list[str]:
        configs = [f"glider/alfworld/{name}.yaml" for name in (stage, f"flat_{stage}", "demo")]
        fixed = {"trainer.default_root_dir": self.home / folder, "seed_everything": self.seed}
        fixed[_MODEL + "policy.start_from"] = self.weights(start)
        return lit_rft(verb, configs, {**fixed, **keys}, self.extra)

    def select(self) -> None:
        """Write the training files from the played games.

        The limit of 20 actions is part of the task: a game that it cuts has failed. As it is recorded, critics would
        bootstrap from the state after it.
        """
        folder = self.home / "medium"
        if (folder / "solved.jsonl").exists():
            return
        episodes = read_episodes(folder / "episodes" / "predicted.jsonl")
        write_episodes(folder / "all.jsonl", map(with_end, episodes))
        write_episodes(folder / "solved.jsonl", [episode for episode in episodes if episode.outcome.success])


def with_end(episode: Episode) -> Episode:
    """Return an episode that ends with its last step, also if the limit of steps has cut it."""
    return dataclasses.replace(episode, outcome=dataclasses.replace(episode.outcome, terminated=True, truncated=False))


def plan(places: Sequence[Place], validation: bool) -> Iterator[tuple[Place, Step]]:
    """Return the steps of all seeds in order, those of the main comparison first; in validation, then the trials."""
    methods = METHODS | TRIALS
    others = [name for name in (TRIALS if validation else METHODS) if name not in FIRST]
    groups = [FIRST, *((name,) for name in others)]
    for names, temperature in itertools.product(groups, (GREEDY, SAMPLED)):
        for place in places:
            yield place, demo_runs.step(place.seed, place.demo, ())
            yield place, place.medium()
            for name in names:
                if name != "sft":
                    yield place, place.fit(name, methods[name])
                yield place, place.play(name, temperature)


def collect(places: Sequence[Place], runs: Path, known: Mapping[str, Any]) -> dict[str, Any]:
    """Return all results so far: games by policy and temperature, and diagnostics, of each seed."""
    seeds = dict(known.get("seeds", {}))
    for place in places:
        record = seeds.setdefault(str(place.seed), {"split": place.split, "games": {}, "diagnostics": {}})
        for done in sorted(place.home.glob("**/episodes/predicted.done")):
            episodes = sorted(read_episodes(done.with_suffix(".jsonl")), key=lambda episode: episode.id)
            games = {episode.id: [episode.outcome.success, len(episode.steps)] for episode in episodes}
            record["games"][done.parents[1].name] = games
            record.setdefault("failures", {})[done.parents[1].name] = failures(episodes)
        for name, method in (METHODS | TRIALS).items():
            if method.stage == "offline_rl" and (place.home / name / "summary_fit.json").exists():
                decisions = sum(length for _, length in record["games"]["medium"].values()) / STEPS
                record["diagnostics"][name] = diagnostics(place.home / name, decisions)
    methods = {name: dataclasses.asdict(method) for name, method in (METHODS | TRIALS).items()}
    settings = {"learning_rate": RATE, "steps": STEPS, "batch": BATCH, "medium_temperature": MEDIUM_TEMPERATURE}
    settings["methods"] = {"sft": {"title": "SFT"}, **methods}
    return {"seeds": seeds, "settings": settings, "seconds": times(runs, known), **environment()}


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the missing runs, then write the results and print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", help="training seeds (default: 4 5 6; in validation 0)")
    parser.add_argument("--validation", action="store_true", help="play on `dev`, the trials' policies, too")
    parser.add_argument("--demo", type=Path, default=ROOT / "runs" / "demo_runs", help="folder of the SFT runs")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "offline_households")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--report", action="store_true", help="only report what there is")
    parser.add_argument("--dry-run", action="store_true", help="print the commands")
    parser.add_argument("extra", nargs="*", help="more arguments for every lit-rft command (after --)")
    options = parser.parse_args(arguments)
    split = "dev" if options.validation else "test"
    places = [
        Place(seed, options.runs / f"seed-{seed}", options.demo, split, tuple(options.extra))
        for seed in options.seeds or ([0] if options.validation else [4, 5, 6])
    ]
    planned, file, console = plan(places, options.validation), options.results / "offline_households.json", Console()
    if options.dry_run:
        print(*dict.fromkeys(shlex.join(step.command) for _, step in planned), sep="\n")
        return
    for place, step in planned if not options.report else ():
        if "fit" in step.command:
            place.select()
        run(step, options.runs, console)
        write_json(file, collect(places, options.runs, read_results(file)))
    report(read_results(file))


if __name__ == "__main__":
    main()
