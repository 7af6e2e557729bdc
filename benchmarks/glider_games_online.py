"""Online fine-tuning on errands of two unseen customers: high level alone, low level frozen, against a flat agent.

    python benchmarks/glider_games_online.py            # seeds 2 to 6; resumes after the last complete run
    python benchmarks/glider_games_online.py --report   # only the tables and the plot
    python benchmarks/glider_games_online.py --sft-steps 1200   # from policies of more SFT
    python benchmarks/glider_games_online.py --run "low level greedy" hierarchical 100    # a trial: prints its figures

Both start from the policies of `glider_games.py` after SFT and offline RL with lambda-returns, which are trained here
unless the folder of runs has them, and play equally many episodes, with the rewards of the game or with a limit of the
penalty. All scores are by the game's own rewards.

Runs are in `runs/glider_games`, figures in `benchmarks/results/glider_games_online.json`, the plot is
`docs/images/glider_games_online.png`; with other customers or steps of SFT their names are appended.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiment import RESULTS, Step, environment, read_results, run
from glider_games import RUNS, UNSEEN, Seed
from never_answer import summary
from rich.console import Console

from lit_rft._files import write_json
from lit_rft.envs.games import errands

KINDS = ("hierarchical", "flat")
SETTINGS: dict[str, dict[str, Any]] = {  # fields of `Settings` in addition to those of lambda-returns
    "penalty limited": {"lowest": -0.02, "online_rate": 2e-3, "updates": 1.0, "offline_share": 0.25, "rounds": 8},
}
_CHOSEN = SETTINGS["penalty limited"]
TRIALS = {  # on validation seeds only: by `--run`
    "low level greedy": {**_CHOSEN, "low_exploration": 0.0},
    "low level greedy, wider goals": {**_CHOSEN, "low_exploration": 0.0, "exploration": 1.4},
    "exploration at 0.7": {**_CHOSEN, "exploration": 0.7},
}


def run_kind(seed: Seed, kind: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Train a kind of agent online, and return its curve and its held-out figures before and after."""
    from glider_games_run import Curve

    prepare(seed, kind)
    trials = make_trials(seed, fields)
    stage, curve = trials.online_stage(kind, f"{kind}_returns", seed.folder / f"{kind}_sft"), Curve(figures)
    before = _held_out(seed, trials, stage)
    trials.fit_online(kind, stage, seed.unseen, seed.folder / "medium.jsonl", curve)
    minutes = {**seed.trials.minutes, **trials.minutes}
    return {"curve": curve.points, "before": before, "after": _held_out(seed, trials, stage), "minutes": minutes}


def make_trials(seed: Seed, fields: Mapping[str, Any]) -> Any:
    """Make the stages of a seed with the settings of lambda-returns and others."""
    from glider_games_run import RETURNS, Trials

    settings = dataclasses.replace(seed.trials.settings, **{**RETURNS, **fields})
    return Trials(seed.folder, seed.trials.seed, settings)


def prepare(seed: Seed, kind: str) -> None:
    """Train by SFT and by offline RL with lambda-returns, unless the seed's folder has the results."""
    backbone = seed.backbone(kind)
    if not (seed.folder / f"{kind}_returns.ckpt").exists():
        trials = make_trials(seed, {})
        trials.offline(kind, seed.episodes, backbone, f"{kind}_returns")
        seed.trials.minutes |= trials.minutes


def _held_out(seed: Seed, trials: Any, stage: Any) -> dict[str, Any]:
    plays: dict[str, tuple[Any, ...]] = {
        "unseen": (seed.unseen_test, 1.0), "unseen, greedy": (seed.unseen_test, 0.0), "seen": (seed.test, 1.0),
    }  # fmt: skip
    if "low" in stage.agent.levels:
        plays["unseen, low level greedy"] = (seed.unseen_test, 1.0, 0.0)
    return {name: figures(trials.play(stage, *arguments)) for name, arguments in plays.items()}


def figures(episodes: Sequence[Any]) -> dict[str, float]:
    """Return the figures of `never_answer.summary`, and those of purchases and subgoals."""
    right = [sum(step.observation.startswith("Bought ") for step in episode.steps) for episode in episodes]
    counts = {"right": round(statistics.mean(right), 4), "rarest": round(rarest_share(episodes), 4)}
    return {**summary(episodes), **counts, **subgoal_figures(episodes)}


def rarest_share(episodes: Sequence[Any]) -> float:
    """Return the share, among a customer's purchases, of the item of the list that is bought least: the lowest."""
    bought: dict[str, list[str]] = {}
    for episode in episodes:
        names = [achieved.text for step in episode.steps for achieved in step.achieved]
        bought.setdefault(episode.task_description.rstrip("."), []).extend(names)
    return min(
        names.count(f"buy {item}") / max(1, len(names))
        for customer, names in bought.items()
        for item in errands.LISTS[customer]
    )


def subgoal_figures(episodes: Sequence[Any]) -> dict[str, float]:
    """Return subgoals per episode, and the share of them that the low level carried out.

    A subgoal is carried out if its item, and nothing else, was bought in it. The last one of an episode that was cut is
    left out. Without subgoals (flat agents) there are no figures.
    """
    rows = []
    for episode in episodes:
        for subgoal in episode.subgoals[: None if episode.outcome.terminated else -1]:
            steps = episode.steps[subgoal.start : subgoal.end]
            rows.append([achieved.text for step in steps for achieved in step.achieved] == [subgoal.goal])
    if not rows:
        return {}
    return {"subgoals": round(len(rows) / len(episodes), 4), "carried out": round(statistics.mean(rows), 4)}


def name_of(setting: str, kind: str) -> str:
    return f"online, {setting}, {kind}"


@dataclasses.dataclass(frozen=True)
class Variant:
    """A comparison.

    Attributes:
        unseen: customers of online fine-tuning; the others are those of the stages before.
        sft_steps: optimiser steps of SFT.
    """

    unseen: tuple[str, ...] = UNSEEN
    sft_steps: int = 400

    @property
    def name(self) -> str:
        """Name of its folder and files; empty for the default."""
        return "" if self == Variant() else "_".join((*self.unseen, str(self.sft_steps)))

    @property
    def file(self) -> Path:
        return RESULTS / f"{self.title}.json"

    @property
    def title(self) -> str:
        """Name of its results and its plot."""
        return "_".join(filter(None, ("glider_games_online", self.name)))

    def seed(self, runs: Path, number: int) -> Seed:
        from glider_games_run import Settings

        seen = [name for name in errands.LISTS if name not in self.unseen]
        return Seed(runs / self.name, number, Settings(sft_steps=self.sft_steps), seen, self.unseen)


def run_all(variant: Variant, seeds: list[int], runs: Path, console: Console) -> None:
    """Run what is missing, a process for each setting and kind of agent of a seed."""
    known = read_results(variant.file).get("seeds", {})
    options = ["--unseen", *variant.unseen, "--sft-steps", str(variant.sft_steps)] if variant.name else []
    for seed in seeds:
        for setting in SETTINGS:
            for name, kind in ((name_of(setting, kind), kind) for kind in KINDS):
                if name not in known.get(str(seed), {}):
                    which = ["--run", setting, kind, str(seed), *options]
                    command = [sys.executable, __file__, "--runs", str(runs), *which]
                    result = runs / variant.name / f"seed{seed}" / f"{name}.json"
                    run(Step(f"{variant.name} seed {seed}: {name}".strip(), command, result), runs, console)
                    write_json(variant.file, collect_results(variant, runs))


def collect_results(variant: Variant, runs: Path) -> dict[str, Any]:
    """Return the figures of this machine and of the results so far."""
    from glider_games_run import RETURNS, Settings

    seeds: dict[str, Any] = read_results(variant.file).get("seeds", {})
    for name in (name_of(setting, kind) for setting in SETTINGS for kind in KINDS):
        for path in sorted((runs / variant.name).glob(f"seed*/{name}.json")):
            seeds.setdefault(path.parent.name.removeprefix("seed"), {})[name] = json.loads(path.read_text())
    fixed = {**vars(Settings(sft_steps=variant.sft_steps)), **RETURNS, "unseen": variant.unseen}
    settings = {name: {**fixed, **fields} for name, fields in SETTINGS.items()}
    return {"seeds": seeds, "settings": settings, **environment()}


def run_one(variant: Variant, runs: Path, setting: str, kind: str, number: str) -> None:
    """Run a setting of the comparison, or a trial, and print its figures."""
    seed = variant.seed(runs, int(number))
    row = run_kind(seed, kind, (SETTINGS | TRIALS)[setting])
    write_json(seed.folder / f"{name_of(setting, kind)}.json", row)
    print(json.dumps({"before": row["before"], "after": row["after"]}, indent=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[2, 3, 4, 5, 6])
    parser.add_argument("--runs", type=Path, default=RUNS, help="folder of models and logs")
    parser.add_argument("--report", action="store_true", help="only report what there is")
    parser.add_argument("--run", nargs=3, metavar=("SETTING", "KIND", "SEED"), help="one run in this process")
    parser.add_argument("--unseen", nargs="+", default=Variant.unseen, help="customers of online fine-tuning")
    parser.add_argument("--sft-steps", type=int, default=Variant.sft_steps, help="of the policies that it starts from")
    options = parser.parse_args()
    variant = Variant(tuple(options.unseen), options.sft_steps)
    if options.run:
        run_one(variant, options.runs, *options.run)
        return
    console = Console()
    if not options.report:
        run_all(variant, options.seeds, options.runs, console)
    from glider_games_online_report import report

    report(read_results(variant.file), console, variant.title)


if __name__ == "__main__":
    main()
