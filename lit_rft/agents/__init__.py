"""Who acts: hierarchical and flat agents, and the player that lets many of them act at once."""

from lit_rft.agents.agent import Agent, FlatAgent, FlatSession, HierarchicalAgent, HierarchicalSession, Session
from lit_rft.agents.conversation import ContextFullError, Conversation
from lit_rft.agents.player import EpisodePlayer, PlayedEpisode

__all__ = [
    "Agent",
    "ContextFullError",
    "Conversation",
    "EpisodePlayer",
    "FlatAgent",
    "FlatSession",
    "HierarchicalAgent",
    "HierarchicalSession",
    "PlayedEpisode",
    "Session",
]
