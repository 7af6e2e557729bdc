"""One conversation of an agent: its context and its slot in the generator."""

from collections.abc import Sequence

from lit_rft.agents.contexts import Context
from lit_rft.generation import Completion, Conversations, TokenTrie
from lit_rft.transcripts import Transcript


class ContextFullError(RuntimeError):
    """The next prompt does not fit into the model's context, even without any history."""


class Conversation:
    """A growing context, in sync with the generator's cache.

    When it exceeds `max_length`, the earliest turns are dropped until half of it is free again, and the rest is
    prefilled again: one long prefill instead of one per turn. A context without thoughts is prefilled again in each
    turn.

    Args:
        generator: samples the utterances.
        context: of a level, empty.
        max_length: context length in tokens, including the next utterance.
        episode_id: with the level, seeds the sampling.
    """

    def __init__(self, generator: Conversations, context: Context, max_length: int, episode_id: str = "") -> None:
        self.context, self.level = context, context.level
        self.generator, self._max_length = generator, max_length
        self.slot = generator.open(f"{episode_id}/{self.level}")
        self._log_probs: list[list[float]] = []  # of each remaining decision in the transcripts
        self._unread: list[int] = []
        self.tokens_read = self.tokens_sampled = 0  # so far; tokens in the model's cache are not read again
        self.choices: TokenTrie | None = None  # for the next utterance

    @property
    def transcripts(self) -> list[Transcript]:
        """All tokens that were read and written."""
        return self.context.transcripts

    @property
    def log_probs(self) -> list[list[list[float]]]:
        """Log-probabilities of each decision in each transcript."""
        remaining = iter(self._log_probs)
        return [[next(remaining) for _ in range(transcript.num_decisions)] for transcript in self.transcripts]

    def read(self, ids: list[int], choices: Sequence[list[int]] = ()) -> None:
        """Append prompt tokens for the next utterance.

        Args:
            ids: token ids.
            choices: utterances among which the next one is chosen; empty if it is free.

        Raises:
            ContextFullError: They do not fit into the context.
        """
        self.choices = TokenTrie(choices) if choices else None
        self._unread += self.context.read(ids)
        room = self._max_length - self.generator.sampling.max_new_tokens
        shortened = len(self.context.ids) > room
        if shortened:
            self._shorten(room)
        if shortened or not self.context.append_only:
            self.generator.forget(self.slot)
            self._unread = list(self.context.ids)

    def unread(self) -> list[int]:
        """Return the ids that are not yet in the model's cache."""
        return self._unread

    def write(self, sampled: Completion) -> None:
        """Append the sampled utterance to the context."""
        allowed = None if self.choices is None else self.choices.allowed_along(sampled.ids)
        self.context.write(sampled.ids, allowed)
        self._log_probs.append(sampled.log_probs)
        self.tokens_read += len(self._unread)
        self.tokens_sampled += len(sampled.ids)
        self._unread = []

    def close(self) -> None:
        self.generator.close(self.slot)

    def _shorten(self, room: int) -> None:
        for target in (min(self._max_length // 2, room), room):
            try:
                self._log_probs = self._log_probs[self.context.shorten(target) :]
                break
            except ValueError as error:
                if target == room:
                    raise ContextFullError(str(error)) from error
