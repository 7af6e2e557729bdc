"""Tokens that structure a conversation, kept apart from the same characters in its content."""

import json
import re
import secrets
from collections.abc import Callable, Collection, Sequence
from typing import Any

# marks inside an utterance: part of its text, they neither open nor end a turn
_THINKING = re.compile(r"[<\[]/?(?:think|thinking|thought|reasoning|tool_call)[>\]]", re.IGNORECASE)


class Markup:
    """The structural tokens of one tokenizer: its special tokens, and the added tokens that its chat template writes.

    Other added tokens (line breaks, runs of blanks, HTML tags, words) are ordinary text, and so are the marks of a
    thinking part such as `<think>` and of a tool call, which neither open nor end a turn.

    Args:
        tokenizer: a Hugging Face tokenizer.
        written: source and renderings of its chat template; empty without one.
    """

    def __init__(self, tokenizer: Any, written: str = "") -> None:
        self._tokenizer = tokenizer
        self.ids: dict[str, int] = {}  # structural token -> id
        self.special_ids: set[int] = set()
        for token_id, token in tokenizer.added_tokens_decoder.items():
            text = token.content
            if not text.strip() or _THINKING.fullmatch(text):
                continue
            special = token.special or text in tokenizer.all_special_tokens
            if special:
                self.special_ids.add(token_id)
            if special or (text in written and not text.isalnum()):
                self.ids[text] = token_id
        self._pattern = _any_of(self.ids)
        self._separating: _SeparatingEncoder | None = None  # made on first use: it copies the vocabulary

    def first(self, text: str) -> str | None:
        """Return the structural token at the beginning of a text, if any."""
        match = self._pattern.match(text) if self._pattern else None
        return match.group() if match else None

    def leading(self, text: str) -> list[str]:
        """Return the consecutive structural tokens at the beginning of a text."""
        marks: list[str] = []
        while mark := self.first(text):
            marks.append(mark)
            text = text[len(mark) :]
        return marks

    def encode(
        self, write: Callable[[Sequence[str]], str], contents: Sequence[str], *, protected: Collection[int] = ()
    ) -> list[int]:
        """Encode a text made of structure and content.

        If no content contains the characters of a structural token, these are the tokenizer's ids of the full text.
        Otherwise the structure has the same tokens, and the content's characters become ordinary text tokens: content
        is never changed, and never becomes structure.

        Args:
            write: makes the text from its contents.
            contents: text from elsewhere (data, environments, other models).
            protected: indices of contents in which a template must not change marks of thinking: some replace
                `</think>` in an instruction.

        Raises:
            ValueError: For content with such characters if the tokenizer is not a fast one.
        """
        pattern = self._pattern
        if pattern is None or not any(map(pattern.search, contents)):
            text = write(contents)
            if not any(_THINKING.search(contents[i]) for i in protected) or _has_all(
                [contents[i] for i in protected], text
            ):
                ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
                return ids
        if self._separating is None:
            self._separating = _SeparatingEncoder(self._tokenizer, self.ids)
        return self._separating.encode(write, contents, protected)


class _SeparatingEncoder:
    """A copy of a tokenizer whose structural tokens have secret names, so that content cannot spell them."""

    def __init__(self, tokenizer: Any, structural: dict[str, int]) -> None:
        from tokenizers import Tokenizer

        backend = getattr(tokenizer, "backend_tokenizer", None)
        if not isinstance(backend, Tokenizer):
            raise ValueError(
                f"content contains the characters of a control token, and {type(tokenizer).__name__} cannot encode "
                "them as text: use a fast tokenizer (with a tokenizer.json), or remove them from the data"
            )
        nonce = secrets.token_hex(8)
        self._names = {text: f"\ue000{nonce}.{token_id}\ue001" for text, token_id in structural.items()}
        self._hidden = f"\ue002{nonce}.{{}}\ue003"  # replaces a mark in content while the template is rendered
        self._any_hidden = re.compile(self._hidden.format("([0-9]+)").replace(".", r"\."))
        specification = json.loads(backend.to_str())
        specification |= {"truncation": None, "padding": None, "post_processor": None}
        original: dict[str, int] = {}
        for token in specification["added_tokens"]:
            name = self._names.get(token["content"])
            original[name or token["content"]] = token["id"]
            if name is not None:
                token |= {"content": name, "normalized": False}
        self._backend = Tokenizer.from_str(json.dumps(specification))
        # a renamed token may have another id
        self._original = {self._backend.token_to_id(name): token_id for name, token_id in original.items()}
        self._structural = _any_of(structural)
        self._protected = re.compile("|".join(p.pattern for p in (self._structural, _THINKING) if p), re.IGNORECASE)

    def encode(
        self, write: Callable[[Sequence[str]], str], contents: Sequence[str], protected: Collection[int]
    ) -> list[int]:
        marks: list[str] = []

        def hide(match: re.Match[str]) -> str:
            marks.append(match.group())
            return self._hidden.format(len(marks) - 1)

        hidden = [
            (self._protected if index in protected else self._structural or self._protected).sub(hide, content)
            for index, content in enumerate(contents)
        ]
        text = write(hidden)
        if self._structural:
            text = self._structural.sub(lambda match: self._names[match.group()], text)
        text = self._any_hidden.sub(lambda match: marks[int(match.group(1))], text)
        ids = self._backend.encode(text, add_special_tokens=False).ids
        return [self._original.get(token_id, token_id) for token_id in ids]


def _has_all(contents: Sequence[str], text: str) -> bool:
    """Return whether a rendering contains each content (up to outer blanks) as often as it must."""
    cores = [content.strip() for content in contents]
    return all(text.count(core) >= sum(other.count(core) for other in cores) for core in cores if core)


def _any_of(texts: Collection[str]) -> re.Pattern[str] | None:
    """Return a pattern for any of the texts, the longest first, as tokenizers match them."""
    return re.compile("|".join(map(re.escape, sorted(texts, key=len, reverse=True)))) if texts else None
