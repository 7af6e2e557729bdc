"""A KV cache with one slot per conversation, kept between turns and written in place."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

_STEP = 64  # tokens; a full store grows by this many, or by an eighth
_WIDE_STEP = 256  # the same with CUDA graphs: each capacity needs another one
_FEW = 4  # new tokens of a decoding step
_FULL = 0.5  # above this share a store is read in full: copying a part costs as much as its product


class _Plan:
    """Write and read positions of the next forward pass; shared by all layers."""

    rows: Tensor  # [B] rows of the store
    first: int | None  # rows are first, first + 1, ...: read without a copy
    columns: Tensor  # [B, T] positions of the new tokens
    width: int  # keys to read
    capacity: int = 0  # of the stores


class _SlotLayer(CacheLayerMixin):
    """Keys and values of one layer, [rows, heads, capacity, head_dim]."""

    is_sliding = False  # sliding layers keep all tokens; the mask does the sliding

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
        if store.shape[2] < plan.capacity:
            grown = store.new_zeros(store.shape[0], store.shape[1], plan.capacity, store.shape[3])
            grown[:, :, : store.shape[2]] = store
            store = grown
        # new is [B, H, T, D]; advanced indices move in front of the sliced head dimension: [B, T, H, D]
        store[plan.rows[:, None], :, plan.columns] = new.transpose(1, 2).to(store.dtype)
        return store

    def _read(self, store: Tensor) -> Tensor:
        first = self.plan.first
        part = store[self.plan.rows] if first is None else store[first : first + len(self.plan.rows)]
        return part[:, :, : self.plan.width]

    def swap(self, a: int, b: int, width: int) -> None:
        for store in (self.keys, self.values):
            if store is not None and self.is_initialized:
                kept = store[a, :, :width].clone()
                store[a, :, :width] = store[b, :, :width]
                store[b, :, :width] = kept

    def copy(self, source: int, targets: Sequence[int], width: int) -> None:
        for store in (self.keys, self.values):
            if store is not None and self.is_initialized:  # some models' last layers read those of others
                # a full row is a dense view of the memory that is written to, which torch refuses
                store[list(targets), :, :width] = store[source, :, :width].clone()

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.plan.width, 0

    def get_seq_length(self) -> int:
        return self.plan.width if self.is_initialized else 0

    def get_max_length(self) -> int:
        return -1


class SlotCache(Cache):
    """A KV cache whose slots have different lengths without holes.

    New tokens of a slot are written after its old ones; padding is overwritten by the next real tokens and never
    visible, because a query attends to no later position. Slots in consecutive rows are read without a copy: `arrange`
    moves them there.

    Args:
        num_layers: of the model.
        num_slots: maximum number of conversations at the same time.
    """

    def __init__(self, num_layers: int, num_slots: int) -> None:
        self._plan = _Plan()
        self._stores = [_SlotLayer(self._plan, num_slots) for _ in range(num_layers)]
        super().__init__(layers=list(self._stores))
        self.lengths = [0] * num_slots
        # what each slot has read first; empty if it is not known
        self.openings: list[list[int]] = [[] for _ in range(num_slots)]
        self._row_of = list(range(num_slots))
        self._slot_in = list(range(num_slots))

    def arrange(self, slots: Sequence[int]) -> None:
        """Move slots to the first rows, in this order."""
        for row, slot in enumerate(slots):
            self._exchange(row, self._row_of[slot])

    def _exchange(self, a: int, b: int) -> None:
        if a == b:
            return
        first, second = self._slot_in[a], self._slot_in[b]
        width = max(self.lengths[first], self.lengths[second])
        for store in self._stores if width else []:
            store.swap(a, b, width)
        self._slot_in[a], self._slot_in[b] = second, first
        self._row_of[first], self._row_of[second] = b, a

    def copy_prefix(self, source: int, targets: Sequence[int], length: int) -> None:
        """Copy the first tokens of a slot to the beginning of others."""
        for store in self._stores if targets else []:
            store.copy(self._row_of[source], [self._row_of[slot] for slot in targets], length)
        for slot in targets:
            self.lengths[slot], self.openings[slot] = length, self.openings[source][:length]

    def prepare(self, slots: Sequence[int], new_tokens: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Plan a forward pass that appends `new_tokens` (padding included) to each of `slots`.

        Returns:
            Position ids [B, T], and the visible keys of each query, bool [B, T, S].
        """
        plan = self._plan
        rows = [self._row_of[slot] for slot in slots]
        starts = torch.tensor([self.lengths[slot] for slot in slots], device=device)
        plan.rows = torch.tensor(rows, device=device)
        plan.first = rows[0] if rows == list(range(rows[0], rows[0] + len(rows))) else None
        plan.columns = starts[:, None] + torch.arange(new_tokens, device=device)
        plan.width = max(self.lengths[slot] for slot in slots) + new_tokens
        self._make_room(plan.width, _STEP)
        if device.type == "cuda":  # odd sizes are slower there, and each new size needs another kernel
            plan.width = min(-(-plan.width // _STEP) * _STEP, plan.capacity)
        if new_tokens <= _FEW and plan.width >= _FULL * plan.capacity:
            plan.width = plan.capacity  # reading a part of a store would copy it at every step
        visible = torch.arange(plan.width, device=device) <= plan.columns[:, :, None]
        return plan.columns, visible

    def _make_room(self, width: int, step: int) -> None:
        """Let stores with fewer columns than this grow on their next write."""
        plan = self._plan
        if width > plan.capacity:  # in small steps: doubling would waste gigabytes for long completions
            plan.capacity = -(-max(width, plan.capacity + max(step, plan.capacity // 8)) // step) * step

    def next_columns(self, rows: int) -> list[int]:
        """Return the next write position of each of the first rows, in use or not, after making room for it."""
        columns = [self.lengths[self._slot_in[row]] for row in range(rows)]
        self._make_room(max(columns) + 1, _WIDE_STEP)
        return columns

    def prepare_rows(self, columns: Tensor) -> Tensor:
        """Plan a pass that appends one token to each of the first rows and reads the full stores.

        Its shapes do not depend on lengths. Rows of padding are written after their own tokens.

        Args:
            columns: [R, 1], from `next_columns`.

        Returns:
            The visible keys of each query, bool [R, 1, S].
        """
        plan = self._plan
        plan.rows, plan.first = torch.arange(len(columns), device=columns.device), 0
        plan.columns, plan.width = columns, plan.capacity
        return torch.arange(plan.width, device=columns.device) <= columns[:, :, None]

    def commit(self, slots: Sequence[int], counts: Sequence[int]) -> None:
        """Count the real tokens of the latest pass."""
        for slot, count in zip(slots, counts, strict=True):
            self.lengths[slot] += count

    @property
    def place(self) -> tuple[int, ...]:
        """Identifies the memory of the stores: changes when they move, or will on their next write."""
        keys = [store.keys for store in self._stores]
        return self._plan.capacity, *(0 if key is None else key.data_ptr() for key in keys)

    def clear(self, slot: int) -> None:
        """Clear a slot for reuse."""
        self.lengths[slot], self.openings[slot] = 0, []
