"""A stage's way to play episodes: simulators, generators and metrics, made and ended together."""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import nn

from lit_rft.agents import Agent, EpisodePlayer, PlayedEpisode
from lit_rft.envs.jobs import EpisodeJobs
from lit_rft.envs.pools import EnvPools
from lit_rft.generation import ConversationGenerator, Conversations, SamplingSettings, ServedConversations
from lit_rft.metrics import EpisodeMetrics
from lit_rft.models.merging import MergedWeights, use_adapter
from lit_rft.models.sharding import sharded_parts, unsharded
from lit_rft.stages.serving import AdapterSync
from lit_rft.stages.settings import ActingSettings


@dataclass(frozen=True)
class ActingPolicy:
    """Who plays.

    Args:
        model: the policy.
        agent: how it is asked.
        end_ids: the tokens that end its utterances.
        source: of the episodes' records.
        sampling: how it samples.
        seed: of the sampling.
        adapter: which of the model's adapters acts.
        low_adapter: another one for the low level; None for the same.
        decode: ids to text, for stop strings.
    """

    model: nn.Module
    agent: Agent
    end_ids: Sequence[int]
    source: dict[str, Any] = field(default_factory=dict)
    sampling: SamplingSettings = field(default_factory=SamplingSettings)
    seed: int = 0
    adapter: str = "default"
    low_adapter: str | None = None
    decode: Callable[[list[int]], str] | None = None


class EpisodeRunner:
    """Plays the episodes of one epoch after another; the simulators stay in between.

    Whatever goes wrong while playing, the simulators are ended before the error goes on.

    Args:
        settings: how to act.
    """

    def __init__(self, settings: ActingSettings) -> None:
        self.settings = settings
        self._pools = EnvPools(
            settings.parallel_episodes, call_timeout=settings.call_timeout, reset_timeout=settings.reset_timeout
        )
        self._player: EpisodePlayer | None = None
        self._metrics: EpisodeMetrics | None = None
        self._served: dict[str, AdapterSync] = {}  # adapters that a server has
        self._whole = contextlib.ExitStack()  # weights that are split over devices are whole while an epoch lasts

    @property
    def playing(self) -> bool:
        """Whether an epoch is under way."""
        return self._player is not None

    def begin(self, policy: ActingPolicy, jobs: EpisodeJobs) -> None:
        """Begin an epoch: start what is not running."""
        try:
            pool = self._pools.get(jobs.make_env)
            if self.settings.server is None:
                self._whole.enter_context(unsharded(policy.model))
            generator = self._generator(policy, policy.adapter)
            low = self._generator(policy, policy.low_adapter) if policy.low_adapter is not None else None
            self._player = EpisodePlayer(policy.agent, generator, pool, policy.source, low)
            self._metrics = EpisodeMetrics(jobs.tasks).to(next(policy.model.parameters()).device)
        except BaseException:
            self.close()
            raise

    def _generator(self, policy: ActingPolicy, adapter: str) -> Conversations:
        # with an adapter for each level, each generator has one conversation an episode
        slots = self.settings.parallel_episodes * (1 if policy.low_adapter else policy.agent.conversations)
        if self.settings.server is not None:
            served = self._served.setdefault(adapter, AdapterSync(self.settings.server, adapter))
            served.changed()  # since the epoch before
            return ServedConversations(
                served.server, served.name(policy.model, 0), policy.end_ids, policy.sampling, num_slots=slots,
                seed=policy.seed,
            )  # fmt: skip
        folded = None
        if self.settings.merge_adapters and not sharded_parts(policy.model):
            folded = MergedWeights(policy.model, adapter)
        return ConversationGenerator(
            policy.model,
            policy.end_ids,
            policy.sampling,
            num_slots=slots,
            seed=policy.seed,
            decode=policy.decode,
            acting=folded.active if folded is not None else partial(use_adapter, policy.model, adapter),
        )

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
        """End an epoch, free the caches; returns the scores (see `EpisodeMetrics.compute`)."""
        self._whole.close()
        metrics, self._metrics, self._player = self._metrics, None, None
        scores: dict[str, dict[str, float]] = metrics.compute() if metrics is not None else {}
        return scores

    def close(self) -> None:
        """End the simulators, and an epoch that is under way."""
        self._metrics = None
        self.end()
        self._pools.close()
        for served in self._served.values():
            served.close()
