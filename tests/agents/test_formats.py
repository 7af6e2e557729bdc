"""Answer formats: what they write is read back, what has no action is invalid, and no text breaks them."""

import json
import random
from typing import Any

import pytest

from lit_rft.agents import (
    Act,
    Answer,
    FirstLine,
    FlatAgent,
    HermesToolCall,
    HierarchicalAgent,
    JsonObject,
    LastLine,
    Llama3ToolCall,
    LowLevelAnswer,
    Tags,
    parse_low_level_answer,
    write_low_level_answer,
)
from lit_rft.testing.tiny import make_tokenizer
from lit_rft.transcripts import ChatFormat

FORMATS: list[Any] = [
    FirstLine(), LastLine(), Tags(), Tags("act-1"), JsonObject(), JsonObject("next", None), HermesToolCall(),
    Llama3ToolCall("move", "to"),
]  # fmt: skip
EACH = pytest.mark.parametrize("answer_format", FORMATS, ids=repr)
AWKWARD = [
    "", " ", "go", " go ", "done", "continue", "go\nnorth", "a\r\nb", "a\u2028b", '"', '""', '"quoted"', "\\n", "{}",
    '{"action": "x"}', "<action>", "</action>", "a</action>b", "</act-1>", "<tool_call>", "x</tool_call>", "</think>",
    "null", "é 🙂", "\x00", "[" * 50, "<|im_end|>",
]  # fmt: skip


@EACH
def test_every_action_is_read_back(answer_format: Any) -> None:
    for action in AWKWARD:
        assert answer_format.parse(answer_format.render(action)) == Answer(action)
        assert answer_format.parse(f"\n{answer_format.render(action)}\n").action == action
        for done in (True, False):
            text = write_low_level_answer(action, done, answer_format)
            assert parse_low_level_answer(text, answer_format) == LowLevelAnswer(action, done, malformed=False)


@EACH
def test_a_thought_stands_before_the_action_or_is_left_out(answer_format: Any) -> None:
    text = answer_format.render("go north", "The key is in the north.\nSo:")
    assert answer_format.parse(text) == Answer("go north")
    written = not isinstance(answer_format, FirstLine | Llama3ToolCall) and answer_format != JsonObject("next", None)
    assert ("The key is in the north" in text) == written


@EACH
def test_no_thought_hides_the_action(answer_format: Any) -> None:
    for thought in [*AWKWARD, "<<tool_call>>", "I call <tool_call>{}</tool_call>:", "<action>stay</action>"]:
        assert answer_format.parse(answer_format.render("go", thought)) == Answer("go"), thought


def test_the_fields_of_an_object_must_differ() -> None:
    with pytest.raises(ValueError, match="field and thought_field must differ, got 'thought' twice"):
        JsonObject("thought")


@EACH
def test_no_text_raises(answer_format: Any) -> None:
    rng = random.Random(0)
    parts = ["<action>", "</action>", "<tool_call>", "</tool_call>", "{", "}", '"', "[", ":", "\n", " ", "go", "\ud800"]
    texts = ["".join(rng.choices(parts, k=rng.randint(0, 12))) for _ in range(300)]
    for text in [*texts, "[" * 100_000, '{"action":' * 5_000, '{"action": 1e999999}', '{"action": NaN}']:
        answer = answer_format.parse(text)
        assert answer is None or isinstance(answer.action, str)
        parse_low_level_answer(text, answer_format)


HALF = json.dumps("\ud800")  # an escape of plain characters: a model can write it


@EACH
@pytest.mark.parametrize(
    "text",
    [
        HALF, f"<action>{HALF}</action>", f"<act-1>{HALF}</act-1>", f'{{"action": {HALF}}}', f'{{"next": {HALF}}}',
        f'{{"name": "move", "parameters": {{"to": {HALF}}}}}',
        f'<tool_call>{{"name": "act", "arguments": {{"action": {HALF}}}}}</tool_call>',
    ],
    ids=range(7),
)  # fmt: skip
def test_no_action_is_text_that_a_file_cannot_hold(answer_format: Any, text: str) -> None:
    answer = answer_format.parse(text)
    assert answer is None or answer.action.encode()
    assert parse_low_level_answer(f"{text} done", answer_format).action.encode() is not None


@pytest.mark.parametrize(
    ("answer_format", "text", "expected"),
    [
        (FirstLine(), "\n go \n", Answer("go")),
        (FirstLine(), "go\nthere", Answer("go", malformed=True)),
        (FirstLine(), "\n", None),
        (LastLine(), "First, think.\n\n go \n", Answer("go")),
        (LastLine(), " ", None),
        (Tags(), "I could <action>stay</action>, but: <action> go </action> now", Answer("go")),
        (Tags(), "<action>two\nlines</action>", Answer("two\nlines")),
        (Tags(), "go", None),
        (Tags(), "<action>go", None),
        (Tags(), "go</action>", None),
        (Tags(), "<action> </action>", None),
        (Tags("a"), "<action>go</action>", None),
        (JsonObject(), ' {"thought": "", "action": "go", "n": 1}', Answer("go")),
        (JsonObject(), 'So: {"action": "go"}', None),
        (JsonObject(), '{"action": "go"} {"action": "go"}', None),
        (JsonObject(), '{"action": "go", "action": "stay"}', None),
        (JsonObject(), '{"action": ["go"]}', None),
        (JsonObject(), '{"action": "' + "x" * 20_000 + '"}', None),
        (JsonObject(), '["action"]', None),
        (HermesToolCall(), 'I go. <tool_call>{"name": "act", "arguments": {"action": "go"}}</tool_call>', Answer("go")),
        (HermesToolCall(), '<tool_call>{"name": "other", "arguments": {"action": "go"}}</tool_call>', None),
        (HermesToolCall(), '<tool_call>{"name": "act", "arguments": {"action": "go"}}', None),
        (HermesToolCall(), '<tool_call>{"name": "act", "arguments": "go"}</tool_call>', None),
        (HermesToolCall(), 2 * '<tool_call>{"name": "act", "arguments": {"action": "go"}}</tool_call>', None),
        (Llama3ToolCall(), '{"name": "act", "parameters": {"action": "go"}}', Answer("go")),
        (Llama3ToolCall(), '{"name": "act", "arguments": {"action": "go"}}', None),
    ],
    ids=str,
)  # fmt: skip
def test_what_is_an_action(answer_format: Any, text: str, expected: Answer | None) -> None:
    assert answer_format.parse(text) == expected


def test_a_flag_follows_the_action_whatever_its_format() -> None:
    text = "I open it.\n<action>open door</action>\n done "
    assert parse_low_level_answer(text, Tags()) == LowLevelAnswer("open door", True, False)
    assert parse_low_level_answer("<action>open door</action>", Tags()) == LowLevelAnswer("open door", False, True)
    assert parse_low_level_answer("open door\ndone", Tags()) == LowLevelAnswer("", False, True, valid=False)


@pytest.mark.parametrize("bad", ["", "a b", "<a>"])
def test_tags_need_a_name(bad: str) -> None:
    with pytest.raises(ValueError, match="tag must have letters"):
        Tags(bad)


def test_an_invalid_answer_is_an_empty_action_that_is_not_valid() -> None:
    chat = ChatFormat(make_tokenizer())
    session = FlatAgent(answer_format=Tags()).session("e", chat)
    head = session.start("Find a plant.", "hallway")
    assert "between <action> and </action>." in chat.tokenizer.decode(head.ids)  # type: ignore[union-attr]
    assert session.receive("go") == Act("", valid=False)
    session.observe("What?")
    assert session.receive("Right: <action>go</action>") == Act("go")
    assert session.malformed == 1


def test_each_level_has_its_format() -> None:
    chat = ChatFormat(make_tokenizer())
    session = HierarchicalAgent(answer_format=Tags(), subgoal_format=JsonObject("subgoal")).session("e", chat)
    head = session.start("Find a plant.", "hallway")
    assert '{"thought": "...", "subgoal": "..."}' in chat.tokenizer.decode(head.ids)  # type: ignore[union-attr]
    low = session.receive('{"subgoal": "go to the kitchen"}')
    text = chat.tokenizer.decode(low.ids)  # type: ignore[union-attr]
    assert "Subgoal: go to the kitchen" in text and "between <action> and </action>." in text
    assert session.receive("<action>go</action>\ndone") == Act("go")
    assert (session.malformed, session.subgoals(1)[0].completed) == (0, True)
    session.observe("o")
    session.receive("no JSON")
    assert session.receive("go\ncontinue") == Act("", valid=False)
    assert (session.malformed, session.subgoals(2)[1].goal) == (2, "(none)")
