"""One conversation of an agent: its transcript and its place in the generator."""

from lit_rft.generation import Completion, Conversations
from lit_rft.transcripts import Transcript


class ContextFullError(RuntimeError):
    """What has to be read next does not fit into the model's context, even without any history."""


class Conversation:
    """A transcript that grows turn by turn, in step with the generator's cache.

    When it outgrows `max_length`, its earliest turns are dropped until half of the room is free again,
    and what remains is read anew: the price of one long read instead of one each turn.

    Args:
        generator: samples the utterances.
        transcript: empty, with its level and episode.
        max_length: context length in tokens, the next utterance included.
    """

    def __init__(self, generator: Conversations, transcript: Transcript, max_length: int) -> None:
        self.transcript = transcript
        self.log_probs: list[list[float]] = []  # of each decision that is still in the transcript
        self.generator, self._max_length = generator, max_length
        self.slot = generator.open(f"{transcript.episode_id}/{transcript.level}")
        self._unread: list[int] = []

    def read(self, ids: list[int]) -> None:
        """Give the model more to read before its next utterance.

        Raises: ContextFullError.
        """
        self._unread += self.transcript.append_prompt(ids)
        room = self._max_length - self.generator.sampling.max_new_tokens
        if len(self.transcript) > room:
            self._shorten(room)

    def unread(self) -> list[int]:
        """Ids that the model has not read yet."""
        return self._unread

    def write(self, sampled: Completion) -> None:
        """Take the sampled utterance into the transcript."""
        self.transcript.append_utterance(sampled.ids)
        self.log_probs.append(sampled.log_probs)
        self._unread = []

    def close(self) -> None:
        self.generator.close(self.slot)

    def _shorten(self, room: int) -> None:
        for target in (min(self._max_length // 2, room), room):
            try:
                self.transcript = self.transcript.truncated(target)
                break
            except ValueError as error:
                if target == room:
                    raise ContextFullError(str(error)) from error
        self.log_probs = self.log_probs[len(self.log_probs) - self.transcript.num_decisions :]
        self.generator.forget(self.slot)
        self._unread = list(self.transcript.input_ids)
