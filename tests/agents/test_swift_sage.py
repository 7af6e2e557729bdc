"""SwiftSage: Swift's fields are those before its action, and Sage's buffer is played without sampling."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from local_play import LocalPool, Writer, assert_what_was_read, chat_of

from lit_rft.agents import (
    AdmissibleActions,
    EpisodePlayer,
    Examples,
    PlayedEpisode,
    StateField,
    SwiftAgent,
    SwiftSageAgent,
    SwitchSettings,
    add_outcomes,
)
from lit_rft.agents.swift_sage import SwiftSageSession
from lit_rft.envs import EpisodeSpec
from lit_rft.episodes import Episode, Step, write_episodes
from lit_rft.testing.corridor import CorridorEnv
from lit_rft.testing.tiny import make_episode
from lit_rft.transcripts import ChatFormat

GROUNDED = "Well:\nAction 1: go right --> You are in room 1.\n2. go right\n- Action 3: `go right`"


class ListingEnv(CorridorEnv):
    """Reports its admissible actions."""

    def reset(self, **options: Any) -> Any:
        observation, info = super().reset(**options)
        return observation, {**info, "admissible": ["go left", "go right"]}

    def step(self, action: str) -> Any:
        *answer, info = super().step(action)
        return *answer, {**info, "admissible": ["go left", "go right"]}


@pytest.fixture(scope="module")
def chat() -> ChatFormat:
    return chat_of("qwen2.5")


def play(
    agent: Any, chat: ChatFormat, texts: dict[str, list[str]], env: type[CorridorEnv] = ListingEnv, limit: int = 6
) -> tuple[PlayedEpisode, Writer]:
    writer = Writer(chat, texts)
    player = EpisodePlayer(agent, LocalPool(env), chat, writer)  # type: ignore[arg-type]
    player.submit([EpisodeSpec("e", "walk", "train", step_limit=limit)])
    (played,) = player.run()
    return played, writer


def prompts(writer: Writer, chat: ChatFormat) -> list[str]:
    return [chat.tokenizer.decode(context) for context, _ in writer.seen]


# as in the recipes
FIELDS = [StateField("Look", ["look", "go "]), StateField("Inventory", ["inventory"], False, 400)]


# --- Swift ------------------------------------------------------------------------------------------------------------


def test_swift_reads_fields_and_no_earlier_turns(chat: ChatFormat) -> None:
    actions = ["go right", "jump", "go right", "go right"]
    played, writer = play(SwiftAgent("Act.", fields=FIELDS), chat, {"swift": list(actions)})
    assert [step.action for step in played.episode.steps] == actions
    first, *_, last = prompts(writer, chat)
    fields = "Task: Go to room 3.\nTime: 0. Score: 0.00\nLast actions: none\nLook: You are in room 0."
    assert fields in first and "Inventory" not in first
    assert "Time: 3. Score: 0.67\nLast actions: \n1. go right (+0.33): You are in room 1.\n2. jump: That is not" in last
    assert "Look: You are in room 2." in last and last.count("assistant") == 1
    assert_what_was_read(played, writer)


def test_its_training_examples_are_the_prompts_of_play(chat: ChatFormat) -> None:
    """One per action, the first one included, each with the state before it."""
    agent = SwiftAgent("Act.", fields=FIELDS)
    played, _ = play(agent, chat, {"swift": ["go right", "go left", "go right", "go right", "go right"]})
    again = agent.transcripts(Episode.from_dict(played.episode.to_dict()), chat)
    assert again == played.transcripts and len(again) == 5
    assert again == SwiftSageAgent(agent).transcripts(played.episode, chat)
    assert [t.first_decision for t in again] == [0, 1, 2, 3, 4]


def test_swift_trains_on_the_words_that_it_wrote(chat: ChatFormat) -> None:
    """Also on further lines and on an answer without an action, which a preference against them has to lower."""
    agent = SwiftAgent("Act.")
    played, _ = play(
        agent, chat, {"swift": ["go right\nand on", " ", '"go right"', "go right", "go right", "go right"]}
    )
    assert agent.transcripts(played.episode, chat) == played.transcripts


def test_look_and_inventory_are_those_before_the_action(chat: ChatFormat) -> None:
    def step(action: str, observation: str, valid: bool = True) -> Step:
        return Step(action, observation, 0.0, 0.0, valid)

    steps = [
        step("look around", "A hall.\n\nA door."), step("inventory", "You have a key."), step("open door", "It opens."),
        step("go north", "No way.", valid=False), step("inventory", "You have nothing."), step("wait", "Time passes."),
    ]  # fmt: skip
    episode = dataclasses.replace(make_episode(0, 1), steps=steps)
    episode.outcome.score = 0.0
    texts = [chat.tokenizer.decode(t.input_ids) for t in SwiftAgent(fields=FIELDS).transcripts(episode, chat)]
    assert "Look: This room is called the hallway." in texts[0] and "A hall." not in texts[0]
    assert "Look: A hall. | A door." in texts[1] and "Inventory" not in texts[1]
    assert "Inventory: You have a key." in texts[2] and "Inventory: You have a key." in texts[4]
    assert "Look: A hall." in texts[5] and "Inventory: You have nothing." in texts[5]


def test_by_default_the_last_observation_is_shown(chat: ChatFormat) -> None:
    """Whatever its words are: the agent knows none of an environment's actions."""
    episode = make_episode(0, 2)
    texts = [chat.tokenizer.decode(t.input_ids) for t in SwiftAgent().transcripts(episode, chat)]
    assert f"\nObservation: {episode.initial_observation}" in texts[0]
    assert f"\nObservation: {episode.steps[0].observation}" in texts[1] and "Look" not in texts[1]


def test_a_field_is_cut_to_its_length(chat: ChatFormat) -> None:
    short = SwiftAgent(fields=[StateField("Start", ["?"], max_characters=9)])
    text = chat.tokenizer.decode(short.transcripts(make_episode(0, 1), chat)[0].input_ids)
    assert f"Start: {make_episode(0, 1).initial_observation[:9]} ..." in text


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "", "actions": ["look"]}, "needs a name and a list of actions"),
        ({"name": "Look", "actions": []}, "needs a name and a list of actions"),
        ({"name": "Look", "actions": "look"}, "needs a name and a list of actions, got 'Look' and 'look'"),
        ({"name": "Look", "actions": ["look"], "max_characters": 0}, "max_characters must be > 0"),
    ],
)
def test_fields_without_a_meaning_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        StateField(**settings)


def test_history_and_lengths_are_limited(chat: ChatFormat) -> None:
    episode = make_episode(0, 30)
    *_, last = SwiftAgent(history=3).transcripts(episode, chat)
    text = chat.tokenizer.decode(last.input_ids)
    assert "\n27. go" in text and "\n26. go" not in text
    *_, short = SwiftAgent(history=20, max_length=600).transcripts(episode, chat)
    assert len(short) <= 600 and "\n29. go" in chat.tokenizer.decode(short.input_ids)
    *_, cut = SwiftAgent(max_characters=5).transcripts(episode, chat)
    assert ": You m ...\n" in chat.tokenizer.decode(cut.input_ids)
    episode.steps[3].action = "go " * 700
    with pytest.raises(ValueError, match=r"'find-plant/0': an utterance of .* does not fit into max_length=600"):
        SwiftAgent(max_length=600).transcripts(episode, chat)


# --- the buffer -------------------------------------------------------------------------------------------------------


def test_the_buffer_is_played_without_sampling(chat: ChatFormat) -> None:
    agent = SwiftSageAgent()
    played, writer = play(agent, chat, {"swift": ["jump"], "sage": ["Walk right.", GROUNDED]})
    assert [step.action for step in played.episode.steps] == ["go right"] * 3
    assert played.episode.outcome.success and played.episode.num_utterances == 3  # for three actions
    _, plan, ground = prompts(writer, chat)
    assert "Proposed action: jump" in plan and "at most five" in plan
    assert "Plan:\nWalk right." in ground and "Possible actions: go left, go right" in ground
    assert_what_was_read(played, writer)
    with pytest.raises(ValueError, match="SwiftSage is trained by imitation only"):
        add_outcomes(played.transcripts, played.episode, chat, agent)


def test_swift_goes_on_after_the_buffer(chat: ChatFormat) -> None:
    texts = {"swift": ["jump", "go right"], "sage": ["Plan.", "Action 1: go right\nAction 2: go right"]}
    played, writer = play(SwiftSageAgent(), chat, texts)
    assert played.episode.outcome.success and len(writer.seen) == 4
    assert [step.action for step in played.episode.steps] == ["go right"] * 3


def test_entries_that_are_not_admissible_are_left_out_and_empty_the_buffer(chat: ChatFormat) -> None:
    lines = ["fly", "go right", "swim", "go left"]
    sage = ["Plan.", "\n".join(f"{n}. {line}" for n, line in enumerate(lines, start=1))]
    texts = {"swift": ["jump", "go right", "go right"], "sage": sage}
    played, _ = play(SwiftSageAgent(), chat, texts)
    assert [step.action for step in played.episode.steps] == ["go right"] * 3  # `swim` was the second attempt
    texts = {"swift": ["jump", "go right", "go right", "go right"], "sage": sage}
    played, _ = play(SwiftSageAgent(max_attempts=3), chat, texts)
    assert [step.action for step in played.episode.steps][:2] == ["go right", "go left"]


def test_refused_entries_empty_the_buffer(chat: ChatFormat) -> None:
    """The environment's validity counts where it lists no actions, and not words of its observations."""
    agent = SwiftSageAgent(critical=["focus"], switch=SwitchSettings(max_failures=9))
    sage = ["Plan.", "1. dig\n2. go left\n3. fly\n4. dance"]
    played, writer = play(agent, chat, {"swift": ["focus on it", *["go right"] * 3], "sage": sage}, CorridorEnv)
    assert [step.action for step in played.episode.steps] == ["dig", "go left", "fly", *["go right"] * 3]
    assert "Refused actions" not in prompts(writer, chat)[1]
    session: Any = agent.session("e", chat)
    session.start("T.", "O.")
    session.notice(Step("go", "You see nothing, another door, and cannot be sure.", 0.0, 0.0, True))
    assert session.situation("go").failures == 0


def test_an_answer_without_actions_is_asked_for_again_and_then_swift_acts(chat: ChatFormat) -> None:
    sage = ["Plan.", "I would go right.", GROUNDED]
    played, writer = play(SwiftSageAgent(), chat, {"swift": ["jump"], "sage": sage})
    assert played.episode.outcome.success and "had no line of the form" in prompts(writer, chat)[3]
    texts = {"swift": ["jump", "go right", "go right", "go right"], "sage": ["Plan.", "No.", "No."]}
    played, _ = play(SwiftSageAgent(), chat, texts)
    assert [step.action for step in played.episode.steps] == ["jump", *["go right"] * 3]


def test_the_buffer_has_a_maximum(chat: ChatFormat) -> None:
    texts = {"swift": ["jump", *["go left"] * 5], "sage": ["Plan.", GROUNDED]}
    played, _ = play(SwiftSageAgent(max_buffer=2), chat, texts)
    assert [step.action for step in played.episode.steps] == ["go right"] * 2 + ["go left"] * 4


# --- the facts that the rules decide on -------------------------------------------------------------------------------


def test_situations(chat: ChatFormat) -> None:
    session = SwiftSageSession(SwiftSageAgent(critical=["focus on"]), chat)
    session.start("T.", "O.")
    assert session.situation("x") == (0, 0, None, 0, 0, True, False, False)
    for number, (action, reward, valid) in enumerate(
        [("a", 0.0, True), ("b", 0.5, True), ("c", -0.1, False), ("d", 0.0, True)]
    ):
        session.notice(Step(action, "o", reward, 0.0, valid))
        assert session.situation("x").steps == number + 1
    session.admit(["a", "b", "focus on x"])
    assert session.situation("a") == (4, 2, None, 0, 1, True, False, False)
    assert session.situation("b").repeated and not session.situation("c").admissible
    assert session.situation("focus on x").critical and not session.situation("refocus on x").critical
    assert session.situation("c")._asdict()["since_reward"] == 2  # a cost is no reward


def test_sage_is_not_called_more_than_twice_in_a_row(chat: ChatFormat) -> None:
    agent = SwiftSageAgent(switch=SwitchSettings(invalid_cooldown=0))
    texts = {"swift": ["jump"] * 9, "sage": ["Plan.", "1. go left"] * 9}
    played, _ = play(agent, chat, texts)
    assert [step.action for step in played.episode.steps] == ["go left", "go left", "jump"] * 2


def test_examples_are_in_the_plan_only(chat: ChatFormat, tmp_path: Path) -> None:
    episode = make_episode(0, 2, "walk")
    write_episodes(tmp_path / "a.jsonl", [episode])
    agent = SwiftSageAgent(SwiftAgent(max_length=8000), examples=Examples([str(tmp_path / "a.jsonl")]))
    _, writer = play(agent, chat, {"swift": ["jump"], "sage": ["Plan.", GROUNDED]})
    assert [episode.task_description in text for text in prompts(writer, chat)] == [False, True, False]


@pytest.mark.parametrize("name", ["show", "choose"])
def test_uses_of_admissible_actions_that_it_does_not_have(name: str) -> None:
    options = {"show": False, "choose": False, name: True}
    with pytest.raises(ValueError, match=r"admissible\.show and admissible\.choose must be false"):
        SwiftSageAgent(admissible=AdmissibleActions(**options))


def test_a_call_of_sage_starts_the_counts_of_failures_again(chat: ChatFormat) -> None:
    agent = SwiftSageAgent(switch=SwitchSettings(min_steps=99))
    session: Any = agent.session("e", chat)
    session.start("T.", "O.")
    for _ in range(2):
        session.notice(Step("x", "?", 0.0, 0.0, False))
    assert session.receive("y").level == "sage" and session.rules[-1].name == "failures"
    session.receive("Plan.")
    assert session.receive("1. a\n2. b\n3. c\n4. d").text == "a" and session.situation("y").failures == 0
    session.notice(Step("a", "?", 0.0, 0.0, False))
    assert session.observe("?").text == "b"
    session.notice(Step("b", "?", 0.0, 0.0, False))
    assert session.observe("?").level == "swift"  # two failed attempts have emptied the buffer
    assert session.receive("y").level == "sage"
    session.receive("Plan.")
    assert session.receive("1. a\n2. b").text == "a"
    session.notice(Step("a", "?", 0.0, 0.0, False))
    assert session.observe("?").text == "b"  # one failed attempt of this buffer


@pytest.mark.parametrize(
    ("text", "actions"),
    [
        ("**Action 1:** go north", ["go north"]),
        ("- **Action 1: go north**\n**2**. take key", ["go north", "take key"]),
        ("Action 1:\nAction 2: go north\nAction 3: take key", ["go north", "take key"]),
        ("1.\n2. open door", ["open door"]),
        ("1.5 cups\n1. 5 cups", ["5 cups"]),
    ],
)
def test_numbered_lines_of_sage(text: str, actions: list[str]) -> None:
    assert SwiftSageSession(SwiftSageAgent(), chat_of("chatml"))._parse(text) == actions
