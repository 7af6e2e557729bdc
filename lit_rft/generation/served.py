"""Conversations whose utterances a generation server samples."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from lit_rft.generation.sampling import Completion, SamplingSettings, as_ids
from lit_rft.generation.slots import Slots, check_new_ids
from lit_rft.generation.vllm import VllmServer


@dataclass
class _Conversation:
    """One slot's state between turns."""

    name: str
    turn: int = 0
    history: list[int] = field(default_factory=list)


class ServedConversations:
    """As `ConversationGenerator`, by a server: a turn is a request with the whole conversation, of whose beginning the
    server keeps keys and values (vLLM's prefix cache).

    Args:
        server: samples.
        adapter: the name by which it knows the policy.
        end_ids: all tokens that end an utterance, the model's own included (`ChatFormat.end_ids`).
        sampling: how to sample.
        num_slots: conversations at the same time.
        seed: of all random numbers.
    """

    def __init__(
        self,
        server: VllmServer,
        adapter: str,
        end_ids: int | Sequence[int],
        sampling: SamplingSettings,
        *,
        num_slots: int,
        seed: int = 0,
    ) -> None:
        self.server, self.adapter, self.sampling, self.seed = server, adapter, sampling, seed
        self._end_ids = as_ids(end_ids)
        self._conversations: Slots[_Conversation] = Slots(num_slots)
        self.tokens_read = self.tokens_sampled = 0

    def open(self, name: str) -> int:
        """Begin a conversation; returns its slot.

        Raises: RuntimeError if all slots are taken.
        """
        return self._conversations.open(_Conversation(name))

    def close(self, slot: int) -> None:
        """End a conversation and free its slot."""
        self._conversations.close(slot)

    def forget(self, slot: int) -> None:
        """Drop what a conversation has read; its random numbers go on."""
        self._conversations[slot].history = []

    def sample(self, prompts: Mapping[int, Sequence[int]]) -> dict[int, Completion]:
        """Read each slot's new prompt ids and sample its next utterance.

        Args:
            prompts: slot -> ids that are new since its last utterance (at least one).
        Raises: ValueError for a slot without new ids; RuntimeError if the server does not answer as it should.
        """
        check_new_ids(prompts)
        asked = {slot: self._conversations[slot] for slot in prompts}
        for slot, one in asked.items():
            one.history += prompts[slot]
            self.tokens_read += len(prompts[slot])
        named = [(f"{one.name}/{one.turn}", one.history) for one in asked.values()]
        groups = self.server.sample_groups(
            self.adapter, named, [1] * len(named), self.sampling, self._end_ids, seed=self.seed
        )
        found = {slot: sampled for slot, (sampled,) in zip(asked, groups, strict=True)}
        for slot, sampled in found.items():
            asked[slot].history += sampled.ids
            asked[slot].turn += 1
            self.tokens_sampled += len(sampled.ids)
        return found
