"""Reflexion: a trial begins with a reflection on the last one; the window of memory, and what the prompts hold."""

import dataclasses
from typing import Any

import pytest
from local_play import LocalPool, Writer, assert_recorded, chat_of

from lit_rft.agents import (
    AdmissibleActions,
    EpisodePlayer,
    FlatAgent,
    HierarchicalAgent,
    HierarchyPrompts,
    MarkedAgent,
    PlayedEpisode,
    ReActAgent,
    ReflexionAgent,
    SwiftAgent,
    add_outcomes,
)
from lit_rft.agents.optional import acting_levels, admissible_actions, keeps_thoughts, keeps_turns, next_trial_of
from lit_rft.envs import EpisodeSpec
from lit_rft.testing.tiny import make_episode
from lit_rft.transcripts import ChatFormat

SPEC = EpisodeSpec("e", "walk", "test", step_limit=2)
LEFT, RIGHT = "Thought: Back.\nAction: go left", "Action: go right"


@pytest.fixture(scope="module")
def chat() -> ChatFormat:
    return chat_of("qwen2.5")


def play_trials(agent: ReflexionAgent, chat: ChatFormat, writer: Writer, spec: EpisodeSpec) -> list[PlayedEpisode]:
    trials: list[PlayedEpisode] = []
    while (following := agent.next_trial(spec, [played.episode for played in trials])) is not None:
        player = EpisodePlayer(agent, LocalPool(), chat, writer)  # type: ignore[arg-type]
        player.submit([following])
        trials += player.run()
    return trials


def prompts(writer: Writer, chat: ChatFormat) -> list[str]:
    return [chat.tokenizer.decode(context) for context, _ in writer.seen]


def test_trials_begin_with_a_reflection_and_end_with_a_success(chat: ChatFormat) -> None:
    agent = ReflexionAgent(ReActAgent("Act."), max_trials=5)
    spec = dataclasses.replace(SPEC, step_limit=3)
    actions = [LEFT] * 3 + [LEFT, RIGHT, RIGHT] + [RIGHT] * 3
    writer = Writer(chat, {"flat": actions, "reflection": ["Go  right,\nnot left.", "Only right."]})
    trials = play_trials(agent, chat, writer, spec)
    assert [played.episode.id for played in trials] == ["e/trial1", "e/trial2", "e/trial3"]
    assert [played.episode.outcome.success for played in trials] == [False, False, True]
    read = prompts(writer, chat)
    first, reflection, second, third = read[0], read[3], read[4], read[-3]
    assert "Plans after" not in first and "not retell" not in first
    assert reflection.count("Thought: Back.\nAction: go left\nObservation: You are in room 0.") == 3
    assert "The task was not solved." in reflection and "Plans so far" not in reflection
    assert "Go to room 3.\n\nPlans after earlier trials:\n1. Go right, not left.\n\nYou are in room 0." in second
    assert "1. Go right, not left.\n2. Only right.\n\nYou are" in third
    assert "Plans so far:\n1. Go right, not left.\n\nWrite" in read[7]  # the second reflection
    for played in trials:
        assert played.episode.meta == spec.meta
        played.transcripts = [transcript for transcript in played.transcripts if transcript.num_decisions]
        assert_recorded(agent, chat, played)
        rendered = add_outcomes(played.transcripts, played.episode, chat, agent)
        assert [t.level for t in rendered] == ["flat"]  # reflections have no outcome


@pytest.mark.parametrize(
    "inner",
    [FlatAgent("Act."), HierarchicalAgent(HierarchyPrompts("Plan.", "Act.")), MarkedAgent(FlatAgent("Act.")),
     SwiftAgent("Act.")],
    ids=lambda agent: type(agent).__name__,
)  # fmt: skip
def test_any_agent_plays_the_trials(inner: Any, chat: ChatFormat) -> None:
    """Its records are the tokens of play, and its settings those of the wrapped agent."""
    agent = ReflexionAgent(inner, max_trials=3)
    actions = ["go left"] * 3 + ["go right"] * 3
    texts = {
        "flat": actions, "swift": actions, "high": ["go on"] * 2, "reflection": ["Go right."],
        "low": [f"{action}\ncontinue" for action in actions],
    }  # fmt: skip
    writer = Writer(chat, texts)
    trials = play_trials(agent, chat, writer, dataclasses.replace(SPEC, step_limit=3))
    assert [played.episode.outcome.success for played in trials] == [False, True]
    read = prompts(writer, chat)
    (reflection,) = [prompt for prompt in read if "Write the new plan." in prompt]
    assert reflection.count("> go left\nYou are in room 0.") == 3
    planned = [prompt for prompt in read if "Plans after earlier trials:\n1. Go right." in prompt]
    marked = isinstance(inner, MarkedAgent)
    assert planned and all(("Solve the task correctly." in prompt) is marked for prompt in planned)
    for played in trials:
        played.transcripts = [transcript for transcript in played.transcripts if transcript.num_decisions]
        if not marked or played.episode.outcome.success:  # records of failures have another marker than play
            assert_recorded(agent, chat, played)
        assert bool(played.episode.subgoals) is isinstance(inner, HierarchicalAgent)
    assert agent.levels == (*inner.levels, "reflection") and agent.max_length == inner.max_length
    for setting in (keeps_turns, keeps_thoughts, admissible_actions, acting_levels):
        assert setting(agent) == setting(inner)


def test_a_reflection_reads_the_thoughts_of_a_marked_agent(chat: ChatFormat) -> None:
    writer = Writer(chat, {"flat": [LEFT] * 2 + [RIGHT] * 2, "reflection": ["Only right."]})
    play_trials(ReflexionAgent(MarkedAgent(ReActAgent("Act.")), max_trials=2), chat, writer, SPEC)
    assert "Thought: Back.\nAction: go left\nObservation: You are in room 0." in prompts(writer, chat)[2]


def test_an_agent_with_such_a_level_is_refused() -> None:
    with pytest.raises(ValueError, match="has a level 'reflection' already, got ReflexionAgent"):
        ReflexionAgent(ReflexionAgent())


@pytest.mark.parametrize(("memory", "expected"), [(1, "3. c"), (2, "2. b\n3. c"), (3, "1. a\n2. b\n3. c")])
def test_the_window_of_memory(memory: int, expected: str, chat: ChatFormat) -> None:
    agent = ReflexionAgent(ReActAgent("Act."), max_trials=4, memory=memory)
    writer = Writer(chat, {"flat": [LEFT] * 8, "reflection": ["a", "b", "c"]})
    assert len(play_trials(agent, chat, writer, SPEC)) == 4
    assert f"Plans after earlier trials:\n{expected}\n\nYou are" in prompts(writer, chat)[-1]


@pytest.mark.parametrize(
    ("inner", "reason"),
    [
        (ReActAgent(repeat_limit=2), "repeated"),
        (ReActAgent(turn_limit=3), "turn_limit"),
        (ReActAgent(), "step_limit"),
    ],
)
def test_each_failure_rule_leads_to_another_trial(inner: ReActAgent, reason: str, chat: ChatFormat) -> None:
    agent = ReflexionAgent(inner, max_trials=2)
    writer = Writer(chat, {"flat": [LEFT] * 12, "reflection": ["a"]})
    trials = play_trials(agent, chat, writer, dataclasses.replace(SPEC, step_limit=6))
    assert [played.episode.outcome.reason for played in trials] == [reason] * 2


def test_the_end_at_the_step_limit_is_no_success(chat: ChatFormat) -> None:
    """An environment that reports done at its limit has not been solved."""
    trials = play_trials(
        ReflexionAgent(max_trials=2), chat, Writer(chat, {"flat": [RIGHT] * 4, "reflection": ["a"]}), SPEC
    )
    assert len(trials) == 2 and not any(played.episode.outcome.success for played in trials)


def test_long_trials_lose_their_earliest_steps_in_the_reflection(chat: ChatFormat) -> None:
    agent = ReflexionAgent(ReActAgent("Act."), max_trials=2, max_prompt_tokens=400)
    texts = [f"Thought: number {n}.\nAction: go left" for n in range(6)]
    writer = Writer(chat, {"flat": texts + [RIGHT] * 6, "reflection": ["a"]})
    play_trials(agent, chat, writer, dataclasses.replace(SPEC, step_limit=6))
    reflection, ids = prompts(writer, chat)[6], writer.seen[6][0]
    assert len(ids) <= 400 and "number 5" in reflection and "number 0" not in reflection


def test_a_reflection_leaves_room_in_the_agents_context(chat: ChatFormat) -> None:
    """A prompt that fills the context would end the next trial before its first action."""
    agent = ReflexionAgent(FlatAgent("Act.", max_length=500), max_trials=2)
    actions = [f"{'walk to the left ' * 4}{n}" for n in range(6)]
    writer = Writer(chat, {"flat": [*actions, *["look"] * 6], "reflection": ["a"]})
    _, second = play_trials(agent, chat, writer, dataclasses.replace(SPEC, step_limit=6))
    assert (second.episode.outcome.reason, len(second.episode.steps)) == ("step_limit", 6)
    assert 200 < len(writer.seen[6][0]) <= 375 and "walk to the left 5" in prompts(writer, chat)[6]


def test_trials_of_another_agent_are_retold_by_their_actions(chat: ChatFormat) -> None:
    trial = dataclasses.replace(make_episode(0, 2), extra={"utterances": {"flat": ["go to x", "go to y"]}})
    trial.outcome.success = False
    spec = ReflexionAgent().next_trial(SPEC, [trial])
    assert spec is not None and spec.notes[0].count("Action: ") == 2 and "go to y" not in spec.notes[0]


def test_thoughts_of_reflections_are_not_plans() -> None:
    chat = chat_of("qwen3")
    agent = ReflexionAgent(max_trials=2)
    writer = Writer(chat, {"flat": [LEFT] * 4, "reflection": ["<think>\nHm.\n</think>\n\nGo right."]})
    play_trials(agent, chat, writer, SPEC)
    assert "1. Go right." in prompts(writer, chat)[-1] and "Hm." not in prompts(writer, chat)[-1]


@pytest.mark.parametrize("name", ["max_trials", "memory", "max_prompt_tokens"])
def test_settings_out_of_range(name: str) -> None:
    options: dict[str, Any] = {name: 0}
    with pytest.raises(ValueError, match=f"{name} must be > 0, got 0"):
        ReflexionAgent(**options)


def test_it_has_the_settings_of_its_agent() -> None:
    inner = ReActAgent(max_length=999, admissible=AdmissibleActions())
    agent = ReflexionAgent(inner)
    assert agent.levels == ("flat", "reflection") and agent.max_length == 999
    assert agent.admissible == inner.admissible and agent.update("flat", " x ") == "x"
    assert not hasattr(FlatAgent(), "next_trial")


def test_an_agent_around_others_has_their_trials_and_writes_episodes_as_they_do() -> None:
    inner = ReflexionAgent(ReActAgent())
    assert next_trial_of(MarkedAgent(inner)) == next_trial_of(inner) == inner.next_trial
    assert next_trial_of(MarkedAgent(ReActAgent())) is None
    failed = make_episode(1, 3)
    failed.outcome.success = False
    agents = ReActAgent(), MarkedAgent(ReActAgent())
    plain, marked = (ReflexionAgent(agent).next_trial(SPEC, [failed]) for agent in agents)
    assert plain is not None and plain == marked and "Action: " in plain.notes[0]
