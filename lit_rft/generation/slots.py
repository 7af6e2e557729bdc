"""Slots of open conversations."""

from collections.abc import Mapping, Sequence
from typing import TypeVar

State = TypeVar("State")


class Slots(dict[int, State]):
    """Slot -> state of its conversation, for a fixed number of slots.

    Args:
        number: number of slots.
    """

    def __init__(self, number: int) -> None:
        super().__init__()
        self._free = list(range(number))

    def open(self, state: State) -> int:
        """Start a conversation in the first free slot and return the slot.

        Raises:
            RuntimeError: All slots are taken.
        """
        if not self._free:
            raise RuntimeError(f"all {len(self)} slots are taken: close a conversation first")
        slot = self._free.pop(0)
        self[slot] = state
        return slot

    def close(self, slot: int) -> None:
        """End a conversation and free its slot."""
        del self[slot]
        self._free.append(slot)
        self._free.sort()


def check_new_ids(prompts: Mapping[int, Sequence[int]]) -> None:
    """Check that every slot has new ids.

    Raises:
        ValueError: A slot has none.
    """
    for slot, ids in prompts.items():
        if not ids:
            raise ValueError(f"slot {slot} needs at least one new prompt id before its next utterance, got none")
