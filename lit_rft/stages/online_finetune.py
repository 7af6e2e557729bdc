"""GLIDER's third stage: online fine-tuning of the high level."""

import itertools
import random
from collections.abc import Sequence
from typing import Literal

from lit_rft._seeds import resolve_seed
from lit_rft.agents import Agent, learnable_transcripts
from lit_rft.batches import OnlineBatch
from lit_rft.models.processes import all_gather_objects, global_rank, sum_numbers, world_size
from lit_rft.rollouts.episodes import EpisodeSource
from lit_rft.rollouts.replay import EpisodeReplay
from lit_rft.rollouts.rollout import Rollout
from lit_rft.stages.core.actor_critic import ActorCritic, CriticUpdateFunction
from lit_rft.stages.core.critic_updates import check_transcripts
from lit_rft.stages.core.data_check import ROUNDS
from lit_rft.stages.core.diagnostics import mean_over_steps
from lit_rft.stages.core.episode_stage import EpisodeStage, check_levels, check_room, weights_of_levels
from lit_rft.stages.core.frozen_levels import FROZEN, FrozenLevels
from lit_rft.stages.core.settings import (
    ActingSettings,
    BatchingSettings,
    CriticSettings,
    OnlineSettings,
    OptimizerSettings,
    PolicySettings,
)
from lit_rft.transcripts import StepBatch, Transcript, count_utterances


class OnlineHighLevelFinetune(EpisodeStage):
    r"""Plays episodes and learns from the newest and from stored ones, in turns (GLIDER, ICML 2025).

    The low-level skills are frozen: a snapshot of the initial adapter acts at the low level and gets no gradient. High
    level and critics train with the losses of `ActorCritic`, on high-level decisions alone. With an agent of one level,
    such as `FlatAgent`, the whole policy trains: the paper's non-hierarchical counterpart (AWAC).

    One training step is a round: its episodes are played with the current policy, then come
    `online.updates_per_episode` optimiser steps for each. Scores are logged against optimiser steps and, as
    `online/score`, against environment steps.

    Deviations from the paper: those of `OfflineHierarchicalRL`; the policy explores by sampling (`online.exploration`).

    Args:
        online: exploration, replay buffer and updates.
        policy: model and initial weights: an adapter folder, a checkpoint of any stage, or null (from scratch). A
            checkpoint with critics initialises them too.
        optimizer: AdamW of the actor; schedule, decay and clipping apply to the critics too.
        acting: sampling and environment workers in validation, test and predict.
        agent: the agent that acts; null for `HierarchicalAgent`.
        batching: micro-batches of an optimiser step.
        critic: settings of the critics.
        critic_update: see `OfflineHierarchicalRL`.
        value_actions: see `OfflineHierarchicalRL`.
        average_tokens: log pi(u|s) per token, or (the equation) its sum.
        level_weights: weights >= 0 of the losses, by level of the agent; 1 for levels left out.
        frozen_levels: levels of the agent that act with the initial adapter and do not train; null for all but its
            first, [] for none.
        chunk_tokens: logits are computed in chunks of this many tokens.

    Raises:
        ValueError: For frozen levels without LoRA (the frozen skills are an adapter), or a schedule of the learning
            rate other than constant; in `fit`, for a critic update that reads later decisions with an agent that has a
            transcript for each.
    """

    training_batch = ROUNDS
    source: EpisodeSource
    needs_outcomes = True  # data modules add them

    def __init__(
        self,
        online: OnlineSettings | None = None,
        policy: PolicySettings | None = None,
        optimizer: OptimizerSettings | None = None,
        acting: ActingSettings | None = None,
        agent: Agent | None = None,
        batching: BatchingSettings | None = None,
        critic: CriticSettings | None = None,
        critic_update: CriticUpdateFunction | None = None,
        value_actions: Literal["dataset", "policy"] = "dataset",
        average_tokens: bool = False,
        level_weights: dict[str, float] | None = None,
        frozen_levels: list[str] | None = None,
        chunk_tokens: int = 256,
    ) -> None:
        super().__init__(policy, optimizer or OptimizerSettings(learning_rate=1e-6), acting, agent, batching)
        _check_schedule(self.optimizer_settings)
        self.critic_settings = critic or CriticSettings(learning_rate=1e-5)
        self.online = (online or OnlineSettings()).with_default_seed()
        self.actor_critic = ActorCritic(
            self.agent.levels, self.critic_settings, self.acting, critic_update=critic_update,
            value_actions=value_actions, average_tokens=average_tokens,
            level_weights=weights_of_levels(self.agent, level_weights), chunk_tokens=chunk_tokens,
        )  # fmt: skip
        self.critic_update, self.weight_parts = self.actor_critic.critic_update, [self.actor_critic.critics]
        self.frozen_levels = list(self.agent.levels[1:]) if frozen_levels is None else frozen_levels
        check_levels(self.agent, "frozen_levels", self.frozen_levels)
        if self.agent.levels and not set(self.agent.levels) - set(self.frozen_levels):
            raise ValueError(f"frozen_levels must leave a level of the agent to train, got {self.frozen_levels}")
        if self.frozen_levels:
            self.weight_parts.append(FrozenLevels())
            self.level_adapters = dict.fromkeys(self.frozen_levels, FROZEN)
        self.source = EpisodeSource(
            self.evaluator.runner, self.online.exploration, resolve_seed(self.online.seed),
            self.online.level_exploration,
        )  # fmt: skip
        check_levels(self.agent, "online.level_exploration", self.online.level_exploration)
        check_room(self.agent, "online.exploration", self.online.exploration, *self.online.level_exploration.values())
        self.replay = EpisodeReplay(self.online.buffer_episodes)
        self.stateful = {"source": self.source, "replay": self.replay}

    def check_training(self) -> None:
        check_transcripts(self.agent, self.critic_update)
        super().check_training()

    def training_step(self, batch: OnlineBatch, batch_idx: int) -> None:
        rollouts = self.samples = self.source(self.current_policy(), batch)
        self.check_rewards(rollouts)
        self._remember(rollouts)
        metrics = []
        for index in range(max(1, round(self.online.updates_per_episode * self.source.num_episodes))):
            step = self._draw(batch, f"{self.online.seed}/{self.global_step}/{index}")
            metrics.append(self.actor_critic.update(self.current_policy(), step, self.optimize))
        stored = [*self.replay.episodes, *batch.offline]
        self.actor_critic.features.retain(transcript for episode in stored for transcript in episode)
        self.log_terms(mean_over_steps(metrics))
        self.log_source()

    def on_train_epoch_start(self) -> None:
        self.actor_critic.q_and_returns = []

    def on_fit_end(self) -> None:
        self.actor_critic.features.flush()  # only now: each batch has new episodes, most of which leave the buffer

    def _remember(self, rollouts: Sequence[Rollout]) -> None:
        """Add the episodes of all processes to the replay buffer of each."""
        shares = all_gather_objects([self._learnable(rollout) for rollout in rollouts])
        for turn in itertools.zip_longest(*shares, fillvalue=[]):  # in the order of the batch
            for transcripts in turn:
                self.replay.add(transcripts)
        self.log("train/buffer", float(len(self.replay)))

    def _learnable(self, rollout: Rollout) -> list[Transcript]:
        """Return the transcripts to train on, token for token as they were played, as far as the context permits."""
        assert self.chat is not None and rollout.episode is not None
        played = [transcript for transcript in rollout.transcripts if transcript.level not in self.frozen_levels]
        return learnable_transcripts(played, rollout.episode, self.chat, self.agent)

    def _draw(self, batch: OnlineBatch, name: str) -> StepBatch:
        """Sample episodes from the buffer and stored ones for an optimiser step: this process's share."""
        rng = random.Random(name)  # the same in all processes, like the buffer
        num_stored = round(self.online.offline_share * self.online.batch_episodes) if batch.offline else 0
        episodes = self.replay.sample(self.online.batch_episodes - num_stored, rng)
        episodes += [list(e) for e in rng.sample(list(batch.offline), min(num_stored, len(batch.offline)))]
        share = episodes[global_rank() :: world_size()]
        transcripts = [t for episode in share for t in episode if t.level not in self.frozen_levels]
        counts = count_utterances(transcripts, self.agent.levels)
        sums = sum_numbers({level: float(number) for level, number in counts.items()}, self.device)
        return self.step_batch(transcripts, {level: int(number) for level, number in sums.items()})


def _check_schedule(optimizer: OptimizerSettings) -> None:
    if optimizer.schedule != "constant":
        raise ValueError(
            f"optimizer.schedule={optimizer.schedule} needs a known number of steps, and how many updates a round "
            "brings depends on its episodes: use constant"
        )
