"""What the stages share that play episodes in order to learn from them."""

import dataclasses
import math
from typing import Any

import torch

from lit_rft.agents import PlayedEpisode
from lit_rft.envs.jobs import EpisodeJobs
from lit_rft.episodes import Episode
from lit_rft.generation import SamplingSettings
from lit_rft.metrics import env_metrics, mean_env_metrics
from lit_rft.stages.base import EpisodeStage


class ExploringStage(EpisodeStage):
    """Plays rounds of episodes in training, and counts environment steps."""

    env_steps = 0  # taken so far, over all processes

    def explore(self, jobs: EpisodeJobs, sampling: SamplingSettings, seed: int) -> list[PlayedEpisode]:
        """Play episodes to their end by the policy as it is; in the order of the jobs.

        Raises: NonFiniteLossError in all processes if a reward is not finite.
        """
        assert self.policy is not None
        explorer = dataclasses.replace(self.acting_policy(), sampling=sampling, seed=seed)
        self.policy.eval()
        try:
            with torch.no_grad():
                self._runner.begin(explorer, jobs)
                played = self._runner.play(jobs, 0)
        finally:
            self.policy.train()
        self._runner.end()
        order = {job.id: index for index, job in enumerate(jobs.jobs)}
        played.sort(key=lambda one: order[one.episode.id])  # which one ends first is chance
        bad = [one.episode.id for one in played if not _finite(one.episode)]
        self.stop_together(bool(bad), bad, "a reward")
        return played

    def log_round(self, played: list[PlayedEpisode]) -> int:
        """Log the scores of a round, against optimiser steps and, as `online/score`, against environment steps.

        Returns: the number of its episodes, over all processes.
        """
        ended = [one.episode for one in played if one.episode.outcome.reason != "env_error"]
        values = {
            "episodes": float(len(ended)),
            "steps": float(sum(len(episode.steps) for episode in ended)),
            "score": sum(100.0 * episode.outcome.score for episode in ended),
            "success": float(sum(episode.outcome.success for episode in ended)),
            "invalid": float(sum(episode.source.get("malformed", 0) for episode in ended)),
            "utterances": float(sum(episode.num_utterances for episode in ended)),
        }
        sums = self.sum_over_processes({k: torch.tensor(v, device=self.device) for k, v in values.items()})
        number = int(sums["episodes"])
        shares = self.all_gather_objects([env_metrics(episode) for episode in ended])
        means = mean_env_metrics(metrics for share in shares for metrics in share)
        self.log_dict({f"train/{name}": value for name, value in means.items()})
        self.env_steps += int(sums["steps"])
        if number:
            score, success = sums["score"] / number, sums["success"] / number
            self.log_dict({"train/score": score, "train/success_rate": success})
            self.log("train/invalid_answers", sums["invalid"] / sums["utterances"].clamp_min(1))
            if self.logger is not None:
                self.logger.log_metrics({"online/score": float(score)}, step=self.env_steps)
        return number

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["env_steps"] = self.env_steps

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self.env_steps = checkpoint.get("env_steps", 0)  # none yet in a checkpoint of an earlier stage


def _finite(episode: Episode) -> bool:
    return all(math.isfinite(step.reward) for step in episode.steps)
