"""Decoding without a KV cache, for architectures that do not support it, and the check whether they do."""

import contextlib
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lit_rft.generation.decoder import Decoder, ReadOut
from lit_rft.generation.openings import Share
from lit_rft.models.accel import is_on
from lit_rft.models.accel.probing import common_ids, difference, tried_once
from lit_rft.models.backbone import output_logits
from lit_rft.models.forward import separate_hidden_states

# model -> whether it supports the KV cache
_supported: "weakref.WeakKeyDictionary[nn.Module, bool]" = weakref.WeakKeyDictionary()


class Histories:
    """The token ids of each slot, in place of a cache."""

    def __init__(self, num_slots: int) -> None:
        self.ids: list[list[int]] = [[] for _ in range(num_slots)]

    def arrange(self, slots: Sequence[int]) -> None:
        """Do nothing: the order of slots does not matter."""

    def copy_prefix(self, source: int, targets: Sequence[int], length: int) -> None:
        """Copy the first tokens of a slot to others."""
        for slot in targets:
            self.ids[slot] = self.ids[source][:length]

    def clear(self, slot: int) -> None:
        """Clear a slot."""
        self.ids[slot] = []


class RecomputeDecoder(Decoder):
    """A decoder that recomputes the full prefix at every token with the default implementation: correct, but slow."""

    cache: Histories  # type: ignore[assignment]

    def __init__(self, model: nn.Module, num_slots: int, end_of_turn_id: int, **settings: Any) -> None:
        super().__init__(model, num_slots, end_of_turn_id, **settings)
        self.cache, self.graphs = Histories(num_slots), None

    @contextlib.contextmanager
    def ready(self) -> Iterator[None]:
        with self.acting():
            yield

    @property
    def reads_ahead(self) -> bool:
        return False

    def _shares(self, new_ids: dict[int, list[int]]) -> dict[int, Share]:
        return {}  # all is read again at every token

    def _forward(self, slots: Sequence[int], new_ids: list[list[int]]) -> Tensor:
        for slot, ids in zip(slots, new_ids, strict=True):
            self.cache.ids[slot] += ids
        prompts = [self.cache.ids[slot] for slot in slots]
        self.tokens_read += sum(map(len, prompts))
        return plain_logits(self.model, prompts, self.max_prefill_tokens, self.read_out)


def plain_logits(
    model: nn.Module, histories: Sequence[Sequence[int]], max_tokens: int, read_out: ReadOut = output_logits
) -> Tensor:
    """Compute the logits after the last token of each history, [B, V], with the default implementation."""
    device = next(model.parameters()).device
    hidden = separate_hidden_states(model, [torch.tensor(ids, device=device) for ids in histories], max_tokens)
    return read_out(model, torch.stack([states[-1] for states in hidden]))


def make_decoder(
    model: nn.Module,
    num_slots: int,
    end_of_turn_id: int,
    *,
    max_prefill_tokens: int = 8192,
    acting: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
    read_out: ReadOut = output_logits,
) -> Decoder:
    """Make the fastest decoder that a model supports; the arguments are those of `Decoder`.

    Support is checked once per model, with a warning if it falls back to `RecomputeDecoder`.
    """
    warning = "%s recomputes the full prefix at every sampled token (no KV cache), which is slow: %s"
    supported = is_on(model, "kv_cache") and tried_once(
        _supported, model, lambda: _cache_difference(Decoder(model, 2, end_of_turn_id, acting=acting)), warning
    )
    make = Decoder if supported else RecomputeDecoder
    return make(
        model, num_slots, end_of_turn_id, max_prefill_tokens=max_prefill_tokens, acting=acting, read_out=read_out
    )


def _cache_difference(decoder: Decoder) -> str | None:
    """Return the difference between outputs with and without the cache on a few tokens, if any."""
    model, ids = decoder.model, common_ids(decoder.model, 24)
    prompts = {0: ids[:7], 1: ids[7:11]}  # prefilled in one pass, with padding
    steps = list(zip(ids[11:17], ids[17:23], strict=True))
    histories = [
        [*prompts[slot], *(step[slot] for step in steps[:n])] for n in range(1, 1 + len(steps)) for slot in (0, 1)
    ]

    def without_cache() -> Tensor:
        with decoder.acting():
            return plain_logits(model, histories, decoder.max_prefill_tokens)

    def with_cache() -> Tensor:
        with decoder.ready():
            decoder.read(prompts)
            return torch.cat([decoder.step([0, 1], step) for step in steps])

    return difference(model, without_cache, with_cache)
