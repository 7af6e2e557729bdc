"""The trap of never answering, and ways out of it, with a small model trained from scratch: minutes per seed on a core.

    python benchmarks/never_answer.py              # seeds 1 to 3; resumes after the last complete run
    python benchmarks/never_answer.py --report     # only the table and the plot

A player of errands has to learn what two new customers want, and in which order. Each purchase out of turn costs 0.5,
and walking about until the end of the episode 0.2: a policy that mostly buys the wrong thing learns never to buy. For
each seed: SFT on medium-quality play for other customers, then from there GRPO on the new ones by each of `SETTINGS`,
for the same number of episodes. Scores are by the game's own rewards.

Runs are in `runs/never_answer`, figures in `benchmarks/results/never_answer.json`, the plot is
`docs/images/never_answer.png`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiment import RESULTS, ROOT, Step, environment, interval, plot_curves, read_results, run, save_figure, timed
from rich.console import Console
from rich.table import Table

from lit_rft._files import write_json

RUNS, FILE = ROOT / "runs" / "never_answer", RESULTS / "never_answer.json"
SEEN, NEW = ("Anna", "Ben", "Cleo", "Dan"), ("Gwen", "Hugo")
WRONG_COST, STEP_LIMIT, TEST_EPISODES, MAX_TOKENS = 0.5, 20, 200, 6


@dataclasses.dataclass(frozen=True)
class Setting:
    """Rewards and optimism of a run of GRPO.

    Args:
        step_cost, lowest: of `ShapedSuite`, in training.
        entropy: coefficient of the entropy bonus.
        temperature: of exploration.
        sft_steps, rollouts, groups, rate: sizes, and the learning rate of GRPO.
    """

    step_cost: float = 0.0
    lowest: float | None = None
    entropy: float = 0.0
    temperature: float = 1.0
    sft_steps: int = 200
    rollouts: int = 40
    groups: int = 8
    rate: float = 1e-3


SETTINGS = {
    "default": Setting(),
    "penalty limited to 0.02": Setting(lowest=-0.02),
}


class Trial:
    """SFT of one seed, and GRPO by each setting from there, in this process."""

    def __init__(self, folder: Path, seed: int, setting: Setting) -> None:
        from glider_games_data import ENV, write_problems
        from quiet import silence
        from scratch import Player

        from lit_rft.agents import FlatAgent
        from lit_rft.envs import GymSuite

        self.folder, self.seed, self.setting = folder, seed, setting
        self.player, self.minutes = Player(FlatAgent("Act.", 768), seed, MAX_TOKENS), dict[str, float]()
        silence()
        first = 10**6 * (seed + 1)
        rows = {
            "train": str(write_problems(folder / "train.jsonl", first, 2000, NEW)),
            "test": str(write_problems(folder / "test.jsonl", 10**8 + first, TEST_EPISODES, NEW)),
        }
        self.suite = GymSuite(ENV, {"wrong_cost": WRONG_COST}, step_limit=STEP_LIMIT, rows=rows)

    def sft(self) -> Path:
        """Fine-tune an untrained model on medium-quality play unless it is done; return the folder of its weights."""
        from glider_games_data import agent_texts, play_medium, write_problems

        if (self.folder / "sft" / "config.json").exists():
            return self.folder / "sft"
        problems = write_problems(self.folder / "sft.jsonl", 10**6 * (self.seed + 1), 480, SEEN)
        episodes = play_medium(self.folder / "medium.jsonl", problems, 0.5, 0.1, self.seed)
        return self.player.fine_tune(
            self.folder, episodes, agent_texts(episodes, NEW), steps=self.setting.sft_steps, rate=4e-3,
            clock=timed(self.minutes, "SFT", time.process_time),
        )  # fmt: skip

    def run(self) -> dict[str, Any]:
        """Train, and return the curve and the held-out figures before and after."""
        import lightning as L
        from quiet import make_trainer

        from lit_rft.datamodules import EpisodeGroupDataModule
        from lit_rft.envs.shaped import ShapedSuite

        stage, setting = self._stage(self.sft()), self.setting
        before = self._test(stage)
        suite = ShapedSuite(self.suite, setting.step_cost, setting.lowest)
        data = EpisodeGroupDataModule(
            suite=suite, seed=self.seed, batch_size=setting.groups, train_episodes_per_task=None
        )
        curve = _curve()
        L.seed_everything(self.seed, verbose=False)
        with timed(self.minutes, "GRPO", time.process_time):
            make_trainer(max_steps=setting.rollouts, max_epochs=-1, callbacks=[curve]).fit(stage, data)
        minutes = {name: round(value, 2) for name, value in self.minutes.items()}
        return {"SFT": before, "GRPO": self._test(stage), "curve": curve.points, "minutes": minutes}

    def _stage(self, model: Path) -> Any:
        from lit_rft.generation import SamplingSettings
        from lit_rft.stages import MixedPolicyEpisodes, ObjectiveSettings, OptimizerSettings, PolicySettings

        setting = self.setting
        return MixedPolicyEpisodes(
            PolicySettings(str(model), None), OptimizerSettings(setting.rate),
            ObjectiveSettings(8, traces_per_group=0, entropy_coef=setting.entropy),
            exploration=SamplingSettings(MAX_TOKENS, setting.temperature), seed=self.seed,
            **self.player.stage_settings(),
        )  # fmt: skip

    def _test(self, stage: Any) -> dict[str, dict[str, float]]:
        """Return held-out figures at temperature 1 and greedily, by the game's own rewards."""
        return {name: summary(episodes) for name, episodes in self.player.held_out(stage, self.suite).items()}


def summary(episodes: Any) -> dict[str, float]:
    """Return mean score by the game's own rewards, share solved, and purchases of an episode."""
    scores = [e.extra.get("metrics", {}).get("task_score", e.outcome.score) for e in episodes]
    purchases = [sum(step.action.strip() == "buy" for step in e.steps) for e in episodes]
    figures = {"score": scores, "solved": [e.outcome.success for e in episodes], "purchases": purchases}
    figures["none"] = [number == 0 for number in purchases]
    return {name: round(statistics.mean(values), 4) for name, values in figures.items()}


def _curve() -> Any:
    import lightning as L

    class Curve(L.Callback):
        """Collects the figures of each rollout, after the number of episodes so far."""

        def __init__(self) -> None:
            self.points: list[tuple[int, dict[str, float]]] = []

        def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
            episodes = [rollout.episode for rollout in pl_module.samples]
            before = self.points[-1][0] if self.points else 0
            self.points.append((before + len(episodes), summary(episodes)))

    return Curve()


def folder_of(runs: Path, seed: int) -> Path:
    return runs / f"seed{seed}"


def run_all(seeds: list[int], runs: Path, console: Console) -> None:
    """Run what is missing, a process for each setting and seed."""
    known = read_results(FILE).get("runs", {})
    for name in SETTINGS:
        for seed in seeds:
            if str(seed) not in known.get(name, {}):
                command = [sys.executable, __file__, "--runs", str(runs), "--run", name, str(seed)]
                result = folder_of(runs, seed) / f"{name}.json"
                result.parent.mkdir(parents=True, exist_ok=True)
                run(Step(f"seed {seed}: {name}", command, result), runs, console)
                write_json(FILE, collect_results(runs))


def collect_results(runs: Path) -> dict[str, Any]:
    """Return the figures of this machine and of the results so far."""
    rows: dict[str, Any] = read_results(FILE).get("runs", {})
    for name in SETTINGS:
        for path in sorted(runs.glob(f"seed*/{name}.json")):
            rows.setdefault(name, {})[path.parent.name.removeprefix("seed")] = json.loads(path.read_text())
    game = {"wrong_cost": WRONG_COST, "step_limit": STEP_LIMIT, "test_episodes": TEST_EPISODES}
    settings = {name: dataclasses.asdict(setting) for name, setting in SETTINGS.items()}
    return {"runs": rows, "settings": settings, "game": game, **environment()}


def report(results: Mapping[str, Any], console: Console) -> None:
    """Print the figures of all settings, and write the plot."""
    table = Table(title="held-out problems of the new customers, mean and 95% interval over seeds")
    names = ("score", "purchases", "none", "solved")
    for column in ("setting", "seeds", *names, "score, greedy", "solved, greedy", "minutes"):
        table.add_column(column)
    runs = results["runs"]
    rows = {"SFT": ("SFT", runs["default"])} | {name: ("GRPO", rows) for name, rows in runs.items()}
    for name, (stage, seeds) in rows.items():
        figures = [row[stage] for row in seeds.values()]
        cells = [interval([part["sampled"][key] for part in figures]) for key in names]
        cells += [interval([part["greedy"][key] for part in figures]) for key in ("score", "solved")]
        minutes = interval([row["minutes"][stage] for row in seeds.values() if stage in row["minutes"]], 1)
        table.add_row(name, str(len(seeds)), *cells, minutes)
    for name, seeds in runs.items():
        for key in ("score", "purchases"):
            pairs = [(row["GRPO"], runs["default"][seed]["GRPO"]) for seed, row in seeds.items()]
            difference = interval([a["sampled"][key] - b["sampled"][key] for a, b in pairs])
            console.print(f"{name} - default: {key} {difference}")
    console.print(table)
    plot(runs)


def plot(runs: Mapping[str, Any]) -> None:
    """Plot purchases and scores of the training episodes against their number."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.4))
    for axes, key in zip(figure.subplots(1, 2), ("purchases", "score"), strict=True):
        for name, seeds in runs.items():
            curves = [[(number, point[key]) for number, point in row["curve"]] for row in seeds.values()]
            plot_curves(axes, curves, name, lambda values: 0.0)
            color = axes.lines[-1].get_color()
            for points in curves:
                axes.plot(*zip(*points, strict=True), color=color, linewidth=0.6, alpha=0.35)
        axes.set(xlabel="episodes", ylabel=f"{key} of an episode")
    figure.axes[0].legend(frameon=False, fontsize=8)
    figure.tight_layout()
    save_figure(figure, "never_answer.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--runs", type=Path, default=RUNS, help="folder of models and logs")
    parser.add_argument("--report", action="store_true", help="only report what there is")
    parser.add_argument("--run", nargs=2, metavar=("SETTING", "SEED"), help="one run in this process")
    options = parser.parse_args()
    if options.run:
        name, seed = options.run
        folder = folder_of(options.runs, int(seed))
        write_json(folder / f"{name}.json", Trial(folder, int(seed), SETTINGS[name]).run())
        return
    console = Console()
    if not options.report:
        run_all(options.seeds, options.runs, console)
    report(read_results(FILE), console)


if __name__ == "__main__":
    main()
