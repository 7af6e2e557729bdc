"""The stages of `glider_games.py`, built in Python: one process trains and evaluates all policies of a seed."""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from experiment import timed
from glider_games_data import ENV, STEP_LIMIT
from quiet import make_trainer, silence

from lit_rft.agents import FlatAgent, HierarchicalAgent, HierarchyPrompts, add_outcomes
from lit_rft.callbacks.calibration import rank_correlation
from lit_rft.datamodules import OnlineDataModule, StepLoader, TrajectoryDataModule
from lit_rft.envs import GymSuite
from lit_rft.envs.pool_settings import PoolSettings
from lit_rft.envs.shaped import ShapedSuite
from lit_rft.episodes import Episode
from lit_rft.generation import SamplingSettings
from lit_rft.models import LoraSettings, load_tokenizer
from lit_rft.objectives import Sums
from lit_rft.stages import (
    ActingSettings,
    BatchingSettings,
    CriticSettings,
    EpisodeStage,
    HierarchicalSFT,
    IQLUpdate,
    OfflineHierarchicalRL,
    OnlineHighLevelFinetune,
    OnlineSettings,
    OptimizerSettings,
    PolicySettings,
    TDUpdate,
)
from lit_rft.transcripts import ChatFormat, Transcript

AGENTS: dict[str, Any] = {
    "hierarchical": HierarchicalAgent(HierarchyPrompts("Plan.", "Act.", low_level_sees_task=False), 768, 12),
    "flat": FlatAgent("Act.", 768),
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """Sizes and settings of a run; those of the optimisers were chosen on validation problems."""

    sft_steps: int = 400
    sft_rate: float = 4e-3
    rl_steps: int = 200
    rl_rate: float = 2e-3
    critic_rate: float = 3e-3
    discount: float = 0.9
    polyak: float = 0.05
    temperature: float = 0.03
    expectile: float = 0.6
    td_lambda: float = 0.0
    rank: int = 16
    batch: int = 8
    rounds: int = 12
    round_episodes: int = 24
    online_rate: float = 1e-3
    updates: float = 0.5
    exploration: float = 1.0
    offline_share: float = 0.5
    buffer: int = 512
    lowest: float | None = None  # reward of an action in online training
    max_weight: float = 20.0
    low_exploration: float | None = None  # temperature of the low level in online training, if it is another


RETURNS = {"temperature": 0.06, "discount": 0.97, "expectile": 0.5, "td_lambda": 0.95}  # of lambda-returns
MATCHED = {**RETURNS, "td_lambda": 0.0}  # of one step, otherwise alike


class Trials:
    """Stages of one seed on the same data.

    Args:
        folder: for models and checkpoints.
        seed: of weights, order and sampling.
        settings: of all stages.
    """

    def __init__(self, folder: Path, seed: int, settings: Settings) -> None:
        self.folder, self.seed, self.settings = folder, seed, settings
        self.minutes: dict[str, float] = {}
        self.agents = dict(AGENTS)
        self._rendered: dict[Any, tuple[Sequence[Episode], list[list[Transcript]]]] = {}
        silence()

    def transcripts(self, kind: str, episodes: Sequence[Episode], model: Path) -> list[list[Transcript]]:
        """Return the transcripts of episodes, with outcomes; each list of episodes is rendered once."""
        key = (kind, id(episodes))
        if key not in self._rendered:
            chat, agent = ChatFormat(load_tokenizer(str(model))), self.agents[kind]
            rendered = [add_outcomes(agent.transcripts(episode, chat), episode, chat, agent) for episode in episodes]
            self._rendered[key] = (episodes, rendered)  # a list that is kept: its id is no other one's
        return self._rendered[key][1]

    def sft(self, kind: str, episodes: Sequence[Episode], model: Path, out: str) -> Any:
        """Fine-tune all weights of an untrained model on episodes, and save it as the backbone of later stages."""
        settings = self.settings
        stage = HierarchicalSFT(
            PolicySettings(str(model), None), self.optimizer(settings.sft_rate), average_tokens=False,
            **self.common(kind),
        )  # fmt: skip
        self.fit(out, stage, self.loader(kind, episodes, model), settings.sft_steps)
        policy: Any = stage.policy
        policy.save_pretrained(self.folder / out)
        load_tokenizer(str(model)).save_pretrained(self.folder / out)
        return stage

    def more_sft(self, kind: str, episodes: Sequence[Episode], backbone: Path, out: str) -> Any:
        """Train adapters by likelihood, with the steps and the learning rate of offline RL."""
        stage = HierarchicalSFT(
            PolicySettings(str(backbone), self.lora()), self.optimizer(self.settings.rl_rate), average_tokens=False,
            **self.common(kind),
        )  # fmt: skip
        self.fit(out, stage, self.loader(kind, episodes, backbone), self.settings.rl_steps)
        return stage

    def offline(
        self,
        kind: str,
        episodes: Sequence[Episode],
        backbone: Path,
        out: str,
        *,
        pretrained: bool = True,
        update: Any = None,
    ) -> Any:
        """Train adapters and critics on episodes.

        Args:
            kind: of agent.
            episodes: to train on.
            backbone: model to start from.
            out: name of the checkpoint.
            pretrained: it comes from SFT; else all weights train, and critics read their features.
            update: of the critics; default `by_v`.
        """
        settings = self.settings
        stage = OfflineHierarchicalRL(
            PolicySettings(str(backbone), self.lora() if pretrained else None),
            self.optimizer(settings.rl_rate), critic=self._critic(pretrained), critic_update=update or self.by_v(),
            average_tokens=False, **self.common(kind),
        )  # fmt: skip
        trainer = self.fit(out, stage, self.loader(kind, episodes, backbone), settings.rl_steps)
        trainer.save_checkpoint(self.folder / f"{out}.ckpt")
        return stage

    def online(
        self, kind: str, start: str, backbone: Path, problems: Path, stored: Path
    ) -> tuple[Any, list[tuple[int, float]]]:
        """Play and learn from a checkpoint's weights, with stored episodes mixed in.

        Returns:
            The stage, and for each round the environment steps so far with the mean score of its episodes.
        """
        stage, curve = self.online_stage(kind, start, backbone), Curve(mean_score)
        self.fit_online(kind, stage, problems, stored, curve)
        return stage, curve.points

    def online_stage(self, kind: str, start: str, backbone: Path) -> OnlineHighLevelFinetune:
        """Make the stage of online fine-tuning from a checkpoint's weights."""
        settings = self.settings
        return OnlineHighLevelFinetune(
            OnlineSettings(
                SamplingSettings(6, settings.exploration), settings.buffer, settings.updates, settings.batch,
                settings.offline_share, self.seed, low_level(None if kind == "flat" else settings.low_exploration),
            ),
            PolicySettings(str(backbone), self.lora(), str(self.folder / f"{start}.ckpt")),
            OptimizerSettings(settings.online_rate), critic=self._critic(True), critic_update=self.by_v(),
            average_tokens=False, **self.common(kind),
        )  # fmt: skip

    def fit_online(self, kind: str, stage: Any, problems: Path, stored: Path, curve: Curve) -> None:
        """Play and learn, with rewards of at least `lowest`, and with stored episodes mixed in."""
        settings = self.settings
        suite = GymSuite(ENV, step_limit=STEP_LIMIT, rows={"train": str(problems)})
        data = OnlineDataModule(
            rounds=settings.rounds, episodes_per_round=settings.round_episodes, seed=self.seed,
            train_files=[str(stored)], train_episodes_per_task=None, suite=ShapedSuite(suite, lowest=settings.lowest),
        )  # fmt: skip
        with timed(self.minutes, f"{kind} online", time.process_time):
            make_trainer(max_epochs=1, callbacks=[curve]).fit(stage, data)

    def scores(self, stage: EpisodeStage, problems: Path, temperature: float = 1.0) -> dict[str, float]:
        """Return the mean score of each task, and of all as `mean`."""
        by_task: dict[str, list[float]] = {}
        for episode in self.play(stage, problems, temperature):
            by_task.setdefault(episode.task, []).append(episode.outcome.score)
        means = {task: statistics.mean(values) for task, values in sorted(by_task.items())}
        return {**means, "mean": statistics.mean(means.values())}

    def play(
        self, stage: EpisodeStage, problems: Path, temperature: float = 1.0, low: float | None = None
    ) -> list[Episode]:
        """Play problems with the stage's policy; `low` is the temperature of the low level, if it is another."""
        sampling = {"sampling": SamplingSettings(6, temperature), "level_sampling": low_level(low)}
        stage.evaluator.acting = dataclasses.replace(stage.evaluator.acting, **sampling)
        suite = GymSuite(ENV, step_limit=STEP_LIMIT, rows={"test": str(problems)})
        data = TrajectoryDataModule(suite=suite, eval_split="test", seed=self.seed)
        make_trainer().test(stage, data, verbose=False)
        return [result.episode for result in stage.evaluator.results]

    def diagnose(self, stage: Any, kind: str, episodes: Sequence[Episode], backbone: Path) -> dict[str, float]:
        """Measure the critics on episodes that they were not trained on: ranks of Q, and the weights' sample size."""
        loader, critic = self.loader(kind, episodes, backbone, batch=len(episodes)), stage.actor_critic
        critic.q_and_returns = []
        (batch,) = loader
        step = stage.step_batch(batch.transcripts, batch.num_utterances)
        metrics = critic.update(stage.current_policy(), step, _only_measure)
        report = {}
        for level in self.agents[kind].levels:
            parts = [part[1:] for part in critic.q_and_returns if part[0] == level]
            q, returns = (torch.cat(column).double() for column in zip(*parts, strict=True))
            report[f"{level} rank correlation"] = rank_correlation(q, returns)
            number, entropy = batch.num_utterances[level], float(metrics[f"{level}/weight_entropy"])
            report[f"{level} effective share"] = math.exp(math.log(number) * (entropy - 1))
            report[f"{level} advantage std"] = float(metrics[f"{level}/advantage_std"])
        return report

    def common(self, kind: str) -> dict[str, Any]:
        """Return the settings that all stages of a kind of agent share."""
        sampling = SamplingSettings(6, 1.0)
        acting = ActingSettings(sampling, 200, pool=PoolSettings(threads=True), seed=self.seed)
        return {"agent": self.agents[kind], "acting": acting, "batching": BatchingSettings(1024)}

    def optimizer(self, rate: float) -> OptimizerSettings:
        """Return the optimiser's settings, at a learning rate."""
        return OptimizerSettings(rate, warmup_steps=10, schedule="cosine")

    def lora(self) -> LoraSettings:
        """Return the settings of the adapters."""
        return LoraSettings(self.settings.rank, 2 * self.settings.rank)

    def _critic(self, frozen: bool) -> CriticSettings:
        s = self.settings
        return CriticSettings(
            s.critic_rate, "frozen" if frozen else "adapted", discount=s.discount, polyak_rate=s.polyak
        )

    def by_v(self) -> TDUpdate:
        """Return advantages by V alone."""
        s = self.settings
        return TDUpdate(s.temperature, s.max_weight, s.expectile, s.td_lambda)

    def by_q(self) -> IQLUpdate:
        """Return advantages by Q, as in the paper."""
        return IQLUpdate(self.settings.temperature, self.settings.max_weight, self.settings.expectile)

    def loader(self, kind: str, episodes: Sequence[Episode], model: Path, batch: int | None = None) -> StepLoader:
        """Return the batches of stored episodes."""
        transcripts = self.transcripts(kind, episodes, model)
        return StepLoader(transcripts, batch_size=batch or self.settings.batch, seed=self.seed)

    def fit(self, name: str, stage: Any, loader: Any, steps: int) -> L.Trainer:
        """Train a stage for a number of steps, on the clock of this name."""
        L.seed_everything(self.seed, verbose=False)
        with timed(self.minutes, name, time.process_time):
            trainer = make_trainer(max_steps=steps, max_epochs=-1)
            trainer.fit(stage, loader)
        return trainer


class Curve(L.Callback):
    """Collects the figures of each round of an online stage's episodes, after the environment steps so far.

    Args:
        figures: of a list of episodes.
    """

    def __init__(self, figures: Callable[[Sequence[Episode]], Any]) -> None:
        self.figures, self.points = figures, list[tuple[int, Any]]()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        episodes = [rollout.episode for rollout in pl_module.samples]
        before = self.points[-1][0] if self.points else 0
        self.points.append((before + sum(len(episode.steps) for episode in episodes), self.figures(episodes)))


def low_level(temperature: float | None) -> dict[str, SamplingSettings]:
    """Return the low level's sampling, for settings by level; empty if it has that of the others."""
    return {} if temperature is None else {"low": SamplingSettings(6, temperature)}


def mean_score(episodes: Sequence[Episode]) -> float:
    """Return the mean score by the rewards of training."""
    return round(statistics.mean(episode.outcome.score for episode in episodes), 4)


def _only_measure(batches: Any, loss: Any) -> Sums:
    """Sum the diagnostics of micro-batches without an optimiser step."""
    sums = Sums()
    with torch.no_grad():
        for batch in batches:
            value, diagnostics = loss(batch)
            for name, part in {**diagnostics, "loss": value}.items():
                sums[name] = sums[name] + part if name in sums else part
    return sums
