"""Decoding for architectures that the kept cache does not serve, and which those are."""

import contextlib
import logging
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lit_rft.models.backbone import causal_lm, final_hidden_states, keeps_windows_to_itself, output_logits
from lit_rft.models.layouts import common_ids, refused, same_but_for_rounding, similar_lengths
from lit_rft.rollout.decoder import Decoder

logger = logging.getLogger(__name__)

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


class RereadingDecoder(Decoder):
    """A decoder that reads everything anew for each token, as the model itself does it: right, and slow."""

    cache: Histories  # type: ignore[assignment]

    def __init__(self, model: nn.Module, num_slots: int, end_of_turn_id: int, **settings: Any) -> None:
        super().__init__(model, num_slots, end_of_turn_id, **settings)
        self.cache = Histories(num_slots)

    @contextlib.contextmanager
    def ready(self) -> Iterator[None]:
        with self.acting():
            yield

    def _forward(self, slots: Sequence[int], new_ids: list[list[int]]) -> Tensor:
        for slot, ids in zip(slots, new_ids, strict=True):
            self.cache.ids[slot] += ids
        told = {slot: self.cache.ids[slot] for slot in slots}
        rows: dict[int, Tensor] = {}
        for group in similar_lengths({slot: len(ids) for slot, ids in told.items()}, self.max_prefill_tokens):
            logits = plain_logits(self.model, [told[slot] for slot in group], self.end_of_turn_id)
            rows.update(zip(group, logits, strict=True))
            self.tokens_read += sum(len(told[slot]) for slot in group)
        return torch.stack([rows[slot] for slot in slots])


def plain_logits(model: nn.Module, histories: Sequence[Sequence[int]], pad_id: int) -> Tensor:
    """Logits after the last token of each history, [B, V], by the model as it is."""
    device = next(model.parameters()).device
    width = max(len(ids) for ids in histories)
    # what stands behind a sequence is not seen by it, in whatever way a model looks back
    input_ids = torch.tensor([[*ids, *[pad_id] * (width - len(ids))] for ids in histories], device=device)
    hidden = final_hidden_states(model, input_ids, torch.arange(width, device=device).expand_as(input_ids))
    last = torch.tensor([len(ids) - 1 for ids in histories], device=device)
    return output_logits(model, hidden[torch.arange(len(histories), device=device), last])


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
    lm = causal_lm(model)
    if lm not in _serves:
        _serves[lm] = _serves_cache(Decoder(model, 2, end_of_turn_id, acting=acting))
    make = Decoder if _serves[lm] else RereadingDecoder
    return make(model, num_slots, end_of_turn_id, max_prefill_tokens=max_prefill_tokens, acting=acting)


@torch.no_grad()
def _serves_cache(decoder: Decoder) -> bool:
    """Whether a model with the cache says what it says without: tried on a few tokens."""
    model, ids = decoder.model, common_ids(decoder.model, 24)
    told, steps = {0: ids[:7], 1: ids[7:10]}, list(zip(ids[10:16], ids[16:22], strict=True))

    def with_cache() -> Tensor:
        with decoder.ready():
            decoder.read(told)
            return torch.cat([decoder.step([0, 1], step) for step in steps])

    training = model.training
    model.eval()
    try:
        with decoder.acting():
            histories = [
                [*told[slot], *(step[slot] for step in steps[: n + 1])] for n in range(len(steps)) for slot in (0, 1)
            ]
            expected = plain_logits(model, histories, decoder.end_of_turn_id)
        found = refused(with_cache)
    finally:
        model.train(training)
        torch.clear_autocast_cache()  # what was cast here has no gradient
    if isinstance(found, str):
        reason: str | None = found
    elif keeps_windows_to_itself(causal_lm(model).config.get_text_config()):
        reason = "its windows count places in a row"
    else:
        reason = None if same_but_for_rounding(model, found, expected) else "with the cache it says something else"
    if reason:
        name = type(causal_lm(model)).__name__
        logger.warning("%s reads everything anew for each token that it samples, which is slow: %s", name, reason)
    return not reason
