"""Conversations that are read in full at every turn: no keys and values are kept in between."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from lit_rft.generation.slots import Slots, check_new_ids


@dataclass
class Conversation:
    """The state of a slot between turns."""

    name: str
    turn: int = 0
    history: list[int] = field(default_factory=list)


class FullHistories:
    """The slots of a sampler with `ConversationGenerator`'s interface that reads full histories.

    Args:
        num_slots: maximum number of conversations at the same time.
    """

    def __init__(self, num_slots: int) -> None:
        self._conversations: Slots[Conversation] = Slots(num_slots)
        self.tokens_read = self.tokens_sampled = 0

    def open(self, name: str) -> int:
        """Start a conversation and return its slot.

        Raises:
            RuntimeError: All slots are taken.
        """
        return self._conversations.open(Conversation(name))

    def close(self, slot: int) -> None:
        """End a conversation and free its slot."""
        self._conversations.close(slot)

    def forget(self, slot: int) -> None:
        """Clear a conversation's history; what its next utterances are drawn with does not start again."""
        self._conversations[slot].history = []

    def append(self, prompts: Mapping[int, Sequence[int]]) -> dict[int, Conversation]:
        """Append each slot's new prompt ids to its history, and return the conversations.

        Raises:
            ValueError: A slot has no new ids.
        """
        check_new_ids(prompts)
        conversations = {slot: self._conversations[slot] for slot in prompts}
        for slot, conversation in conversations.items():
            conversation.history += prompts[slot]
        return conversations
