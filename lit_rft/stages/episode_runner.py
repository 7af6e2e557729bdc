"""A stage's way to play episodes: simulators, generator, metrics and folded adapters, made and ended together."""

from typing import Any

from torch import nn

from lit_rft.agents import Agent, EpisodePlayer, PlayedEpisode
from lit_rft.envs.jobs import EpisodeJobs
from lit_rft.envs.pool import EnvPool
from lit_rft.metrics import EpisodeMetrics
from lit_rft.models.merging import MergedAdapters
from lit_rft.rollout import ConversationGenerator
from lit_rft.stages.settings import ActingSettings


class EpisodeRunner:
    """Plays the episodes of one epoch after another; the simulators stay in between.

    Whatever goes wrong while playing, the simulators are ended and the policy's weights are put back before the error
    goes on.

    Args:
        settings: how to act.
    """

    def __init__(self, settings: ActingSettings) -> None:
        self.settings = settings
        self._pool: EnvPool | None = None
        self._player: EpisodePlayer | None = None
        self._metrics: EpisodeMetrics | None = None
        self._merged: MergedAdapters | None = None

    @property
    def playing(self) -> bool:
        """Whether an epoch is under way."""
        return self._player is not None

    def begin(
        self, policy: nn.Module, agent: Agent, end_of_turn_id: int, jobs: EpisodeJobs, source: dict[str, Any]
    ) -> None:
        """Begin an epoch: start what is not running, fold the adapters in.

        Args:
            source: of the episodes' records.
        """
        settings = self.settings
        try:
            if self._pool is None:
                self._pool = EnvPool(
                    jobs.make_env,
                    settings.parallel_episodes,
                    call_timeout=settings.call_timeout,
                    reset_timeout=settings.reset_timeout,
                )
            slots = agent.conversations * settings.parallel_episodes
            generator = ConversationGenerator(
                policy, end_of_turn_id, settings.sampling, num_slots=slots, seed=settings.seed
            )
            self._player = EpisodePlayer(agent, generator, self._pool, source)
            self._metrics = EpisodeMetrics(jobs.tasks).to(next(policy.parameters()).device)
            self._merged = MergedAdapters(policy) if settings.merge_adapters else None
        except BaseException:
            self.close()
            raise

    def play(self, jobs: EpisodeJobs, max_unfinished: int) -> list[PlayedEpisode]:
        """Submit episodes, and play until at most so many of all submitted ones are unfinished."""
        assert self._player is not None and self._metrics is not None
        try:
            self._player.submit(jobs.jobs)
            ended = list(self._player.run(max_unfinished))
            for played in ended:
                self._metrics.update(played.episode)
        except BaseException:
            self.close()
            raise
        return ended

    def end(self) -> dict[str, dict[str, float]]:
        """End an epoch: free the caches, unfold the adapters; returns the scores (see `EpisodeMetrics.compute`)."""
        metrics, self._metrics, self._player = self._metrics, None, None
        if self._merged is not None:
            self._merged.restore()
            self._merged = None
        scores: dict[str, dict[str, float]] = metrics.compute() if metrics is not None else {}
        return scores

    def close(self) -> None:
        """End the simulators, and an epoch that is under way."""
        self._metrics = None
        self.end()
        if self._pool is not None:
            self._pool.close()
            self._pool = None
