"""Sampling the next utterance of many conversations at once, each with its kept cache."""

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lit_rft.models.attention import attention_masks
from lit_rft.models.backbone import causal_lm, final_hidden_states, output_logits
from lit_rft.rollout.cache import SlotCache


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
        self.model, self.end_of_turn_id, self.sampling, self.seed = model, end_of_turn_id, sampling, seed
        self.max_prefill_tokens, self._acting = max_prefill_tokens, acting
        self._config = causal_lm(model).config.get_text_config()
        self._cache = SlotCache(self._config.num_hidden_layers, num_slots)
        self._conversations: dict[int, _Conversation] = {}
        self._free = list(range(num_slots))
        self.tokens_read = 0  # what the model has read so far, without padding
        self.tokens_sampled = 0

    def open(self, name: str) -> int:
        """Begin a conversation; returns its slot.

        Raises: RuntimeError if all slots are taken.
        """
        if not self._free:
            raise RuntimeError(f"all {len(self._conversations)} slots are taken: close a conversation first")
        slot = self._free.pop(0)
        digest = hashlib.sha256(f"{self.seed}/{name}".encode()).digest()
        random = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
        self._conversations[slot] = _Conversation(random)
        return slot

    def close(self, slot: int) -> None:
        """End a conversation and free its slot."""
        del self._conversations[slot]
        self._cache.clear(slot)
        self._free.append(slot)
        self._free.sort()

    def forget(self, slot: int) -> None:
        """Drop what a conversation has read; its random numbers go on. For histories that were cut."""
        self._conversations[slot].pending = []
        self._cache.clear(slot)

    @torch.no_grad()
    def sample(self, prompts: Mapping[int, Sequence[int]]) -> dict[int, Sampled]:
        """Read each slot's new prompt ids and sample its next utterance.

        Args:
            prompts: slot -> ids that are new since its last utterance (at least one).
        """
        for slot, ids in prompts.items():
            if not ids:
                raise ValueError(f"slot {slot} was given no new ids: every turn reads something before it writes")
        with _sees_masks(self.model), self._acting():
            return self._sample(prompts)

    def _sample(self, prompts: Mapping[int, Sequence[int]]) -> dict[int, Sampled]:
        logits = self._read({slot: [*self._conversations[slot].pending, *ids] for slot, ids in prompts.items()})
        sampled: dict[int, Sampled] = {slot: Sampled([], [], False) for slot in prompts}
        active = list(prompts)
        for _ in range(self.sampling.max_new_tokens):
            tokens, log_probs = self._draw(logits, active)
            going = []
            for row, slot in enumerate(active):
                ids, scores, _ = sampled[slot]
                ids.append(tokens[row])
                scores.append(log_probs[row])
                self._conversations[slot].pending = [tokens[row]]
                if tokens[row] == self.end_of_turn_id:
                    sampled[slot] = Sampled(ids, scores, True)
                elif len(ids) < self.sampling.max_new_tokens:
                    going.append(slot)
            self.tokens_sampled += len(active)
            active = going
            if not active:
                break
            logits = self._forward(active, [self._conversations[slot].pending for slot in active])
        return sampled

    def _read(self, new_ids: dict[int, list[int]]) -> Tensor:
        """Prefill in groups of similar length; returns the next-token logits in the order of the slots, [B, V]."""
        groups: list[list[int]] = []
        for slot in sorted(new_ids, key=lambda s: len(new_ids[s])):
            group = groups[-1] if groups else None
            length = len(new_ids[slot])
            if group and length <= 2 * len(new_ids[group[0]]) and length * (len(group) + 1) <= self.max_prefill_tokens:
                group.append(slot)
            else:
                groups.append([slot])
        logits: dict[int, Tensor] = {}
        for group in groups:
            rows = sorted(group)
            logits.update(zip(rows, self._forward(rows, [new_ids[slot] for slot in rows]), strict=True))
        return torch.stack([logits[slot] for slot in new_ids])

    def _forward(self, slots: list[int], new_ids: list[list[int]]) -> Tensor:
        """One pass over the slots' new tokens; logits after the last real one of each, [B, V]."""
        device = next(self.model.parameters()).device
        counts = [len(ids) for ids in new_ids]
        width = max(counts)
        input_ids = torch.tensor([ids + [self.end_of_turn_id] * (width - len(ids)) for ids in new_ids], device=device)
        position_ids, visible = self._cache.prepare(slots, width, device)
        dtype = causal_lm(self.model).dtype
        keys = torch.arange(visible.shape[-1], device=device)
        masks = attention_masks(visible, position_ids, keys, self._config, dtype)
        hidden = final_hidden_states(
            self.model, input_ids, position_ids, attention_mask=masks, cache=self._cache  # type: ignore[arg-type]
        )  # fmt: skip
        self._cache.commit(slots, counts)
        self.tokens_read += sum(counts)
        last = torch.tensor(counts, device=device) - 1
        return output_logits(self.model, hidden[torch.arange(len(slots), device=device), last])

    def _draw(self, logits: Tensor, slots: list[int]) -> tuple[list[int], list[float]]:
        """A token for each slot and its log-probability."""
        settings = self.sampling
        log_probs = torch.log_softmax(logits / (settings.temperature or 1.0), dim=-1)
        if settings.temperature == 0:
            tokens = log_probs.argmax(-1)
        else:
            probs = truncate_distribution(log_probs.exp(), settings.top_k, settings.top_p)
            randoms = [self._conversations[slot].random for slot in slots]
            uniform = torch.stack([torch.rand((), generator=r, dtype=torch.float64) for r in randoms])
            tokens = inverse_cdf(probs, uniform.to(probs.device))
        return tokens.tolist(), log_probs.gather(-1, tokens[:, None]).squeeze(-1).tolist()


@contextlib.contextmanager
def _sees_masks(model: nn.Module) -> Iterator[None]:
    """Let attention take additive masks: flash attention and the like, meant for training, give way to sdpa."""
    lm = causal_lm(model)
    implementation = lm.config._attn_implementation
    if implementation in ("sdpa", "eager"):
        yield
        return
    lm.set_attn_implementation("sdpa")
    try:
        yield
    finally:
        lm.set_attn_implementation(implementation)


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
