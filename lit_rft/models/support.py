"""Check of a model's architecture when it is loaded: the log-probabilities computed here are the model's own."""

import torch
from torch import Tensor, nn

from lit_rft.models.backbone import attention_implementation, causal_lm, final_hidden_states, output_logits
from lit_rft.models.modes import evaluation_mode

_TOKENS = 4


@torch.no_grad()
def check_support(model: nn.Module) -> None:
    """Compare log-probabilities as this library computes them with the model's own logits, on a few tokens.

    Args:
        model: with or without adapters, unsharded.

    Raises:
        ValueError: They differ, the model sees later tokens, or it cannot be computed this way.
    """
    lm = causal_lm(model)
    name = type(lm).__name__
    device = next(model.parameters()).device
    ids = torch.arange(1, 1 + _TOKENS, device=device)[None] % lm.config.get_text_config().vocab_size
    current = lm.config._attn_implementation
    # others may need a GPU, and get the model before it is there
    attention = attention_implementation(lm, current if current == "eager" else "sdpa")
    with evaluation_mode(model), attention:
        expected = lm(input_ids=ids, use_cache=False).logits.float()
        try:
            hidden = final_hidden_states(model, ids, torch.arange(_TOKENS, device=device)[None])
            actual = output_logits(model, hidden).float()
        except (TypeError, AttributeError, ValueError, RuntimeError) as error:
            raise ValueError(f"{name} is not supported: {type(error).__name__}: {error}; use another model") from error
        other = torch.cat([ids[:, :-1], ids[:, :1]], dim=1)
        earlier = lm(input_ids=other, use_cache=False).logits[:, :-1].float()
    tolerance = 1e-3 if lm.dtype.itemsize >= 4 else 0.05
    if not _same(actual, expected, tolerance):
        raise ValueError(
            f"{name} is not supported: its logits are not those of its output layer and last hidden states; use "
            "another model"
        )
    if not _same(earlier, expected[:, :-1], tolerance):
        raise ValueError(
            f"{name} is not supported: it is not causal, the logits after a token depend on later tokens; use a "
            "causal language model"
        )


def _same(actual: Tensor, expected: Tensor, tolerance: float) -> bool:
    if not bool(expected.isfinite().all()):  # of broken weights, which losses tell
        return True
    return bool((actual - expected).norm() <= tolerance * expected.norm())


def position_limit(model: nn.Module) -> int | None:
    """Return the number of positions of a model that has a table of them (GPT-2, OPT); None if it computes them."""
    lm = causal_lm(model)
    number = getattr(lm.config.get_text_config(), "max_position_embeddings", None)
    decoder, tokens = lm.get_decoder(), lm.get_input_embeddings()
    tables = [layer.weight for layer in decoder.modules() if isinstance(layer, nn.Embedding) and layer is not tokens]
    sizes = {len(table) for table in [*tables, *decoder.buffers()] if table.dim() == 2}
    # some tables begin with two rows of other use
    return number if number is not None and sizes & {number, number + 1, number + 2} else None


def fixed_context(model: nn.Module) -> int | None:
    """Return the length in tokens beyond which rotary positions depend on the longest sequence of a pass, or None.

    They do with the scaling `longrope` (Phi-3.5) and `dynamic`.
    """
    config = causal_lm(model).config.get_text_config()
    parameters = getattr(config, "rope_parameters", None) or {}
    # of the model, or by kind of layer: null for layers without rotary positions (Beam)
    for kind in [parameters] if "rope_type" in parameters else filter(None, parameters.values()):
        if kind["rope_type"] == "longrope":
            return int(kind["original_max_position_embeddings"])
        if kind["rope_type"] == "dynamic":
            return int(config.max_position_embeddings)
    return None
