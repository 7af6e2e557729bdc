"""The first turn: an environment without a task in words has its first observation there, and only once."""

from dataclasses import replace
from typing import Any

import pytest

from lit_rft.agents import (
    AdmissibleActions,
    FlatAgent,
    HierarchicalAgent,
    MarkedAgent,
    ReActAgent,
    ReflexionAgent,
    SwiftAgent,
)
from lit_rft.agents.reflexion import REFLECTION
from lit_rft.episodes import Episode
from lit_rft.testing.tiny import make_episode, make_tokenizer
from lit_rft.transcripts import ChatFormat

START = "A dark room with two doors."
AGENTS: dict[str, Any] = {
    "flat": FlatAgent(),
    "flat with actions": FlatAgent(admissible=AdmissibleActions()),
    "hierarchical": HierarchicalAgent(),
    "hierarchical with actions": HierarchicalAgent(admissible=AdmissibleActions()),
    "marked": MarkedAgent(),
    "react": ReActAgent(),
    "swift": SwiftAgent(),
}


def record(task: str) -> Episode:
    episode = make_episode(0, 3)
    admissible = [[f"go {number}"] for number in range(4)]
    return replace(episode, task_description=task, initial_observation=START, extra={"admissible": admissible})


@pytest.fixture(scope="module")
def chat() -> ChatFormat:
    return ChatFormat(make_tokenizer())


@pytest.mark.parametrize("name", AGENTS)
@pytest.mark.parametrize("task", [START, f"{START}\n", ""], ids=["default", "with a newline", "none"])
def test_the_first_observation_is_written_once(name: str, task: str, chat: ChatFormat) -> None:
    transcripts = AGENTS[name].transcripts(record(task), chat)
    for transcript in transcripts[:2]:
        text = chat.tokenizer.decode(transcript.input_ids)
        assert text.count(START) == 1 or name == "swift"
        assert "Task:" not in text or name in ("swift", "marked")


@pytest.mark.parametrize("name", AGENTS)
def test_a_task_of_its_own_is_written(name: str, chat: ChatFormat) -> None:
    text = chat.tokenizer.decode(AGENTS[name].transcripts(record("Leave."), chat)[0].input_ids)
    assert text.count("Task: Leave.") == 1 and text.count(START) == 1


def test_a_swift_agent_looks_at_nothing_else(chat: ChatFormat) -> None:
    text = chat.tokenizer.decode(SwiftAgent().transcripts(record(START), chat)[0].input_ids)
    assert f"Task: {START}" in text and "Observation:" not in text


def test_plans_of_earlier_trials_take_the_place_of_the_task(chat: ChatFormat) -> None:
    session: Any = ReflexionAgent().session("e", chat)
    session.prepare("task", ["The door was closed."])
    assert session.start(START, START).level == REFLECTION
    text = chat.tokenizer.decode(session.receive("Open it.").ids)
    assert text.count(START) == 1 and "Plans after earlier trials:\n1. Open it." in text
