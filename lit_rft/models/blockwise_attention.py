"""Causal attention as products of blocks, for CPUs: there the fused kernel's backward pass is slower than they are."""

import contextlib
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp import custom_bwd, custom_fwd
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from lit_rft.models.backbone import (
    attention_implementation,
    caps_scores,
    causal_lm,
    sequence_spans,
    sequence_starts,
    shortest_window,
)
from lit_rft.models.packed import multiplies_bf16

_BLOCKWISE, _IN_A_ROW = "lit_rft_blockwise", "lit_rft_blockwise_in_a_row"
_SIZE = 128  # queries a block; 32 to 256 have been tried
_LAYERS = {"full_attention", "sliding_attention", "chunked_attention"}  # kinds of attention, the same within windows


def blockwise_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float | None = None,
    hidden: Tensor | None = None,
    starts: Sequence[int] = (0,),
) -> Tensor:
    """Attention in which query t sees the P + t + 1 first keys. Memory grows with the length, not with its square.

    Args:
        query: [B, H, T, D].
        key, value: [B, H_kv, P + T, D].
        scale: of the scores; 1 / sqrt(D) if not given.
        hidden: bool [B, P], which of the first P keys no query sees.
        starts: where sequences begin that do not see each other; several only if P is 0.
    Returns: [B, H, T, D].
    """
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    with torch.autocast(query.device.type, enabled=False):
        grouped = query.unflatten(1, (key.shape[1], -1))
        out: Tensor = _Blockwise.apply(grouped, key, value, scale, hidden, starts)
    return out.flatten(1, 2)


class _Blockwise(torch.autograd.Function):
    """Query heads that share keys are rows of one product: [B, H_kv, G, T, D]."""

    @staticmethod
    @custom_fwd(device_type="cpu")
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, scale: float, *which: Any) -> Tensor:
        query = query * scale
        ctx.scale, (ctx.hidden, ctx.starts) = scale, which
        ctx.save_for_backward(query, key, value)
        out = query.new_empty(*query.shape[:-1], value.shape[-1])
        for block, seen in _blocks(query, key, ctx.starts):
            rows = _weights(query[:, :, :, block], key[:, :, seen], ctx.hidden) @ value[:, :, seen]
            out[:, :, :, block] = rows.view(out[:, :, :, block].shape)
        return out

    @staticmethod
    @once_differentiable
    @custom_bwd(device_type="cpu")
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        query, key, value = ctx.saved_tensors
        sums = torch.promote_types(key.dtype, torch.float32)  # over blocks
        d_query = torch.empty_like(query)
        d_key, d_value = (torch.zeros_like(part, dtype=sums) for part in (key, value))
        for block, seen in _blocks(query, key, ctx.starts):
            q, k, v = query[:, :, :, block], key[:, :, seen], value[:, :, seen]
            told = grad[:, :, :, block].flatten(2, 3)
            weights = _weights(q, k, ctx.hidden)  # anew: kept, they would take memory in the square of the length
            d_value[:, :, seen].add_(weights.transpose(-1, -2) @ told)
            d_weights = told @ v.transpose(-1, -2)
            d_scores = torch._softmax_backward_data(d_weights, weights, -1, weights.dtype)
            d_query[:, :, :, block] = (d_scores @ k).view(q.shape)
            d_key[:, :, seen].add_(d_scores.transpose(-1, -2) @ q.flatten(2, 3))
        return d_query * ctx.scale, d_key.to(key.dtype), d_value.to(value.dtype), None, None, None


def _blocks(query: Tensor, key: Tensor, starts: Sequence[int]) -> Iterator[tuple[slice, slice]]:
    """Queries, and the keys that the last of them sees."""
    length, prefix = query.shape[3], key.shape[2] - query.shape[3]
    for first, last in sequence_spans(starts, length):
        for start in range(first, last, _SIZE):
            end = min(start + _SIZE, last)
            yield slice(start, end), slice(first, prefix + end)


def _weights(query: Tensor, key: Tensor, hidden: Tensor | None) -> Tensor:
    """What a sequence's last queries [B, H_kv, G, t, D] see of its keys [B, H_kv, S, D]: [B, H_kv, G * t, S]."""
    scores = query.flatten(2, 3) @ key.transpose(-1, -2)
    length = query.shape[3]
    apart = scores.view(*query.shape[:4], key.shape[2])
    apart[..., -length:].add_(_future(length, scores.dtype, query.device))
    if hidden is not None:
        apart[..., : hidden.shape[1]].masked_fill_(hidden[:, None, None, None], -torch.inf)
    return scores.softmax(-1)


@functools.lru_cache(8)
def _future(length: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """-inf where a key of a block comes after the query: to add is faster than to fill in."""
    return torch.full((length, length), -torch.inf, dtype=dtype, device=device).triu(1)


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    sequence_starts: Sequence[int] = (0,),
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Causal attention, as transformers calls it; by sdpa where blocks do not serve. [B, H, T, D] -> [B, T, H, D].

    Args:
        sequence_starts: where sequences begin that stand in one row.
    """
    length = query.shape[2]
    if attention_mask is None and is_served(query, dropout, sliding_window, _longest(sequence_starts, length)):
        out = blockwise_attention(query, key, value, scaling, starts=sequence_starts)
        return out.transpose(1, 2), None
    if attention_mask is None and (sliding_window is not None or len(sequence_starts) > 1):
        attention_mask = _mask(length, tuple(sequence_starts), sliding_window, query.device)
    return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)


@functools.lru_cache(2)  # of the layers with a window, and of those without
def _mask(length: int, starts: tuple[int, ...], window: int | None, device: torch.device) -> Tensor:
    """What queries see of their row, bool [1, 1, T, T]."""
    places = torch.arange(length, device=device)
    sequence = torch.bucketize(places, torch.tensor(starts, device=device), right=True)
    behind = places[:, None] - places
    return ((behind >= 0) & (behind < (window or length)) & (sequence[:, None] == sequence))[None, None]


def attend_in_a_row(*args: Any, **kwargs: Any) -> tuple[Tensor, None]:
    """The same for several sequences in a row.

    Raises: TypeError if the architecture does not hand their starts through.
    """
    if kwargs.get("sequence_starts") is None:
        raise TypeError("where sequences begin did not reach attention: leave packing off for this architecture")
    return attend(*args, **kwargs)


AttentionInterface.register(_BLOCKWISE, attend)
AttentionInterface.register(_IN_A_ROW, attend_in_a_row)


def is_served(query: Tensor, dropout: float, sliding_window: int | None, length: int) -> bool:
    """Whether blocks are the faster way for sequences of at most so many keys, and one that can be gone."""
    fast = query.device.type == "cpu" and query.dtype == torch.bfloat16 and multiplies_bf16()
    return fast and not dropout and (sliding_window is None or sliding_window >= length)


def block_starts(model: nn.Module, position_ids: Tensor) -> list[int]:
    """Where sequences begin that can be attended to by blocks: on a CPU, within all windows, in rows of one sequence
    each or one row of several; none for others.

    Not every architecture tells attention of its windows: some only put them into their masks.
    """
    lm = causal_lm(model)
    if position_ids.device.type != "cpu" or lm.config._attn_implementation != "sdpa":
        return []
    starts, config = _starts(position_ids), lm.config.get_text_config()
    longest = _longest(starts, position_ids.shape[1]) if starts else 0
    return starts if longest <= (shortest_window(config) or longest) else []


@contextlib.contextmanager
def causal_attention(model: nn.Module, starts: Sequence[int]) -> Iterator[dict[str, Any]]:
    """The model with this attention for sequences that begin there (`block_starts`, not none). What it gives has to be
    handed to each pass within."""
    several = len(starts) > 1
    with attention_implementation(model, _IN_A_ROW if several else _BLOCKWISE):
        yield {"sequence_starts": starts} if several else {}


def _starts(position_ids: Tensor) -> list[int]:
    """Where the sequences of one row begin, 0 alone for rows of one each; none for several rows of several."""
    starts, (rows, width) = sequence_starts(position_ids), position_ids.shape
    if rows == 1:
        return starts
    return [0] if starts == list(range(0, rows * width, width)) else []


def _longest(starts: Sequence[int], length: int) -> int:
    """Of the sequences that begin there in a row of so many tokens."""
    return max(end - start for start, end in sequence_spans(starts, length))


def takes_blocks(model: nn.Module) -> bool:
    """Whether an architecture says that its attention can be exchanged, and by this one."""
    lm = causal_lm(model)
    config = lm.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ())
    return bool(getattr(lm, "_supports_attention_backend", False)) and kinds <= _LAYERS and not caps_scores(config)
