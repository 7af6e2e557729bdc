"""The stages of `turn_credit.py`, built in Python: one process trains a policy by SFT, and then by each method."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
from experiment import timed
from glider_games_data import ENV, agent_texts, play_medium, write_problems
from quiet import make_trainer, silence
from scratch import Player

from lit_rft.advantages import HAE, GiGPO
from lit_rft.agents import HierarchicalAgent, HierarchyPrompts
from lit_rft.datamodules import EpisodeGroupDataModule, OnlineDataModule
from lit_rft.envs import GymSuite
from lit_rft.envs.alfworld import SyntheticSuite
from lit_rft.envs.collect import collect_expert_episodes
from lit_rft.episodes import Episode
from lit_rft.generation import SamplingSettings
from lit_rft.stages import (
    MixedPolicyEpisodes,
    ObjectiveSettings,
    OptimizerSettings,
    PolicySettings,
    PPOEpisodes,
    PPOSettings,
)

CUSTOMERS = ("Anna", "Ben", "Cleo", "Dan")  # lists of two and three items
TASKS = ("synthetic-pick_and_place_simple",)
PROMPTS = HierarchyPrompts("Plan.", "Act.", low_level_sees_task=False)
ADVANTAGES: dict[str, Callable[[], Any]] = {"GRPO": lambda: None, "GiGPO": GiGPO, "HAE": HAE}


@dataclass(frozen=True)
class Subject:
    """An environment with its episodes of SFT, and the sizes of a run.

    Args:
        name: `errands` or `households`.
        episodes: stored ones, for SFT.
        sft_steps: optimiser steps of SFT.
        sft_rate: learning rate of SFT.
        step_limit: actions of an episode.
        answer_tokens: maximum number of tokens of an utterance.
        steps: rollouts of each method, an optimiser step each.
        groups: problems of a rollout.
        group: episodes of each problem.
        rate: learning rate of the policy.
        value_rate: learning rate of HAE's value heads.
        test_episodes: held-out problems.
        sft_seed: of SFT; None for that of the run.
    """

    name: str
    episodes: int
    sft_steps: int
    sft_rate: float
    step_limit: int
    answer_tokens: int
    steps: int
    rate: float
    groups: int = 8
    group: int = 8
    value_rate: float = 3e-3
    test_episodes: int = 200
    sft_seed: int | None = None


SUBJECTS = {
    subject.name: subject
    for subject in (
        Subject("errands", 480, 200, 4e-3, 25, 6, 30, 1e-3),
        Subject("households", 1900, 2400, 4e-3, 12, 16, 10, 1e-3, sft_seed=100),  # SFT takes most of the time
    )
}


class Trial:
    """SFT of one seed, and each method from there, in this process.

    Args:
        folder: of the seed.
        subject: see `Subject`.
        seed: of problems, weights, order and sampling.
    """

    def __init__(self, folder: Path, subject: Subject, seed: int) -> None:
        self.folder, self.subject, self.seed = folder, subject, seed
        self.minutes: dict[str, float] = {}
        folder.mkdir(parents=True, exist_ok=True)
        silence()
        self.suite = _errands(self) if subject.name == "errands" else _households(subject)
        self.player = Player(HierarchicalAgent(PROMPTS, 768, 12), seed, subject.answer_tokens)

    def sft(self) -> Path:
        """Fine-tune an untrained model on stored episodes unless it is done; return the folder of its weights."""
        out, subject = self.folder / "sft", self.subject
        if subject.sft_seed not in (None, self.seed):
            return Trial(self.folder.parent / f"seed{subject.sft_seed}", subject, subject.sft_seed).sft()
        if (out / "config.json").exists():
            return out
        with timed(self.minutes, "data", time.process_time):
            episodes = _stored_episodes(self)
        return self.player.fine_tune(
            self.folder, episodes, agent_texts(episodes), steps=subject.sft_steps, rate=subject.sft_rate,
            clock=timed(self.minutes, "sft", time.process_time),
        )  # fmt: skip

    def run(self, method: str) -> dict[str, Any]:
        """Train by a method of `ADVANTAGES`, or none for `SFT`; return the curve and the held-out scores."""
        model = self.sft()
        L.seed_everything(self.seed, verbose=False)
        stage, curve = self._stage(method, model), _Curve()
        if method != "SFT":
            with timed(self.minutes, method, time.process_time):
                make_trainer(max_steps=self.subject.steps, max_epochs=-1, callbacks=[curve]).fit(
                    stage, self._data(method)
                )
        with timed(self.minutes, "test", time.process_time):
            scores = self._scores(stage)
        minutes = {name: round(value, 2) for name, value in self.minutes.items()}
        return {"curve": curve.points, "scores": scores, "minutes": minutes}

    def _stage(self, method: str, model: Path) -> Any:
        subject = self.subject
        parts: dict[str, Any] = {
            "policy": PolicySettings(str(model), None), "optimizer": OptimizerSettings(subject.rate),
            "exploration": SamplingSettings(subject.answer_tokens, 1.0), "seed": self.seed,
            **self.player.stage_settings(),
        }  # fmt: skip
        if method == "HAE":
            ppo = PPOSettings(discount=0.99, gae_lambda=0.95, value_learning_rate=subject.value_rate)
            return PPOEpisodes(ppo=ppo, advantages=HAE(), **parts)
        objective = ObjectiveSettings(group_size=subject.group, traces_per_group=0, entropy_coef=0.0)
        advantages = ADVANTAGES.get(method, lambda: None)()
        return MixedPolicyEpisodes(objective=objective, advantages=advantages, **parts)

    def _data(self, method: str) -> Any:
        subject = self.subject
        keys: dict[str, Any] = {
            "suite": self.suite, "seed": self.seed, "tasks": _tasks(subject), "train_episodes_per_task": None,
        }  # fmt: skip
        if method == "HAE":
            return OnlineDataModule(rounds=subject.steps, episodes_per_round=subject.groups * subject.group, **keys)
        return EpisodeGroupDataModule(batch_size=subject.groups, **keys)

    def _scores(self, stage: Any) -> dict[str, dict[str, float]]:
        """Return the mean score and success at temperature 1 and greedily."""
        means = {}
        for name, episodes in self.player.held_out(stage, self.suite, _tasks(self.subject)).items():
            outcomes = [episode.outcome for episode in episodes]
            means[name] = {
                "score": round(statistics.mean(o.score for o in outcomes), 4),
                "success": round(statistics.mean(o.success for o in outcomes), 4),
                "episodes": len(outcomes),
            }
        return means


class _Curve(L.Callback):
    """Collects episodes so far, mean score and share of solved episodes of each rollout."""

    def __init__(self) -> None:
        self.points: list[tuple[int, float, float]] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        outcomes = [rollout.episode.outcome for rollout in pl_module.samples]
        before = self.points[-1][0] if self.points else 0
        score, success = (statistics.mean(getattr(o, name) for o in outcomes) for name in ("score", "success"))
        self.points.append((before + len(outcomes), round(score, 4), round(success, 4)))


def _tasks(subject: Subject) -> list[str] | None:
    return list(TASKS) if subject.name == "households" else None


def _errands(trial: Trial) -> GymSuite:
    first = 10**6 * (trial.seed + 1)
    train = write_problems(trial.folder / "train.jsonl", first, 1200, CUSTOMERS)
    test = write_problems(trial.folder / "test.jsonl", 10**8 + first, trial.subject.test_episodes, CUSTOMERS)
    return GymSuite(ENV, step_limit=trial.subject.step_limit, rows={"train": str(train), "test": str(test)})


def _households(subject: Subject) -> SyntheticSuite:
    games = {"train": 2000, "dev": 50, "test": subject.test_episodes // len(TASKS)}
    return SyntheticSuite(step_limit=subject.step_limit, max_receptacles=1, max_objects=1, closed=0.0, games=games)


def _stored_episodes(trial: Trial) -> list[Episode]:
    """Return episodes of a medium-quality player on errands, and of the expert in households."""
    number, folder = trial.subject.episodes, trial.folder
    if trial.subject.name == "errands":
        problems = write_problems(folder / "sft.jsonl", 10**6 * (trial.seed + 1), number, CUSTOMERS)
        return play_medium(folder / "medium.jsonl", problems, 0.5, 0.1, trial.seed)
    specs = trial.suite.episodes("train", tasks=TASKS, limit=number // len(TASKS), seed=trial.seed)
    episodes = collect_expert_episodes(trial.suite, specs, folder / "expert.jsonl", num_workers=1, progress=False)
    random.Random(trial.seed).shuffle(episodes)
    return episodes
