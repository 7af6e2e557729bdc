"""Batched sampling of the next utterances of conversations, with a KV cache kept between turns."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from lit_rft.generation.choices import Constraints, TokenTrie
from lit_rft.generation.decoder import ReadOut
from lit_rft.generation.lookup import Lookup, draft_length
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
from lit_rft.models.accel import is_on
from lit_rft.models.backbone import model_end_ids, output_logits


class Conversations(Protocol):
    """A sampler of conversations, turn by turn: `ConversationGenerator` or `ServedConversations`."""

    sampling: SamplingSettings
    tokens_sampled: int

    @property
    def tokens_read(self) -> int: ...
    def open(self, name: str) -> int: ...
    def close(self, slot: int) -> None: ...
    def forget(self, slot: int) -> None: ...
    def sample(
        self, prompts: Mapping[int, Sequence[int]], choices: Mapping[int, TokenTrie] | None = None
    ) -> dict[int, Completion]: ...


@dataclass
class _Conversation:
    """The state of a slot between turns."""

    random: RandomStream
    pending: list[int] = field(default_factory=list)  # sampled but not yet in the cache
    lookup: Lookup = field(default_factory=Lookup)


class ConversationGenerator:
    """Sample the utterances of conversations whose keys and values stay in the cache from turn to turn.

    Each conversation has its own random generator, seeded by `seed` and its name: its samples do not depend on the
    other conversations in the batch (up to rounding). Close all conversations before the weights change: their keys and
    values, which new ones may share, are of the old weights.

    Args:
        model: a causal language model, with or without adapters; the caller switches it to evaluation mode.
        end_ids: tokens that end an utterance, the template's first (`ChatFormat.end_ids`); the model's own
            (`generation_config.eos_token_id`) are added.
        sampling: temperature, limits and stop criteria.
        num_slots: maximum number of conversations at the same time.
        seed: of all random numbers.
        max_prefill_tokens: maximum tokens per prefill pass, padding included.
        decode: token ids to text, for stop strings.
        acting: makes the context of forward passes, see `Decoder`.
        read_out: computes logits from hidden states, see `Decoder`.
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
        read_out: ReadOut = output_logits,
    ) -> None:
        self.sampling, self.seed = sampling, seed
        end_ids = as_ids(end_ids)
        self._ending = StopCriteria([*end_ids, *model_end_ids(model)], sampling, decode)
        self._decoder = make_decoder(
            model, num_slots, end_ids[0], max_prefill_tokens=max_prefill_tokens, acting=acting, read_out=read_out
        )
        self._drafts = self._decoder.reads_ahead and is_on(model, "lookup_drafts")
        self._conversations: Slots[_Conversation] = Slots(num_slots)
        self.tokens_sampled = 0
        self.passes = 0  # of decoding so far, without those that read prompts

    @property
    def tokens_read(self) -> int:
        """Total number of tokens read, without padding."""
        return self._decoder.tokens_read

    def open(self, name: str) -> int:
        """Start a conversation and return its slot.

        Raises:
            RuntimeError: All slots are taken.
        """
        return self._conversations.open(_Conversation(RandomStream(self.seed, name)))

    def close(self, slot: int) -> None:
        """End a conversation and free its slot."""
        self._conversations.close(slot)
        self._decoder.cache.clear(slot)

    def forget(self, slot: int) -> None:
        """Clear a conversation's history, after truncation; its random generator keeps its state."""
        conversation = self._conversations[slot]
        conversation.pending, conversation.lookup = [], Lookup()
        self._decoder.cache.clear(slot)

    @torch.no_grad()
    def sample(
        self, prompts: Mapping[int, Sequence[int]], choices: Mapping[int, TokenTrie] | None = None
    ) -> dict[int, Completion]:
        """Read each slot's new prompt ids and sample its next utterance.

        Args:
            prompts: slot -> new ids since its last utterance (at least one).
            choices: slot -> utterances among which it chooses; other slots are free.
        """
        constraints = Constraints(choices or {}, self.sampling.max_new_tokens)
        check_new_ids(prompts)
        with self._decoder.ready():
            return self._sample(prompts, constraints)

    def _sample(self, prompts: Mapping[int, Sequence[int]], constraints: Constraints) -> dict[int, Completion]:
        new_ids = {slot: [*self._conversations[slot].pending, *ids] for slot, ids in prompts.items()}
        for slot, ids in prompts.items():
            self._remember(slot, ids)
        first = self._decoder.read(new_ids)
        sampled: dict[int, Completion] = {slot: Completion([], [], False) for slot in prompts}
        active = list(first)
        ended = self._sample_next(active, torch.stack(list(first.values())), sampled, constraints)
        while len(ended) < len(active):
            for slot in ended:
                swap_remove(active, slot)
            ended = self._continue(active, sampled, constraints)
        return sampled

    def _sample_next(
        self, slots: Sequence[int], logits: Tensor, sampled: dict[int, Completion], constraints: Constraints
    ) -> list[int]:
        """Sample a token in each slot from its logits [B, V]; return the slots whose utterances have ended."""
        randoms = [self._conversations[slot].random for slot in slots]
        tokens, log_probs = sample_tokens(constraints.mask(logits, list(slots)), self.sampling, randoms)
        self.tokens_sampled += len(slots)
        ended = []
        for slot, token, log_prob in zip(slots, tokens, log_probs, strict=True):
            self._conversations[slot].pending = [token]
            self._remember(slot, [token])
            constraints.advance(slot, token)
            if self._ending.append(sampled, slot, token, log_prob):
                ended.append(slot)
        return ended

    def _continue(self, slots: Sequence[int], sampled: dict[int, Completion], constraints: Constraints) -> list[int]:
        """Sample at least one more token in each slot; return the slots whose utterances have ended."""
        self.passes += 1
        drafts = self._draft(slots, sampled)
        if not any(drafts.values()):
            logits = self._decoder.step(slots, [self._conversations[slot].pending[0] for slot in slots])
            return self._sample_next(slots, logits, sampled, constraints)
        tokens = [self._conversations[slot].pending + drafts[slot] for slot in slots]
        ahead = dict(zip(slots, self._decoder.read_ahead(slots, tokens), strict=True))
        agree, kept, ended = list(slots), dict.fromkeys(slots, 0), []
        while agree:  # a slot's next logits are valid as long as its samples are those of the draft
            place = kept[agree[0]]
            ended += self._sample_next(agree, torch.stack([ahead[slot][place] for slot in agree]), sampled, constraints)
            kept |= dict.fromkeys(agree, place + 1)
            agree = [
                slot for slot in agree
                if slot not in ended and drafts[slot][place : place + 1] == self._conversations[slot].pending
            ]  # fmt: skip
        self._decoder.keep(slots, [kept[slot] for slot in slots])
        return ended

    def _draft(self, slots: Sequence[int], sampled: Mapping[int, Completion]) -> dict[int, list[int]]:
        """Return the draft of each slot, no longer than its utterance may become."""
        length = draft_length(len(slots)) if self._drafts else 0
        most = {slot: min(length, self.sampling.max_new_tokens - len(sampled[slot].ids) - 1) for slot in slots}
        return {slot: self._conversations[slot].lookup.draft(most[slot]) if most[slot] > 0 else [] for slot in slots}

    def _remember(self, slot: int, ids: Sequence[int]) -> None:
        if self._drafts:
            self._conversations[slot].lookup.extend(ids)
