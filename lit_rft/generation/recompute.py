"""Decoding for architectures that the kept cache does not serve, and which those are."""

import contextlib
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lit_rft.generation.decoder import Decoder
from lit_rft.models.accel import is_on
from lit_rft.models.accel.probing import common_ids, difference, tried_once
from lit_rft.models.backbone import output_logits
from lit_rft.models.forward import separate_hidden_states

_serves: "weakref.WeakKeyDictionary[nn.Module, bool]" = weakref.WeakKeyDictionary()  # model -> what was found


class Histories:
    """What slots have read, in place of a cache."""

    def __init__(self, num_slots: int) -> None:
        self.ids: list[list[int]] = [[] for _ in range(num_slots)]

    def arrange(self, slots: Sequence[int]) -> None:
        """Nothing has to lie side by side."""

    def copy_prefix(self, source: int, targets: Sequence[int], length: int) -> None:
        """Let slots begin with the first tokens of another one."""
        for slot in targets:
            self.ids[slot] = self.ids[source][:length]

    def clear(self, slot: int) -> None:
        """Forget a slot."""
        self.ids[slot] = []


class RecomputeDecoder(Decoder):
    """A decoder that reads everything anew for each token, as the model itself does it: right, and slow."""

    cache: Histories  # type: ignore[assignment]

    def __init__(self, model: nn.Module, num_slots: int, end_of_turn_id: int, **settings: Any) -> None:
        super().__init__(model, num_slots, end_of_turn_id, **settings)
        self.cache, self.graphs = Histories(num_slots), None

    @contextlib.contextmanager
    def ready(self) -> Iterator[None]:
        with self.acting():
            yield

    def _forward(self, slots: Sequence[int], new_ids: list[list[int]]) -> Tensor:
        for slot, ids in zip(slots, new_ids, strict=True):
            self.cache.ids[slot] += ids
        told = [self.cache.ids[slot] for slot in slots]
        self.tokens_read += sum(map(len, told))
        return plain_logits(self.model, told, self.max_prefill_tokens)


def plain_logits(model: nn.Module, histories: Sequence[Sequence[int]], max_tokens: int) -> Tensor:
    """Logits after the last token of each history, [B, V], by the model as it is."""
    device = next(model.parameters()).device
    hidden = separate_hidden_states(model, [torch.tensor(ids, device=device) for ids in histories], max_tokens)
    return output_logits(model, torch.stack([states[-1] for states in hidden]))


def make_decoder(
    model: nn.Module,
    num_slots: int,
    end_of_turn_id: int,
    *,
    max_prefill_tokens: int = 8192,
    acting: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
) -> Decoder:
    """The decoder that serves a model; the arguments are those of `Decoder`. Tried once a model, with a warning if it
    is the slow one."""
    warning = "%s reads everything anew for each token that it samples, which is slow: %s"
    served = is_on(model, "kv_cache") and tried_once(
        _serves, model, lambda: _cache_difference(Decoder(model, 2, end_of_turn_id, acting=acting)), warning
    )
    make = Decoder if served else RecomputeDecoder
    return make(model, num_slots, end_of_turn_id, max_prefill_tokens=max_prefill_tokens, acting=acting)


def _cache_difference(decoder: Decoder) -> str | None:
    """Why a model with the cache does not say what it says without, if so: tried on a few tokens."""
    model, ids = decoder.model, common_ids(decoder.model, 24)
    told = {0: ids[:7], 1: ids[7:11]}  # read in one pass, with padding
    steps = list(zip(ids[11:17], ids[17:23], strict=True))
    histories = [[*told[slot], *(step[slot] for step in steps[: n + 1])] for n in range(len(steps)) for slot in (0, 1)]

    def without_cache() -> Tensor:
        with decoder.acting():
            return plain_logits(model, histories, decoder.max_prefill_tokens)

    def with_cache() -> Tensor:
        with decoder.ready():
            decoder.read(told)
            return torch.cat([decoder.step([0, 1], step) for step in steps])

    return difference(model, without_cache, with_cache)
