"""ReAct: thoughts stay in the prompt, examples are of the task and of the training split, limits are options."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from local_play import Writer, assert_recorded, assert_what_was_read, chat_of, play

from lit_rft.agents import AdmissibleActions, Examples, ReActAgent, ThoughtAction, add_outcomes
from lit_rft.episodes import Episode, write_episodes
from lit_rft.testing.tiny import make_episode
from lit_rft.transcripts import ChatFormat

RIGHT = "Thought: On.\nAction: go right"


@pytest.fixture(scope="module")
def chat() -> ChatFormat:
    return chat_of("qwen2.5")


def examples(folder: Path, episodes: Sequence[Episode], **options: Any) -> Examples:
    write_episodes(folder / "expert.jsonl", episodes)
    return Examples([str(folder / "expert.jsonl")], **options)


@pytest.mark.parametrize("action", ["go right", "", "Action: x", " a\nb ", '"quoted"', "Thought: y", "été"])
@pytest.mark.parametrize("thought", ["", "One.\nAction: two"])
def test_the_format_reads_what_it_writes(action: str, thought: str) -> None:
    form = ThoughtAction()
    answer = form.parse(form.render(action, thought))
    assert answer is not None and answer == (action, False)


@pytest.mark.parametrize(
    ("text", "action", "malformed"),
    [
        ("Action: go right", "go right", False),
        ("Thought: I could say Action: no.\naction:  go left ", "go left", False),
        ("Action: go left\nThought: no\nAction: go right", "go right", True),  # the last one
        ("Action: go right\nObservation: You are in room 9.\nWell", "go right", True),  # the rest is not sent
        ("Action:\n\ngo right", "go right", False),
    ],
)
def test_the_first_line_after_the_last_action(text: str, action: str, malformed: bool) -> None:
    assert ThoughtAction().parse(text) == (action, malformed)


@pytest.mark.parametrize("text", ["", "go right", "Action:", "Thought: x", "An Action: x"])
def test_an_utterance_without_an_action(text: str) -> None:
    assert ThoughtAction().parse(text) is None


def test_thoughts_are_not_sent_to_the_environment_and_take_no_step(chat: ChatFormat) -> None:
    texts = ["Thought: Where am I?", RIGHT, "Thought: x", "Thought: y", "right", RIGHT, RIGHT]
    agent, writer = ReActAgent("Act."), Writer(chat, {"flat": texts})
    played = play(agent, chat, writer)
    steps = played.episode.steps
    assert [(step.action, step.valid) for step in steps] == [
        ("go right", True), ("", False), ("", False), ("go right", True), ("go right", True),
    ]  # fmt: skip
    assert played.episode.outcome.success and played.episode.source["malformed"] == 2
    assert played.episode.num_utterances == 7
    assert "OK." in chat.tokenizer.decode(writer.seen[1][0])
    assert_what_was_read(played, writer)
    assert_recorded(agent, chat, played)
    with pytest.raises(ValueError, match="7 utterances in 5 steps: critics need one action per utterance"):
        add_outcomes(played.transcripts, played.episode, chat, agent)


@pytest.mark.parametrize(
    ("limit", "texts", "num_steps", "reason"),
    [
        (None, ["Thought: x", RIGHT] * 3, 3, "goal"),
        (4, ["Thought: x", RIGHT] * 3, 2, "turn_limit"),  # after the observation of an action
        (3, ["Thought: x", RIGHT] * 3, 1, "turn_limit"),  # after a thought
        (3, [RIGHT] * 3, 3, "goal"),
    ],
)
def test_thoughts_count_as_steps_by_option(
    limit: int | None, texts: list[str], num_steps: int, reason: str, chat: ChatFormat
) -> None:
    agent = ReActAgent(turn_limit=limit)
    outcome = (played := play(agent, chat, Writer(chat, {"flat": texts}))).episode.outcome
    assert (len(played.episode.steps), outcome.reason) == (num_steps, reason)
    assert outcome.success == (reason == "goal") and outcome.truncated == (reason != "goal")
    assert len(played.transcripts[0].utterance_ends) == min(len(texts), limit or 6)


@pytest.mark.parametrize(("limit", "num_steps"), [(None, 6), (2, 3), (3, 4)])
def test_repeated_actions_with_the_same_observation_end_the_episode_by_option(
    limit: int | None, num_steps: int, chat: ChatFormat
) -> None:
    texts = [RIGHT, *["Action: go left"] * 5]
    played = play(ReActAgent(repeat_limit=limit), chat, Writer(chat, {"flat": texts}))
    assert len(played.episode.steps) == num_steps
    assert played.episode.outcome.reason == ("step_limit" if limit is None else "repeated")
    same = [RIGHT] * 3  # each with another observation
    assert play(ReActAgent(repeat_limit=2), chat, Writer(chat, {"flat": same})).episode.outcome.success
    other = [RIGHT, "Action: go left"] * 3  # never twice in a row
    assert len(play(ReActAgent(repeat_limit=2), chat, Writer(chat, {"flat": other})).episode.steps) == 6


def test_an_empty_first_reply_is_no_repetition(chat: ChatFormat) -> None:
    played = play(ReActAgent(repeat_limit=2), chat, Writer(chat, {"flat": ["", RIGHT, RIGHT, RIGHT]}))
    assert [step.action for step in played.episode.steps] == ["", *["go right"] * 3]
    assert played.episode.outcome.success


def test_examples_are_solved_training_episodes_of_the_task(chat: ChatFormat, tmp_path: Path) -> None:
    failed = dataclasses.replace(make_episode(0, 1, "walk"), id="failed")
    failed.outcome.success = False
    long, short, other = make_episode(1, 4, "walk"), make_episode(2, 3, "walk"), make_episode(3, 2, "run")
    agent = ReActAgent("Act.", examples=examples(tmp_path, [failed, long, short, other]))
    writer = Writer(chat, {"flat": [RIGHT] * 3})
    played = play(agent, chat, writer)
    head = chat.tokenizer.decode(writer.seen[0][0])
    assert short.task_description in head and head.index(short.task_description) < head.index("Go to room 3.")
    assert not any(e.task_description in head for e in (failed, long, other))
    first, *others = short.steps
    assert f"Thought: Next I should go to the kitchen.\nAction: {first.action}\nObservation: " in head
    assert f"{others[-1].observation}\n\nTask: Go to room 3." in head
    assert_recorded(agent, chat, played)
    both = ReActAgent("Act.", examples=dataclasses.replace(agent.examples, number=2))  # type: ignore[type-var]
    writer = Writer(chat, {"flat": [RIGHT] * 3})
    play(both, chat, writer)
    text = chat.tokenizer.decode(writer.seen[0][0])
    assert text.index(short.task_description) < text.index(long.task_description)


def test_recorded_thoughts_come_before_those_of_subgoals(chat: ChatFormat, tmp_path: Path) -> None:
    episode = dataclasses.replace(make_episode(0, 2, "walk"), extra={"thoughts": ["Mine.", ""]})
    text = examples(tmp_path, [episode]).text("walk", ThoughtAction(), chat)
    assert "Thought: Mine.\nAction" in text and "the kitchen." not in text


def test_long_examples_lose_steps_in_the_middle(chat: ChatFormat, tmp_path: Path) -> None:
    episode = make_episode(0, 12, "walk")
    full = examples(tmp_path, [episode], max_tokens=10_000)
    cut = dataclasses.replace(full, max_tokens=len(chat.utterance(full.text("walk", ThoughtAction(), chat))) // 2)
    text = cut.text("walk", ThoughtAction(), chat)
    assert len(chat.utterance(text)) <= cut.max_tokens + 8 and "[...]" in text
    assert text.count("Action:") < 12 == full.text("walk", ThoughtAction(), chat).count("Action:")
    assert f"Action: {episode.steps[0].action}" in text and episode.steps[-1].observation in text


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_long_observations_of_examples_are_cut(steps: int, chat: ChatFormat, tmp_path: Path) -> None:
    episode = make_episode(0, steps, "walk")
    long = dataclasses.replace(
        episode, steps=[dataclasses.replace(step, observation="far " * 300) for step in episode.steps]
    )
    shown = examples(tmp_path, [long], max_tokens=400)
    text = shown.text("walk", ThoughtAction(), chat)
    assert 390 <= len(chat.utterance(text)) <= 400
    assert text.count("Action:") == min(steps, 2) and text.count(" [...]\n") == min(steps, 2)
    with pytest.raises(ValueError, match=r"examples\.max_tokens leaves 50 tokens .* 'walk/0' has \d+ with"):
        dataclasses.replace(shown, max_tokens=50).text("walk", ThoughtAction(), chat)


def test_an_episode_is_told_again_with_each_observation_behind_its_action() -> None:
    """An utterance without thought and action is a step of its own, with an empty action."""
    episode = make_episode(0, 2, subgoals=False)
    texts = ["Thought: I should look for the door.", "I am confused.", "Action: open door"]
    first, second = episode.steps
    steps = [
        dataclasses.replace(first, action="", observation="Nothing happens."),
        dataclasses.replace(second, action="open door", observation="The door is open."),
    ]
    played = dataclasses.replace(episode, steps=steps, extra={"utterances": {"flat": texts}})
    lines = [texts[0], texts[1], "Observation: Nothing happens.", texts[2], "Observation: The door is open."]
    assert ReActAgent().retell(played) == "\n".join(lines)
    assert texts[1] not in ReActAgent(max_thoughts=0).retell(played), "the record of an agent with other settings"


def test_examples_of_other_splits_and_missing_tasks_are_errors(chat: ChatFormat, tmp_path: Path) -> None:
    shown = examples(tmp_path, [make_episode(0, 2, "run")])
    with pytest.raises(ValueError, match=r"expected a solved episode of the task 'walk' in .*which have those of run"):
        shown.text("walk", ThoughtAction(), chat)
    write_episodes(tmp_path / "more.jsonl", [dataclasses.replace(make_episode(0, 2, "walk"), split="test")])
    with pytest.raises(ValueError, match="must be of the split 'train', got 'walk/0' of the split 'test'"):
        Examples([str(tmp_path / "more.jsonl")]).text("walk", ThoughtAction(), chat)


def test_rewritten_examples_are_read_again(chat: ChatFormat, tmp_path: Path) -> None:
    import os

    shown = examples(tmp_path, [make_episode(0, 2, "walk")])
    assert "room 0" in shown.text("walk", ThoughtAction(), chat)
    write_episodes(tmp_path / "expert.jsonl", [make_episode(7, 2, "walk")])
    os.utime(tmp_path / "expert.jsonl", (1, 1))
    assert "room 7" in shown.text("walk", ThoughtAction(), chat)


def test_stored_expert_episodes_are_rendered_with_their_thoughts(chat: ChatFormat) -> None:
    episode = dataclasses.replace(make_episode(0, 3), extra={"thoughts": ["A.", "", "C."]})
    (transcript,) = ReActAgent("Act.").transcripts(episode, chat)
    texts = [chat.text(transcript.utterance_ids(k)) for k in range(3)]
    actions = [step.action for step in episode.steps]
    assert texts == [
        f"Thought: A.\nAction: {actions[0]}",
        f"Action: {actions[1]}",
        f"Thought: C.\nAction: {actions[2]}",
    ]
    assert ReActAgent().outcomes(episode, "flat")[-1].terminated


def test_admissible_actions_are_shown(chat: ChatFormat) -> None:
    session: Any = ReActAgent(admissible=AdmissibleActions()).session("e", chat)
    session.admit(["open door", "wait"])
    assert "Admissible actions:\n- open door\n- wait" in chat.tokenizer.decode(session.start("T.", "O.").ids)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_length": 0}, "max_length must be > 0"),
        ({"turn_limit": 0}, "turn_limit must be > 0"),
        ({"max_thoughts": -1}, "max_thoughts must be >= 0"),
        ({"repeat_limit": 1}, "repeat_limit must be > 1, or null, got 1"),
        ({"admissible": AdmissibleActions(choose=True)}, r"admissible\.choose leaves no room for thoughts"),
    ],
)
def test_settings_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ReActAgent(**options)
