"""Transcripts: masks, decisions, truncation at whole turns."""

from typing import Any

import pytest
import torch

from lit_rft.agents import FlatAgent, HierarchicalAgent, HierarchyPrompts
from lit_rft.testing.tiny import make_episode, make_tokenizer
from lit_rft.transcripts import ChatFormat, Transcript, collate_padded


@pytest.fixture(scope="module")
def chat() -> ChatFormat:
    return ChatFormat(make_tokenizer())


def test_mask_ends_and_states(chat: ChatFormat) -> None:
    transcript = Transcript("low", chat.end_of_turn_id)
    head = chat.head("s", "u")
    transcript.append_prompt(head)
    transcript.append_utterance(chat.utterance("open door"))
    transcript.append_prompt(chat.turn("done"))
    transcript.append_utterance(chat.utterance("go"))
    assert transcript.head_length == len(head)
    assert transcript.state_ends[0] == len(head) - 1
    masked = [i for i, m in zip(transcript.input_ids, transcript.action_mask, strict=True) if m]
    assert masked == chat.utterance("open door") + chat.utterance("go")
    for k, text in enumerate(("open door", "go")):
        assert chat.text(transcript.utterance_ids(k)) == text
        assert transcript.input_ids[transcript.utterance_ends[k]] == chat.end_of_turn_id


def test_an_utterance_that_was_cut_off_is_closed_before_the_next_prompt(chat: ChatFormat) -> None:
    transcript = Transcript("low", chat.end_of_turn_id)
    transcript.append_prompt(chat.head("s", "u"))
    cut_off = chat.utterance("open door to")[:-1]
    transcript.append_utterance(cut_off)
    appended = transcript.append_prompt(chat.turn("obs"))
    assert appended == [chat.end_of_turn_id, *chat.turn("obs")]
    assert sum(transcript.action_mask) == len(cut_off)  # the end that it did not write is not an action


def _long(chat: ChatFormat, turns: int = 8, answered: bool = True) -> Transcript:
    transcript = Transcript("low", chat.end_of_turn_id, "e")
    transcript.append_prompt(chat.head("system", "task and first observation"))
    for turn in range(turns):
        ids = chat.utterance(f"action {turn}")
        transcript.append_utterance(ids if turn % 3 else ids[:-1])  # some are cut off
        if turn < turns - 1 or not answered:
            transcript.append_prompt(chat.turn(f"observation {turn} " + "x" * turn))
    return transcript


@pytest.mark.parametrize("answered", [True, False])
def test_truncation_keeps_the_head_and_whole_turns(chat: ChatFormat, answered: bool) -> None:
    full = _long(chat, answered=answered)
    full_text = chat.tokenizer.decode(full.input_ids)
    lengths = set()
    for limit in range(len(full), full.head_length, -1):
        try:
            cut = full.truncated(limit)
        except ValueError as error:
            assert "raise max_length" in str(error)
            break
        lengths.add(len(cut))
        assert len(cut) <= limit
        assert len(cut) + cut.dropped_tokens == len(full)
        assert cut.num_decisions + cut.dropped_turns == full.num_decisions
        assert cut.input_ids[: full.head_length] == full.input_ids[: full.head_length]
        kept = [cut.utterance_ids(k) for k in range(cut.num_decisions)]
        assert kept == [full.utterance_ids(k + cut.dropped_turns) for k in range(cut.num_decisions)]
        if cut.dropped_turns:  # what is left is an empty utterance, then a whole turn
            rest = chat.tokenizer.decode(cut.input_ids[full.head_length :])
            assert rest.startswith(f"<|im_end|>\n<|im_start|>user\nobservation {cut.dropped_turns - 1}")
            assert full_text.endswith(rest[len("<|im_end|>") :])
    assert len(lengths) == 8 + (not answered)  # one for each number of turns that can go


def test_truncating_twice_equals_truncating_once(chat: ChatFormat) -> None:
    full = _long(chat)
    once, twice = full.truncated(170), full.truncated(280).truncated(170)
    assert once.dropped_turns > full.truncated(280).dropped_turns > 0
    assert once == twice


def test_empty_utterances_are_refused(chat: ChatFormat) -> None:
    with pytest.raises(ValueError, match="at least one token"):
        Transcript("low", chat.end_of_turn_id).append_utterance([])


def test_an_episode_as_its_transcripts(chat: ChatFormat) -> None:
    episode = make_episode(num_steps=5)
    high, low = HierarchicalAgent().transcripts(episode, chat)
    (flat,) = FlatAgent().transcripts(episode, chat)
    assert [chat.text(high.utterance_ids(k)) for k in range(high.num_decisions)] == [s.goal for s in episode.subgoals]
    answers = [chat.text(low.utterance_ids(k)) for k in range(low.num_decisions)]
    flags = ["continue", "done", "continue", "continue", "done"]
    assert answers == [f"{s.action}\n{flag}" for s, flag in zip(episode.steps, flags, strict=True)]
    assert [chat.text(flat.utterance_ids(k)) for k in range(5)] == [s.action for s in episode.steps]
    low_text, high_text = (chat.tokenizer.decode(t.input_ids) for t in (low, high))
    assert low_text.count("Subgoal: ") == len(episode.subgoals)
    assert episode.task_description in low_text and episode.task_description in high_text
    assert episode.steps[1].observation in high_text  # the observation that the first subgoal ended with
    assert low_text.endswith("done<|im_end|>") and high_text.endswith("<|im_end|>")


def test_whole_numbers_as_rewards_are_floats(chat: ChatFormat) -> None:
    """Discounted returns of a tensor of integers would be cut to whole numbers."""
    episode = make_episode(num_steps=3)
    for step in episode.steps:
        step.reward = 1
    transcripts = FlatAgent().transcripts(episode, chat)
    for transcript in transcripts:
        transcript.outcomes = FlatAgent().outcomes(episode, "flat")
    batch = collate_padded(transcripts, pad_id=0)
    assert batch.rewards.dtype == torch.float32 and batch.rewards.tolist() == [1.0] * 3


def test_the_low_level_can_be_kept_from_the_task(chat: ChatFormat) -> None:
    episode = make_episode()
    _, low = HierarchicalAgent(HierarchyPrompts(low_level_sees_task=False)).transcripts(episode, chat)
    assert episode.task_description not in chat.tokenizer.decode(low.input_ids)


def test_prompts_change_the_ids(chat: ChatFormat) -> None:
    episode = make_episode()
    pairs: list[tuple[Any, Any]] = [(FlatAgent("Other words."), FlatAgent())]
    for name in ("high", "low"):
        pairs.append((HierarchicalAgent(HierarchyPrompts(**{name: "Other words."})), HierarchicalAgent()))
    for changed, plain in pairs:
        assert changed.transcripts(episode, chat) != plain.transcripts(episode, chat)


def test_episodes_without_subgoals_or_steps(chat: ChatFormat) -> None:
    with pytest.raises(ValueError, match="has no subgoals"):
        HierarchicalAgent().transcripts(make_episode(subgoals=False), chat)
    empty = make_episode(num_steps=1)
    empty.steps, empty.subgoals = [], []
    assert HierarchicalAgent().transcripts(empty, chat) == []
    assert FlatAgent().transcripts(empty, chat) == []
