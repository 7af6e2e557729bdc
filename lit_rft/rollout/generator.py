"""Sampling the next utterance of many conversations at once, each with its kept cache."""

import contextlib
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lit_rft.rollout.decoder import Decoder


@dataclass(frozen=True)
class SamplingSettings:
    """How utterances are sampled.

    Args:
        max_new_tokens: at most so many tokens an utterance, its end-of-turn token included.
        temperature: > 0, or 0 for the most likely token.
        top_k: sample among the k most likely tokens only; 0 for all.
        top_p: sample among the most likely tokens that hold this much probability together, in (0, 1].
    """

    max_new_tokens: int = 32
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be >= 1, got {self.max_new_tokens}")
        if self.temperature < 0:
            raise ValueError(f"temperature must be >= 0, got {self.temperature}")
        if self.top_k < 0:
            raise ValueError(f"top_k must be >= 0, got {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1], got {self.top_p}")


class Sampled(NamedTuple):
    """One sampled utterance."""

    ids: list[int]  # with the end-of-turn token, if it came in time
    log_probs: list[float]  # of each id under the policy at the temperature (at 1 when greedy), before top-k and top-p
    finished: bool  # whether the end-of-turn token came


@dataclass
class _Conversation:
    """One slot's state between turns."""

    random: torch.Generator
    pending: list[int] = field(default_factory=list)  # sampled but not yet read by the model


class ConversationGenerator:
    """Samples utterances for conversations whose keys and values stay in the cache from turn to turn.

    Each conversation draws from a random generator of its own, seeded by `seed` and its name: what it
    samples does not depend on which others are in the batch, but for rounding.

    Args:
        model: a causal language model, with or without adapters; switched to evaluation by the caller.
        end_of_turn_id: the token that ends an utterance.
        sampling: how to sample.
        num_slots: conversations at the same time.
        seed: of all random numbers.
        max_prefill_tokens: at most so many tokens (with padding) are read in one pass.
        acting: makes a context in which the model acts: with another adapter, or with a folded one.
    """

    def __init__(
        self,
        model: nn.Module,
        end_of_turn_id: int,
        sampling: SamplingSettings,
        *,
        num_slots: int,
        seed: int = 0,
        max_prefill_tokens: int = 8192,
        acting: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
    ) -> None:
        self.end_of_turn_id, self.sampling, self.seed = end_of_turn_id, sampling, seed
        self._decoder = Decoder(model, num_slots, end_of_turn_id, max_prefill_tokens=max_prefill_tokens, acting=acting)
        self._conversations: dict[int, _Conversation] = {}
        self._free = list(range(num_slots))
        self.tokens_sampled = 0

    @property
    def tokens_read(self) -> int:
        """What the model has read so far, without padding."""
        return self._decoder.tokens_read

    def open(self, name: str) -> int:
        """Begin a conversation; returns its slot.

        Raises: RuntimeError if all slots are taken.
        """
        if not self._free:
            raise RuntimeError(f"all {len(self._conversations)} slots are taken: close a conversation first")
        slot = self._free.pop(0)
        self._conversations[slot] = _Conversation(named_generator(self.seed, name))
        return slot

    def close(self, slot: int) -> None:
        """End a conversation and free its slot."""
        del self._conversations[slot]
        self._decoder.cache.clear(slot)
        self._free.append(slot)
        self._free.sort()

    def forget(self, slot: int) -> None:
        """Drop what a conversation has read; its random numbers go on. For histories that were cut."""
        self._conversations[slot].pending = []
        self._decoder.cache.clear(slot)

    @torch.no_grad()
    def sample(self, prompts: Mapping[int, Sequence[int]]) -> dict[int, Sampled]:
        """Read each slot's new prompt ids and sample its next utterance.

        Args:
            prompts: slot -> ids that are new since its last utterance (at least one).
        """
        for slot, ids in prompts.items():
            if not ids:
                raise ValueError(f"slot {slot} was given no new ids: every turn reads something before it writes")
        with self._decoder.ready():
            return self._sample(prompts)

    def _sample(self, prompts: Mapping[int, Sequence[int]]) -> dict[int, Sampled]:
        told = {slot: [*self._conversations[slot].pending, *ids] for slot, ids in prompts.items()}
        first = self._decoder.read(told)
        sampled: dict[int, Sampled] = {slot: Sampled([], [], False) for slot in prompts}
        active = list(first)
        logits = torch.stack(list(first.values()))
        while active:
            randoms = [self._conversations[slot].random for slot in active]
            tokens, log_probs = draw(logits, self.sampling, randoms)
            self.tokens_sampled += len(active)
            for slot, token, log_prob in zip(list(active), tokens, log_probs, strict=True):
                self._conversations[slot].pending = [token]
                ended = append(sampled, slot, token, log_prob, self.end_of_turn_id, self.sampling.max_new_tokens)
                if ended:
                    drop(active, slot)
            if active:
                logits = self._decoder.step(active, [self._conversations[slot].pending[0] for slot in active])
        return sampled


def named_generator(seed: int, name: str) -> torch.Generator:
    """Random numbers of one conversation, whoever else draws beside it."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def draw(
    logits: Tensor, settings: SamplingSettings, randoms: Sequence[torch.Generator]
) -> tuple[list[int], list[float]]:
    """A token for each row [B, V], with random numbers of its own, and its log-probability."""
    log_probs = torch.log_softmax(logits / (settings.temperature or 1.0), dim=-1)
    if settings.temperature == 0:
        tokens = log_probs.argmax(-1)
    else:
        probs = truncate_distribution(log_probs.exp(), settings.top_k, settings.top_p)
        uniform = torch.stack([torch.rand((), generator=r, dtype=torch.float64) for r in randoms])
        tokens = inverse_cdf(probs, uniform.to(probs.device))
    return tokens.tolist(), log_probs.gather(-1, tokens[:, None]).squeeze(-1).tolist()


def append(
    sampled: dict[int, Sampled], slot: int, token: int, log_prob: float, end_of_turn_id: int, max_new_tokens: int
) -> bool:
    """Add a token to what a slot has said; returns whether that was the last one."""
    ids, log_probs, _ = sampled[slot]
    ids.append(token)
    log_probs.append(log_prob)
    if token == end_of_turn_id:
        sampled[slot] = Sampled(ids, log_probs, True)
    return token == end_of_turn_id or len(ids) >= max_new_tokens


def drop(active: list[int], slot: int) -> None:
    """Take a slot out; the last one takes its place: no other row of the cache has to move."""
    place, last = active.index(slot), active.pop()
    if last != slot:
        active[place] = last


def truncate_distribution(probs: Tensor, top_k: int, top_p: float) -> Tensor:
    """Probabilities [B, V] with all but the top-k and the nucleus of mass top_p set to zero (not renormalised).

    The most likely token always stays; the nucleus is the smallest set of tokens whose mass reaches top_p."""
    if top_k == 0 and top_p == 1.0:
        return probs
    ordered, order = probs.sort(dim=-1, descending=True, stable=True)
    keep = ordered.cumsum(-1) - ordered < top_p
    if top_k:
        keep[:, top_k:] = False
    return torch.zeros_like(probs).scatter(-1, order, ordered * keep)


def inverse_cdf(probs: Tensor, uniform: Tensor) -> Tensor:
    """The token at which the cumulated mass [B, V] passes uniform * total, [B] in [0, 1); never one without mass."""
    cumulated = probs.double().cumsum(-1)
    target = uniform[:, None] * cumulated[:, -1:]
    token = torch.searchsorted(cumulated, target, right=True).squeeze(-1)
    # rounding may point behind the last token with mass
    last = (probs > 0).int().cumsum(-1).argmax(-1)
    return torch.minimum(token, last)
