"""How the two levels take turns, what they read, and what becomes of malformed answers."""

import random
from typing import Any

import pytest

from lit_rft.agents import ContextFullError, FlatAgent, HierarchicalAgent
from lit_rft.generation import Completion, SamplingSettings
from lit_rft.testing.tiny import make_episode, make_tokenizer
from lit_rft.transcripts import (
    ChatFormat,
    HierarchyPrompts,
    LowLevelAnswer,
    flat_transcripts,
    hierarchy_transcripts,
    parse_low_level_answer,
    parse_single_line,
    write_low_level_answer,
    write_single_line,
)


class SlotsOnly:
    """A generator that samples nothing: the tests say what was sampled."""

    def __init__(self) -> None:
        self.sampling = SamplingSettings(16)
        self.slots = 0
        self.closed: list[int] = []
        self.forgotten: list[int] = []

    def open(self, name: str) -> int:
        self.slots += 1
        return self.slots - 1

    def close(self, slot: int) -> None:
        self.closed.append(slot)

    def forget(self, slot: int) -> None:
        self.forgotten.append(slot)


@pytest.fixture(scope="module")
def chat() -> ChatFormat:
    return ChatFormat(make_tokenizer())


def _say(chat: ChatFormat, session: Any, text: str) -> str | None:
    ids = chat.utterance(text)
    action: str | None = session.receive(Completion(ids, [-0.5] * len(ids), True))
    return action


def _unread(chat: ChatFormat, session: Any) -> str:
    text: str = chat.tokenizer.decode(session.unread()[1])
    return text


def test_the_levels_take_turns(chat: ChatFormat) -> None:
    generator: Any = SlotsOnly()
    session = HierarchicalAgent(chat, HierarchyPrompts(), 2048, subgoal_steps=3).session("e", generator)
    session.start("Find a plant.", "You are in the hallway.")
    high, low = session.high.slot, session.low.slot
    assert session.unread()[0] == high and "Find a plant." in _unread(chat, session)
    assert _say(chat, session, "go to the greenhouse") is None  # another utterance is needed: the low level's
    assert session.unread()[0] == low and "Subgoal: go to the greenhouse" in _unread(chat, session)
    assert _say(chat, session, "open door\ncontinue") == "open door"
    session.observe("The door is open.")
    assert session.unread()[0] == low and "Subgoal" not in _unread(chat, session)
    assert _say(chat, session, "go in\ndone") == "go in"
    session.observe("You are in the greenhouse.")
    assert session.unread()[0] == high and "You are in the greenhouse." in _unread(chat, session)
    assert _say(chat, session, "focus on a plant") is None
    text = _unread(chat, session)  # the low level reads the observation and the new subgoal, not the task again
    assert "You are in the greenhouse.\n\nSubgoal: focus on a plant" in text and "Find a plant" not in text
    assert _say(chat, session, "look\ncontinue") == "look"
    spans = [(s.start, s.end, s.goal, s.completed) for s in session.subgoals(3)]
    assert spans == [(0, 2, "go to the greenhouse", True), (2, 3, "focus on a plant", False)]
    assert session.malformed == 0
    session.finish()
    assert sorted(generator.closed) == sorted([high, low])


def test_a_subgoal_ends_with_its_budget(chat: ChatFormat) -> None:
    session = HierarchicalAgent(chat, HierarchyPrompts(), 2048, subgoal_steps=2).session("e", SlotsOnly())  # type: ignore[arg-type]
    session.start("t", "o")
    _say(chat, session, "goal one")
    for _ in range(2):
        assert session.unread()[0] == session.low.slot
        _say(chat, session, "wait\ncontinue")
        session.observe("o")
    assert session.unread()[0] == session.high.slot
    assert [(s.end, s.completed) for s in session.subgoals(2)] == [(2, False)]


@pytest.mark.parametrize("text", ["", "\n\n", "open door", "open door\nperhaps", "a\nb\ndone", "done", "continue\n"])
def test_malformed_answers_are_counted_actions(chat: ChatFormat, text: str) -> None:
    session = HierarchicalAgent(chat, HierarchyPrompts(), 2048, 4).session("e", SlotsOnly())  # type: ignore[arg-type]
    session.start("t", "o")
    _say(chat, session, "goal")
    action = _say(chat, session, text)
    assert action is not None and "\n" not in action
    assert session.malformed == 1
    session.observe("No known action matches that input.")
    assert session.unread()[0] == session.low.slot


def test_an_empty_subgoal_is_counted_and_recorded(chat: ChatFormat) -> None:
    session = HierarchicalAgent(chat, HierarchyPrompts(), 2048, 4).session("e", SlotsOnly())  # type: ignore[arg-type]
    session.start("t", "o")
    assert _say(chat, session, "") is None
    _say(chat, session, "wait\ndone")
    assert session.malformed == 1
    assert session.subgoals(1)[0].goal == "(none)"


def test_a_subgoal_that_got_no_step_is_left_out(chat: ChatFormat) -> None:
    session = HierarchicalAgent(chat, HierarchyPrompts(), 2048, 4).session("e", SlotsOnly())  # type: ignore[arg-type]
    session.start("t", "o")
    _say(chat, session, "goal")
    _say(chat, session, "wait\ndone")  # the environment died on this step: it never counts
    assert session.subgoals(0) == []


def test_parsing() -> None:
    assert parse_low_level_answer("go to kitchen\n done ").subgoal_done
    assert not parse_low_level_answer("go to kitchen\ncontinue").malformed
    assert parse_low_level_answer("go to kitchen").action == "go to kitchen"
    assert parse_single_line(" go \n") == ("go", False)
    assert parse_single_line("go\nthere") == ("go", True)
    assert parse_single_line("") == ("", True)


AWKWARD = [
    "", " ", "go", " go ", "done", "continue", "go\nnorth", "go\n\ndone", "\n", "a\r\nb", "a\u2028b", "x\x85", '"',
    '""', '"quoted"', 'say "hi"', "\\n", "C:\\new", "\\frac{1}{2}", "null", "é 🙂", "<|im_end|>", "a<|im_end|>\ndone",
    "\x0bgo", "\t",
]  # fmt: skip


def test_writers_are_inverses_of_their_parsers(chat: ChatFormat) -> None:
    """For any text: awkward ones, and ones put together of them; through the tokens, too."""
    rng = random.Random(0)
    mixed = ["".join(rng.choices(AWKWARD, k=rng.randint(2, 4))) for _ in range(300)]
    for text in [*AWKWARD, *mixed]:
        assert parse_single_line(write_single_line(text)) == (text, False)
        line = chat.text(chat.utterance(write_single_line(text)))
        assert parse_single_line(line) == (text, False)
        for done in (False, True):
            answer = chat.text(chat.utterance(write_low_level_answer(text, done)))
            assert parse_low_level_answer(answer) == LowLevelAnswer(text, done, malformed=False)


def test_ordinary_actions_are_written_as_they_are() -> None:
    for text in ("open door to kitchen", 'say "hi"', "C:\\new", "done"):
        assert write_single_line(text) == text


def test_an_episode_with_awkward_actions_reads_back_as_it_was_played(chat: ChatFormat) -> None:
    episode = make_episode(0, 6)
    actions = ["", "done", "go\nnorth", " wait ", '"hi"', "look"]
    for step, action in zip(episode.steps, actions, strict=True):
        step.action = action
    prompts = HierarchyPrompts()
    (flat,) = flat_transcripts(episode, chat, prompts)
    _, low = hierarchy_transcripts(episode, chat, prompts)
    said = [chat.text(flat.utterance_ids(k)) for k in range(flat.num_decisions)]
    assert [parse_single_line(text) for text in said] == [(action, False) for action in actions]
    said = [chat.text(low.utterance_ids(k)) for k in range(low.num_decisions)]
    assert [parse_low_level_answer(text).action for text in said] == actions
    assert not any(parse_low_level_answer(text).malformed for text in said)


def test_an_answer_that_ends_with_another_end_token_is_read_without_it(chat: ChatFormat) -> None:
    session = FlatAgent(chat, HierarchyPrompts(), 2048).session("e", SlotsOnly())  # type: ignore[arg-type]
    session.start("t", "o")
    chat.add_end_ids([0])
    ids = [*chat.utterance("go")[:-1], 0]
    assert session.receive(Completion(ids, [0.0] * len(ids), True)) == "go"
    session.observe("o")
    transcript = session.conversations()[0].transcript
    assert transcript.utterance_ids(0) == ids
    # the conversation goes on in the template's form: its end of turn is read before the next turn
    assert transcript.input_ids[transcript.utterance_ends[0] + 1] == chat.end_of_turn_id


def test_the_flat_agent_has_one_conversation(chat: ChatFormat) -> None:
    session = FlatAgent(chat, HierarchyPrompts(), 2048).session("e", SlotsOnly())  # type: ignore[arg-type]
    session.start("Find a plant.", "hallway")
    assert "Find a plant." in _unread(chat, session)
    assert _say(chat, session, "go to kitchen") == "go to kitchen"
    session.observe("You move.")
    assert "You move." in _unread(chat, session)
    assert session.subgoals(1) == [] and len(session.conversations()) == 1


def test_a_full_context_drops_early_turns_and_reads_the_rest_anew(chat: ChatFormat) -> None:
    generator: Any = SlotsOnly()
    session = FlatAgent(chat, HierarchyPrompts(flat="act"), max_length=220).session("e", generator)
    session.start("t", "o")
    for turn in range(12):
        _say(chat, session, f"action {turn}")
        session.observe(f"observation {turn}")
        transcript = session.conversation.transcript
        assert len(transcript) + 16 <= 220
        assert len(session.conversation.log_probs) == transcript.num_decisions
        if generator.forgotten:
            break
    assert generator.forgotten == [session.conversation.slot]
    assert session.unread()[1] == transcript.input_ids and transcript.dropped_turns > 0
    assert _unread(chat, session).count("observation") == transcript.num_decisions + 1


@pytest.mark.parametrize("room", [120, 140, 160, 180])
def test_room_for_a_long_utterance_is_kept_free(room: int, chat: ChatFormat) -> None:
    """Also where it takes more than half of the context."""
    generator: Any = SlotsOnly()
    generator.sampling = SamplingSettings(400 - room)
    session = FlatAgent(chat, HierarchyPrompts(flat="act"), max_length=400).session("e", generator)
    session.start("t", "o")
    for turn in range(9):
        _say(chat, session, f"action {turn}")
        session.observe(f"observation {turn}")
        assert len(session.conversation.transcript) <= room
    assert generator.forgotten


def test_an_observation_that_never_fits_says_so(chat: ChatFormat) -> None:
    session = FlatAgent(chat, HierarchyPrompts(flat="act"), max_length=150).session("e", SlotsOnly())  # type: ignore[arg-type]
    session.start("t", "o")
    _say(chat, session, "look")
    with pytest.raises(ContextFullError, match="max_length"):
        session.observe("x" * 500)
