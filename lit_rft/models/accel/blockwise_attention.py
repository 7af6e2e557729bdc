"""Causal attention as products of blocks, for CPUs, where the fused kernel's backward pass is slower."""

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

from lit_rft.models.accel.operators import SOFTMAX_BACKWARD, bf16_obstacle, missing_operator
from lit_rft.models.backbone import (
    attention_implementation,
    caps_scores,
    causal_lm,
    final_hidden_states,
    sequence_spans,
    sequence_starts,
    shortest_window,
)
from lit_rft.transcripts import TranscriptBatch

_BLOCKWISE, _PACKED = "lit_rft_blockwise", "lit_rft_blockwise_packed"
_SIZE = 128  # queries per block; 32 to 256 have been tried
_LAYERS = {"full_attention", "sliding_attention", "chunked_attention"}  # kinds of attention, equal within windows


def blockwise_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float | None = None,
    hidden: Tensor | None = None,
    starts: Sequence[int] = (0,),
) -> Tensor:
    """Compute attention in which query t attends to the first P + t + 1 keys.

    Memory grows with the length, not with its square.

    Args:
        query: [B, H, T, D].
        key, value: [B, H_kv, P + T, D].
        scale: of the scores; default 1 / sqrt(D).
        hidden: bool [B, P], True for keys among the first P that no query attends to.
        starts: first positions of sequences that do not attend to each other; several only if P is 0.

    Returns:
        [B, H, T, D].
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
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, scale: float, *rest: Any) -> Tensor:
        query = query * scale
        ctx.scale, (ctx.hidden, ctx.starts) = scale, rest
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
            grad_out = grad[:, :, :, block].flatten(2, 3)
            weights = _weights(q, k, ctx.hidden)  # recomputed: storing them would take memory quadratic in the length
            d_value[:, :, seen].add_(weights.transpose(-1, -2) @ grad_out)
            d_weights = grad_out @ v.transpose(-1, -2)
            d_scores = torch._softmax_backward_data(d_weights, weights, -1, weights.dtype)
            d_query[:, :, :, block] = (d_scores @ k).view(q.shape)
            d_key[:, :, seen].add_(d_scores.transpose(-1, -2) @ q.flatten(2, 3))
        return d_query * ctx.scale, d_key.to(key.dtype), d_value.to(value.dtype), None, None, None


def _blocks(query: Tensor, key: Tensor, starts: Sequence[int]) -> Iterator[tuple[slice, slice]]:
    """Yield blocks of queries, each with the keys that its last query attends to."""
    length, prefix = query.shape[3], key.shape[2] - query.shape[3]
    for first, last in sequence_spans(starts, length):
        for start in range(first, last, _SIZE):
            end = min(start + _SIZE, last)
            yield slice(start, end), slice(first, prefix + end)


def _weights(query: Tensor, key: Tensor, hidden: Tensor | None) -> Tensor:
    """Compute attention weights [B, H_kv, G * t, S] of a sequence's last queries [B, H_kv, G, t, D] over its keys."""
    scores = query.flatten(2, 3) @ key.transpose(-1, -2)
    length = query.shape[3]
    by_head = scores.view(*query.shape[:4], key.shape[2])
    by_head[..., -length:].add_(_future(length, scores.dtype, query.device))
    if hidden is not None:
        by_head[..., : hidden.shape[1]].masked_fill_(hidden[:, None, None, None], -torch.inf)
    return scores.softmax(-1)


@functools.lru_cache(8)
def _future(length: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Make a mask of -inf where a key of a block comes after the query: adding it is faster than `masked_fill`."""
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
    blocks: bool = True,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Compute causal attention, as transformers calls it; sdpa is the fallback. [B, H, T, D] -> [B, T, H, D].

    Args:
        sequence_starts: first positions of packed sequences.
        blocks: use blocks where they are supported.
    """
    length = query.shape[2]
    blocks = blocks and attention_mask is None
    if blocks and is_supported(query, dropout, sliding_window, _longest(sequence_starts, length)):
        out = blockwise_attention(query, key, value, scaling, starts=sequence_starts)
        return out.transpose(1, 2), None
    if attention_mask is None and (sliding_window is not None or len(sequence_starts) > 1):
        attention_mask = _mask(length, tuple(sequence_starts), sliding_window, query.device)
    return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)


@functools.lru_cache(2)  # of the layers with a window, and of those without
def _mask(length: int, starts: tuple[int, ...], window: int | None, device: torch.device) -> Tensor:
    """Make the mask of a row of packed sequences, bool [1, 1, T, T]."""
    places = torch.arange(length, device=device)
    sequence = torch.bucketize(places, torch.tensor(starts, device=device), right=True)
    behind = places[:, None] - places
    return ((behind >= 0) & (behind < (window or length)) & (sequence[:, None] == sequence))[None, None]


def attend_packed(*args: Any, **kwargs: Any) -> tuple[Tensor, None]:
    """Compute `attend` for packed sequences.

    Raises:
        TypeError: the architecture does not pass `sequence_starts` to attention.
    """
    if kwargs.get("sequence_starts") is None:
        raise TypeError("attention did not receive sequence_starts: disable packing for this architecture")
    return attend(*args, **kwargs)


AttentionInterface.register(_BLOCKWISE, attend)
AttentionInterface.register(_PACKED, attend_packed)


def obstacle(device: str, dtype: torch.dtype) -> str | None:
    """Return why blocks are not applicable, or not faster, on a device in a data type, or None."""
    return bf16_obstacle(device, dtype) or missing_operator([SOFTMAX_BACKWARD])


def is_supported(query: Tensor, dropout: float, sliding_window: int | None, length: int) -> bool:
    """Return whether blockwise attention is applicable and faster for sequences of at most `length` keys."""
    within_window = sliding_window is None or sliding_window >= length
    return within_window and not dropout and obstacle(query.device.type, query.dtype) is None


def block_starts(model: nn.Module, position_ids: Tensor) -> list[int]:
    """Return the first positions of sequences, or none if blockwise attention does not support them.

    Supported are sequences on a CPU, within all windows, one per row or packed in one row. (Not every architecture
    passes its windows to attention: some only put them into their masks.)
    """
    lm = causal_lm(model)
    if position_ids.device.type != "cpu" or lm.config._attn_implementation != "sdpa":
        return []
    starts, config = _starts(position_ids), lm.config.get_text_config()
    longest = _longest(starts, position_ids.shape[1]) if starts else 0
    return starts if longest <= (shortest_window(config) or longest) else []


@contextlib.contextmanager
def causal_attention(model: nn.Module, starts: Sequence[int]) -> Iterator[dict[str, Any]]:
    """Switch a model to blockwise attention; yield keyword arguments for each pass.

    Args:
        model: with or without adapters.
        starts: `block_starts`, not empty.
    """
    several = len(starts) > 1
    with attention_implementation(model, _PACKED if several else _BLOCKWISE):
        yield {"sequence_starts": starts} if several else {}


def blockwise_hidden_states(model: nn.Module, batch: TranscriptBatch, starts: Sequence[int]) -> Tensor:
    """Compute the final hidden states [B, T, D] of a batch with blockwise attention.

    Args:
        model: with or without adapters.
        batch: padded or packed.
        starts: `block_starts` of it, not empty.
    """
    with causal_attention(model, starts) as arguments:
        return final_hidden_states(model, batch.input_ids, batch.position_ids, **arguments)


def _starts(position_ids: Tensor) -> list[int]:
    """Return the first positions of the sequences of one row: [0] for rows of one each, [] for several packed rows."""
    starts, (rows, width) = sequence_starts(position_ids), position_ids.shape
    if rows == 1:
        return starts
    return [0] if starts == list(range(0, rows * width, width)) else []


def _longest(starts: Sequence[int], length: int) -> int:
    """Return the length of the longest sequence in a row of `length` tokens."""
    return max(end - start for start, end in sequence_spans(starts, length))


def takes_blocks(model: nn.Module) -> bool:
    """Return whether an architecture declares exchangeable attention for which blocks are applicable."""
    lm = causal_lm(model)
    config = lm.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ())
    return bool(getattr(lm, "_supports_attention_backend", False)) and kinds <= _LAYERS and not caps_scores(config)
