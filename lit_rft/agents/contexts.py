"""The context of one level in an episode, as transcripts for training."""

from collections.abc import Sequence
from typing import Protocol

from lit_rft.transcripts import ChatFormat, Transcript


class Context(Protocol):
    """A growing context. Play and replay both use it: their transcripts are the same."""

    @property
    def level(self) -> str:
        """The level of this context."""
        ...

    @property
    def append_only(self) -> bool:
        """True if the level reads its utterances again exactly as it wrote them."""
        ...

    @property
    def transcripts(self) -> list[Transcript]:
        """Transcripts so far: all tokens that were read and written."""
        ...

    @property
    def ids(self) -> list[int]:
        """All tokens that the level reads before its next utterance."""
        ...

    def read(self, ids: Sequence[int]) -> list[int]:
        """Append a prompt; return the appended ids."""
        ...

    def write(self, ids: Sequence[int], allowed: list[list[int]] | None = None) -> None:
        """Append an utterance; `allowed`: see `Transcript.append_utterance`."""
        ...

    def shorten(self, max_length: int) -> int:
        """Drop the earliest turns until at most `max_length` tokens are left to read.

        Returns:
            The number of decisions that the transcripts have lost.

        Raises:
            ValueError: The head and the last turn are longer.
        """
        ...


class FullContext:
    """The context of a level that reads its thoughts again: one transcript of all turns.

    Args:
        transcript: empty, with its level and episode.
    """

    append_only = True

    def __init__(self, transcript: Transcript) -> None:
        self.level, self.transcript = transcript.level, transcript

    @property
    def transcripts(self) -> list[Transcript]:
        return [self.transcript]

    @property
    def ids(self) -> list[int]:
        return self.transcript.input_ids

    def read(self, ids: Sequence[int]) -> list[int]:
        return self.transcript.append_prompt(list(ids))

    def write(self, ids: Sequence[int], allowed: list[list[int]] | None = None) -> None:
        self.transcript.append_utterance(list(ids), allowed)

    def shorten(self, max_length: int) -> int:
        before = self.transcript.num_decisions
        self.transcript = self.transcript.truncated(max_length)
        return before - self.transcript.num_decisions


class ContextWithoutThoughts:
    """The context of a level that never reads its earlier thoughts again: one transcript per turn.

    The ids of earlier answers and prompts are unchanged; only the ids of thoughts are left out, and the mark in the
    generation prompt that opened them.

    Args:
        transcript: empty, with its level and episode.
        chat: finds the beginning and end of thoughts.
    """

    append_only = False

    def __init__(self, transcript: Transcript, chat: ChatFormat) -> None:
        self.level, self._history, self._chat = transcript.level, transcript, chat
        self._written: list[Transcript] = []

    @property
    def transcripts(self) -> list[Transcript]:
        return self._written

    @property
    def ids(self) -> list[int]:
        return self._history.input_ids

    def read(self, ids: Sequence[int]) -> list[int]:
        return self._history.append_prompt(list(ids))

    def write(self, ids: Sequence[int], allowed: list[list[int]] | None = None) -> None:
        history = self._history
        turn = Transcript(
            history.level, history.end_of_turn_id, history.episode_id, earlier_decisions=len(self._written)
        )
        turn.append_prompt(history.input_ids)
        turn.append_utterance(list(ids), allowed)
        self._written.append(turn)
        history.input_ids = self._chat.thoughts.history_ids(history.input_ids)
        if len(self._written) == 1:  # later the history may be without turns as well: `shorten` drops all of them
            history.head_length = len(history.input_ids)
        history.append_utterance(self._chat.answer_ids(ids))

    def shorten(self, max_length: int) -> int:
        self._history = self._history.truncated(max_length)
        return 0


class SeparateTurns:
    """The context of a level whose prompts are complete: each is a conversation of its own.

    Args:
        transcript: empty, with its level and episode.
    """

    append_only = False

    def __init__(self, transcript: Transcript) -> None:
        self.level, self._empty = transcript.level, transcript
        self._written: list[Transcript] = []
        self._current = transcript.copy()

    @property
    def transcripts(self) -> list[Transcript]:
        return self._written

    @property
    def ids(self) -> list[int]:
        return self._current.input_ids

    def read(self, ids: Sequence[int]) -> list[int]:
        """Start a conversation with a prompt."""
        self._current = self._empty.copy()
        self._current.earlier_decisions = len(self._written)
        return self._current.append_prompt(list(ids))

    def write(self, ids: Sequence[int], allowed: list[list[int]] | None = None) -> None:
        self._current.append_utterance(list(ids), allowed)
        self._written.append(self._current)

    def shorten(self, max_length: int) -> int:
        self._current = self._current.truncated(max_length)
        return 0


def make_context(transcript: Transcript, chat: ChatFormat, keep_thoughts: bool, keep_turns: bool = True) -> Context:
    """Make the context of a level.

    Args:
        transcript: empty, with its level and episode.
        chat: chat format.
        keep_thoughts: whether the level reads its earlier thoughts again.
        keep_turns: whether it reads its earlier turns again.
    """
    if not keep_turns:
        return SeparateTurns(transcript)
    return FullContext(transcript) if keep_thoughts else ContextWithoutThoughts(transcript, chat)
