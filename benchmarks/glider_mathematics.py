"""GLIDER on mathematics: SFT, offline RL and online fine-tuning on generated expressions, with and without
hierarchy, with a small model trained from scratch on one CPU core.

    python benchmarks/glider_mathematics.py                               # all runs; resumes an interrupted one
    python benchmarks/glider_mathematics.py --seeds 0 --agents flat       # one run
    python benchmarks/glider_mathematics.py --report                      # only report what there is

For each seed: expert solutions of one half of the training problems, and an untrained model. For each agent: SFT on
them, solutions of the other half by that policy (medium-quality data), offline RL on both, and online fine-tuning on
problems that are longer by one step as well. Each policy solves held-out problems at temperature 1: of as many steps as
in training (`test`), and of more (`longer`). The stages are the shipped configs.

Runs and logs are in `runs/glider_mathematics`, figures in `benchmarks/results/glider_mathematics.json`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
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
    timed,
)
from rich.console import Console
from rich.table import Table

from lit_rft import cli
from lit_rft._files import write_json

FILE = RESULTS / "glider_mathematics.json"
AGENTS = ("hierarchical", "flat")
STAGES = ("untrained", "sft", "offline_rl", "online")
SPLITS = ("test", "longer")
SUITE = "lit_rft.envs.mathematics.ExpressionSuite"
MORE: dict[str, dict[str, Any]] = {}  # further keys of the stages, for tests
TEST_PROBLEMS = 50  # of each number of steps; an untrained policy, which writes up to the limit, gets a fifth
PROBLEMS = 2000  # of each number of steps; the expert solves one half, the policy an eighth


class Trial:
    """All stages of one seed and agent, in this process.

    Args:
        seed: of weights, order, problems and sampling.
        agent: `hierarchical`, or `flat`.
        runs: folder of all trials.
    """

    def __init__(self, seed: int, agent: str, runs: Path) -> None:
        self.seed, self.agent = seed, agent
        self.data = runs / f"seed{seed}"
        self.folder = folder_of(runs, seed, agent)
        self.expert, self.model = self.data / "expert.jsonl", self.data / "model"
        self.medium = self.folder / "sft" / "episodes" / "predicted.jsonl"
        self.minutes: dict[str, float] = {}

    def play(self) -> dict[str, Any]:
        """Run what is missing, and return the scores."""
        with self._timed("collect"):
            self._prepare()
        backbone = self.folder / "sft" / "adapter"
        start = {name: self._checkpoint(name) for name in ("offline_rl", "online")}
        scores = {"untrained": self._test("untrained", "sft", {"model": self.model, "start_from": "null"})}
        self._fit("sft", {"model": self.model}, {"train_files": f"[{self.expert}]"})
        scores["sft"] = self._test("sft", "sft", {"model": self.model, "start_from": self._checkpoint("sft")})
        self._predict()
        files = {"train_files": f"[{self.expert}]", "medium_files": f"[{self.medium}]"}
        self._fit("offline_rl", {"model": backbone, "start_from": "null"}, files)
        policy = {"model": backbone, "start_from": start["offline_rl"]}
        scores["offline_rl"] = self._test("offline_rl", "offline_rl", policy)
        self._fit("online", policy, files)
        scores["online"] = self._test("online", "online", {**policy, "start_from": start["online"]})
        return {
            "scores": scores,
            "medium": mean_score(self.medium),
            "curve": curve(self.folder / "online" / "tensorboard", "online/score"),
            "minutes": {name: round(value, 2) for name, value in self.minutes.items()},
        }

    def _prepare(self) -> None:
        self.data.mkdir(parents=True, exist_ok=True)
        if not self.expert.exists():
            numbers = {"episodes": PROBLEMS // 2, "half": "first", "seed": self.seed, "workers": 1}
            arguments = json.dumps({"problems": {"train": PROBLEMS}})
            cli.main(["collect", SUITE, "--args", arguments, "--out", str(self.expert), *flags(numbers)])
        if not (self.model / "config.json").exists():
            cli.main(["make-model", str(self.expert), "--out", str(self.model), "--seed", str(self.seed)])

    def _fit(self, name: str, policy: Mapping[str, Any], data: Mapping[str, Any]) -> None:
        folder = self.folder / name
        if (folder / "finished").exists():
            return
        keys = {"trainer.limit_val_batches": 0, **{f"data.init_args.{key}": value for key, value in data.items()}}
        keys |= MORE.get(name, {})
        resume = ["--ckpt_path", "last"] if self._checkpoint(name).exists() else []
        with self._timed(name):
            self._run("fit", name, folder, policy, keys, resume)
        (folder / "finished").touch()

    def _predict(self) -> None:
        """Let the first stage's policy solve the problems that the expert has not solved."""
        if (self.folder / "sft" / "predicted").exists():
            return
        keys = {
            "data.init_args.suite.init_args.problems": json.dumps({"train": PROBLEMS}),
            "data.init_args.predict_episodes_per_task": PROBLEMS // 8,
        }
        policy = {"model": self.model, "start_from": "null"}
        with self._timed("medium"):
            self._run("predict", "sft", self.folder / "sft", policy, keys, ["--ckpt_path", "last"])
        (self.folder / "sft" / "predicted").touch()

    def _test(self, name: str, stage: str, policy: Mapping[str, Any]) -> dict[str, Any]:
        """Return the scores of a policy by split and task."""
        scores = {}
        for split in SPLITS:
            folder = self.folder / f"{split}_{name}"
            if not (folder / "scores.json").exists():
                number = max(1, TEST_PROBLEMS // 5) if name == "untrained" else TEST_PROBLEMS
                keys = {"data.init_args.eval_split": split, "data.init_args.eval_episodes_per_task": number}
                keys["data.init_args.suite.init_args.steps"] = "[2,3]"  # also where training has others
                with self._timed("test"):
                    self._run("test", stage, folder, policy, keys)
            scores[split] = json.loads((folder / "scores.json").read_text())
        return scores

    def _run(
        self, verb: str, stage: str, folder: Path, policy: Mapping[str, Any], keys: Mapping[str, Any],
        extra: Sequence[str] = (),
    ) -> None:  # fmt: skip
        names = [stage, *([f"flat_{stage}"] if self.agent == "flat" else [])]
        configs = [f"glider/mathematics/{name}.yaml" for name in names]
        settings = {"seed_everything": self.seed, "trainer.default_root_dir": folder, **keys}
        settings |= {f"model.init_args.policy.{key}": value for key, value in policy.items()}
        cli.main(lit_rft_arguments(verb, configs, settings, extra))

    def _checkpoint(self, name: str) -> Path:
        return self.folder / name / "checkpoints" / "last.ckpt"

    def _timed(self, name: str) -> contextlib.AbstractContextManager[None]:
        return timed(self.minutes, name, time.process_time)


def folder_of(runs: Path, seed: int, agent: str) -> Path:
    return runs / f"seed{seed}" / agent


def report(results: Mapping[str, Any], console: Console) -> None:
    """Print the table of all runs."""
    table = Table(title="problems solved, %, mean and 95% interval over seeds")
    rows = [row for runs in results["runs"].values() for row in runs.values()]
    columns = [(split, task) for split in SPLITS for task in rows[0]["scores"]["sft"][split] if task != "mean"]
    for column in ("agent", "seeds", "policy", *(f"{split}: {task}" for split, task in columns), "right steps, longer"):
        table.add_column(column)
    for agent, runs in results["runs"].items():
        for stage in STAGES:
            scores = [row["scores"][stage] for row in runs.values()]
            cells = [[score[split][task]["score"] for score in scores] for split, task in columns]
            cells.append([100 * score["longer"]["mean"]["metrics/right_steps"] for score in scores])
            table.add_row(agent, str(len(runs)), stage, *map(interval, cells))
        minutes = statistics.mean(sum(row["minutes"].values()) for row in runs.values())
        medium = statistics.mean(row["medium"] for row in runs.values())
        console.print(f"{agent}: {minutes:.1f} CPU minutes per seed, medium-quality data {100 * medium:.1f}")
    console.print(table)


def collect_results(runs: Path) -> dict[str, Any]:
    """Return the finished runs, of this machine and of the results so far."""
    rows: dict[str, Any] = read_results(FILE).get("runs", {})
    for agent in AGENTS:
        for path in sorted(runs.glob(f"seed*/{agent}/row.json")):
            rows.setdefault(agent, {})[path.parents[1].name.removeprefix("seed")] = json.loads(path.read_text())
    settings = {"test_problems": TEST_PROBLEMS, "problems": PROBLEMS}
    return {"runs": rows, "settings": settings, **environment()}


def run_all(agents: Sequence[str], seeds: Sequence[int], runs: Path, console: Console) -> None:
    """Run what is missing, a process for each seed and agent."""
    known = read_results(FILE).get("runs", {})
    for seed in seeds:
        for agent in agents:
            if str(seed) in known.get(agent, {}):
                continue
            command = [sys.executable, __file__, "--runs", str(runs), "--run", str(seed), agent]
            run(Step(f"{agent} seed {seed}", command, folder_of(runs, seed, agent) / "row.json"), runs, console)
            write_json(FILE, collect_results(runs))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--agents", nargs="+", default=list(AGENTS), choices=AGENTS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "glider_mathematics", help="folder of the runs")
    parser.add_argument("--report", action="store_true", help="only report what there is")
    parser.add_argument("--run", nargs=2, metavar=("SEED", "AGENT"), help="one run in this process")
    options = parser.parse_args()
    console = Console()
    if options.run:
        seed, agent = int(options.run[0]), options.run[1]
        write_json(folder_of(options.runs, seed, agent) / "row.json", Trial(seed, agent, options.runs).play())
        return
    if not options.report:
        run_all(options.agents, options.seeds, options.runs, console)
    report(read_results(FILE), console)


if __name__ == "__main__":
    main()
