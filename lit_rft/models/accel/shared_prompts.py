"""Completions with a shared prompt, computed once: each attends to the prompt and itself, not to the others."""

import contextlib
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from lit_rft.models.accel.blockwise_attention import attend as attend_causally
from lit_rft.models.accel.blockwise_attention import blockwise_attention, is_supported
from lit_rft.models.accel.switch import is_on
from lit_rft.models.attention_masks import attention_masks
from lit_rft.models.backbone import attention_implementation, causal_lm, final_hidden_states
from lit_rft.transcripts import TranscriptBatch

_SHARED = "lit_rft_shared_prompts"


@dataclass
class SharedPromptPlan:
    """Positions of the completions of a batch and their prompts, for all layers.

    Positions are indices into the flattened [B * T] tokens; C completions of up to L tokens, prompts of up to P.
    """

    prompt_width: int  # P
    prompt_lengths: Tensor  # [C]
    queries: Tensor  # [C, L], 0 in padding
    real: Tensor  # [C, L] bool
    real_places: Tensor  # [N] indices of real queries into the flattened [C * L] ones
    real_positions: Tensor  # [N] their positions
    keys: Tensor  # [C, P + L], 0 in padding
    hidden: Tensor | None  # [C, P] keys outside the prompt, if any
    blockwise: bool = True  # use blockwise attention where it is supported
    windows: list[int | None] = field(default_factory=list)  # received by attention, layer by layer
    _masks: dict[Any, Tensor] = field(default_factory=dict)

    def mask(self, window: int | None, groups: int, dtype: torch.dtype) -> Tensor:
        """Make the additive mask [C, 1, groups * L, P + L], once for all layers of a kind.

        A bool mask would be converted, and kept, by each layer. The row stride is a multiple of 8 elements: otherwise
        GPU kernels would copy the mask in each layer.

        Args:
            window: of the layers, if any.
            groups: number of query heads that share keys, arranged one after the other.
            dtype: of the mask.
        """
        key = (window, groups, dtype)
        if key not in self._masks:
            visible = self._visible(window)
            count, length, width = visible.shape
            mask = torch.zeros((count, 1, groups * length, -(-width // 8) * 8), dtype=dtype, device=visible.device)
            mask = mask[..., :width]
            self._masks[key] = mask.masked_fill_(~visible.repeat(1, groups, 1)[:, None], -torch.inf)
        return self._masks[key]

    def _visible(self, window: int | None) -> Tensor:
        """Return the visible keys, bool [C, L, P + L]."""
        steps = torch.arange(self.real.shape[1], device=self.real.device)
        places = torch.arange(self.prompt_width, device=self.real.device)
        in_prompt = places < self.prompt_lengths[:, None]
        in_completion = (steps[:, None] >= steps) & self.real[:, None, :]
        # padding attends to its prompt: a query without keys is undefined
        visible = torch.cat([in_prompt[:, None, :].expand(-1, len(steps), -1), in_completion], dim=2)
        if window is not None:
            query_positions = self.prompt_lengths[:, None] + steps
            key_positions = torch.cat([places.expand(len(query_positions), -1), query_positions], dim=1)
            visible &= key_positions[:, None, :] > query_positions[:, :, None] - window
        return visible


def shared_prompt_plan(model: nn.Module, batch: TranscriptBatch) -> SharedPromptPlan:
    """Make the plan of a batch with `segments` for a model's attention."""
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
    real_places = real.flatten().nonzero().flatten()  # once for all layers: on a GPU this synchronises
    real_positions = queries.flatten().index_select(0, real_places)
    blockwise = is_on(model, "blockwise_attention")
    return SharedPromptPlan(prompt_width, lengths, queries, real, real_places, real_positions, keys, hidden, blockwise)


def shared_hidden_states(model: nn.Module, batch: TranscriptBatch, plan: SharedPromptPlan | None) -> Tensor:
    """Compute the final hidden states [B, T, D] of a batch with `segments`.

    Args:
        model: with or without adapters.
        batch: see `collate_shared`.
        plan: `shared_prompt_plan` of it; None for eager attention with a mask, which supports features such as soft
            capping.
    """
    if plan is not None:
        with shared_prompt_attention(model):
            return final_hidden_states(model, batch.input_ids, batch.position_ids, shared_prompts=plan)
    masks: Any = shared_prompt_masks(model, batch)
    return final_hidden_states(model, batch.input_ids, batch.position_ids, attention_mask=masks)


def shared_prompt_masks(model: nn.Module, batch: TranscriptBatch) -> Tensor | dict[str, Tensor]:
    """Make additive masks of a batch with `segments`; see `attention_masks`."""
    lm, segments, positions = causal_lm(model), batch.segments, batch.position_ids
    assert segments is not None
    places = torch.arange(segments.shape[1], device=segments.device)
    same, prompt = segments[:, :, None] == segments[:, None, :], segments[:, None, :] == 0
    visible = (places[:, None] >= places) & (same | prompt)
    return attention_masks(visible, positions, positions, lm.config.get_text_config(), lm.dtype)


def shared_prompt_attention(model: nn.Module) -> contextlib.AbstractContextManager[None]:
    """Switch a model to this attention; every pass receives `shared_prompts`, a plan."""
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
    """Compute causal attention of prompts, and attention of each completion to its prompt and itself.

    Args:
        query: [B, H, T, D].
        key, value: [B, H_kv, T, D].
        shared_prompts: the plan.

    Returns:
        [B, T, H, D], and no weights.

    Raises:
        TypeError: the architecture does not pass the plan to attention.
    """
    if shared_prompts is None:
        raise TypeError(
            "attention did not receive shared_prompts: turn the fast path shared_prompts off for this architecture"
        )
    plan, (batch, heads, width, _) = shared_prompts, query.shape
    plan.windows.append(sliding_window)
    out = query.new_zeros(batch, width, heads, value.shape[-1])
    # positions after a shorter prompt are wrong here, and corrected below
    first = slice(0, plan.prompt_width)
    q, k, v = query[:, :, first], key[:, :, first], value[:, :, first]
    prompts, _ = attend_causally(module, q, k, v, None, scaling, dropout, sliding_window, blocks=plan.blockwise)
    out[:, first] = prompts.to(out.dtype)
    completions = _attend_completions(query, key, value, dropout, scaling, sliding_window, plan)
    flat = out.flatten(0, 1).index_copy(0, plan.real_positions, completions.to(out.dtype))
    return flat.view_as(out), None


def _attend_completions(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    dropout: float,
    scale: float | None,
    sliding_window: int | None,
    plan: SharedPromptPlan,
) -> Tensor:
    """Compute attention of completions to their prompt and themselves: [B, heads, T, D] -> [N, H, D]."""
    queries, keys, values = (
        _gathered(part, places)  # [C, heads, L or P + L, D]
        for part, places in ((query, plan.queries), (key, plan.keys), (value, plan.keys))
    )
    if plan.blockwise and is_supported(query, dropout, sliding_window, plan.keys.shape[1]):
        out = blockwise_attention(queries, keys, values, scale, plan.hidden)
    else:
        out = _attend_masked(queries, keys, values, dropout, scale, sliding_window, plan)
    return out.transpose(1, 2).flatten(0, 1).index_select(0, plan.real_places)


def _gathered(part: Tensor, places: Tensor) -> Tensor:
    """Gather [B, H, T, D] at positions [C, L] of the flattened tokens: [C, H, L, D].

    Uses `index_select`: advanced indexing has a slow backward pass.
    """
    rows = part.transpose(1, 2).flatten(0, 1).index_select(0, places.flatten())
    return rows.unflatten(0, places.shape).transpose(1, 2)


def _attention_dtype(query: Tensor) -> torch.dtype:
    """Return the data type of fused attention: autocast would convert a mask of another type in each layer."""
    device = query.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else query.dtype


def _attend_masked(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    dropout: float,
    scale: float | None,
    sliding_window: int | None,
    plan: SharedPromptPlan,
) -> Tensor:
    """Compute attention by sdpa: [C, H, L, D] and keys [C, H_kv, P + L, D] -> [C, H, L, D].

    Heads that share keys become additional queries, so that keys are not repeated.
    """
    groups = query.shape[1] // key.shape[1]
    mask = plan.mask(sliding_window, groups, _attention_dtype(query))
    grouped = query.unflatten(1, (key.shape[1], groups)).flatten(2, 3)
    out = scaled_dot_product_attention(grouped, key, value, mask, dropout, scale=scale)
    return out.unflatten(2, (groups, -1)).flatten(1, 2)


AttentionInterface.register(_SHARED, attend)
