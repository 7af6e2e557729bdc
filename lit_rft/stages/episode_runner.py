"""A stage's way to play episodes: simulators, generators and metrics, made and ended together."""

import contextlib
from collections import Counter
from collections.abc import Mapping
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
from lit_rft.transcripts import ChatFormat


@dataclass(frozen=True)
class ActingPolicy:
    """Who plays.

    Args:
        model: the policy.
        agent: how it is asked.
        chat: how its tokenizer writes conversations.
        source: of the episodes' records.
        sampling: how it samples.
        seed: of the sampling.
        adapter: which of the model's adapters acts.
        level_adapters: other ones for some of the agent's levels.
    """

    model: nn.Module
    agent: Agent
    chat: ChatFormat
    source: dict[str, Any] = field(default_factory=dict)
    sampling: SamplingSettings = field(default_factory=SamplingSettings)
    seed: int = 0
    adapter: str = "default"
    level_adapters: Mapping[str, str] = field(default_factory=dict)


class EpisodeRunner:
    """Plays the episodes of one epoch after another; the simulators stay in between.

    Whatever goes wrong while playing, the simulators are ended before the error goes on.

    Args:
        settings: how to act.
    """

    def __init__(self, settings: ActingSettings) -> None:
        self.settings = settings
        self._pools = EnvPools(settings.parallel_episodes, settings.pool)
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
            generators = self._generators(policy)
            self._player = EpisodePlayer(policy.agent, pool, policy.chat, generators, policy.source)
            self._metrics = EpisodeMetrics(jobs.tasks).to(next(policy.model.parameters()).device)
        except BaseException:
            self.close()
            raise

    def _generators(self, policy: ActingPolicy) -> dict[str, Conversations]:
        """A generator for each level; levels that act with the same adapter share one."""
        adapters = {level: policy.level_adapters.get(level, policy.adapter) for level in policy.agent.levels}
        count = Counter(adapters.values())
        made = {adapter: self._generator(policy, adapter, levels) for adapter, levels in count.items()}
        return {level: made[adapter] for level, adapter in adapters.items()}

    def _generator(self, policy: ActingPolicy, adapter: str, levels: int) -> Conversations:
        slots = self.settings.parallel_episodes * levels
        if self.settings.server is not None:
            served = self._served.setdefault(adapter, AdapterSync(self.settings.server, adapter))
            served.changed()  # since the epoch before
            return ServedConversations(
                served.server, served.name(policy.model, 0), policy.chat.end_ids, policy.sampling, num_slots=slots,
                seed=policy.seed,
            )  # fmt: skip
        merged = None
        if self.settings.merge_adapters and not sharded_parts(policy.model):
            merged = MergedWeights(policy.model, adapter)
        return ConversationGenerator(
            policy.model,
            policy.chat.end_ids,
            policy.sampling,
            num_slots=slots,
            seed=policy.seed,
            decode=policy.chat.tokenizer.decode,
            acting=merged.active if merged is not None else partial(use_adapter, policy.model, adapter),
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
