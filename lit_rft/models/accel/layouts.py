"""Layouts of batches that a model supports: each is compared once with separate rows."""

import logging
from functools import partial
from typing import Any

from torch import nn

from lit_rft.models.accel.blockwise_attention import block_starts, blockwise_hidden_states, takes_blocks
from lit_rft.models.accel.probing import Verdicts, layout_difference, sample_completions, tried_once
from lit_rft.models.accel.shared_prompts import shared_hidden_states, shared_prompt_plan
from lit_rft.models.accel.switch import is_on
from lit_rft.models.backbone import caps_scores, causal_lm, final_hidden_states, is_eager, shortest_window
from lit_rft.transcripts import collate_packed, collate_padded, collate_shared

logger = logging.getLogger(__name__)

_EAGER_ROW = 2048

_packs = Verdicts()
_attends_blockwise = Verdicts()


def can_pack(model: nn.Module) -> bool:
    """Return whether a model separates packed sequences, whose positions restart at 0.

    Compared on first use; a warning names a model that does not. False if `packed_sequences` is off.
    """
    message = "%s unpacks packed sequences to one per row: %s"
    return is_on(model, "packed_sequences") and tried_once(_packs, model, lambda: _packing_difference(model), message)


def can_share_prompts(model: nn.Module) -> bool:
    """Return whether outputs of completions with a shared prompt match separate ones, compared on a few tokens.

    Other kinds of attention (recurrent, flash_attention_2, which does not support masks, ...) are not supported and
    cause a warning. False if `shared_prompts` is off.
    """
    if not is_on(model, "shared_prompts"):
        return False
    lm = causal_lm(model)
    reason = _sharing_difference(model)
    if reason:
        logger.warning("%s recomputes the prompt for each completion, which is slower: %s", type(lm).__name__, reason)
    return not reason


def longest_shared_row(model: nn.Module) -> int | None:
    """Return the maximum tokens per row of completions with a shared prompt: eager attention costs their square."""
    return _EAGER_ROW if is_eager(model) else None


def can_attend_blockwise(model: nn.Module) -> bool:
    """Return whether a model's outputs match with blockwise attention on a CPU, compared on first use.

    A warning names a model whose outputs differ. False if `blockwise_attention` is off.
    """
    message = "%s keeps its own attention, which is slower on a CPU: %s"
    if not is_on(model, "blockwise_attention"):
        return False
    return tried_once(_attends_blockwise, model, lambda: _blockwise_difference(model), message)


def _packing_difference(model: nn.Module) -> str | None:
    packed = collate_packed(sample_completions(model), 0, 64)
    return layout_difference(model, packed, lambda b: final_hidden_states(model, b.input_ids, b.position_ids))


def _sharing_difference(model: nn.Module) -> str | None:
    lm = causal_lm(model)
    shared = collate_shared([sample_completions(model)], 0)
    plan = None if is_eager(model) else shared_prompt_plan(model, shared.to(next(model.parameters()).device))
    if plan is not None and caps_scores(lm.config.get_text_config()):
        return "its attention caps its scores"
    reason = layout_difference(model, shared, lambda batch: shared_hidden_states(model, batch, plan))
    if not reason and plan is not None and sum(w is not None for w in plan.windows) < _windowed_layers(lm):
        return "attention does not receive its windows"
    return reason


def _blockwise_difference(model: nn.Module) -> str | None:
    """Compare rows of one sequence each and, if the model supports packing, one row of several."""
    if not takes_blocks(model):
        return "it cannot take another"
    layouts = [collate_padded(sample_completions(model), 0)]
    if not _packing_difference(model):
        layouts.append(collate_packed(sample_completions(model), 0, 64))
    for batch in layouts:
        starts = block_starts(model, batch.position_ids)
        blockwise = partial(blockwise_hidden_states, model, starts=starts)
        reason = layout_difference(model, batch, blockwise) if starts else None
        if reason:
            return reason
    return None


def _windowed_layers(lm: Any) -> int:
    config = lm.config.get_text_config()
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"] * config.num_hidden_layers
    return 0 if shortest_window(config) is None else sum(kind != "full_attention" for kind in kinds)
