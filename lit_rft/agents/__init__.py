"""Agents: flat, hierarchical and scripted, and the player that lets many of them act at once."""

from lit_rft.agents.base import Act, Agent, Ask, Session, Stop, Turn
from lit_rft.agents.conversation import ContextFullError, Conversation
from lit_rft.agents.flat import FlatAgent, FlatSession
from lit_rft.agents.hierarchical import (
    HierarchicalAgent,
    HierarchicalSession,
    HierarchyPrompts,
    LowLevelAnswer,
    parse_low_level_answer,
    write_low_level_answer,
)
from lit_rft.agents.lines import parse_single_line, write_single_line
from lit_rft.agents.player import EpisodePlayer, PlayedEpisode
from lit_rft.agents.records import add_outcomes, replay, step_outcomes
from lit_rft.agents.scripted import ScriptedAgent

__all__ = [
    "Act",
    "Agent",
    "Ask",
    "ContextFullError",
    "Conversation",
    "EpisodePlayer",
    "FlatAgent",
    "FlatSession",
    "HierarchicalAgent",
    "HierarchicalSession",
    "HierarchyPrompts",
    "LowLevelAnswer",
    "PlayedEpisode",
    "ScriptedAgent",
    "Session",
    "Stop",
    "Turn",
    "add_outcomes",
    "parse_low_level_answer",
    "parse_single_line",
    "replay",
    "step_outcomes",
    "write_low_level_answer",
    "write_single_line",
]
