"""Negative-aware training: which marker an episode gets, and that the agent acts by the best one."""

import dataclasses
from typing import Any

import pytest

from lit_rft.agents import FlatAgent, HierarchicalAgent, MarkedAgent, Marker
from lit_rft.episodes import Episode
from lit_rft.testing.tiny import make_episode, make_tokenizer
from lit_rft.transcripts import ChatFormat

GRADED = [Marker("good", 1.0), Marker("fair", 0.4), Marker("poor", 0.0), Marker("bad")]


@pytest.fixture(scope="module")
def chat() -> ChatFormat:
    return ChatFormat(make_tokenizer())


def scored(score: float) -> Episode:
    episode = make_episode(0)
    episode.steps[-1] = dataclasses.replace(episode.steps[-1], score=score)
    return dataclasses.replace(episode, outcome=dataclasses.replace(episode.outcome, score=score))


def text(chat: ChatFormat, ids: list[int]) -> str:
    decoded: str = chat.tokenizer.decode(ids)
    return decoded


@pytest.mark.parametrize("inner", [FlatAgent("Act."), HierarchicalAgent()], ids=["flat", "hierarchical"])
def test_it_acts_by_the_best_marker_at_every_level_that_reads_the_task(inner: Any, chat: ChatFormat) -> None:
    agent = MarkedAgent(inner, GRADED)
    ask: Any = agent.session("e", chat).start("Find a plant.", "You are in a hall.")
    plain: Any = inner.session("e", chat).start("Find a plant.", "You are in a hall.")
    assert text(chat, ask.ids) == text(chat, plain.ids).replace("Find a plant.", "Find a plant.\ngood")
    assert agent.levels == inner.levels and agent.max_length == inner.max_length


def test_the_low_level_reads_the_marker_with_its_first_subgoal(chat: ChatFormat) -> None:
    agent = MarkedAgent(HierarchicalAgent(), GRADED)
    session = agent.session("e", chat)
    session.start("Find a plant.", "You are in a hall.")
    ask: Any = session.receive("go to the garden")
    assert ask.level == "low" and "Find a plant.\ngood" in text(chat, ask.ids)
    low = {transcript.level: transcript for transcript in agent.transcripts(scored(0.5), chat)}["low"]
    assert f"{scored(0.5).task_description}\nfair" in text(chat, low.input_ids)


@pytest.mark.parametrize(
    ("score", "marker"), [(1.0, "good"), (2.0, "good"), (0.99, "fair"), (0.4, "fair"), (0.0, "poor"), (-1.0, "bad")]
)
def test_stored_episodes_get_the_marker_of_their_score(score: float, marker: str, chat: ChatFormat) -> None:
    episode = scored(score)
    (transcript,) = MarkedAgent(FlatAgent("Act."), GRADED).transcripts(episode, chat)
    (plain,) = FlatAgent("Act.").transcripts(episode, chat)
    task = episode.task_description
    assert text(chat, transcript.input_ids) == text(chat, plain.input_ids).replace(task, f"{task}\n{marker}", 1)
    assert [transcript.utterance_ids(k) for k in range(5)] == [plain.utterance_ids(k) for k in range(5)]


def test_a_success_is_rendered_as_it_is_played(chat: ChatFormat) -> None:
    """The ids of a stored success begin with those that the agent reads when it acts."""
    episode = scored(1.0)
    agent = MarkedAgent(FlatAgent("Act."))
    (transcript,) = agent.transcripts(episode, chat)
    ask: Any = agent.session(episode.id, chat).start(episode.task_description, episode.initial_observation)
    assert transcript.input_ids[: len(ask.ids)] == ask.ids
    assert agent.marker_of(scored(0.99)).text == "Solve the task in a wrong way."


def test_outcomes_are_those_of_the_unmarked_agent(chat: ChatFormat) -> None:
    episode = scored(0.5)
    assert MarkedAgent(FlatAgent()).outcomes(episode, "flat") == FlatAgent().outcomes(episode, "flat")
    assert MarkedAgent(FlatAgent()).update("flat", " x ") == "x"


@pytest.mark.parametrize(
    ("markers", "message"),
    [
        ([], "got min_score of no marker"), ([Marker("a")], "two or more"),
        ([Marker("a", 0.4), Marker("b", 1.0), Marker("c")], "falling min_score"),
        ([Marker("a", 1.0), Marker("b", 0.0)], "none in the last one"),
        ([Marker("a", 1.0), Marker("a")], "different texts"), ([Marker(" ", 1.0), Marker("a")], "different texts"),
    ],
)  # fmt: skip
def test_bad_markers_are_refused(markers: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MarkedAgent(FlatAgent(), markers)
