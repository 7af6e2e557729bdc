"""A key-value cache with one slot a conversation, kept over all its turns and written in place."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin


class _Plan:
    """Where the next forward pass writes and reads; shared by all layers."""

    rows: Tensor  # [B] slots
    columns: Tensor  # [B, T] positions of the new tokens
    width: int  # keys to read
    whole: bool  # rows are slots 0..B-1 in order: reading needs no copy


class _SlotLayer(CacheLayerMixin):
    """Keys and values of one layer, [slots, heads, capacity, head_dim]."""

    is_sliding = False  # a sliding layer keeps its whole past; the mask does the sliding

    def __init__(self, plan: _Plan, num_slots: int) -> None:
        super().__init__()
        self.plan, self.num_slots = plan, num_slots

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        shape = (self.num_slots, key_states.shape[1], 0)
        self.keys = key_states.new_zeros(*shape, key_states.shape[-1])
        self.values = value_states.new_zeros(*shape, value_states.shape[-1])
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None and self.values is not None
        self.keys = self._write(self.keys, key_states)
        self.values = self._write(self.values, value_states)
        return self._read(self.keys), self._read(self.values)

    def _write(self, store: Tensor, new: Tensor) -> Tensor:
        plan = self.plan
        if store.shape[2] < plan.width:
            capacity = max(64, 1 << (plan.width - 1).bit_length())
            grown = store.new_zeros(store.shape[0], store.shape[1], capacity, store.shape[3])
            grown[:, :, : store.shape[2]] = store
            store = grown
        # new is [B, H, T, D]; advanced indices move in front of the sliced head dimension: [B, T, H, D]
        store[plan.rows[:, None], :, plan.columns] = new.transpose(1, 2).to(store.dtype)
        return store

    def _read(self, store: Tensor) -> Tensor:
        part = store[: len(self.plan.rows)] if self.plan.whole else store[self.plan.rows]
        return part[:, :, : self.plan.width]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.plan.width, 0

    def get_seq_length(self) -> int:
        return self.plan.width if self.is_initialized else 0

    def get_max_length(self) -> int:
        return -1


class SlotCache(Cache):
    """A cache whose rows are slots of different lengths without holes.

    New tokens of a slot are written behind its old ones; tokens of padding are overwritten by the next real ones and
    never seen, because a query sees no position behind its own.

    Args:
        num_layers: of the model.
        num_slots: conversations that can be kept at the same time.
    """

    def __init__(self, num_layers: int, num_slots: int) -> None:
        self._plan = _Plan()
        super().__init__(layers=[_SlotLayer(self._plan, num_slots) for _ in range(num_layers)])
        self.lengths = [0] * num_slots

    def prepare(self, rows: Sequence[int], new_tokens: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Plan a forward pass that appends `new_tokens` (padding included) to each of `rows`.

        Returns: position ids [B, T], and which keys each query sees, bool [B, T, S].
        """
        plan = self._plan
        starts = torch.tensor([self.lengths[row] for row in rows], device=device)
        plan.rows = torch.tensor(list(rows), device=device)
        plan.columns = starts[:, None] + torch.arange(new_tokens, device=device)
        plan.width = max(self.lengths[row] for row in rows) + new_tokens
        plan.whole = list(rows) == list(range(len(rows)))
        visible = torch.arange(plan.width, device=device) <= plan.columns[:, :, None]
        return plan.columns, visible

    def commit(self, rows: Sequence[int], counts: Sequence[int]) -> None:
        """Count the real tokens of the pass that has just been made."""
        for row, count in zip(rows, counts, strict=True):
            self.lengths[row] += count

    def clear(self, row: int) -> None:
        """Forget a slot; its memory is used again."""
        self.lengths[row] = 0
