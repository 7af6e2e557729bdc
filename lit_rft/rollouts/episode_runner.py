"""Plays episodes with a policy: environment workers, generators and the player, started and stopped together."""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import gymnasium as gym

from lit_rft.agents import Agent, EpisodePlayer, PlayedEpisode
from lit_rft.envs.base import EpisodeSpec
from lit_rft.envs.pool_settings import PoolSettings
from lit_rft.envs.pools import EnvPools
from lit_rft.generation import (
    BackendSettings,
    ChatServerSettings,
    Conversations,
    SamplingSettings,
    ServedConversations,
)
from lit_rft.generation.adapter_sync import AdapterSync
from lit_rft.models.merging import MergedWeights, use_adapter
from lit_rft.models.sharding import sharded_parts, unsharded
from lit_rft.rollouts.chat_levels import ChatLevels
from lit_rft.rollouts.policy import Policy


class EpisodeRunner:
    """Plays the episodes of one session after another; environment workers are kept between sessions.

    After an error all workers are stopped before it propagates.

    Args:
        agent: makes the sessions of episodes.
        parallel_episodes: environment workers, and episodes decoded together.
        merge_adapters: merge the adapters into the backbone while acting.
        server: vLLM, which samples; None for this library's own generator.
        chat_server: an OpenAI-compatible server that samples some or all levels, with its own model.
        pool: time and memory limits of the environments, processes or threads.
    """

    def __init__(
        self,
        agent: Agent,
        *,
        parallel_episodes: int = 4,
        merge_adapters: bool = True,
        server: BackendSettings | None = None,
        chat_server: ChatServerSettings | None = None,
        pool: PoolSettings | None = None,
    ) -> None:
        self.agent, self.parallel_episodes = agent, parallel_episodes
        self.merge_adapters, self._backend = merge_adapters, server.connect() if server is not None else None
        self._chat_levels = ChatLevels(agent, chat_server)
        self._used_before = self._chat_levels.usage()  # by earlier sessions
        self._pools = EnvPools(parallel_episodes, pool)
        self._player: EpisodePlayer | None = None
        self._samplers: list[Conversations] = []  # of the session
        self._served: dict[str, AdapterSync] = {}  # by adapter
        self._report: Callable[[int, int], None] | None = None  # progress of the policy's current phase
        self._gathered = contextlib.ExitStack()  # sharded weights are gathered while a session lasts

    @property
    def playing(self) -> bool:
        """True if a session is in progress."""
        return self._player is not None

    @property
    def num_pools(self) -> int:
        """Number of environment pools that are running."""
        return len(self._pools)

    def begin(
        self,
        policy: Policy,
        make_env: Callable[[], gym.Env[Any, Any]],
        sampling: SamplingSettings,
        seed: int,
        source: dict[str, Any] | None = None,
        level_sampling: Mapping[str, SamplingSettings] | None = None,
    ) -> None:
        """Begin a session.

        Args:
            policy: acts; its weights must not change during the session.
            make_env: makes an environment (picklable).
            sampling: of the utterances.
            seed: of the sampling.
            source: the records' `source`.
            level_sampling: by level, in place of `sampling`.
        """
        by_level = dict.fromkeys(self.agent.levels, sampling) | dict(level_sampling or {})
        with self.closing_on_error():
            pool = self._pools.get(make_env)
            if self._backend is None and self._chat_levels.others:
                self._gathered.enter_context(unsharded(policy.model))
            generators = self._generators(policy, by_level, seed)
            chat = self._chat_levels.formats(policy)
            generators |= self._chat_levels.generators(chat, by_level, seed, self.parallel_episodes)
            self._samplers = list({id(sampler): sampler for sampler in generators.values()}.values())
            self._player, self._report = EpisodePlayer(self.agent, pool, chat, generators, source), policy.phases.report

    def _generators(
        self, policy: Policy, sampling: Mapping[str, SamplingSettings], seed: int
    ) -> dict[str, Conversations]:
        """Return a generator for each level of the policy; levels that differ in nothing share one."""
        kinds = {
            level: (policy.adapter(level), policy.sampler(level), sampling[level]) for level in self._chat_levels.others
        }
        adapters = dict.fromkeys(adapter for adapter, *_ in kinds.values())
        makers = {adapter: self._make_generator(policy, adapter) for adapter in adapters}
        generators = {
            kind: makers[kind[0]](*kind[1:], seed=seed, num_slots=self.parallel_episodes * num_levels)
            for kind, num_levels in Counter(kinds.values()).items()
        }
        return {level: generators[kind] for level, kind in kinds.items()}

    def _make_generator(self, policy: Policy, adapter: str) -> Callable[..., Conversations]:
        """Return a function that makes a generator with an adapter from a sampler and settings of sampling."""
        end_ids = policy.chat.end_ids
        if self._backend is not None:
            served = self._served.setdefault(adapter, AdapterSync(self._backend, adapter))
            served.changed()  # since the last session
            current = served.current(policy.model, 0)
            return lambda _, sampling, **session: ServedConversations(
                served.backend, current, end_ids, sampling, **session
            )
        acting: Callable[[], contextlib.AbstractContextManager[None]] = partial(use_adapter, policy.model, adapter)
        if self.merge_adapters and not sharded_parts(policy.model):
            acting = MergedWeights(policy.model, adapter).active
        decode = policy.chat.tokenizer.decode
        return lambda make_sampler, sampling, **session: make_sampler(
            policy.model, end_ids, sampling, decode=decode, acting=acting, **session
        )

    def costs(self) -> dict[str, int]:
        """Return the tokens that the session has read and sampled, and its usage of the chat server."""
        read = sum(sampler.tokens_read for sampler in self._samplers)
        sampled = sum(sampler.tokens_sampled for sampler in self._samplers)
        used = {name: number - self._used_before[name] for name, number in self._chat_levels.usage().items()}
        return {"tokens_read": read, "tokens_sampled": sampled, **used}

    def play(self, episodes: Sequence[EpisodeSpec], max_unfinished: int = 0) -> list[PlayedEpisode]:
        """Submit episodes, and play until at most `max_unfinished` of all submitted ones are unfinished.

        Returns:
            The episodes that have ended, in the order of their ends.
        """
        assert self._player is not None and self._report is not None, "begin a session first"
        played: list[PlayedEpisode] = []
        with self.closing_on_error():
            self._player.submit(episodes)
            for result in self._player.run(max_unfinished):
                played.append(result)
                self._report(len(played), max(len(played), len(episodes)))
        return played

    def end(self) -> None:
        """End the session and free the caches."""
        self._gathered.close()
        if self._player is not None and self._backend is not None:
            self._backend.rest()
        self._player, self._samplers = None, []
        self._used_before = self._chat_levels.usage()

    @contextlib.contextmanager
    def closing_on_error(self) -> Iterator[None]:
        """Stop all workers if an error occurs within."""
        try:
            yield
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Stop the environment workers, and a session in progress."""
        self.end()
        self._pools.close()
        for served in self._served.values():
            served.close()
