"""How the two levels take turns, what they read, and what becomes of malformed answers."""

import random
from typing import Any

import pytest

from lit_rft.agents import (
    Act,
    Ask,
    ContextFullError,
    Conversation,
    FlatAgent,
    FullContext,
    HierarchicalAgent,
    LowLevelAnswer,
    parse_low_level_answer,
    parse_single_line,
    write_low_level_answer,
    write_single_line,
)
from lit_rft.generation import Completion, SamplingSettings
from lit_rft.testing.tiny import make_episode, make_tokenizer
from lit_rft.transcripts import ChatFormat, Transcript


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


def _asked(chat: ChatFormat, turn: Any) -> tuple[str, str]:
    """The level that is asked, and what it reads."""
    assert isinstance(turn, Ask)
    return turn.level, chat.tokenizer.decode(turn.ids)


def test_the_levels_take_turns(chat: ChatFormat) -> None:
    session = HierarchicalAgent(subgoal_steps=3).session("e", chat)
    level, text = _asked(chat, session.start("Find a plant.", "You are in the hallway."))
    assert level == "high" and "Find a plant." in text and "You are in the hallway." in text
    level, text = _asked(chat, session.receive("go to the greenhouse"))
    assert level == "low" and "Subgoal: go to the greenhouse" in text and "Find a plant." in text
    assert session.receive("open door\ncontinue") == Act("open door")
    level, text = _asked(chat, session.observe("The door is open."))
    assert level == "low" and "The door is open." in text
    assert session.receive("go in\ndone") == Act("go in")
    level, text = _asked(chat, session.observe("You are in the greenhouse."))
    assert level == "high" and "You are in the greenhouse." in text
    level, text = _asked(chat, session.receive("focus on a plant"))
    # the low level reads the observation and the new subgoal, not the task again
    assert "You are in the greenhouse.\n\nSubgoal: focus on a plant" in text and "Find a plant" not in text
    assert session.receive("look\ncontinue") == Act("look")
    spans = [(s.start, s.end, s.goal, s.completed) for s in session.subgoals(3)]
    assert spans == [(0, 2, "go to the greenhouse", True), (2, 3, "focus on a plant", False)]
    assert session.malformed == 0


def _started(chat: ChatFormat, goal: str = "goal", subgoal_steps: int = 4) -> Any:
    session = HierarchicalAgent(subgoal_steps=subgoal_steps).session("e", chat)
    session.start("t", "o")
    assert _asked(chat, session.receive(goal))[0] == "low"
    return session


def test_a_subgoal_ends_with_its_budget(chat: ChatFormat) -> None:
    session = _started(chat, subgoal_steps=2)
    levels = []
    for _ in range(2):
        session.receive("wait\ncontinue")
        levels.append(session.observe("o").level)
    assert levels == ["low", "high"]
    assert [(s.end, s.completed) for s in session.subgoals(2)] == [(2, False)]


@pytest.mark.parametrize("text", ["", "\n\n", "open door", "open door\nperhaps", "a\nb\ndone", "done", "continue\n"])
def test_malformed_answers_are_counted_actions(chat: ChatFormat, text: str) -> None:
    session = _started(chat)
    turn = session.receive(text)
    assert isinstance(turn, Act) and "\n" not in turn.text
    assert session.malformed == 1
    assert session.observe("No known action matches that input.").level == "low"


def test_an_empty_subgoal_is_counted_and_recorded(chat: ChatFormat) -> None:
    session = _started(chat, goal="")
    session.receive("wait\ndone")
    assert session.malformed == 1
    assert session.subgoals(1)[0].goal == "(none)"


def test_a_subgoal_that_got_no_step_is_left_out(chat: ChatFormat) -> None:
    session = _started(chat)
    session.receive("wait\ndone")  # the environment died on this step: it never counts
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
    (flat,) = FlatAgent().transcripts(episode, chat)
    _, low = HierarchicalAgent().transcripts(episode, chat)
    said = [chat.text(flat.utterance_ids(k)) for k in range(flat.num_decisions)]
    assert [parse_single_line(text) for text in said] == [(action, False) for action in actions]
    said = [chat.text(low.utterance_ids(k)) for k in range(low.num_decisions)]
    assert [parse_low_level_answer(text).action for text in said] == actions
    assert not any(parse_low_level_answer(text).malformed for text in said)


def _conversation(generator: Any, chat: ChatFormat, max_length: int = 2048) -> Conversation:
    return Conversation(generator, FullContext(Transcript("flat", chat.end_of_turn_id, "e")), max_length)


def _write(conversation: Conversation, chat: ChatFormat, text: str) -> None:
    ids = chat.utterance(text)
    conversation.write(Completion(ids, [-0.5] * len(ids), True))


def test_an_answer_that_ends_with_another_end_token_is_read_without_it(chat: ChatFormat) -> None:
    session, conversation = FlatAgent().session("e", chat), _conversation(SlotsOnly(), chat)
    conversation.read(session.start("t", "o").ids)  # type: ignore[union-attr]
    chat.add_end_ids([0])
    ids = [*chat.utterance("go")[:-1], 0]
    conversation.write(Completion(ids, [0.0] * len(ids), True))
    assert session.receive(chat.text(ids)) == Act("go")
    conversation.read(session.observe("o").ids)  # type: ignore[union-attr]
    (transcript,) = conversation.transcripts
    assert transcript.utterance_ids(0) == ids
    # the conversation goes on in the template's form: its end of turn is read before the next turn
    assert transcript.input_ids[transcript.utterance_ends[0] + 1] == chat.end_of_turn_id


def test_the_flat_agent_has_one_conversation(chat: ChatFormat) -> None:
    agent = FlatAgent()
    session = agent.session("e", chat)
    level, text = _asked(chat, session.start("Find a plant.", "hallway"))
    assert (level,) == agent.levels and "Find a plant." in text
    assert session.receive("go to kitchen") == Act("go to kitchen")
    assert "You move." in _asked(chat, session.observe("You move."))[1]
    assert session.subgoals(1) == []


def test_a_full_context_drops_early_turns_and_reads_the_rest_again(chat: ChatFormat) -> None:
    generator: Any = SlotsOnly()
    session, conversation = FlatAgent("act").session("e", chat), _conversation(generator, chat, 220)
    conversation.read(session.start("t", "o").ids)  # type: ignore[union-attr]
    for turn in range(12):
        _write(conversation, chat, f"action {turn}")
        conversation.read(session.observe(f"observation {turn}").ids)  # type: ignore[union-attr]
        (transcript,) = conversation.transcripts
        assert len(transcript) + 16 <= 220
        assert len(conversation.log_probs[0]) == transcript.num_decisions
        if generator.forgotten:
            break
    assert generator.forgotten == [conversation.slot]
    assert conversation.unread() == transcript.input_ids and transcript.dropped_turns > 0
    assert chat.tokenizer.decode(conversation.unread()).count("observation") == transcript.num_decisions + 1


@pytest.mark.parametrize("room", [120, 140, 160, 180])
def test_room_for_a_long_utterance_is_kept_free(room: int, chat: ChatFormat) -> None:
    """Also where it takes more than half of the context."""
    generator: Any = SlotsOnly()
    generator.sampling = SamplingSettings(400 - room)
    session, conversation = FlatAgent("act").session("e", chat), _conversation(generator, chat, 400)
    conversation.read(session.start("t", "o").ids)  # type: ignore[union-attr]
    for turn in range(9):
        _write(conversation, chat, f"action {turn}")
        conversation.read(session.observe(f"observation {turn}").ids)  # type: ignore[union-attr]
        assert len(conversation.transcripts[0]) <= room
    assert generator.forgotten


def test_an_observation_that_never_fits_says_so(chat: ChatFormat) -> None:
    session, conversation = FlatAgent("act").session("e", chat), _conversation(SlotsOnly(), chat, 150)
    conversation.read(session.start("t", "o").ids)  # type: ignore[union-attr]
    _write(conversation, chat, "look")
    with pytest.raises(ContextFullError, match="max_length"):
        conversation.read(session.observe("x" * 500).ids)  # type: ignore[union-attr]


@pytest.mark.parametrize("bad", [{"max_length": 0}, {"subgoal_steps": 0}])
def test_bad_settings_are_refused(bad: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(bad))} must be > 0, got 0"):
        HierarchicalAgent(**bad)  # type: ignore[arg-type]


def test_subgoals_of_a_record_end_where_it_says_whatever_the_budget(chat: ChatFormat) -> None:
    episode = make_episode(0, 8)  # of two subgoals with four actions each
    high, low = HierarchicalAgent(subgoal_steps=1).transcripts(episode, chat)
    assert (high.num_decisions, low.num_decisions) == (2, 8)
    assert [t.input_ids for t in HierarchicalAgent(subgoal_steps=99).transcripts(episode, chat)] == [
        high.input_ids, low.input_ids
    ]  # fmt: skip
