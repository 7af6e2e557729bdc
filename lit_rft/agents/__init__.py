"""Agents: flat, hierarchical and scripted, and the player for many of them at once."""

from lit_rft.agents.admissible import AdmissibleActions
from lit_rft.agents.answers import read_answer, system_text, write_answer
from lit_rft.agents.around import AroundAgent, AroundSession
from lit_rft.agents.base import Act, Agent, Ask, Session, Stop, Turn
from lit_rft.agents.contexts import Context, ContextWithoutThoughts, FullContext, make_context
from lit_rft.agents.conversation import ContextFullError, Conversation
from lit_rft.agents.decisions import Decision, transcript_decisions
from lit_rft.agents.examples import Examples
from lit_rft.agents.flat import FlatAgent, FlatSession
from lit_rft.agents.formats import (
    Answer,
    AnswerFormat,
    FirstLine,
    HermesToolCall,
    JsonObject,
    LastLine,
    Llama3ToolCall,
    Tags,
)
from lit_rft.agents.hierarchical import (
    HierarchicalAgent,
    HierarchicalSession,
    HierarchyPrompts,
    LowLevelAnswer,
    parse_low_level_answer,
    write_low_level_answer,
)
from lit_rft.agents.lines import parse_single_line, write_single_line
from lit_rft.agents.marked import MarkedAgent, Marker
from lit_rft.agents.opening import opening_text
from lit_rft.agents.optional import (
    SupportsActingLevels,
    SupportsAdmissible,
    SupportsAdmit,
    SupportsNotice,
    SupportsPrepare,
    SupportsRetelling,
    SupportsThoughts,
    SupportsTrials,
    SupportsTurns,
)
from lit_rft.agents.player import EpisodePlayer, PlayedEpisode
from lit_rft.agents.react import ReActAgent, ReActSession, ThoughtAction
from lit_rft.agents.records import (
    add_outcomes,
    learnable_transcripts,
    recorded_thoughts,
    recorded_utterances,
    replay,
    step_outcomes,
)
from lit_rft.agents.reflexion import ReflexionAgent
from lit_rft.agents.scripted import ScriptedAgent
from lit_rft.agents.swift import StateField, SwiftAgent
from lit_rft.agents.swift_sage import SagePrompts, SwiftSageAgent
from lit_rft.agents.switch import SwitchSettings

__all__ = [
    "Act",
    "AdmissibleActions",
    "Agent",
    "Answer",
    "AnswerFormat",
    "AroundAgent",
    "AroundSession",
    "Ask",
    "Context",
    "ContextFullError",
    "ContextWithoutThoughts",
    "Conversation",
    "Decision",
    "EpisodePlayer",
    "Examples",
    "FirstLine",
    "FlatAgent",
    "FlatSession",
    "FullContext",
    "HermesToolCall",
    "HierarchicalAgent",
    "HierarchicalSession",
    "HierarchyPrompts",
    "JsonObject",
    "LastLine",
    "Llama3ToolCall",
    "LowLevelAnswer",
    "MarkedAgent",
    "Marker",
    "PlayedEpisode",
    "ReActAgent",
    "ReActSession",
    "ReflexionAgent",
    "SagePrompts",
    "ScriptedAgent",
    "Session",
    "StateField",
    "Stop",
    "SupportsActingLevels",
    "SupportsAdmissible",
    "SupportsAdmit",
    "SupportsNotice",
    "SupportsPrepare",
    "SupportsRetelling",
    "SupportsThoughts",
    "SupportsTrials",
    "SupportsTurns",
    "SwiftAgent",
    "SwiftSageAgent",
    "SwitchSettings",
    "Tags",
    "ThoughtAction",
    "Turn",
    "add_outcomes",
    "learnable_transcripts",
    "make_context",
    "opening_text",
    "parse_low_level_answer",
    "parse_single_line",
    "read_answer",
    "recorded_thoughts",
    "recorded_utterances",
    "replay",
    "step_outcomes",
    "system_text",
    "transcript_decisions",
    "write_answer",
    "write_low_level_answer",
    "write_single_line",
]
