"""The stages of `glider_games_baselines.py`, built in Python, each from the flat SFT of `glider_games.py`."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning as L
from experiment import timed
from glider_games import Seed
from glider_games_data import ENV, STEP_LIMIT, best_episodes
from glider_games_run import Curve, mean_score
from quiet import make_trainer

from lit_rft.agents import MarkedAgent, Marker
from lit_rft.datamodules import OnlineDataModule
from lit_rft.datamodules.pairs import PairLoader, PreferencePair
from lit_rft.envs import GymSuite
from lit_rft.episodes import Episode, EpisodePair, pair_with_experts
from lit_rft.generation import SamplingSettings
from lit_rft.stages import ILQL, PolicySettings, PPOEpisodes, PPOSettings, TrajectoryDPO
from lit_rft.stages.core.token_critics import TokenCriticSettings

ROUND_EPISODES = 24  # of PPO


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of the baselines, chosen on validation seeds.

    Args:
        nat_share: share of the episodes of each length in NAT's better class, those with the highest scores.
        nat_markers: of the better class and of the other one, words that the model's vocabulary has.
        dpo_rate: learning rate of DPO.
        eto_rate: learning rate of ETO.
        beta: of DPO, and of ETO's first iteration.
        later_beta: of ETO's other iterations.
        iterations: of ETO.
        ilql_rate: learning rate of ILQL's policy.
        token_critic_rate: of ILQL's critics.
        advantage_weight: of ILQL's advantages when acting.
        token_expectile: of ILQL's V.
        ppo_rate: learning rate of PPO's policy.
        value_rate: of PPO's value head.
        mini_batches: of a round of PPO's episodes.
    """

    nat_share: float = 0.25
    nat_markers: tuple[str, str] = ("done", "continue")
    dpo_rate: float = 1e-4
    eto_rate: float = 1e-3
    beta: float = 0.1
    later_beta: float = 0.5
    iterations: int = 3
    ilql_rate: float = 2e-3
    token_critic_rate: float = 3e-3
    advantage_weight: float = 4.0
    token_expectile: float = 0.7
    ppo_rate: float = 2e-3
    value_rate: float = 3e-3
    mini_batches: int = 4


@dataclasses.dataclass(frozen=True)
class MarkedById(MarkedAgent):
    """A marked agent whose classes are not ranges of scores, as good scores differ between lengths.

    Args:
        better: ids of the stored episodes of the better class.
    """

    better: frozenset[str] = frozenset()

    def marker_of(self, episode: Episode) -> Marker:
        """Return the marker of an episode's class."""
        return self.markers[0 if episode.id in self.better else 1]


class Baselines:
    """The baselines of one seed, each from the same SFT.

    Args:
        seed: data and stages of `glider_games.py`.
        settings: of the baselines.
    """

    def __init__(self, seed: Seed, settings: Settings) -> None:
        self.seed, self.settings, self.trials = seed, settings, seed.trials
        self.backbone = seed.backbone("flat")
        self.env_steps = 0  # of training

    def nat(self) -> Any:
        """Train by likelihood on all episodes, with the marker of their score; act with that of the better class."""
        best = best_episodes(self.seed.episodes, self.settings.nat_share)
        markers = [Marker(text, score) for text, score in zip(self.settings.nat_markers, (0.0, None), strict=True)]
        ids = frozenset(episode.id for episode in best)
        self.trials.agents["NAT"] = MarkedById(self.trials.agents["flat"], markers, ids)
        return self.trials.more_sft("NAT", self.seed.episodes, self.backbone, "NAT")

    def dpo(self) -> Any:
        """Train on pairs of all problems: one iteration of ETO."""
        return self._iterate(1, self.settings.dpo_rate)

    def eto(self) -> Any:
        """In each iteration explore other problems, and train on pairs of these from the last policy."""
        return self._iterate(self.settings.iterations, self.settings.eto_rate)

    def _iterate(self, iterations: int, rate: float) -> Any:
        lines, start = (self.seed.folder / "train.jsonl").read_text().splitlines(keepends=True), None
        number = len(lines) // iterations
        for i in range(iterations):
            beta = self.settings.beta if i == 0 else self.settings.later_beta
            optimizer = self.trials.optimizer(rate)
            stage = TrajectoryDPO(self._policy(start), optimizer, beta=beta, **self.trials.common("flat"))
            pairs = self.loader_of(self.pairs(stage, lines[i * number : (i + 1) * number]))
            trainer = self.trials.fit("preferences", stage, pairs, self.trials.settings.rl_steps // iterations)
            start = self.seed.folder / f"preferences{i}.ckpt"
            trainer.save_checkpoint(start)
        return stage

    def pairs(self, stage: Any, problems: Sequence[str]) -> list[EpisodePair]:
        """Return pairs of the policy's episodes, at temperature 1, and the stored ones of the same problems.

        Raises:
            RuntimeError: If an episode has no stored one.
        """
        path = self.seed.folder / "explored.jsonl"
        path.write_text("".join(problems))
        with timed(self.trials.minutes, "exploration", time.process_time):
            played = self.trials.play(stage, path)
        self.env_steps += sum(len(episode.steps) for episode in played)
        played = [dataclasses.replace(episode, split="train") for episode in played]  # of the stored ones' problems
        report = pair_with_experts(self.seed.episodes, played, max_extra_steps=5)
        if report.unmatched:
            raise RuntimeError(f"expected a stored episode of each problem, got none for {report.unmatched} of them")
        return report.pairs

    def loader_of(self, pairs: Sequence[EpisodePair]) -> PairLoader:
        """Return the batches of pairs."""
        sides = [[getattr(pair, side) for pair in pairs] for side in ("chosen", "rejected")]
        rendered = [self.trials.transcripts("flat", side, self.backbone) for side in sides]
        tokens = [PreferencePair(str(i), *both) for i, both in enumerate(zip(*rendered, strict=True))]
        return PairLoader(tokens, batch_size=self.trials.settings.batch, seed=self.trials.seed)

    def ilql(self) -> Any:
        """Train policy and token critics on the stored episodes; critics shift the policy's probabilities in acting."""
        s, shared = self.settings, self.trials.settings
        critic = TokenCriticSettings(
            s.token_critic_rate, rank=64, discount=shared.discount, discount_each="step", expectile=s.token_expectile,
            polyak_rate=shared.polyak,
        )  # fmt: skip
        stage = ILQL(
            self._policy(), self.trials.optimizer(s.ilql_rate), critic=critic, advantage_weight=s.advantage_weight,
            **self.trials.common("flat"),
        )  # fmt: skip
        loader = self.trials.loader("flat", self.seed.episodes, self.backbone)
        self.trials.fit("ILQL", stage, loader, shared.rl_steps)
        return stage

    def ppo(self) -> Any:
        """Play the training problems and learn by GAE, for as many optimiser steps as the others take."""
        s, curve = self.settings, Curve(mean_score)
        stage = PPOEpisodes(
            self._policy(), self.trials.optimizer(s.ppo_rate),
            PPOSettings(value_learning_rate=s.value_rate, mini_batches=s.mini_batches), SamplingSettings(6, 1.0),
            seed=self.trials.seed, **self.trials.common("flat"),
        )  # fmt: skip
        suite = GymSuite(ENV, step_limit=STEP_LIMIT, rows={"train": str(self.seed.folder / "train.jsonl")})
        data = OnlineDataModule(
            rounds=self.trials.settings.rl_steps // s.mini_batches, episodes_per_round=ROUND_EPISODES,
            seed=self.trials.seed, suite=suite, train_episodes_per_task=None,
        )  # fmt: skip
        with timed(self.trials.minutes, "PPO", time.process_time):
            make_trainer(max_epochs=1, callbacks=[curve]).fit(stage, data)
        self.env_steps = curve.points[-1][0]
        return stage

    def _policy(self, start: Path | None = None) -> PolicySettings:
        return PolicySettings(str(self.backbone), self.trials.lora(), None if start is None else str(start))


METHODS: dict[str, Callable[[Baselines], Any]] = {
    "nat": Baselines.nat,
    "dpo": Baselines.dpo,
    "eto": Baselines.eto,
    "ilql": Baselines.ilql,
    "ppo": Baselines.ppo,
}


def run_row(seed: Seed, row: str, settings: Settings) -> dict[str, Any]:
    """Train a baseline, and return its scores, the environment steps of its training, and minutes."""
    baselines = Baselines(seed, settings)
    L.seed_everything(seed.trials.seed, verbose=False)
    scores = seed.scores(METHODS[row](baselines))
    return {"scores": scores, "env_steps": baselines.env_steps, "minutes": seed.trials.minutes}
