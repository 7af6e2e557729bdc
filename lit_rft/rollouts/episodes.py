"""Rollouts on episodes that the policy plays."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from lit_rft._seeds import derive_seed
from lit_rft.agents import Agent, PlayedEpisode
from lit_rft.agents.records import TOKENS
from lit_rft.envs.jobs import EpisodeJobs
from lit_rft.episodes import Episode
from lit_rft.generation import SamplingSettings
from lit_rft.metrics import env_metrics, mean_env_metrics
from lit_rft.models.modes import evaluation_mode
from lit_rft.models.processes import all_gather_objects, sum_numbers
from lit_rft.rollouts.episode_runner import EpisodeRunner
from lit_rft.rollouts.policy import Policy
from lit_rft.rollouts.rollout import Rollout

_MAX_FAILED_CALLS = 3  # a call may have few episodes (a late round of dynamic sampling), and a server may be away


class HasJobs(Protocol):
    """A batch with episodes to play, such as `lit_rft.batches.OnlineBatch`."""

    @property
    def jobs(self) -> EpisodeJobs: ...


class EpisodeSource:
    """Plays the episodes of a batch; the reward is the final score.

    Episodes whose environment failed are left out; `env_errors` is their share. If all of a call fail, training stops:
    at once if none has ever been played, else at the third such call in a row.

    Args:
        runner: plays.
        sampling: of the utterances.
        seed: of the sampling; each step has its own.
        level_sampling: by level of the agent, in place of `sampling`.
    """

    def __init__(
        self,
        runner: EpisodeRunner,
        sampling: SamplingSettings,
        seed: int = 0,
        level_sampling: Mapping[str, SamplingSettings] | None = None,
    ) -> None:
        self.runner, self.sampling, self.seed, self.level_sampling = runner, sampling, seed, level_sampling
        self.env_steps = 0  # taken so far, over all processes
        self.tokens_read = self.tokens_sampled = 0  # likewise
        self.num_episodes = 0  # of the last call, over all processes
        self._failed_calls = 0  # in a row, in which no episode could be played
        self.metrics: dict[str, Tensor] = {}

    def __call__(self, policy: Policy, batch: HasJobs) -> list[Rollout]:
        """Return one rollout per episode, in the order of the batch, with transcripts as they were played."""
        return self.play(policy, batch.jobs, derive_seed(self.seed, "exploration", policy.step))

    @torch.no_grad()
    def play(self, policy: Policy, jobs: EpisodeJobs, seed: int) -> list[Rollout]:
        """Play episodes to their ends, without dropout.

        Raises:
            RuntimeError: If the environments of all episodes failed, over all processes (see the class).
        """
        with policy.phases.measure("rollout"), evaluation_mode(policy.model):
            self.runner.begin(policy, jobs.make_env, self.sampling, seed, level_sampling=self.level_sampling)
            played = self.runner.play(jobs.jobs)
        self.runner.end()
        complete = {p.episode.id: p for p in played if p.episode.outcome.reason != "env_error"}
        errors = [p.episode.extra["error"] for p in played if p.episode.id not in complete]
        self._count([p.episode for p in complete.values()], errors, policy.device)
        agent = self.runner.agent
        return [_rollout(complete[job.id], group, agent) for group, job in enumerate(jobs.jobs) if job.id in complete]

    def _count(self, episodes: Sequence[Episode], errors: Sequence[str], device: torch.device) -> None:
        counts = {
            "episodes": float(len(episodes)),
            "failed": float(len(errors)),
            "steps": float(sum(len(episode.steps) for episode in episodes)),
            "score": sum(100.0 * episode.outcome.score for episode in episodes),
            "success": float(sum(episode.outcome.success for episode in episodes)),
            "invalid": float(sum(episode.source.get("malformed", 0) for episode in episodes)),
            "utterances": float(sum(episode.num_utterances for episode in episodes)),
            "read": float(sum(episode.extra[TOKENS]["read"] for episode in episodes if TOKENS in episode.extra)),
            "sampled": float(sum(episode.extra[TOKENS]["sampled"] for episode in episodes if TOKENS in episode.extra)),
        }
        sums = sum_numbers(counts, device)
        self.num_episodes = int(sums["episodes"])
        self._failed_calls = self._failed_calls + 1 if sums["failed"] and not self.num_episodes else 0
        if self._failed_calls and (not self.env_steps or self._failed_calls == _MAX_FAILED_CALLS):
            self._stop(int(sums["failed"]), errors)
        self.env_steps += int(sums["steps"])
        self.tokens_read += int(sums["read"])
        self.tokens_sampled += int(sums["sampled"])
        self.metrics = {}
        if sums["failed"] or self.num_episodes:
            self.metrics = {"env_errors": sums["failed"] / (sums["failed"] + sums["episodes"])}
        if self.num_episodes:
            self.metrics |= {
                "score": sums["score"] / self.num_episodes,
                "success_rate": sums["success"] / self.num_episodes,
                "invalid_answers": sums["invalid"] / sums["utterances"].clamp_min(1),
            }
        shares = all_gather_objects([env_metrics(episode) for episode in episodes])
        means = mean_env_metrics(metrics for share in shares for metrics in share)
        self.metrics |= {name: torch.tensor(value, device=device) for name, value in means.items()}

    def _stop(self, number: int, errors: Sequence[str]) -> None:
        first = next(error for share in all_gather_objects(errors) for error in share)
        raise RuntimeError(
            f"none of {number} episodes could be played ({first}): there is nothing to learn from; `lit-rft check-env` "
            "tries an environment. The last checkpoint is from before these episodes"
        )

    @property
    def costs(self) -> dict[str, int]:
        """Environment steps and tokens so far, over all processes."""
        return {"env_steps": self.env_steps, "tokens_read": self.tokens_read, "tokens_sampled": self.tokens_sampled}

    def close(self) -> None:
        self.runner.close()

    def state_dict(self) -> dict[str, Any]:
        return self.costs

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.env_steps = state["env_steps"]
        self.tokens_read, self.tokens_sampled = state["tokens_read"], state["tokens_sampled"]


def _rollout(played: PlayedEpisode, group: int, agent: Agent) -> Rollout:
    episode = played.episode
    return Rollout(
        list(played.transcripts),
        "\n".join(step.action for step in episode.steps),
        group,
        off_policy=False,
        finished=episode.outcome.reason != "context_full",
        reward=episode.outcome.score,
        sampled_log_probs=[[value for decision in rows for value in decision] for rows in played.log_probs],
        episode=episode,
        agent=agent,
    )
