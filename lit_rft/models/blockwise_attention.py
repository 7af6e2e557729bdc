"""Causal attention as products of blocks, for CPUs: there the fused kernel's backward pass is slower than they are."""

import contextlib
import functools
import logging
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp import custom_bwd, custom_fwd
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from lit_rft.models.backbone import attention_implementation, caps_scores, causal_lm, shortest_window
from lit_rft.models.packed import multiplies_bf16

logger = logging.getLogger(__name__)

_BLOCKWISE = "lit_rft_blockwise"
_SIZE = 64  # queries a block; 32 to 256 have been tried
_LAYERS = {"full_attention", "sliding_attention", "chunked_attention"}  # kinds of attention, the same within windows


def blockwise_attention(
    query: Tensor, key: Tensor, value: Tensor, scale: float | None = None, hidden: Tensor | None = None
) -> Tensor:
    """Attention in which query t sees the P + t + 1 first keys. Memory grows with the length, not with its square.

    Args:
        query: [B, H, T, D].
        key, value: [B, H_kv, P + T, D].
        scale: of the scores; 1 / sqrt(D) if not given.
        hidden: bool [B, P], which of the first P keys no query sees.
    Returns: [B, H, T, D].
    """
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    with torch.autocast(query.device.type, enabled=False):
        grouped = query.unflatten(1, (key.shape[1], -1))
        out: Tensor = _Blockwise.apply(grouped, key, value, scale, hidden)
    return out.flatten(1, 2)


class _Blockwise(torch.autograd.Function):
    """Query heads that share keys are rows of one product: [B, H_kv, G, T, D]."""

    @staticmethod
    @custom_fwd(device_type="cpu")
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, scale: float, hidden: Tensor | None) -> Tensor:
        query = query * scale
        ctx.scale, ctx.hidden = scale, hidden
        ctx.save_for_backward(query, key, value)
        out = query.new_empty(*query.shape[:-1], value.shape[-1])
        for block, end in _blocks(query, key):
            rows = _weights(query[:, :, :, block], key[:, :, :end], hidden) @ value[:, :, :end]
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
        for block, end in _blocks(query, key):
            q, k, v = query[:, :, :, block], key[:, :, :end], value[:, :, :end]
            told = grad[:, :, :, block].flatten(2, 3)
            weights = _weights(q, k, ctx.hidden)  # anew: kept, they would take memory in the square of the length
            d_value[:, :, :end] += weights.transpose(-1, -2) @ told
            d_weights = told @ v.transpose(-1, -2)
            d_scores = torch._softmax_backward_data(d_weights, weights, -1, weights.dtype)
            d_query[:, :, :, block] = (d_scores @ k).view(q.shape)
            d_key[:, :, :end] += d_scores.transpose(-1, -2) @ q.flatten(2, 3)
        return d_query * ctx.scale, d_key.to(key.dtype), d_value.to(value.dtype), None, None


def _blocks(query: Tensor, key: Tensor) -> Iterator[tuple[slice, int]]:
    """Queries, and how many keys the last of them sees."""
    length, prefix = query.shape[3], key.shape[2] - query.shape[3]
    for start in range(0, length, _SIZE):
        end = min(start + _SIZE, length)
        yield slice(start, end), prefix + end


def _weights(query: Tensor, key: Tensor, hidden: Tensor | None) -> Tensor:
    """What a sequence's last queries [B, H_kv, G, t, D] see of its keys [B, H_kv, S, D]: [B, H_kv, G * t, S]."""
    scores = query.flatten(2, 3) @ key.transpose(-1, -2)
    length = query.shape[3]
    apart = scores.view(*query.shape[:4], key.shape[2])
    future = torch.ones(length, length, dtype=torch.bool, device=query.device).triu(1)
    apart[..., -length:].masked_fill_(future, -torch.inf)
    if hidden is not None:
        apart[..., : hidden.shape[1]].masked_fill_(hidden[:, None, None, None], -torch.inf)
    return scores.softmax(-1)


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Causal attention, as transformers calls it; by sdpa where blocks do not serve. [B, H, T, D] -> [B, T, H, D]."""
    if attention_mask is None and is_served(query, dropout, sliding_window, query.shape[2]):
        return blockwise_attention(query, key, value, scaling).transpose(1, 2), None
    if attention_mask is None and sliding_window is not None:
        places = torch.arange(query.shape[2], device=query.device)
        behind = places[:, None] - places
        attention_mask = ((behind >= 0) & (behind < sliding_window))[None, None]
    return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)


AttentionInterface.register(_BLOCKWISE, attend)


def is_served(query: Tensor, dropout: float, sliding_window: int | None, length: int) -> bool:
    """Whether blocks are the faster way for sequences of at most so many keys, and one that can be gone."""
    fast = query.device.type == "cpu" and query.dtype == torch.bfloat16 and multiplies_bf16()
    return fast and not dropout and (sliding_window is None or sliding_window >= length)


def causal_attention(model: nn.Module, position_ids: Tensor) -> contextlib.AbstractContextManager[None]:
    """The model with this attention where it serves: on a CPU, for rows of one sequence each, within all windows.

    Not every architecture tells attention of its windows: some only put them into their masks.
    """
    lm = causal_lm(model)
    config, length = lm.config.get_text_config(), position_ids.shape[1]
    own = position_ids.device.type == "cpu" and lm.config._attn_implementation == "sdpa"
    places = torch.arange(length, device=position_ids.device)
    blocks = own and bool((position_ids == places).all()) and length <= (shortest_window(config) or length)
    return attention_implementation(lm, _BLOCKWISE) if blocks and _fits(type(lm), config) else contextlib.nullcontext()


def _fits(architecture: Any, config: Any) -> bool:
    kinds = set(getattr(config, "layer_types", None) or ())
    fits = bool(getattr(architecture, "_supports_attention_backend", False)) and kinds <= _LAYERS
    fits = fits and not caps_scores(config)
    if not fits:
        _warn(architecture.__name__)
    return fits


@functools.cache
def _warn(architecture: str) -> None:
    logger.warning("%s keeps its own attention, which is slower on a CPU: it cannot take another", architecture)
