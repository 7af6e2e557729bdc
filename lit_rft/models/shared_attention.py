"""Attention of completions that share a prompt: each sees the prompt and itself, and nothing else is computed."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from lit_rft.models.backbone import causal_lm
from lit_rft.transcripts import TranscriptBatch

_SHARED = "lit_rft_shared_prompts"


@dataclass
class SharedPromptPlan:
    """Where the completions of a batch and their prompts are, for all layers.

    Positions are indices into the flattened [B * T] tokens; C completions of up to L tokens, prompts of up to P.
    """

    prompt_width: int  # P
    queries: Tensor  # [C, L], 0 in padding
    real: Tensor  # [C, L] bool
    keys: Tensor  # [C, P + L], 0 in padding
    visible: Tensor  # [C, L, P + L] bool
    distance: Tensor  # [C, L, P + L] how many positions a key lies behind


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
    real = batch.utterance_mask
    steps = torch.arange(real.shape[1], device=rows.device)
    own = (steps[:, None] >= steps) & real[:, None, :]
    # padding sees its prompt: a query that sees nothing has no value
    visible = torch.cat([in_prompt[:, None, :].expand(-1, len(steps), -1), own], dim=2)
    here = lengths[:, None] + steps
    there = torch.cat([places.expand(len(rows), -1), here], dim=1)
    return SharedPromptPlan(
        prompt_width, batch.utterance_tokens, real, keys, visible, here[:, :, None] - there[:, None, :]
    )


@contextlib.contextmanager
def shared_prompt_attention(model: nn.Module) -> Iterator[None]:
    """The model with this attention; every pass within must be given `shared_prompts`, a plan."""
    lm = causal_lm(model)
    implementation = lm.config._attn_implementation
    lm.set_attn_implementation(_SHARED)
    try:
        yield
    finally:
        lm.set_attn_implementation(implementation)


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
    plan, (batch, heads, width, size) = shared_prompts, query.shape
    groups = heads // key.shape[1]
    out = query.new_zeros(batch, width, heads, value.shape[-1])
    # what stands behind a shorter prompt comes out wrong here, and right below
    first = slice(0, plan.prompt_width)
    q, k, v = query[:, :, first], key[:, :, first], value[:, :, first]
    causal: Tensor | None = None
    if sliding_window is not None and sliding_window < plan.prompt_width:
        places = torch.arange(plan.prompt_width, device=query.device)
        behind = places[:, None] - places
        causal = (behind >= 0) & (behind < sliding_window)
    prompts = scaled_dot_product_attention(
        q,
        k.repeat_interleave(groups, 1),
        v.repeat_interleave(groups, 1),
        causal,
        dropout,
        causal is None,
        scale=scaling,
    )
    out[:, first] = prompts.transpose(1, 2).to(out.dtype)
    # the heads that share keys come one after the other as queries: keys are not repeated
    q = query.transpose(1, 2).flatten(0, 1)[plan.queries]  # [C, L, H, D]
    count, length = plan.queries.shape
    q = q.view(count, length, -1, groups, size).permute(0, 2, 3, 1, 4).flatten(2, 3)  # [C, H_kv, G * L, D]
    k, v = (part.transpose(1, 2).flatten(0, 1)[plan.keys].transpose(1, 2) for part in (key, value))
    visible = plan.visible if sliding_window is None else plan.visible & (plan.distance < sliding_window)
    mask = visible[:, None].repeat(1, 1, groups, 1)
    told = scaled_dot_product_attention(q, k, v, mask, dropout, scale=scaling)
    told = told.view(count, -1, groups, length, value.shape[-1]).permute(0, 3, 1, 2, 4).flatten(2, 3)  # [C, L, H, D]
    flat = out.flatten(0, 1).index_copy(0, plan.queries[plan.real], told[plan.real].to(out.dtype))
    return flat.view_as(out), None


AttentionInterface.register(_SHARED, attend)
