"""GLIDER's third stage: online fine-tuning of the high level."""

import dataclasses
import random
from collections.abc import Sequence
from typing import Any, Protocol

import torch

from lit_rft.agents import PlayedEpisode
from lit_rft.envs.jobs import EpisodeJobs
from lit_rft.stages.actor_critic import ActorCriticStage
from lit_rft.stages.episode_runner import ActingPolicy
from lit_rft.stages.replay import EpisodeReplay
from lit_rft.stages.settings import OnlineSettings
from lit_rft.transcripts import StepBatch, Transcript, add_outcomes, count_utterances, step_batch

LOW = "low"  # the adapter that holds the frozen low-level skills


class OnlineRound(Protocol):
    """What a data loader gives for one round; `datamodules.OnlineBatch` is one."""

    @property
    def jobs(self) -> EpisodeJobs: ...
    @property
    def offline(self) -> Sequence[Sequence[Transcript]]: ...
    @property
    def pad_id(self) -> int: ...
    @property
    def micro_batch_tokens(self) -> int: ...
    @property
    def packing(self) -> bool: ...


class OnlineHighLevelFinetune(ActorCriticStage):
    r"""Plays, keeps the newest episodes, and learns from them and from stored ones, in turns (GLIDER, ICML 2025).

    The low-level skills are frozen: a snapshot of the adapter that the stage starts with acts at the low level and gets
    no gradient. High level and critics train with the losses of `ActorCriticStage`, on high-level decisions alone. With
    `hierarchy=False` the whole flat policy trains: the paper's non-hierarchical counterpart (AWAC).

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

    def __init__(self, online: OnlineSettings | None = None, **stage: Any) -> None:
        super().__init__(**stage)
        if self.optimizer_settings.schedule != "constant":
            raise ValueError(
                f"optimizer.schedule={self.optimizer_settings.schedule} needs a known number of steps, and how many "
                "updates a round brings depends on its episodes: use constant"
            )
        self.online = online or OnlineSettings()
        self.replay = EpisodeReplay(self.online.buffer_episodes)
        self.env_steps = 0  # taken so far, over all processes

    # --- the model ---------------------------------------------------------------------------------------------------

    def configure_model(self) -> None:
        if self.policy is not None:
            return
        super().configure_model()
        if self.hierarchy:
            self._freeze_skills()

    def _freeze_skills(self) -> None:
        """Add a copy of the adapter that does not train."""
        policy: Any = self.policy
        if not hasattr(policy, "peft_config"):
            raise ValueError("freezing the low level needs LoRA: set policy.lora, or hierarchy=False")
        policy.add_adapter(LOW, policy.peft_config["default"])
        weights = dict(policy.named_parameters())
        with torch.no_grad():
            for name, parameter in weights.items():
                if f".{LOW}." in name:
                    parameter.copy_(weights[name.replace(f".{LOW}.", ".default.")])
                    parameter.requires_grad_(False)
        policy.set_adapter("default")

    def _saved_names(self) -> list[str]:
        skills = [name for name, _ in self.named_parameters() if f".{LOW}." in name and "lora_" in name]
        return super()._saved_names() + skills

    def acting_policy(self) -> ActingPolicy:
        policy = super().acting_policy()
        return dataclasses.replace(policy, low_adapter=LOW) if self.hierarchy else policy

    # --- a round -----------------------------------------------------------------------------------------------------

    def training_step(self, batch: OnlineRound, batch_idx: int) -> None:
        number = self._collect(batch.jobs)
        for index in range(max(1, round(self.online.updates_per_episode * number))):
            rng = random.Random(f"{self.online.seed}/{self.global_step}/{index}/{self.global_rank}")
            self.update(self._draw(batch, rng))

    def _collect(self, jobs: EpisodeJobs) -> int:
        """Play a round's episodes into the buffer; returns how many, over all processes."""
        assert self.policy is not None and self.chat is not None
        explorer = dataclasses.replace(
            self.acting_policy(), sampling=self.online.exploration, seed=self.online.seed + 1 + self.global_step
        )
        self.policy.eval()
        try:
            with torch.no_grad():
                self._runner.begin(explorer, jobs)
                played = self._runner.play(jobs, 0)
        finally:
            self.policy.train()
        self._runner.end()
        order = {job.id: index for index, job in enumerate(jobs.jobs)}
        for one in sorted(played, key=lambda one: order[one.episode.id]):  # which one ends first is chance
            self.replay.add(self._learnable(one))
        return self._report(played)

    def _learnable(self, played: PlayedEpisode) -> list[Transcript]:
        """The transcripts to learn from, token for token as they were played."""
        assert self.chat is not None
        if played.episode.outcome.reason == "env_error":
            return []
        wanted = [t for t in played.transcripts if t.level != "low"]
        return self._shortened(add_outcomes(wanted, played.episode, self.chat, self.prompts))

    def _shortened(self, transcripts: Sequence[Transcript]) -> list[Transcript]:
        return [transcript.truncated(self.acting.max_length) for transcript in transcripts]

    def _draw(self, batch: OnlineRound, rng: random.Random) -> StepBatch:
        """Some episodes of the buffer and some stored ones, as one optimiser step."""
        wanted = max(1, self.online.batch_episodes // self.trainer.world_size)
        stored = round(self.online.offline_share * wanted) if batch.offline else 0
        chosen = self.replay.sample(wanted - stored, rng)
        chosen += [list(episode) for episode in rng.sample(list(batch.offline), min(stored, len(batch.offline)))]
        transcripts = [t for episode in chosen for t in episode if t.level != "low"]
        counts = count_utterances(transcripts)
        numbers = {level: torch.tensor(float(n), device=self.device) for level, n in counts.items()}
        total = {level: int(n) for level, n in self.sum_over_processes(numbers).items()}
        step = step_batch(
            transcripts, total, micro_batch_tokens=batch.micro_batch_tokens, pad_id=batch.pad_id, packing=batch.packing
        )
        return step.to(self.device)

    def _report(self, played: list[PlayedEpisode]) -> int:
        """Log the round's scores; returns the number of its episodes, over all processes."""
        ended = [one.episode for one in played if one.episode.outcome.reason != "env_error"]
        values = {
            "episodes": float(len(ended)),
            "steps": float(sum(len(episode.steps) for episode in ended)),
            "score": sum(100.0 * episode.outcome.score for episode in ended),
            "success": float(sum(episode.outcome.success for episode in ended)),
        }
        sums = self.sum_over_processes({k: torch.tensor(v, device=self.device) for k, v in values.items()})
        number = int(sums["episodes"])
        self.env_steps += int(sums["steps"])
        if number:
            score, success = sums["score"] / number, sums["success"] / number
            buffer = float(len(self.replay))
            self.log_dict({"train/score": score, "train/success_rate": success, "train/buffer": buffer})
            if self.logger is not None:
                self.logger.log_metrics({"online/score": float(score)}, step=self.env_steps)
        return number

    # --- checkpoints -------------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the buffers of all processes."""
        super().on_save_checkpoint(checkpoint)
        buffers: list[Any] = [self.replay.state_dict()]
        if self._trainer is not None and self.trainer.world_size > 1:
            buffers = [None] * self.trainer.world_size
            torch.distributed.all_gather_object(buffers, self.replay.state_dict())
        checkpoint["online"] = {"env_steps": self.env_steps, "buffers": buffers}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        saved = checkpoint["online"]
        self.env_steps = saved["env_steps"]
        world_size = self.trainer.world_size if self._trainer is not None else 1
        episodes = [episode for buffer in saved["buffers"] for episode in buffer]
        same = len(saved["buffers"]) == world_size
        self.replay.load_state_dict(
            saved["buffers"][self.global_rank] if same else episodes[self.global_rank :: world_size]
        )
