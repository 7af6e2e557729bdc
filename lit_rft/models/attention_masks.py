"""Attention masks for this library's layouts and caches."""

from typing import Any

import torch
from torch import Tensor


def attention_masks(
    visible: Tensor, query_positions: Tensor, key_positions: Tensor, config: Any, dtype: torch.dtype
) -> Tensor | dict[str, Tensor]:
    """Make the decoder's `attention_mask` from the visible keys of each query.

    Masks are additive, [B, 1, T, S], supported by all attention implementations; models that mix full and sliding
    attention get one per layer type.

    Args:
        visible: bool [B, T, S].
        query_positions: [B, T].
        key_positions: [B, S] or [S].
        config: of the text model.
        dtype: of the masks.

    Returns:
        One mask, or one per layer type.

    Raises:
        ValueError: a layer type has no masks (linear attention, ...).
    """
    layer_types = getattr(config, "layer_types", None) or ()
    keys = (key_positions if key_positions.dim() == 2 else key_positions[None])[:, None, :]
    queries = query_positions[:, :, None]

    def mask(kind: str) -> Tensor:
        if kind == "full_attention":
            return _additive(visible, dtype)
        if kind == "sliding_attention":
            return _additive(visible & (queries - keys < config.sliding_window), dtype)
        if kind == "chunked_attention":
            size = config.attention_chunk_size
            return _additive(visible & (queries // size == keys // size), dtype)
        raise ValueError(f"cannot make attention masks for layers of type {kind!r}: use one sequence per row")

    if set(layer_types) - {"full_attention"}:
        return {kind: mask(kind) for kind in sorted(set(layer_types))}
    everywhere = not layer_types and getattr(config, "sliding_window", None) is not None
    return mask("sliding_attention" if everywhere else "full_attention")


def _additive(visible: Tensor, dtype: torch.dtype) -> Tensor:
    mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    return mask.masked_fill_(~visible, torch.finfo(dtype).min)[:, None]
