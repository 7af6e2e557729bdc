"""Which conversations are under way."""

from collections.abc import Mapping, Sequence
from typing import TypeVar

State = TypeVar("State")


class Slots(dict[int, State]):
    """Slot -> what is known of the conversation in it, for at most so many at the same time.

    Args:
        number: of slots.
    """

    def __init__(self, number: int) -> None:
        super().__init__()
        self._free = list(range(number))

    def open(self, state: State) -> int:
        """Begin a conversation in the first free slot; returns the slot.

        Raises: RuntimeError if all slots are taken.
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
    """Raises: ValueError for a slot that has nothing to read."""
    for slot, ids in prompts.items():
        if not ids:
            raise ValueError(f"slot {slot} was given no new ids: every turn reads something before it writes")
