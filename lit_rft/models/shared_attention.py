"""Attention of completions that share a prompt: each sees the prompt and itself, not the others."""

import contextlib
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from lit_rft.models.backbone import attention_implementation
from lit_rft.models.blockwise_attention import attend as attend_causally
from lit_rft.models.blockwise_attention import blockwise_attention, is_served
from lit_rft.transcripts import TranscriptBatch

_SHARED = "lit_rft_shared_prompts"


@dataclass
class SharedPromptPlan:
    """Where the completions of a batch and their prompts are, for all layers.

    Positions are indices into the flattened [B * T] tokens; C completions of up to L tokens, prompts of up to P.
    """

    prompt_width: int  # P
    prompt_lengths: Tensor  # [C]
    queries: Tensor  # [C, L], 0 in padding
    real: Tensor  # [C, L] bool
    real_places: Tensor  # [N] indices of real queries into the flattened [C * L] ones
    real_positions: Tensor  # [N] their positions
    keys: Tensor  # [C, P + L], 0 in padding
    hidden: Tensor | None  # [C, P] keys that are no prompt, if any
    windows: list[int | None] = field(default_factory=list)  # what attention has been told, layer by layer
    _masks: dict[Any, Tensor] = field(default_factory=dict)

    def mask(self, window: int | None, groups: int, dtype: torch.dtype) -> Tensor:
        """Additive [C, 1, groups * L, P + L], for queries of so many heads one after the other: one for all layers of a
        kind, made when one of them asks for it. (A bool mask would be made anew, and kept, by each layer.)

        Rows are a multiple of 8 elements apart: GPU kernels would otherwise copy the mask in each layer.
        """
        key = (window, groups, dtype)
        if key not in self._masks:
            steps = torch.arange(self.real.shape[1], device=self.real.device)
            places = torch.arange(self.prompt_width, device=self.real.device)
            in_prompt = places < self.prompt_lengths[:, None]
            own = (steps[:, None] >= steps) & self.real[:, None, :]
            # padding sees its prompt: a query that sees nothing has no value
            seen = torch.cat([in_prompt[:, None, :].expand(-1, len(steps), -1), own], dim=2)
            if window is not None:
                here = self.prompt_lengths[:, None] + steps
                there = torch.cat([places.expand(len(here), -1), here], dim=1)
                seen &= there[:, None, :] > here[:, :, None] - window
            count, length, width = seen.shape
            mask = torch.zeros((count, 1, groups * length, -(-width // 8) * 8), dtype=dtype, device=seen.device)
            mask = mask[..., :width]
            self._masks[key] = mask.masked_fill_(~seen.repeat(1, groups, 1)[:, None], -torch.inf)
        return self._masks[key]


def shared_prompt_plan(batch: TranscriptBatch) -> SharedPromptPlan:
    """What attention has to know of a batch with `segments`."""
    assert batch.segments is not None
    width = batch.input_ids.shape[1]
    rows = batch.utterance_tokens[:, 0] // width
    lengths = (batch.segments == 0).sum(1)[rows]  # of each completion's prompt
    prompt_width = int(lengths.max())
    places = torch.arange(prompt_width, device=rows.device)
    in_prompt = places < lengths[:, None]
    keys = torch.cat([(rows[:, None] * width + places) * in_prompt, batch.utterance_tokens], dim=1)
    hidden = None if bool(in_prompt.all()) else ~in_prompt
    queries, real = batch.utterance_tokens, batch.utterance_mask
    real_places = real.flatten().nonzero().flatten()  # here, for all layers: on a GPU this waits for the device
    real_positions = queries.flatten().index_select(0, real_places)
    return SharedPromptPlan(prompt_width, lengths, queries, real, real_places, real_positions, keys, hidden)


def shared_prompt_attention(model: nn.Module) -> contextlib.AbstractContextManager[None]:
    """The model with this attention; every pass within must be given `shared_prompts`, a plan."""
    return attention_implementation(model, _SHARED)


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    shared_prompts: SharedPromptPlan | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Prompts by causal attention, completions each over its prompt and itself.

    Args:
        query: [B, H, T, D].
        key, value: [B, H_kv, T, D].
    Returns: [B, T, H, D].
    Raises: TypeError if the architecture does not hand the plan through.
    """
    if shared_prompts is None:
        raise TypeError("the plan of shared prompts did not reach attention")
    plan, (batch, heads, width, _) = shared_prompts, query.shape
    plan.windows.append(sliding_window)
    out = query.new_zeros(batch, width, heads, value.shape[-1])
    # what stands behind a shorter prompt comes out wrong here, and right below
    first = slice(0, plan.prompt_width)
    q, k, v = query[:, :, first], key[:, :, first], value[:, :, first]
    asked, keys, values = (
        _gathered(part, places)  # [C, heads, L or P + L, D]
        for part, places in ((query, plan.queries), (key, plan.keys), (value, plan.keys))
    )
    out[:, first] = attend_causally(module, q, k, v, None, scaling, dropout, sliding_window)[0].to(out.dtype)
    if is_served(query, dropout, sliding_window, plan.keys.shape[1]):
        told = blockwise_attention(asked, keys, values, scaling, plan.hidden)
    else:
        told = _completions(asked, keys, values, dropout, scaling, sliding_window, plan)
    completions = told.transpose(1, 2).flatten(0, 1).index_select(0, plan.real_places)
    flat = out.flatten(0, 1).index_copy(0, plan.real_positions, completions.to(out.dtype))
    return flat.view_as(out), None


def _gathered(part: Tensor, places: Tensor) -> Tensor:
    """[B, H, T, D] at places [C, L] of the flattened tokens: [C, H, L, D]. (Indexing has a slow backward pass.)"""
    rows = part.transpose(1, 2).flatten(0, 1).index_select(0, places.flatten())
    return rows.unflatten(0, places.shape).transpose(1, 2)


def _attention_dtype(query: Tensor) -> torch.dtype:
    """Data type that fused attention computes in: autocast would convert a mask of another one in each layer."""
    device = query.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else query.dtype


def _completions(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    dropout: float,
    scale: float | None,
    sliding_window: int | None,
    plan: SharedPromptPlan,
) -> Tensor:
    """[C, H, L, D] and keys [C, H_kv, P + L, D] -> [C, H, L, D]: the heads that share keys come one after the other as
    queries, so that keys are not repeated."""
    groups = query.shape[1] // key.shape[1]
    mask = plan.mask(sliding_window, groups, _attention_dtype(query))
    asked = query.unflatten(1, (key.shape[1], groups)).flatten(2, 3)
    told = scaled_dot_product_attention(asked, key, value, mask, dropout, scale=scale)
    return told.unflatten(2, (groups, -1)).flatten(1, 2)


AttentionInterface.register(_SHARED, attend)
