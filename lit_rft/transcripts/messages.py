"""Conversations as messages, for servers that apply a chat template themselves; in place of a `ChatFormat`."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from lit_rft.transcripts.chat import ChatFormat
from lit_rft.transcripts.thoughts import ThoughtMarks

_ROLES = ("system", "user", "assistant")


class MessageFormat:
    """A chat format whose ids hold messages, exactly: a mark for each role, and the tokens of the contents.

    The tokens are those of a local tokenizer, which has to be neither the server's nor exact: they only measure
    lengths. A text that it does not decode exactly has an id beyond the vocabulary in place of its first token: other
    texts may have the same tokens. These ids cannot be trained on.

    Args:
        tokenizer: a Hugging Face tokenizer.
    """

    uses_template = False

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        first = len(tokenizer)
        self._marks = {role: first + number for number, role in enumerate(_ROLES)}
        self.end_of_turn_id = first + len(_ROLES)
        self.end_ids = (self.end_of_turn_id,)
        self.thoughts = ThoughtMarks()
        self._inexact: dict[str, int] = {}  # text that the tokenizer does not decode exactly -> its id
        self._texts: dict[int, str] = {}  # these texts by their ids
        self._next_ids = itertools.count(self.end_of_turn_id + 1)

    def at(self, level: str) -> "MessageFormat":
        return self

    def head(self, system: str, user: str) -> list[int]:
        """Return the ids from the start of the conversation up to the first utterance."""
        return [self._marks["system"], *self._encode(system), *self.turn(user)]

    def turn(self, user: str) -> list[int]:
        """Return the ids of a user turn after a finished utterance, up to the next utterance."""
        return [self._marks["user"], *self._encode(user), self._marks["assistant"]]

    def utterance(self, text: str) -> list[int]:
        """Return the ids of a written utterance, including its end."""
        return [*self._encode(text), self.end_of_turn_id]

    def text(self, utterance_ids: Sequence[int]) -> str:
        """Decode an utterance without its end."""
        return self._decode([i for i in utterance_ids if i != self.end_of_turn_id])

    def answer(self, text: str) -> str | None:
        """Return an utterance's text without its thought; None if the thought never ends."""
        return self.thoughts.answer(text)

    def answer_text(self, answer: str, thought: str = "") -> str:
        return answer

    def answer_ids(self, utterance_ids: Sequence[int]) -> list[int]:
        """Return the ids of an utterance without its thought."""
        return self.utterance(self.answer(self.text(utterance_ids)) or "")

    def messages(self, ids: Sequence[int]) -> list[dict[str, str]]:
        """Return the messages of a conversation up to the next utterance.

        An empty utterance (that of earlier turns that were dropped) is left out, and the user's turns around it are
        joined: servers refuse empty messages.
        """
        names = {mark: role for role, mark in self._marks.items()}
        parts: list[tuple[str, list[int]]] = []
        for token in ids:
            if token in names:
                parts.append((names[token], []))
            elif token != self.end_of_turn_id:
                parts[-1][1].append(token)
        messages: list[dict[str, str]] = []
        for role, tokens in parts:
            content = self._decode(tokens)
            if role == "assistant" and not content.strip():
                continue
            if messages and messages[-1]["role"] == role:
                messages[-1]["content"] += f"\n\n{content}"
            else:
                messages.append({"role": role, "content": content})
        return messages

    def _encode(self, text: str) -> list[int]:
        ids = list(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        if self._decode_tokens(ids) == text:
            return ids
        number = self._inexact.setdefault(text, next(self._next_ids))  # atomic: a server's answers come in threads
        self._texts[number] = text
        return [number, *ids[1:]]

    def _decode(self, ids: Sequence[int]) -> str:
        known = self._texts.get(ids[0]) if ids else None
        return self._decode_tokens(ids) if known is None else known

    def _decode_tokens(self, ids: Sequence[int]) -> str:
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text


class LevelFormats:
    """A chat format for each level of an agent; agents take one by `at(level)`.

    Args:
        formats: chat format of each level.
    """

    def __init__(self, formats: Mapping[str, ChatFormat | MessageFormat]) -> None:
        self._formats = dict(formats)

    def at(self, level: str) -> ChatFormat | MessageFormat:
        return self._formats[level]

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(
            f"the agent uses one chat format ({name}) for all levels: set acting.chat_server.levels to null or to all "
            f"of {', '.join(self._formats)}"
        )
