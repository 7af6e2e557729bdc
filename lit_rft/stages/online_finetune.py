"""GLIDER's third stage: online fine-tuning of the high level."""

import contextlib
import dataclasses
import itertools
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_rft._seeds import derive_seed, resolve_seed
from lit_rft.agents import PlayedEpisode, add_outcomes
from lit_rft.batches import OnlineBatch
from lit_rft.envs.jobs import EpisodeJobs
from lit_rft.rollouts.replay import EpisodeReplay
from lit_rft.stages.actor_critic import ActorCriticStage
from lit_rft.stages.data_check import ROUNDS
from lit_rft.stages.episode_runner import ActingPolicy
from lit_rft.stages.exploration import ExploringStage
from lit_rft.stages.optimization import mean_over_steps
from lit_rft.stages.settings import CriticSettings, OnlineSettings, OptimizerSettings
from lit_rft.transcripts import StepBatch, Transcript, count_utterances

LOW = "low"  # the level whose skills are frozen, and the adapter that holds them


class OnlineHighLevelFinetune(ExploringStage, ActorCriticStage):
    r"""Plays, keeps the newest episodes, and learns from them and from stored ones, in turns (GLIDER, ICML 2025).

    The low-level skills are frozen: a snapshot of the adapter that the stage starts with acts at the low level and gets
    no gradient. High level and critics train with the losses of `ActorCriticStage`, on high-level decisions alone. With
    an agent without a `low` level, such as `FlatAgent`, the whole policy trains: the paper's non-hierarchical
    counterpart (AWAC).

    One training step is a round: its episodes are played to their end by the policy as it is, then come
    `online.updates_per_episode` optimiser steps for each. Scores are logged against optimiser steps and, as
    `online/score`, against environment steps.

    Deviations from the paper: those of `ActorCriticStage`; the policy explores by sampling (`online.exploration`).

    Args:
        online: playing, buffer and updates.
        stage: arguments of `ActorCriticStage`.
    Raises: ValueError for a hierarchical policy without LoRA (the frozen skills are an adapter), and for a schedule of
        the learning rate other than constant.
    """

    training_batch = ROUNDS

    def __init__(self, online: OnlineSettings | None = None, **stage: Any) -> None:
        stage["optimizer"] = stage.get("optimizer") or OptimizerSettings(learning_rate=1e-6)
        stage["critic"] = stage.get("critic") or CriticSettings(learning_rate=1e-5)
        super().__init__(**stage)
        if self.optimizer_settings.schedule != "constant":
            raise ValueError(
                f"optimizer.schedule={self.optimizer_settings.schedule} needs a known number of steps, and how many "
                "updates a round brings depends on its episodes: use constant"
            )
        online = online or OnlineSettings()
        self.online = dataclasses.replace(online, seed=resolve_seed(online.seed))
        self.replay = EpisodeReplay(self.online.buffer_episodes)

    @property
    def freezes_low_level(self) -> bool:
        return LOW in self.agent.levels

    # --- the model ---------------------------------------------------------------------------------------------------

    def add_parts(self) -> None:
        """Besides the critics: a second adapter, which holds the low-level skills and does not train."""
        super().add_parts()
        if not self.freezes_low_level:
            return
        policy: Any = self.policy
        if not hasattr(policy, "peft_config"):
            raise ValueError("freezing the low level needs LoRA: set policy.lora, or a flat agent")
        skills = Path(self.policy_settings.start_from or "") / LOW
        if (skills / "adapter_config.json").is_file():  # the adapter folder of an online run
            policy.load_adapter(str(skills), LOW, is_trainable=False)
        else:
            policy.add_adapter(LOW, policy.peft_config["default"])
            weights = dict(policy.named_parameters())
            with torch.no_grad():
                for name in self._skill_names(weights):
                    weights[name].copy_(weights[name.replace(f".{LOW}.", ".default.")])
        for name, parameter in policy.named_parameters():
            if f".{LOW}." in name:
                parameter.requires_grad_(False)
        policy.set_adapter("default")

    @staticmethod
    def _skill_names(names: Iterable[str]) -> list[str]:
        return [name for name in names if f".{LOW}." in name and ("lora_" in name or ".modules_to_save." in name)]

    def _saved_names(self) -> list[str]:
        return super()._saved_names() + self._skill_names(name for name, _ in self.named_parameters())

    def starting_weights(self, weights: dict[str, Tensor], source: str) -> dict[str, Tensor]:
        """The low level's skills are those of the stage before; an online stage's own go on."""
        if not self.freezes_low_level or self._skill_names(weights):
            return weights
        skills = {k.replace(".default.", f".{LOW}."): v for k, v in weights.items() if ".default." in k}
        return {**weights, **skills}

    def acting_policy(self) -> ActingPolicy:
        policy = super().acting_policy()
        return dataclasses.replace(policy, level_adapters={LOW: LOW}) if self.freezes_low_level else policy

    # --- a round -----------------------------------------------------------------------------------------------------

    def training_step(self, batch: OnlineBatch, batch_idx: int) -> None:
        self.check_batch(batch, self.training_batch)
        number = self._collect(batch.jobs)
        metrics: list[dict[str, Tensor]] = []
        for index in range(max(1, round(self.online.updates_per_episode * number))):
            metrics.append(self.update(self._draw(batch, f"{self.online.seed}/{self.global_step}/{index}")))
        if self._features is not None:
            kept = [*self.replay.episodes, *batch.offline]
            self._features.retain(transcript for episode in kept for transcript in episode)
        self.log_terms(mean_over_steps(metrics))
        self.log("step", float(self.global_step))  # where TensorBoard puts them: a round is several optimiser steps

    def _keep_features(self) -> None:
        """Nothing to keep on disk: what is played here is seen a few times, and then never again."""

    def _collect(self, jobs: EpisodeJobs) -> int:
        """Play a round's episodes into the buffer, in all processes those of all; returns how many there were."""
        seed = derive_seed(resolve_seed(self.online.seed), "exploration", self.global_step)
        played = self.explore(jobs, self.online.exploration, seed)
        shares = self.all_gather_objects([self._learnable(one) for one in played])
        for turn in itertools.zip_longest(*shares, fillvalue=[]):  # as the round's episodes were dealt out
            for episode in turn:
                self.replay.add(episode)
        self.log("train/buffer", float(len(self.replay)))
        return self.log_round(played)

    def _learnable(self, played: PlayedEpisode) -> list[Transcript]:
        """The transcripts to learn from, token for token as they were played, as far as they fit into the context."""
        assert self.chat is not None
        if played.episode.outcome.reason == "env_error":
            return []
        wanted = [transcript for transcript in played.transcripts if transcript.level != LOW]
        found = []
        for transcript in add_outcomes(wanted, played.episode, self.chat, self.agent):
            with contextlib.suppress(ValueError):  # what was read last is longer than the context
                found.append(transcript.truncated(self.agent.max_length))
        return [transcript for transcript in found if transcript.num_decisions]

    def _draw(self, batch: OnlineBatch, name: str) -> StepBatch:
        """Some episodes of the buffer and some stored ones, as one optimiser step: this process's share of them."""
        rng = random.Random(name)  # the same in all processes, as the buffer is
        stored = round(self.online.offline_share * self.online.batch_episodes) if batch.offline else 0
        chosen = self.replay.sample(self.online.batch_episodes - stored, rng)
        chosen += [list(episode) for episode in rng.sample(list(batch.offline), min(stored, len(batch.offline)))]
        chosen = chosen[self.global_rank :: self.trainer.world_size]
        transcripts = [t for episode in chosen for t in episode if t.level != LOW]
        counts = count_utterances(transcripts, self.agent.levels)
        numbers = {level: torch.tensor(float(n), device=self.device) for level, n in counts.items()}
        total = {level: int(n) for level, n in self.sum_over_processes(numbers).items()}
        return self.step_batch(transcripts, total)

    # --- checkpoints -------------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the buffer, which is the same in all processes."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["replay"] = self.replay.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self.replay.load_state_dict(checkpoint["replay"])
