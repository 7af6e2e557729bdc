"""Measure how much of the actor's weight falls on wasted actions, in the games that `offline_*.py` learn from.

    python benchmarks/offline_weights.py households FILE...  # medium/all.jsonl of its runs; seconds, and no training
    python benchmarks/offline_weights.py scienceworld FILE...
    python benchmarks/offline_weights.py --report            # the tables of the results so far

An action is wasted if the environment did not accept it, or if it is among the earlier ones of its game. V is the mean
return of the decisions with the same task, number of met conditions and number of actions so far (in pairs), over the
games themselves: what a good critic would say, not what the critics of a run do. The weights are those of offline RL
before an optimiser step clips the gradient.

Results are in `benchmarks/results/offline_weights.json`.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from experiment import RESULTS, read_results
from offline_pretrained import DISCOUNT
from offline_scienceworld import best_quarter
from torch import Tensor

from lit_rft._files import write_json
from lit_rft.demo.report import markdown_table
from lit_rft.episodes import Episode, read_episodes
from lit_rft.objectives.advantage_weighted import advantage_weights
from lit_rft.objectives.gae import generalized_advantages

FILE = RESULTS / "offline_weights.json"
LAMBDAS, TEMPERATURES = (0.95, 0.0), (0.3, 0.1, 0.03)
COLUMNS = {
    "wasted": "wasted actions",
    "rewarded": "rewarded actions",
    "failed": "actions of failed games",
    "effective": "effective sample size",
}


@dataclass(frozen=True)
class Decisions:
    """The decisions of games, one game after another, [N].

    Attributes:
        wasted: bool.
        failed: of a failed game, bool.
        rewards: after each.
        last: of its game, bool.
        values: V before each.
    """

    wasted: Tensor
    failed: Tensor
    rewards: Tensor
    last: Tensor
    values: Tensor

    def shares(self, weights: Tensor) -> dict[str, float]:
        """Return the shares of the weights [N] on kinds of actions, and their effective sample size.

        The size is Kish's, as a share of the decisions.
        """
        total = weights.sum()
        effective = total**2 / (weights**2).sum() / len(weights)
        kinds = {"wasted": self.wasted, "rewarded": self.rewards > 0, "failed": self.failed}
        shares = {name: weights[kind].sum() / total for name, kind in kinds.items()}
        return {name: round(float(value), 4) for name, value in {**shares, "effective": effective}.items()}

    def weights(self, gae_lambda: float, temperature: float) -> Tensor:
        """Return the weights of offline RL, [N]."""
        returns = generalized_advantages(
            self.rewards, self.values, self.last, discount=DISCOUNT, gae_lambda=gae_lambda
        ).returns
        return advantage_weights(returns, self.values, advantage_temperature=temperature).weights


def wasted_actions(episode: Episode) -> list[bool]:
    """Return for each action whether it was not accepted, or is among the earlier ones."""
    actions = [step.action for step in episode.steps]
    return [not step.valid or step.action in actions[:i] for i, step in enumerate(episode.steps)]


def decisions(episodes: Sequence[Episode]) -> Decisions:
    """Return the decisions of flat games that end with their last step."""
    keys: list[Any] = []
    for episode in episodes:
        met = itertools.accumulate((len(step.achieved) for step in episode.steps), initial=0)
        keys += [(episode.task, number, i // 2) for i, (number, _) in enumerate(zip(met, episode.steps, strict=False))]
    rewards = torch.tensor([step.reward for episode in episodes for step in episode.steps], dtype=torch.float64)
    last = torch.tensor([step is episode.steps[-1] for episode in episodes for step in episode.steps])
    no_values = torch.zeros_like(rewards)
    returns = generalized_advantages(rewards, no_values, last, discount=DISCOUNT, gae_lambda=1.0).returns
    known: defaultdict[Any, list[float]] = defaultdict(list)
    for key, value in zip(keys, returns.tolist(), strict=True):
        known[key].append(value)
    return Decisions(
        torch.tensor([wasted for episode in episodes for wasted in wasted_actions(episode)]),
        torch.tensor([not episode.outcome.success for episode in episodes for _ in episode.steps]),
        rewards,
        last,
        torch.tensor([statistics.fmean(known[key]) for key in keys], dtype=torch.float64),
    )


def measure(episodes: Sequence[Episode]) -> dict[str, dict[str, float]]:
    """Return the shares of each way to weigh the decisions of games."""
    data = decisions(episodes)
    quarter = {episode.id for episode in best_quarter(episodes)}
    best = torch.tensor([float(episode.id in quarter) for episode in episodes for _ in episode.steps])
    results = {
        "all games": data.shares(torch.ones_like(data.rewards)),
        "solved games": data.shares(1.0 * ~data.failed),
        "best quarter": data.shares(best),
    }
    for gae_lambda, temperature in itertools.product(LAMBDAS, TEMPERATURES):
        name = f"{'lambda-returns' if gae_lambda else 'one step'}, temperature {temperature:g}"
        results[name] = data.shares(data.weights(gae_lambda, temperature))
    return results


def table(games: str, seeds: Mapping[str, Any]) -> str:
    """Format the means over seeds, with the lowest and highest, in percent."""
    rows = [[f"{games}: weight on", *COLUMNS.values()]]
    for name in next(iter(seeds.values())):
        values = [[100 * seed[name][column] for seed in seeds.values()] for column in COLUMNS]
        rows.append([name, *(f"{statistics.mean(v):.0f} ({min(v):.0f} to {max(v):.0f})" for v in values)])
    return markdown_table(rows)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("name", nargs="?", help="of the games: households or scienceworld, in the results")
    parser.add_argument("files", type=Path, nargs="*", help="games of a seed each: RUNS/seed-N/medium/all.jsonl")
    parser.add_argument("--report", action="store_true", help="only report what there is")
    options = parser.parse_args(arguments)
    if options.report == bool(options.files):
        parser.error("expected a name and files of games, or --report")
    results = read_results(FILE)
    if options.files:
        seeds = {file.parents[1].name.removeprefix("seed-"): measure(read_episodes(file)) for file in options.files}
        results[options.name] = dict(sorted((results.get(options.name, {}) | seeds).items()))
        write_json(FILE, results)
    print("\n\n".join(table(*item) for item in results.items()))


if __name__ == "__main__":
    main()
