"""Fused decoder layers for sampling on a CPU, with fewer operations than the default implementation."""

import contextlib
import inspect
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import rms_norm
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaDecoderLayer, LlamaMLP

from lit_rft.models.accel.decoding_attention import grouped_query_attention
from lit_rft.models.accel.decoding_attention import obstacle as attention_obstacle
from lit_rft.models.accel.operators import FUSED_PRODUCT, missing_operator
from lit_rft.models.accel.packed_weights import Exchanged, PackedWeights, is_packable
from lit_rft.models.accel.packed_weights import obstacle as packing_obstacle
from lit_rft.models.accel.probing import Verdicts, common_ids, difference, tried_once
from lit_rft.models.accel.switch import FastPathName, is_on
from lit_rft.models.attention_masks import attention_masks
from lit_rft.models.backbone import causal_lm, final_hidden_states

_WARNING = "%s samples with the default decoder layers, which is slower: %s"
_verdicts: Verdicts = weakref.WeakKeyDictionary()
_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
_MLP = ("gate_proj", "up_proj", "down_proj")
_SILU = ("SiLU", "SiLUActivation")
_NORMS = ("input_layernorm", "post_attention_layernorm")
_WINDOW = {"sliding_window", "getattr"}  # windows are in the masks


def obstacle(model: nn.Module, device: str, dtype: torch.dtype) -> str | None:
    """Return why the decoder layers of a model cannot be fused for sampling, or None."""
    return packing_obstacle(device, dtype) or missing_operator([FUSED_PRODUCT]) or attention_obstacle(model)


class _Layer(NamedTuple):
    """A decoder layer and its packed weights."""

    layer: Any
    qkv: PackedWeights
    out: PackedWeights
    gate: PackedWeights
    up: PackedWeights
    down: PackedWeights


class DecodingLayers:
    """Decoder layers in the shape of Llama's, computed with fewer operations while a model decodes.

    Queries, keys and values are one product; the activation, the product with the gate and the residual additions are
    part of products, and so rounded once less. Other layers are unchanged. Support is checked once per model.

    Args:
        model: its weights at the time of `active` are used.
        rows: number of rows of most products.
    """

    def __init__(self, model: nn.Module, rows: int) -> None:
        self.model = model
        lm = causal_lm(model)
        needed: tuple[FastPathName, ...] = ("fused_decoding", "packed_weights", "decoding_attention")
        fuses = all(is_on(model, name) for name in needed) and not obstacle(lm, lm.device.type, torch.bfloat16)
        layers = [layer for layer in lm.modules() if _has_llamas_parts(layer)] if fuses else []
        self._layers = [_Layer(layer, *(PackedWeights(rows) for _ in range(5))) for layer in layers]

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Use the fused layers, without gradients."""
        supported = [layer for layer in self._layers if _is_supported(layer.layer)]
        if supported and tried_once(_verdicts, self.model, lambda: self._difference(supported), _WARNING):
            with _exchanged(supported):
                yield
        else:
            yield

    def _difference(self, layers: Sequence[_Layer]) -> str | None:
        """Return the difference of the outputs on a few tokens, if any."""
        model, lm = self.model, causal_lm(self.model)
        ids, positions = torch.tensor([common_ids(model, 16)]), torch.arange(16)[None]
        visible = positions[..., None] >= positions[:, None]
        masks = attention_masks(visible, positions, positions, lm.config.get_text_config(), lm.dtype)

        def states() -> Tensor:
            hidden = final_hidden_states(model, ids, positions, attention_mask=masks)  # type: ignore[arg-type]
            return hidden[0].float()

        def fused() -> Tensor:
            with _exchanged(layers):
                return states()

        return difference(model, states, fused)


@contextlib.contextmanager
def _exchanged(layers: Sequence[_Layer]) -> Iterator[None]:
    try:
        for fused in layers:
            fused.layer.forward = Exchanged(_forward, fused, fused.layer.forward)
        yield
    finally:
        for fused in layers:
            fused.layer.__dict__.pop("forward", None)


def _forward(
    fused: _Layer,
    default: Callable[..., Tensor],
    hidden_states: Tensor,
    attention_mask: Tensor | None = None,
    past_key_values: Any = None,
    position_embeddings: tuple[Tensor, Tensor] | None = None,
    **kwargs: Any,
) -> Tensor:
    """Compute a decoder layer, [B, T, D] -> [B, T, D]."""
    if hidden_states.dtype != torch.bfloat16 or position_embeddings is None or attention_mask is None:
        arguments = {"attention_mask": attention_mask, "past_key_values": past_key_values}
        return default(hidden_states, **arguments, position_embeddings=position_embeddings, **kwargs)
    layer, shape = fused.layer, hidden_states.shape
    attention, mlp = layer.self_attn, layer.mlp
    with torch.autocast("cpu", enabled=False):
        x = hidden_states.flatten(0, 1)
        qkv = [_linear(attention, name) for name in _ATTENTION[:3]]
        heads = fused.qkv.multiply_jointly(_norm(layer.input_layernorm, x), qkv)
        heads = heads.view(*shape[:2], -1, attention.head_dim)
        attended = _attend(attention, heads, position_embeddings, attention_mask, past_key_values)
        x = fused.out.multiply_and("add", x, attended.flatten(0, 1), _linear(attention, "o_proj"))
        inner = _norm(layer.post_attention_layernorm, x)
        gate_proj = _linear(mlp, "gate_proj")
        gate = fused.gate.multiply(inner, gate_proj.weight, gate_proj.bias, "swish")
        gated = fused.up.multiply_and("mul", gate, inner, _linear(mlp, "up_proj"))
        return fused.down.multiply_and("add", x, gated, _linear(mlp, "down_proj")).view(shape)


def _attend(
    attention: Any, heads: Tensor, position_embeddings: tuple[Tensor, Tensor], mask: Tensor, cache: Any
) -> Tensor:
    """Compute the attention of queries, keys and values [B, T, H + 2 H_kv, D]; return [B, T, H D]."""
    kv_heads = _linear(attention, "k_proj").weight.shape[0] // attention.head_dim
    rotated, values = heads[:, :, :-kv_heads], heads[:, :, -kv_heads:].transpose(1, 2)
    cos, sin = (part[:, :, None] for part in position_embeddings)
    half = attention.head_dim // 2
    turned = torch.cat((-rotated[..., half:], rotated[..., :half]), -1)
    rotated = torch.addcmul(rotated * cos, turned, sin).transpose(1, 2)  # RoPE (Su et al. 2021, equation 34)
    queries, keys = rotated[:, :-kv_heads], rotated[:, -kv_heads:]
    if cache is not None:
        keys, values = cache.update(keys, values, attention.layer_idx)
    attended, _ = grouped_query_attention(attention, queries, keys, values, mask, attention.scaling)
    return attended.flatten(2)


def _norm(layer: Any, x: Tensor) -> Tensor:
    return rms_norm(x, layer.weight.shape, layer.weight, layer.variance_epsilon)


def _linear(parent: Any, name: str) -> Any:
    """Return a linear layer, or the one inside an adapter's."""
    layer = getattr(parent, name)
    return getattr(layer, "base_layer", layer)


def _has_llamas_parts(layer: Any) -> bool:
    """Return whether a layer has the parts of Llama's, by name and kind, and no others."""
    names = {name for name, _ in layer.named_children()}
    if names != {"self_attn", "mlp", *_NORMS}:
        return False
    parts = {name for name, _ in layer.self_attn.named_children()}, {name for name, _ in layer.mlp.named_children()}
    if parts != ({*_ATTENTION}, {*_MLP, "act_fn"}) or type(layer.mlp.act_fn).__name__ not in _SILU:
        return False
    return all(hasattr(getattr(layer, name), "variance_epsilon") for name in _NORMS) and _computes_as_llamas(layer)


def _computes_as_llamas(layer: Any) -> bool:
    """Return whether a layer's methods use no more than those of Llama's.

    SmolLM3's attention has rotary positions in some layers only, and Ministral 3's scales late queries: the comparison
    of outputs on a few tokens may not show this.
    """
    pairs = ((layer, LlamaDecoderLayer), (layer.self_attn, LlamaAttention), (layer.mlp, LlamaMLP))
    return all(_used_names(type(part)) <= _used_names(llamas) | _WINDOW for part, llamas in pairs)


def _used_names(kind: type) -> set[str]:
    """Return the names of attributes and functions that the forward method of a kind of layer uses."""
    method: Any = inspect.unwrap(kind.forward)  # type: ignore[attr-defined]
    return set(method.__code__.co_names)


def _is_supported(layer: Any) -> bool:
    """Return whether the products of a layer are plain ones in bf16 at present: no adapter, or a merged one."""
    if "forward" in vars(layer):  # of someone else
        return False
    parts = [*(getattr(layer.self_attn, n) for n in _ATTENTION), *(getattr(layer.mlp, n) for n in _MLP)]
    plain = all(not hasattr(part, "base_layer") or part.merged or part.disable_adapters for part in parts)
    linear = [getattr(part, "base_layer", part) for part in parts]
    return plain and all(type(part) is nn.Linear and is_packable(part) for part in linear)
