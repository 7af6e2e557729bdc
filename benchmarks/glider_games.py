"""GLIDER's claims on a street of shops, with a small model trained from scratch: minutes per seed on one CPU core.

    python benchmarks/glider_games.py              # seeds 2 to 6; resumes after the last complete part of a seed
    python benchmarks/glider_games.py --report     # only the tables and the plot

Medium-quality play of six customers' errands (lists of 2, 3 and 5 items), by a player that buys out of turn and acts at
random at times. On it, flat and hierarchical: SFT; then, from there, offline RL, or SFT on the best quarter of the
episodes, or more SFT on all of them, for the same number of steps. Then online fine-tuning on two unseen customers, and
ablations. Each policy plays 90 problems at temperature 1 and greedily.

Runs and logs are in `runs/glider_games`, figures in `benchmarks/results/glider_games.json`, the plot is
`docs/images/glider_games.png`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiment import RESULTS, ROOT, Step, environment, read_results, run
from rich.console import Console

from lit_rft._files import write_json
from lit_rft.envs.games import errands

RUNS, FILE = ROOT / "runs" / "glider_games", RESULTS / "glider_games.json"
PARTS = ("hierarchical", "flat", "returns", "online", "ablations", "matched", "matched_q", "isolated")
SEEN, UNSEEN = errands.CUSTOMERS, ("Gwen", "Hugo")
EPISODES, HELD_OUT, TEST_EPISODES = 480, 60, 90
IMPATIENCE, NOISE, BEST = 0.5, 0.1, 0.25


class Seed:
    """The parts of one seed, each with a file of its figures.

    Args:
        runs: folder; the seed's files are in a folder of it.
        seed: of data, weights, order and sampling.
        settings: of all stages; None for the defaults.
        seen: customers of the first stages.
        unseen: customers of online fine-tuning.
    """

    def __init__(
        self,
        runs: Path,
        seed: int,
        settings: Any = None,
        seen: Sequence[str] = SEEN,
        unseen: Sequence[str] = UNSEEN,
    ) -> None:
        from glider_games_data import play_medium, write_problems
        from glider_games_run import Settings, Trials

        self.folder = runs / f"seed{seed}"
        first = 10**6 * (seed + 1)  # of the seeds of problems
        problems = write_problems(self.folder / "train.jsonl", first, EPISODES, seen)
        self.episodes = play_medium(self.folder / "medium.jsonl", problems, IMPATIENCE, NOISE, seed)
        held_out = write_problems(self.folder / "held_out.jsonl", first + 10**5, HELD_OUT, seen)
        self.held_out = play_medium(self.folder / "held_out_medium.jsonl", held_out, IMPATIENCE, NOISE, seed + 500)
        self.test = write_problems(self.folder / "test.jsonl", 10**8 + first, TEST_EPISODES, seen)
        self.unseen_test = write_problems(self.folder / "unseen_test.jsonl", 10**8 + first + 10**5, 60, unseen)
        self.unseen = write_problems(self.folder / "unseen.jsonl", first + 2 * 10**5, 400, unseen)
        self.trials = Trials(self.folder, seed, settings or Settings())
        self.model = self._make_model(seed, unseen)

    def _make_model(self, seed: int, unseen: Sequence[str]) -> Path:
        from glider_games_data import agent_texts

        from lit_rft.models import save_scratch_model

        folder = self.folder / "model"
        if not (folder / "config.json").exists():
            save_scratch_model(folder, agent_texts(self.episodes, unseen), seed=seed)
        return folder

    def backbone(self, kind: str) -> Path:
        """Return the folder of a kind of agent's weights after SFT, which is trained if it is missing."""
        folder = self.folder / f"{kind}_sft"
        if not (folder / "tokenizer.json").exists():
            self.trials.sft(kind, self.episodes, self.model, folder.name)
        return folder

    def offline(self, kind: str) -> dict[str, Any]:
        """Train and evaluate the policies of a kind of agent on stored episodes."""
        from glider_games_data import best_episodes

        trials, episodes, scores = self.trials, self.episodes, {}
        scores["SFT"] = self.scores(trials.sft(kind, episodes, self.model, f"{kind}_sft"))
        backbone = self.folder / f"{kind}_sft"
        stage = trials.offline(kind, episodes, backbone, f"{kind}_rl")
        scores["+ offline RL"] = self.scores(stage)
        diagnostics = trials.diagnose(stage, kind, self.held_out, backbone)
        best = best_episodes(episodes, BEST)
        scores["+ SFT on the best quarter"] = self.scores(trials.more_sft(kind, best, backbone, f"{kind}_best"))
        scores["+ more SFT"] = self.scores(trials.more_sft(kind, episodes, backbone, f"{kind}_more"))
        return {"scores": scores, "diagnostics": diagnostics, "medium": self._medium(), "minutes": trials.minutes}

    def returns(self) -> dict[str, Any]:
        """Train both kinds of agents by offline RL with lambda-returns, from SFT."""
        from glider_games_run import RETURNS

        return self._offline_with("returns", "+ offline RL, lambda-returns", RETURNS)

    def matched(self) -> dict[str, Any]:
        """Train by one-step advantages at the temperature, discount and expectile of the lambda-returns."""
        from glider_games_run import MATCHED

        return self._offline_with("matched", "+ offline RL, matched", MATCHED)

    def matched_q(self) -> dict[str, Any]:
        """Train with advantages by Q, at the temperature, discount and expectile of the lambda-returns."""
        from glider_games_run import RETURNS, Trials

        return self._offline_with("matched_q", "+ offline RL with Q, matched", RETURNS, Trials.by_q)

    def isolated(self) -> dict[str, Any]:
        """Train the hierarchy as in `matched`, but for one setting, which is that of the sharper weights."""
        from glider_games_run import MATCHED

        parts = []
        for setting in ("temperature", "discount", "expectile"):
            sharper = getattr(self.trials.settings, setting)
            title = f"+ offline RL, matched, {setting} {sharper:g}"
            fields = {**MATCHED, setting: sharper}
            parts.append(self._offline_with(f"isolated_{setting}", title, fields, kinds=("hierarchical",)))
        titled = {title: scores for part in parts for title, scores in part["scores"]["hierarchical"].items()}
        minutes = {name: value for part in parts for name, value in part["minutes"].items()}
        return {"scores": {"hierarchical": titled}, "minutes": minutes}

    def _offline_with(
        self,
        name: str,
        title: str,
        fields: Mapping[str, float],
        update: Callable[[Any], Any] | None = None,
        kinds: Sequence[str] = ("hierarchical", "flat"),
    ) -> dict[str, Any]:
        """Train agents by offline RL with these settings, from SFT."""
        from glider_games_run import Trials

        trials = Trials(self.folder, self.trials.seed, dataclasses.replace(self.trials.settings, **fields))
        scores, diagnostics = {}, {}
        for kind in kinds:
            backbone = self.backbone(kind)
            by = update(trials) if update else None
            stage = trials.offline(kind, self.episodes, backbone, f"{kind}_{name}", update=by)
            scores[kind] = {title: self.scores(stage)}
            diagnostics[kind] = trials.diagnose(stage, kind, self.held_out, backbone)
        return {"scores": scores, "diagnostics": diagnostics, "minutes": {**self.trials.minutes, **trials.minutes}}

    def ablations(self) -> dict[str, Any]:
        """Train both kinds of agents by offline RL without SFT, for the steps of both at SFT's rate, and with Q."""
        from glider_games_run import Trials

        trials, settings, scores, diagnostics = self.trials, self.trials.settings, {}, {}
        longer = {"rl_steps": settings.sft_steps + settings.rl_steps, "rl_rate": settings.sft_rate}
        alone = Trials(self.folder, trials.seed, dataclasses.replace(settings, **longer))
        for kind in ("hierarchical", "flat"):
            stage = alone.offline(kind, self.episodes, self.model, f"{kind}_rl_only", pretrained=False)
            backbone = self.folder / f"{kind}_sft"
            scores[kind] = {"offline RL without SFT": self.scores(stage)}
            stage = trials.offline(kind, self.episodes, backbone, f"{kind}_q", update=trials.by_q())
            scores[kind]["+ offline RL with Q"] = self.scores(stage)
            diagnostics[kind] = trials.diagnose(stage, kind, self.held_out, backbone)
        return {"scores": scores, "diagnostics": diagnostics, "minutes": {**alone.minutes, **trials.minutes}}

    def online(self) -> dict[str, Any]:
        """Continue the policies of both kinds on unseen customers."""
        results: dict[str, Any] = {}
        for kind in ("hierarchical", "flat"):
            backbone, stored = self.folder / f"{kind}_sft", self.folder / "medium.jsonl"
            stage, curve = self.trials.online(kind, f"{kind}_rl", backbone, self.unseen, stored)
            results[kind] = {
                "curve": curve,
                "unseen": self.trials.scores(stage, self.unseen_test)["mean"],
                "seen": self.trials.scores(stage, self.test)["mean"],
            }
        return {**results, "minutes": self.trials.minutes}

    def scores(self, stage: Any) -> dict[str, Any]:
        """Return the scores on the test problems, at temperature 1 and greedily."""
        return {
            "sampled": self.trials.scores(stage, self.test),
            "greedy": self.trials.scores(stage, self.test, 0.0),
        }

    def _medium(self) -> dict[str, float]:
        tasks = sorted({episode.task for episode in self.episodes})
        means = {task: statistics.mean(e.outcome.score for e in self.episodes if e.task == task) for task in tasks}
        return {**means, "mean": statistics.mean(means.values())}


def run_all(seeds: list[int], runs: Path, console: Console) -> None:
    """Run what is missing, a process for each part of a seed."""
    known = read_results(FILE).get("seeds", {})
    order = [(part, seed) for parts in (PARTS[:3], PARTS[3:4], PARTS[4:]) for seed in seeds for part in parts]
    for part, seed in order:
        if part not in known.get(str(seed), {}):
            result = runs / f"seed{seed}" / f"{part}.json"
            command = [sys.executable, __file__, "--runs", str(runs), "--part", part, str(seed)]
            run(Step(f"seed {seed}: {part}", command, result), runs, console)
            write_json(FILE, collect_results(runs))


def collect_results(runs: Path) -> dict[str, Any]:
    """Return the figures of this machine and of the results so far."""
    from glider_games_run import RETURNS, Settings

    seeds: dict[str, Any] = read_results(FILE).get("seeds", {})
    for folder in sorted(runs.glob("seed*")):
        for part in PARTS:
            if (folder / f"{part}.json").exists():
                figures = json.loads((folder / f"{part}.json").read_text())
                seeds.setdefault(folder.name.removeprefix("seed"), {})[part] = figures
    data = {"episodes": EPISODES, "impatience": IMPATIENCE, "noise": NOISE, "best": BEST, "test": TEST_EPISODES}
    return {"seeds": seeds, "settings": {**vars(Settings()), "returns": RETURNS, **data}, **environment()}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[2, 3, 4, 5, 6])
    parser.add_argument("--runs", type=Path, default=RUNS, help="folder of models and logs")
    parser.add_argument("--report", action="store_true", help="only report what there is")
    parser.add_argument("--part", nargs=2, metavar=("PART", "SEED"), help="one part of a seed in this process")
    options = parser.parse_args()
    if options.part:
        part, seed = options.part
        trial = Seed(options.runs, int(seed))
        figures = trial.offline(part) if part in PARTS[:2] else getattr(trial, part)()
        write_json(trial.folder / f"{part}.json", figures)
        return
    console = Console()
    if not options.report:
        run_all(options.seeds, options.runs, console)
    from glider_games_report import report

    report(read_results(FILE), console)


if __name__ == "__main__":
    main()
