"""Levels of an agent that an OpenAI-compatible server samples."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from lit_rft.agents import Agent
from lit_rft.generation import ChatConversations, ChatServer, ChatServerSettings, Conversations, SamplingSettings
from lit_rft.rollouts.policy import Policy
from lit_rft.transcripts import ChatFormat, LevelFormats, MessageFormat


class ChatLevels:
    """The levels of an agent with a chat server's model; none without a server.

    Args:
        agent: the agent.
        settings: of the server; None for none.

    Raises:
        ValueError: The settings name levels that the agent does not have.
    """

    def __init__(self, agent: Agent, settings: ChatServerSettings | None) -> None:
        names = () if settings is None else agent.levels if settings.levels is None else tuple(settings.levels)
        if not set(names) <= set(agent.levels):
            raise ValueError(f"chat_server.levels must be among {', '.join(agent.levels)}, got {', '.join(names)}")
        self.names, self._agent = set(names), agent
        self._server = None if settings is None else ChatServer(settings)

    @property
    def others(self) -> list[str]:
        """Levels of the policy."""
        return [level for level in self._agent.levels if level not in self.names]

    def formats(self, policy: Policy) -> ChatFormat | MessageFormat | LevelFormats:
        """Return the chat format of the agent: the policy's, messages, or one for each level."""
        if not self.names:
            return policy.chat
        messages = MessageFormat(policy.chat.tokenizer)
        if not self.others:
            return messages
        return LevelFormats({level: messages if level in self.names else policy.chat for level in self._agent.levels})

    def generators(
        self, formats: Any, sampling: Mapping[str, SamplingSettings], seed: int, num_episodes: int
    ) -> dict[str, Conversations]:
        """Return a generator for each level of the server; levels with the same sampling share one.

        Args:
            formats: of the levels.
            sampling: of the utterances, by level.
            seed: of the sampling.
            num_episodes: maximum number of episodes at the same time.
        """
        if self._server is None or not self.names:
            return {}
        level, *_ = self.names
        generators = {
            kind: ChatConversations(
                self._server, formats.at(level), kind, num_slots=num_episodes * num_levels, seed=seed
            )
            for kind, num_levels in Counter(sampling[level] for level in self.names).items()
        }
        return {level: generators[sampling[level]] for level in self.names}

    def usage(self) -> dict[str, int]:
        """Return the cost of the server's answers so far; empty without a server."""
        return {} if self._server is None else {f"server/{key}": n for key, n in self._server.usage.items()}
