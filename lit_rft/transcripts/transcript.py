"""A transcript: the token ids of one conversation at one level, and the positions of its decisions."""

from dataclasses import dataclass, field, replace
from typing import NamedTuple


class DecisionOutcome(NamedTuple):
    """The consequences of a decision for its level."""

    reward: float
    steps: int  # number of environment steps
    terminated: bool  # whether it ended its level's task; a time limit does not


@dataclass(slots=True)
class Transcript:
    """Token ids of one conversation, in the order in which they were read and written.

    Decision k is the utterance `input_ids[utterance_starts[k]:utterance_ends[k] + 1]`, made in the state that ends just
    before it.

    `state_ends[k]`: index of the last token of the state of decision k (where V(s_k) is read, after the full
    observation). `utterance_ends[k]`: index of the utterance's last token (where Q(s_k, u_k) is read).
    `outcomes[k]`: outcome of decision k, if known (for critics). A last decision that did not terminate is followed by
    one more prompt, at whose end the value of the next state is read, if the context has room for one.
    `dropped_turns`, `dropped_tokens`: numbers of turns and tokens that truncation has removed so far.
    `allowed[k]`: for each token of decision k the token ids among which it was chosen; no entry for free decisions.
    `earlier_decisions`: number of earlier decisions of the conversation, if each of them has a transcript of its own.
    """

    level: str  # one of the agent's levels
    end_of_turn_id: int
    episode_id: str = ""
    input_ids: list[int] = field(default_factory=list)
    utterance_starts: list[int] = field(default_factory=list)
    utterance_ends: list[int] = field(default_factory=list)
    head_length: int = 0
    dropped_turns: int = 0
    dropped_tokens: int = 0
    earlier_decisions: int = 0
    outcomes: list[DecisionOutcome] = field(default_factory=list)
    allowed: dict[int, list[list[int]]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def num_decisions(self) -> int:
        return len(self.utterance_ends)

    @property
    def first_decision(self) -> int:
        """Index of its first decision in the conversation."""
        return self.earlier_decisions + self.dropped_turns

    @property
    def state_ends(self) -> list[int]:
        return [start - 1 for start in self.utterance_starts]

    @property
    def next_state_ends(self) -> list[int]:
        """Index of the last token of each decision's next state; without a next state, of the decision itself."""
        final = len(self) - 1  # of the prompt after the last decision, or else of that decision
        return [*self.state_ends[1:], final] if self.utterance_ends else []

    @property
    def action_mask(self) -> list[bool]:
        """True on every token of an utterance, including its end-of-turn token."""
        mask = [False] * len(self.input_ids)
        for start, end in zip(self.utterance_starts, self.utterance_ends, strict=True):
            mask[start : end + 1] = [True] * (end + 1 - start)
        return mask

    def utterance_ids(self, decision: int) -> list[int]:
        return self.input_ids[self.utterance_starts[decision] : self.utterance_ends[decision] + 1]

    def append_prompt(self, ids: list[int]) -> list[int]:
        """Append prompt tokens; the first prompt is the head, which truncation keeps.

        Returns:
            The appended ids: an utterance that was cut off before its end of turn is closed first.
        """
        unfinished = bool(self.utterance_ends) and self.input_ids[-1] != self.end_of_turn_id
        appended = [self.end_of_turn_id, *ids] if unfinished else list(ids)
        self.input_ids.extend(appended)
        if not self.utterance_ends:
            self.head_length = len(self.input_ids)
        return appended

    def append_utterance(self, ids: list[int], allowed: list[list[int]] | None = None) -> None:
        """Append the tokens of an utterance, exactly as sampled.

        Args:
            ids: its token ids.
            allowed: for each of them, those among which it was chosen; None if it was free.
        """
        if not ids:
            raise ValueError("an utterance needs at least one token (its end of turn), got none")
        if allowed is not None:
            self.allowed[self.num_decisions] = allowed
        self.utterance_starts.append(len(self.input_ids))
        self.input_ids.extend(ids)
        self.utterance_ends.append(len(self.input_ids) - 1)

    def copy(self) -> "Transcript":
        """Copy the transcript and its lists."""
        return self.first_decisions(self.num_decisions)

    def first_decisions(self, number: int) -> "Transcript":
        """Copy the transcript up to its first `number` decisions, with the prompt after them."""
        end = self.utterance_starts[number] if number < self.num_decisions else len(self)
        return replace(
            self,
            input_ids=self.input_ids[:end],
            utterance_starts=self.utterance_starts[:number],
            utterance_ends=self.utterance_ends[:number],
            outcomes=self.outcomes[:number],
            allowed={k: ids for k, ids in self.allowed.items() if k < number},
        )

    def without_last_prompt(self) -> "Transcript":
        """Copy the transcript up to its last decision."""
        return replace(
            self.copy(), input_ids=self.input_ids[: self.utterance_ends[-1] + 1 if self.utterance_ends else 0]
        )

    def room_after_last_decision(self, max_length: int) -> int:
        """Return how many tokens a prompt after the last decision may have, so that `truncated` keeps that decision.

        Negative if it has none to spare. There must be a decision.
        """
        kept = self.without_last_prompt()
        unfinished = kept.input_ids[-1] != self.end_of_turn_id  # `append_prompt` closes the utterance first
        return max_length - (len(kept) - kept._tokens_of_turns(kept.num_decisions - 1)) - unfinished

    def truncated(self, max_length: int) -> "Transcript":
        """Shorten the conversation to `max_length` tokens.

        The head stays, and so do the last prompt and its utterance if there is one. As many of the earliest turns as
        necessary are removed, each an utterance with its prompt (the first one's is the head). The rest reads as if the
        first utterance had been empty.

        Raises:
            ValueError: The head and the last turn alone are longer than `max_length`.
        """
        if len(self) <= max_length:
            return self
        answered = bool(self.utterance_ends) and self.utterance_ends[-1] == len(self) - 1
        for turns in range(1, self.num_decisions + (not answered)):
            cut = self._tokens_of_turns(turns)
            if len(self) - cut <= max_length:
                return self._without_turns(turns, cut)
        raise ValueError(
            f"max_length={max_length} is too short for the head ({self.head_length} tokens) and the last turn of a "
            f"{self.level}-level transcript of {len(self)} tokens (episode {self.episode_id!r}); raise max_length"
        )

    def _tokens_of_turns(self, turns: int) -> int:
        """Return the number of tokens that truncation removes with the earliest turns."""
        if not turns:
            return 0
        end = self.utterance_ends[turns - 1]
        # keep the end-of-turn token of the last removed utterance: it closes the empty one
        return (end if self.input_ids[end] == self.end_of_turn_id else end + 1) - self.head_length

    def _without_turns(self, turns: int, cut: int) -> "Transcript":
        return Transcript(
            level=self.level,
            end_of_turn_id=self.end_of_turn_id,
            episode_id=self.episode_id,
            input_ids=self.input_ids[: self.head_length] + self.input_ids[self.head_length + cut :],
            utterance_starts=[start - cut for start in self.utterance_starts[turns:]],
            utterance_ends=[end - cut for end in self.utterance_ends[turns:]],
            head_length=self.head_length,
            dropped_turns=self.dropped_turns + turns,
            dropped_tokens=self.dropped_tokens + cut,
            earlier_decisions=self.earlier_decisions,
            outcomes=self.outcomes[turns:],
            allowed={k - turns: ids for k, ids in self.allowed.items() if k >= turns},
        )
