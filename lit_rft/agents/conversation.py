"""One conversation of an agent: its context and its place in the generator."""

from lit_rft.agents.contexts import Context
from lit_rft.generation import Completion, Conversations
from lit_rft.transcripts import Transcript


class ContextFullError(RuntimeError):
    """What has to be read next does not fit into the model's context, even without any history."""


class Conversation:
    """A context that grows turn by turn, in step with the generator's cache.

    When it outgrows `max_length`, its earliest turns are dropped until half of the room is free again,
    and what remains is read anew: the price of one long read instead of one each turn. A context without thoughts is
    read anew in each turn.

    Args:
        generator: samples the utterances.
        context: of a level, empty.
        max_length: context length in tokens, the next utterance included.
        episode_id: with the level, seeds the sampling.
    """

    def __init__(self, generator: Conversations, context: Context, max_length: int, episode_id: str = "") -> None:
        self.context, self.level = context, context.level
        self.generator, self._max_length = generator, max_length
        self.slot = generator.open(f"{episode_id}/{self.level}")
        self._log_probs: list[list[float]] = []  # of each decision that is still in the transcripts
        self._unread: list[int] = []

    @property
    def transcripts(self) -> list[Transcript]:
        """What was read and written."""
        return self.context.transcripts

    @property
    def log_probs(self) -> list[list[list[float]]]:
        """Log-probabilities of each decision of each of the transcripts."""
        remaining = iter(self._log_probs)
        return [[next(remaining) for _ in range(transcript.num_decisions)] for transcript in self.transcripts]

    def read(self, ids: list[int]) -> None:
        """Give the model more to read before its next utterance.

        Raises: ContextFullError.
        """
        self._unread += self.context.read(ids)
        room = self._max_length - self.generator.sampling.max_new_tokens
        shortened = len(self.context.ids) > room
        if shortened:
            self._shorten(room)
        if shortened or not self.context.append_only:
            self.generator.forget(self.slot)
            self._unread = list(self.context.ids)

    def unread(self) -> list[int]:
        """Ids that the model has not read yet."""
        return self._unread

    def write(self, sampled: Completion) -> None:
        """Take the sampled utterance into the context."""
        self.context.write(sampled.ids)
        self._log_probs.append(sampled.log_probs)
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
