"""Fused layers of a frozen backbone, for training on a CPU.

Products with packed weights include the adapter, without separate passes over activations.
"""

import logging
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.amp import custom_bwd, custom_fwd
from torch.autograd.function import once_differentiable

from lit_rft.models.accel.operators import multiplies_bf16
from lit_rft.models.accel.packed_weights import Exchanged, PackedWeights, can_pack_weights
from lit_rft.models.backbone import causal_lm

logger = logging.getLogger(__name__)

_ROWS = 1024  # rows of most products


class Adapter(NamedTuple):
    """LoRA's part of a linear layer: scale B A x."""

    a: Tensor  # [rank, in]
    b: Tensor  # [out, rank]
    scale: float
    dropped: Tensor | None = None  # [..., in], input after dropout, in place of x


class Packs(NamedTuple):
    """A frozen weight, packed for the forward and for the backward pass."""

    forward: PackedWeights
    backward: PackedWeights


def frozen_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, adapter: Adapter | None = None, packs: Packs | None = None
) -> Tensor:
    """Compute W x + bias + scale B A x (LoRA, Hu et al. 2022, equation 3) in one data type.

    Args:
        x: [..., in].
        weight, bias: [out, in] and [out]; they get no gradient.
        adapter: LoRA's part, if any.
        packs: of this weight, if everything is bf16.

    Returns:
        [..., out].
    """
    if adapter is not None and adapter.dropped is not None:
        adapter = adapter._replace(dropped=adapter.dropped.flatten(0, -2))
    with torch.autocast(x.device.type, enabled=False):
        out: Tensor = _FrozenLinear.apply(x.flatten(0, -2), weight, bias, packs, *(adapter or (None, None, 0.0, None)))
    # rows within the function: a model may change outputs in place (Gemma 3n), which torch refuses for its views
    return out.view(*x.shape[:-1], out.shape[-1])


class _FrozenLinear(torch.autograd.Function):
    @staticmethod
    @custom_fwd(device_type="cpu")
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, packs: Packs | None, *adapter: Any) -> Tensor:
        a, b, scale, dropped = adapter
        ctx.packs, ctx.scale, ctx.separate_input = packs, scale, dropped is not None
        adapter_in: Any = None
        low: Any = None
        if a is not None:  # first, while x is in the CPU's cache
            adapter_in = x if dropped is None else dropped
            low = adapter_in @ a.t()
        out = packs.forward.multiply(x, weight, bias) if packs else nn.functional.linear(x, weight, bias)
        if a is not None:
            out.addmm_(low, b.t(), alpha=scale)
        ctx.save_for_backward(weight, a, b, adapter_in, low)
        return out

    @staticmethod
    @once_differentiable
    @custom_bwd(device_type="cpu")
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        weight, a, b, adapter_in, low = ctx.saved_tensors
        d_x = d_a = d_b = d_dropped = None
        if a is not None:
            grad_low, d_b = (grad @ b).mul_(ctx.scale), (low.t() @ grad).mul_(ctx.scale).t()
        if ctx.needs_input_grad[0]:
            d_x = ctx.packs.backward.multiply(grad, weight) if ctx.packs else grad @ weight
        if a is not None:
            d_a = grad_low.t() @ adapter_in
            if ctx.separate_input:
                d_dropped = grad_low @ a
            elif d_x is not None:
                d_x.addmm_(grad_low, a)
        return d_x, None, None, None, d_a, d_b, None, d_dropped


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Compute x / rms(x) * weight over the last dimension [..., D], in float32 or wider; weight gets no gradient."""
    with torch.autocast(x.device.type, enabled=False):
        out: Tensor = _RMSNorm.apply(x, weight, eps)
    return out


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        ctx.eps = eps
        ctx.save_for_backward(x, weight)
        return nn.functional.rms_norm(x, weight.shape, weight, eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        x, weight = ctx.saved_tensors
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        inverse = (wide.square().mean(-1, keepdim=True) + ctx.eps).rsqrt()
        weighted = grad.to(wide.dtype) * weight
        along = (weighted * wide).mean(-1, keepdim=True) * inverse**3
        return (weighted * inverse).addcmul_(wide, along, value=-1).to(x.dtype), None, None


def obstacle(model: nn.Module, device: str, sharded: bool) -> str | None:
    """Return why a model's layers cannot be fused for training on a device, or None."""
    if device != "cpu":
        return f"serves CPUs only, not {device}"
    if sharded:
        return "weights are sharded"  # packed copies would not be sharded
    return None if any(not p.requires_grad for p in model.parameters()) else "all weights train"


def fuse(model: nn.Module, *, pack: bool = True) -> None:
    """Fuse a model's frozen linear layers, adapted or not, and its RMS norms, for passes with gradients on a CPU.

    Other passes are unchanged. A warning names layers with other kinds of LoRA.

    Args:
        model: with or without adapters.
        pack: multiply with packed weights, which take twice the memory of these weights in addition, once they are
            used.
    """
    layer: Any
    head = causal_lm(model).get_output_embeddings()  # so wide that packing it has no benefit
    pack = pack and can_pack_weights()
    packs = {
        layer: Packs(PackedWeights(_ROWS), PackedWeights(_ROWS, transposed=True)) if pack else None
        for layer in model.modules()
        if type(layer) is nn.Linear and not layer.weight.requires_grad and layer is not head
    }
    for layer, packed in packs.items():
        layer.forward = Exchanged(_frozen, layer, layer.forward, packed)
    for layer in model.modules():
        if _is_plain_lora(layer) and layer.base_layer in packs:
            layer.forward = Exchanged(_adapted, layer, layer.forward, packs[layer.base_layer])
        elif type(layer).__name__.endswith("RMSNorm") and _is_plain_norm(layer):
            layer.forward = Exchanged(_normalized, layer, layer.forward)
    _warn_of_others(model)


def unfuse(model: nn.Module) -> None:
    """Undo `fuse`."""
    for layer in model.modules():
        fused = vars(layer).get("forward")
        if isinstance(fused, Exchanged):
            _, default, *_ = fused.bound
            del layer.forward
            if getattr(default, "__func__", None) is not type(layer).forward:  # set by other code
                layer.forward = default


def _warn_of_others(model: nn.Module) -> None:
    adapted = [layer for layer in model.modules() if hasattr(layer, "base_layer") and hasattr(layer, "lora_A")]
    kinds = {_kind(layer) for layer in adapted if not _is_plain_lora(layer)}
    if kinds and multiplies_bf16() and next(model.parameters()).device.type == "cpu":
        name, which = type(causal_lm(model)).__name__, ", ".join(sorted(kinds))
        logger.warning("%s has adapted layers that cannot be fused, which is slower on a CPU: %s", name, which)


def _is_plain_lora(layer: Any) -> bool:
    from peft.tuners.lora import Linear as LoraLinear

    return type(layer) is LoraLinear and type(layer.base_layer) is nn.Linear and not layer.lora_variant


def _kind(layer: Any) -> str:
    variants = [type(variant).__name__ for variant in layer.lora_variant.values()]
    return " ".join([*sorted({type(layer).__name__, *variants}), "of", type(layer.base_layer).__name__])


def _frozen(layer: Any, default: Any, packs: Packs | None, x: Tensor) -> Tensor:
    if packs and x.dtype == torch.bfloat16 and _is_supported(x, layer):
        return frozen_linear(x, layer.weight, layer.bias, packs=packs)
    out: Tensor = default(x)
    return out


def _adapted(layer: Any, default: Any, packs: Packs | None, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    base, unfused = layer.base_layer, args or kwargs or layer.disable_adapters or layer.merged or layer.lora_variant
    if unfused or not _is_supported(x, base):
        return default(x, *args, **kwargs)
    names = [name for name in layer.active_adapters if name in layer.lora_A]
    if len(names) != 1:
        return default(x)
    (name,) = names
    a, b, dropout = layer.lora_A[name], layer.lora_B[name], layer.lora_dropout[name]
    if a.bias is not None or b.bias is not None:
        return default(x)
    dropped = dropout(x) if isinstance(dropout, nn.Dropout) and dropout.training else None
    adapter = Adapter(a.weight.to(x.dtype), b.weight.to(x.dtype), layer.scaling[name], dropped)
    return frozen_linear(x, base.weight, base.bias, adapter, packs if x.dtype == torch.bfloat16 else None)


def _normalized(layer: Any, default: Any, x: Tensor) -> Tensor:
    if _is_supported(x, layer):
        return rms_norm(x, layer.weight, layer.variance_epsilon)
    out: Tensor = default(x)
    return out


def _is_supported(x: Tensor, layer: Any) -> bool:
    """Return whether a frozen layer's gradients are required on a CPU, for a product without casts."""
    if x.device.type != "cpu" or not torch.is_grad_enabled():  # first: skips the other checks on a GPU
        return False
    weights = [weight for weight in (layer.weight, getattr(layer, "bias", None)) if weight is not None]
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
    return all(not weight.requires_grad and weight.dtype == x.dtype == dtype for weight in weights)


@torch.no_grad()
def _is_plain_norm(layer: Any) -> bool:
    """Return whether a norm is the usual one, and does not add 1 to its weight (as Gemma's), by evaluating it."""
    weight, eps = getattr(layer, "weight", None), getattr(layer, "variance_epsilon", None)
    if weight is None or eps is None or weight.device.type != "cpu":
        return False
    x = torch.linspace(-1, 2, weight.numel(), dtype=weight.dtype, device=weight.device)[None]
    return bool(torch.allclose(layer(x), nn.functional.rms_norm(x, weight.shape, weight, eps), rtol=0.02, atol=1e-6))
