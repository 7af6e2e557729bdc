"""Messages of a conversation in the forms of common data sets: chats, ShareGPT, content parts, JSON text."""

from __future__ import annotations

import ast
import io
import itertools
import json
import re
import tokenize
import warnings
from typing import Any

from lit_rft._records import show_value
from lit_rft.problems.record import ROLES, ProblemError, check_text

ROLE_NAMES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "model": "assistant", "developer": "system"}
_KEYS = (("role", "content"), ("from", "value"))  # chats, ShareGPT
_PYTHON_LITERAL = re.compile(r"\s*[\[{]\s*[\[{]?\s*['\"]")  # a list or dictionary that begins with a text
_LITERAL_ERRORS = (ValueError, SyntaxError, MemoryError, RecursionError)


def check_messages(value: Any, name: str, last: str) -> tuple[dict[str, str], ...]:
    """Read messages, or a text as the only message.

    Args:
        value: a list of messages, its JSON text, or a plain text.
        name: name of the field, for errors.
        last: role of the last message.

    Returns:
        Messages with ``role`` and ``content``; system messages without text are left out.

    Raises:
        ProblemError: The message names the wrong part.
    """
    messages = read_messages(value, name, last)
    if messages[-1]["role"] != last:
        raise ProblemError(f"expected the last message to be the {last}'s, got {messages[-1]['role']!r}", name)
    return messages


def split_conversation(value: Any, name: str) -> tuple[tuple[dict[str, str], ...], tuple[str, ...]]:
    """Split a conversation into the prompt and the assistant's last answer, if it ends with one.

    Returns:
        The prompt, and at most one trace.

    Raises:
        ProblemError: The message names the wrong part.
    """
    messages = read_messages(value, name, "user", empty_end=True)
    if messages[-1]["role"] != "assistant":
        return check_messages(value, name, "user"), ()
    prompt, answer = messages[:-1], messages[-1]["content"]
    if not prompt or prompt[-1]["role"] != "user":
        raise ProblemError("expected a message of the user before the assistant's last one", name)
    return prompt, (answer,) if answer.strip() else ()


def read_messages(value: Any, name: str, role: str, *, empty_end: bool = False) -> tuple[dict[str, str], ...]:
    """Read messages with any role of the last one.

    Args:
        value, name: see `check_messages`.
        role: role of a plain text.
        empty_end: the assistant's last message may be empty.

    Raises:
        ProblemError: The message names the wrong part.
    """
    value = messages_from_text(value, name)
    if isinstance(value, str):
        return ({"role": role, "content": check_text(value, name)},)
    if not isinstance(value, list) or not value:
        raise ProblemError(f"expected a list of messages, or a text, got {show_value(value)}", name)
    messages = []
    for i, message in enumerate(value):
        checked = _message(message, f"{name}[{i}]", empty_end and i == len(value) - 1)
        if checked is not None:
            messages.append(checked)
    if not messages:
        raise ProblemError("expected a message besides an empty system message", name)
    return tuple(messages)


def _message(message: Any, where: str, may_be_empty: bool) -> dict[str, str] | None:
    """Return a checked message; None for a system message without text."""
    if not isinstance(message, dict) or not any(keys[0] in message for keys in _KEYS):
        raise ProblemError(f"expected a message with role and content, got {show_value(message)}", where)
    # in Parquet all messages have all columns, with null in those of other messages
    keys = max(_KEYS, key=lambda keys: (message.get(keys[0]) is not None, keys[0] in message))
    role, content = message[keys[0]], join_parts(message.get(keys[1]), f"{where}.{keys[1]}")
    role = ROLE_NAMES.get(role, role) if isinstance(role, str) else role
    if role not in ROLES:
        raise ProblemError(f"expected one of {', '.join(ROLES)}, got {show_value(role)}", f"{where}.{keys[0]}")
    empty = content is None or (isinstance(content, str) and not content.strip())
    if empty and role == "system":
        return None
    if empty and role == "assistant" and may_be_empty:
        return {"role": role, "content": ""}
    if not isinstance(content, str):
        raise ProblemError(f"expected a text, got {show_value(content)}", f"{where}.{keys[1]}")
    return {"role": role, "content": check_text(content, f"{where}.{keys[1]}")}


def join_parts(content: Any, where: str) -> Any:
    """Join content parts (``[{"type": "text", "text": ...}]``) to one text; other values are returned unchanged.

    Raises:
        ProblemError: For a part that is not text, an image for example.
    """
    if not isinstance(content, list):
        return content
    texts = []
    for i, part in enumerate(content):
        if isinstance(part, str):
            texts.append(part)
        elif isinstance(part, dict) and part.get("type", "text") == "text" and isinstance(part.get("text"), str):
            texts.append(part["text"])
        else:
            raise ProblemError(f"expected a part of type text, got {show_value(part)}", f"{where}[{i}]")
    return "".join(texts)


def messages_from_text(value: Any, name: str) -> Any:
    """Parse a text that is a list of messages: JSON, or Python's notation (as pandas writes it to CSV).

    Returns:
        The list; other values unchanged.

    Raises:
        ProblemError: For a text that begins like messages and cannot be parsed.
    """
    if not isinstance(value, str) or not value.lstrip().startswith(("[", "{")):
        return value
    parsed = parse_literal(value)
    if isinstance(parsed, dict):
        parsed = next((parsed[key] for key in ("messages", "conversations") if key in parsed), [parsed])
    if isinstance(parsed, list) and parsed and all(_like_message(item) for item in parsed):
        return parsed
    start = "".join(value[:80].split()).replace('"', "'")
    if any(f"'{key}':" in start for keys in _KEYS for key in keys) and start.startswith(("[{", "{")):
        raise ProblemError(
            f"expected messages as a list, as JSON text, or the text of a problem, got {show_value(value)}, which "
            "begins like messages and cannot be parsed",
            name,
        )
    return value


def _like_message(item: Any) -> bool:
    return isinstance(item, dict) and any(keys[0] in item and keys[1] in item for keys in _KEYS)


def parse_literal(text: str) -> Any:
    """Parse JSON or a Python literal; nothing is executed.

    Returns:
        The value; None if it is neither.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        if not _PYTHON_LITERAL.match(text):
            return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)  # backslashes of LaTeX
            value = ast.literal_eval(text.strip())
    except _LITERAL_ERRORS:
        return None
    return None if _joins_texts(text.strip()) else value


def _joins_texts(literal: str) -> bool:
    """Return whether texts follow each other without a comma, as in lists by numpy: Python would concatenate them."""
    kinds = [token.type for token in tokenize.generate_tokens(io.StringIO(literal).readline)]
    kinds = [kind for kind in kinds if kind not in (tokenize.NL, tokenize.NEWLINE)]
    return any(first == second == tokenize.STRING for first, second in itertools.pairwise(kinds))
