"""Conversations whose utterances a generation server samples."""

from collections.abc import Mapping, Sequence

from lit_rft.rollout.sampling import Sampled, SamplingSettings
from lit_rft.rollout.vllm import VllmServer


class ServedConversations:
    """As `ConversationGenerator`, by a server: a turn is a request with the whole conversation, of whose beginning the
    server keeps keys and values (vLLM's prefix cache).

    Args:
        server: samples.
        adapter: the name by which it knows the policy.
        end_of_turn_id: the token that ends an utterance.
        sampling: how to sample.
        num_slots: conversations at the same time.
        seed: of all random numbers.
    """

    def __init__(
        self,
        server: VllmServer,
        adapter: str,
        end_of_turn_id: int,
        sampling: SamplingSettings,
        *,
        num_slots: int,
        seed: int = 0,
    ) -> None:
        self.server, self.adapter, self.sampling, self.seed = server, adapter, sampling, seed
        self._end_of_turn_id = end_of_turn_id
        self._free = list(range(num_slots))
        self._names: dict[int, str] = {}
        self._turns: dict[int, int] = {}
        self._history: dict[int, list[int]] = {}
        self.tokens_read = self.tokens_sampled = 0

    def open(self, name: str) -> int:
        """Begin a conversation; returns its slot.

        Raises: RuntimeError if all slots are taken.
        """
        if not self._free:
            raise RuntimeError(f"all {len(self._names)} slots are taken: close a conversation first")
        slot = self._free.pop(0)
        self._names[slot], self._turns[slot], self._history[slot] = name, 0, []
        return slot

    def close(self, slot: int) -> None:
        """End a conversation and free its slot."""
        for kept in (self._names, self._turns, self._history):
            del kept[slot]
        self._free.append(slot)
        self._free.sort()

    def forget(self, slot: int) -> None:
        """Drop what a conversation has read; its random numbers go on."""
        self._history[slot] = []

    def sample(self, prompts: Mapping[int, Sequence[int]]) -> dict[int, Sampled]:
        """Read each slot's new prompt ids and sample its next utterance.

        Args:
            prompts: slot -> ids that are new since its last utterance (at least one).
        Raises: ValueError for a slot without new ids; RuntimeError if the server does not answer as it should.
        """
        for slot, ids in prompts.items():
            if not ids:
                raise ValueError(f"slot {slot} was given no new ids: every turn reads something before it writes")
            self._history[slot] += ids
            self.tokens_read += len(ids)
        named = [(f"{self._names[slot]}/{self._turns[slot]}", self._history[slot]) for slot in prompts]
        groups = self.server.sample_groups(
            self.adapter, named, [1] * len(named), self.sampling, self._end_of_turn_id, seed=self.seed
        )
        found = {slot: sampled for slot, (sampled,) in zip(prompts, groups, strict=True)}
        for slot, sampled in found.items():
            self._history[slot] += sampled.ids
            self._turns[slot] += 1
            self.tokens_sampled += len(sampled.ids)
        return found
