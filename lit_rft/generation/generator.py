"""Sampling the next utterance of many conversations at once, each with its kept cache."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import nn

from lit_rft.generation.recompute import make_decoder
from lit_rft.generation.sampling import (
    Completion,
    RandomStream,
    SamplingSettings,
    StopCriteria,
    as_ids,
    sample_tokens,
    swap_remove,
)
from lit_rft.generation.slots import Slots, check_new_ids
from lit_rft.models.backbone import model_end_ids


class Conversations(Protocol):
    """What samples the utterances of conversations, turn by turn: `ConversationGenerator`, `ServedConversations`."""

    sampling: SamplingSettings
    tokens_sampled: int

    @property
    def tokens_read(self) -> int: ...
    def open(self, name: str) -> int: ...
    def close(self, slot: int) -> None: ...
    def forget(self, slot: int) -> None: ...
    def sample(self, prompts: Mapping[int, Sequence[int]]) -> dict[int, Completion]: ...


@dataclass
class _Conversation:
    """One slot's state between turns."""

    random: RandomStream
    pending: list[int] = field(default_factory=list)  # sampled but not yet read by the model


class ConversationGenerator:
    """Samples utterances for conversations whose keys and values stay in the cache from turn to turn.

    Each conversation draws from a random generator of its own, seeded by `seed` and its name: what it
    samples does not depend on which others are in the batch, but for rounding.

    Args:
        model: a causal language model, with or without adapters; switched to evaluation by the caller.
        end_ids: the tokens that end an utterance, the template's first (`ChatFormat.end_ids`); the model's own
            (`generation_config.eos_token_id`) end it, too.
        sampling: how to sample.
        num_slots: conversations at the same time.
        seed: of all random numbers.
        max_prefill_tokens: at most so many tokens (with padding) are read in one pass.
        decode: ids to text, for stop strings.
        acting: makes a context in which the model acts: with another adapter, or with a merged one.
    """

    def __init__(
        self,
        model: nn.Module,
        end_ids: int | Sequence[int],
        sampling: SamplingSettings,
        *,
        num_slots: int,
        seed: int = 0,
        max_prefill_tokens: int = 8192,
        decode: Callable[[list[int]], str] | None = None,
        acting: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
    ) -> None:
        self.sampling, self.seed = sampling, seed
        end_ids = as_ids(end_ids)
        self._ending = StopCriteria([*end_ids, *model_end_ids(model)], sampling, decode)
        self._decoder = make_decoder(model, num_slots, end_ids[0], max_prefill_tokens=max_prefill_tokens, acting=acting)
        self._conversations: Slots[_Conversation] = Slots(num_slots)
        self.tokens_sampled = 0

    @property
    def tokens_read(self) -> int:
        """What the model has read so far, without padding."""
        return self._decoder.tokens_read

    def open(self, name: str) -> int:
        """Begin a conversation; returns its slot.

        Raises: RuntimeError if all slots are taken.
        """
        return self._conversations.open(_Conversation(RandomStream(self.seed, name)))

    def close(self, slot: int) -> None:
        """End a conversation and free its slot."""
        self._conversations.close(slot)
        self._decoder.cache.clear(slot)

    def forget(self, slot: int) -> None:
        """Drop what a conversation has read; its random numbers go on. For histories that were cut."""
        self._conversations[slot].pending = []
        self._decoder.cache.clear(slot)

    @torch.no_grad()
    def sample(self, prompts: Mapping[int, Sequence[int]]) -> dict[int, Completion]:
        """Read each slot's new prompt ids and sample its next utterance.

        Args:
            prompts: slot -> ids that are new since its last utterance (at least one).
        """
        check_new_ids(prompts)
        with self._decoder.ready():
            return self._sample(prompts)

    def _sample(self, prompts: Mapping[int, Sequence[int]]) -> dict[int, Completion]:
        new_ids = {slot: [*self._conversations[slot].pending, *ids] for slot, ids in prompts.items()}
        first = self._decoder.read(new_ids)
        sampled: dict[int, Completion] = {slot: Completion([], [], False) for slot in prompts}
        active = list(first)
        logits = torch.stack(list(first.values()))
        while active:
            randoms = [self._conversations[slot].random for slot in active]
            tokens, log_probs = sample_tokens(logits, self.sampling, randoms)
            self.tokens_sampled += len(active)
            for slot, token, log_prob in zip(list(active), tokens, log_probs, strict=True):
                self._conversations[slot].pending = [token]
                if self._ending.append(sampled, slot, token, log_prob):
                    swap_remove(active, slot)
            if active:
                logits = self._decoder.step(active, [self._conversations[slot].pending[0] for slot in active])
        return sampled
