"""Answer formats: the form of an action, or a subgoal, in an utterance.

Every format parses its own output: `parse(render(action, thought)).action == action` for any two texts (JSON: of up to
20,000 characters in all). Parsing never raises.
"""

import json
import re
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from lit_rft.agents.lines import lines_of, parse_single_line, read_line, write_single_line

_MAX_JSON_CHARACTERS = 20_000  # longer answers are not parsed


class Answer(NamedTuple):
    """The action in an utterance, and whether the utterance nevertheless departs from the format."""

    action: str
    malformed: bool = False


class AnswerFormat(Protocol):
    """The format of a level's answers. A frozen dataclass of settings, set by `class_path` in a config."""

    @property
    def instruction(self) -> str:
        """A sentence for the system prompt; may be empty."""
        ...

    def parse(self, text: str) -> Answer | None:
        """Read an answer; None for an invalid one, which has no action."""
        ...

    def render(self, action: str, thought: str = "") -> str:
        """Write an answer, as in training on stored episodes.

        Args:
            action: any text.
            thought: reasoning before the action; left out by formats without a place for it.
        """
        ...


@dataclass(frozen=True)
class FirstLine:
    """The first line is the action; further lines are ignored, and make the answer malformed."""

    @property
    def instruction(self) -> str:
        return ""  # the agents' prompts contain it

    def parse(self, text: str) -> Answer | None:
        """Read the first line that is not blank."""
        action, malformed = parse_single_line(text)
        return Answer(action, malformed) if lines_of(text) else None

    def render(self, action: str, thought: str = "") -> str:
        """Write the action as one line."""
        return write_single_line(action)


@dataclass(frozen=True)
class LastLine:
    """The last line is the action; free reasoning may precede it."""

    @property
    def instruction(self) -> str:
        return "Reason first if you like; the last line is your answer."

    def parse(self, text: str) -> Answer | None:
        """Read the last line that is not blank."""
        lines = lines_of(text)
        return Answer(read_line(lines[-1])) if lines else None

    def render(self, action: str, thought: str = "") -> str:
        """Write the thought, and the action as the last line."""
        return _after(thought, write_single_line(action))


@dataclass(frozen=True)
class Tags:
    """The action is the text between the last pair of tags; free reasoning may precede it.

    Args:
        tag: name of the tags, letters, digits, `_` and `-`.
    """

    tag: str = "action"

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[\w-]+", self.tag):
            raise ValueError(f"tag must have letters, digits, _ and - only, got {self.tag!r}")

    @property
    def instruction(self) -> str:
        return f"Reason first if you like; write your answer between <{self.tag}> and </{self.tag}>."

    def parse(self, text: str) -> Answer | None:
        """Read the text between the last pair of tags; None if there is no pair, or nothing between."""
        before, end, _ = text.rpartition(f"</{self.tag}>")
        _, start, content = before.rpartition(f"<{self.tag}>")
        return Answer(read_line(content.strip())) if start and end and content.strip() else None

    def render(self, action: str, thought: str = "") -> str:
        """Write the thought, and the action between tags; as a JSON string if parsing would change it otherwise."""
        answer = Answer(action)
        plain = f"<{self.tag}>{action}</{self.tag}>"
        if self.parse(plain) == answer:
            return _after(thought, plain)
        quoted = json.dumps(action, ensure_ascii=False).replace("<", "\\u003c")
        return _after(thought, f"<{self.tag}>{quoted}</{self.tag}>")


@dataclass(frozen=True)
class JsonObject:
    """The answer is a JSON object and nothing else, with the action as text in a field.

    Args:
        field: name of the action's field.
        thought_field: name of the field for a thought, which comes first; null for none.
    """

    field: str = "action"
    thought_field: str | None = "thought"

    def __post_init__(self) -> None:
        if self.field == self.thought_field:
            raise ValueError(f"field and thought_field must differ, got {self.field!r} twice")

    @property
    def instruction(self) -> str:
        example = {self.thought_field: "..."} if self.thought_field else {}
        return f"Answer with a JSON object: {json.dumps(example | {self.field: '...'})}"

    def parse(self, text: str) -> Answer | None:
        """Read the field; None for anything but one JSON object that has it as text."""
        action = (parse_object(text) or {}).get(self.field)
        return Answer(action) if isinstance(action, str) else None

    def render(self, action: str, thought: str = "") -> str:
        """Write the object."""
        first = {self.thought_field: thought} if self.thought_field and thought else {}
        return json.dumps(first | {self.field: action}, ensure_ascii=False)


@dataclass(frozen=True)
class HermesToolCall:
    """The action is the argument of a tool call in the syntax of Hermes and Qwen; free reasoning may precede it.

    An utterance with a second `<tool_call>` is invalid, in its reasoning as well: thoughts are written without one.

        <tool_call>
        {"name": "act", "arguments": {"action": "open door"}}
        </tool_call>

    Args:
        name: of the tool.
        argument: of the tool, which holds the action.
    """

    name: str = "act"
    argument: str = "action"

    @property
    def instruction(self) -> str:
        return f"Reason first if you like, then call the tool {self.name}:\n{self.render('...')}"

    def parse(self, text: str) -> Answer | None:
        """Read the argument; None unless there is exactly one call, complete, and of this tool."""
        _, *calls = text.split("<tool_call>")
        if len(calls) != 1 or "</tool_call>" not in calls[0]:
            return None
        return _argument(calls[0].partition("</tool_call>")[0], self.name, "arguments", self.argument)

    def render(self, action: str, thought: str = "") -> str:
        """Write the thought and the call."""
        call = {"name": self.name, "arguments": {self.argument: action}}
        text = json.dumps(call, ensure_ascii=False).replace("<", "\\u003c")  # an action cannot close the call
        return _after(thought.replace("<tool_call>", "(tool call)"), f"<tool_call>\n{text}\n</tool_call>")


@dataclass(frozen=True)
class Llama3ToolCall:
    """The answer is a tool call in the JSON syntax of Llama 3, and nothing else.

        {"name": "act", "parameters": {"action": "open door"}}

    Args:
        name: of the tool.
        argument: of the tool, which holds the action.
    """

    name: str = "act"
    argument: str = "action"

    @property
    def instruction(self) -> str:
        return f"Answer with a call of the tool {self.name}: {self.render('...')}"

    def parse(self, text: str) -> Answer | None:
        """Read the argument; None for anything but one call of this tool."""
        return _argument(text, self.name, "parameters", self.argument)

    def render(self, action: str, thought: str = "") -> str:
        """Write the call."""
        return json.dumps({"name": self.name, "parameters": {self.argument: action}}, ensure_ascii=False)


def parse_object(text: str) -> dict[str, Any] | None:
    """Parse a text that is one JSON object, strictly: no duplicate keys, no NaN, no half surrogate
    pairs, at most 20,000 characters.

    Returns:
        The object, or None.
    """
    if len(text) > _MAX_JSON_CHARACTERS:
        return None
    try:
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse)
        json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _argument(text: str, name: str, arguments: str, argument: str) -> Answer | None:
    call = parse_object(text) or {}
    values = call.get(arguments)
    action = values.get(argument) if call.get("name") == name and isinstance(values, dict) else None
    return Answer(action) if isinstance(action, str) else None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) < len(pairs):
        raise ValueError("duplicate keys")
    return dict(pairs)


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")


def _after(thought: str, answer: str) -> str:
    return f"{thought}\n{answer}" if thought else answer
