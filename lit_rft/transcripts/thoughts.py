"""Thoughts: the part of an utterance that a model writes before its answer, up to a closing mark such as `</think>`."""

import re
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

_OPENING = re.compile(r"([<\[])(think|thinking|thought|reasoning)([>\]])\s*$", re.IGNORECASE)


@dataclass(frozen=True)
class ThoughtMarks:
    """Beginning and end of the thoughts of one chat format.

    Attributes:
        opening: opening mark at the end of the generation prompt, with the blanks after it; empty if the model begins
            its thoughts itself.
        mark: opening mark.
        closing: closing mark.
        in_history: text in place of `opening` before an answer without its thought.
    """

    opening: str = ""
    mark: str = "<think>"
    closing: str = "</think>"
    in_history: str = ""
    _encode: Callable[[str], list[int]] = field(default=lambda text: [], repr=False)
    _decode: Callable[[list[int]], str] = field(default=lambda ids: "", repr=False)

    @classmethod
    def learn(
        cls,
        generation: str,
        history: str,
        encode: Callable[[str], list[int]],
        decode: Callable[[list[int]], str],
    ) -> "ThoughtMarks":
        """Learn the marks of a chat template.

        Args:
            generation: text between a user's message and the next utterance, which begins there.
            history: the same before an earlier answer.
            encode: content to ids.
            decode: ids to text.
        """
        match = _OPENING.search(generation)
        if match is None:
            return cls(_encode=encode, _decode=decode)
        left, name, right = match.groups()
        before = generation[: match.start()]
        in_history = history.removeprefix(before) if history.startswith(before) else ""
        return cls(match.group(), f"{left}{name}{right}", f"{left}/{name}{right}", in_history, encode, decode)

    def answer(self, text: str) -> str | None:
        """Return an utterance without its thought; None if the thought never ends."""
        _, mark, answer = text.rpartition(self.closing)
        if mark:
            return answer.strip()
        return None if self.opening or text.lstrip().startswith(self.mark) else text

    def write(self, thought: str, answer: str) -> str:
        """Write an utterance of a thought and an answer, where the generation prompt has opened the thought."""
        return f"{thought}\n{self.closing}\n\n{answer}"

    def answer_ids(self, ids: Sequence[int], end_ids: Sequence[int]) -> list[int]:
        """Return the ids of an utterance without those of its thought; the ids of the answer stay as they are.

        Args:
            ids: of the utterance.
            end_ids: tokens that end an utterance. One at the end of `ids` stays.
        """
        body, end = list(ids), list(ids[-1:]) if ids and ids[-1] in end_ids else []
        body = body[: len(body) - len(end)]
        text = self._decode(body)
        number = text.count(self.closing)
        if number == 0:
            return [*body, *end] if self.answer(text) is not None else end
        lengths = range(len(body) + 1)
        length = bisect_left(lengths, number, key=lambda n: self._decode(body[:n]).count(self.closing))
        rest = self._decode(body[:length]).rpartition(self.closing)[2].strip()
        kept = body[length:]
        if rest:  # the token that ends the mark has the beginning of the answer as well
            return [*self._encode(rest + self._decode(kept)), *end]
        while kept and not self._decode(kept[:1]).strip():
            del kept[0]
        return [*kept, *end]

    def history_ids(self, prompt_ids: Sequence[int]) -> list[int]:
        """Return the ids of a prompt with its opening mark replaced, as they precede an answer without its thought."""
        ids = list(prompt_ids)
        if not self.opening:
            return ids
        for number in range(1, len(self.opening.encode()) + 2):
            before, mark, _ = self._decode(ids[-number:]).rpartition(self.mark)
            if mark:
                return [*ids[:-number], *self._encode(before + self.in_history)]
        return ids
