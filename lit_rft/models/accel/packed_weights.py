"""Packed weights: stored in the layout of the CPU's products, which ordinary products recreate every time."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lit_rft.models.accel.operators import PACK_WEIGHT, PACKED_PRODUCT, bf16_obstacle, missing_operator
from lit_rft.models.accel.switch import is_on


def obstacle(device: str, dtype: torch.dtype) -> str | None:
    """Return why weights cannot be packed for products on a device in a data type, or None."""
    reason = bf16_obstacle(device, dtype) or missing_operator([PACK_WEIGHT, PACKED_PRODUCT])
    if reason:
        return reason
    weight = torch.ones(16, 16, dtype=torch.bfloat16)
    try:
        PackedWeights(16).multiply(weight, weight)
    except (RuntimeError, TypeError) as error:  # private operators: their arguments may change
        return f"torch {torch.__version__} refuses: {error}"
    return None


def can_pack_weights() -> bool:
    """Return whether this CPU supports products with packed bf16 weights."""
    return obstacle("cpu", torch.bfloat16) is None


class PackedWeights:
    """Bf16 weights of layers with one input, packed as one on first use, and again after changes.

    Args:
        rows: number of rows of most products.
        transposed: for products with the transposed weight.
    """

    def __init__(self, rows: int, transposed: bool = False) -> None:
        self.rows, self.transposed = rows, transposed
        self._state: tuple[tuple[int, int], ...] = ()
        self._packed: Tensor | None = None

    def _pack(self, weights: Sequence[Tensor]) -> Tensor | None:
        state = tuple((weight.data_ptr(), weight._version) for weight in weights)
        if state != self._state:
            joint = weights[0].detach() if len(weights) == 1 else torch.cat([weight.detach() for weight in weights])
            ordered = joint.t().contiguous() if self.transposed else joint
            self._state, self._packed = state, torch.ops.mkldnn._reorder_linear_weight(ordered, self.rows)
        return self._packed

    def multiply(self, x: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str = "none") -> Tensor:
        """Compute f(x W^T + bias), or x W if transposed, without gradients.

        Args:
            x: [..., in].
            weight: [out, in].
            bias: [out], if any.
            activation: f, as oneDNN names it.
        """
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._pack([weight]), bias, activation, [], "")
        return out

    def multiply_jointly(self, x: Tensor, layers: Sequence[nn.Linear]) -> Tensor:
        """Compute the outputs of linear layers as one product, side by side, [..., sum of out]."""
        biases: list[Tensor] = [layer.bias for layer in layers if layer.bias is not None]
        bias = torch.cat(biases) if biases else None
        packed = self._pack([layer.weight for layer in layers])
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")
        return out

    def multiply_and(self, operation: str, other: Tensor, x: Tensor, layer: nn.Linear) -> Tensor:
        """Compute the output of a linear layer, combined with another tensor of its shape.

        Args:
            operation: `add` or `mul`.
            other: [..., out].
            x: [..., in].
            layer: with the weight and the bias.
        """
        packed = self._pack([layer.weight])
        out: Tensor = torch.ops.mkldnn._linear_pointwise.binary(x, other, packed, layer.bias, operation)
        return out

    def __reduce__(self) -> Any:
        return PackedWeights, (self.rows, self.transposed)  # packed weights cannot be copied


class Exchanged:
    """A forward method that a fast path has put in place of a layer's own.

    A class, to recognise it: forward methods set by other code are left alone.
    """

    def __init__(self, function: Callable[..., Tensor], *bound: Any) -> None:
        self.function, self.bound = function, bound

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.function(*self.bound, *args, **kwargs)


class PackedProducts:
    """Linear layers with packed copies of their weights while a model decodes; results are the same.

    Supports plain linear layers with bf16 weights on a CPU that multiplies bf16 (oneDNN); other layers are unchanged.
    Takes the memory of those weights once more.

    Args:
        model: its weights at the time of `active` are used; changed weights are packed again.
        rows: number of rows of most products.
    """

    def __init__(self, model: nn.Module, rows: int) -> None:
        # subclasses may compute other products
        linear = [layer for layer in model.modules() if type(layer) is nn.Linear]
        packs = is_on(model, "packed_weights") and can_pack_weights()
        self._layers = {layer: PackedWeights(rows) for layer in linear} if packs else {}

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Use packed weights in the model, without gradients."""
        supported = {layer: vars(layer).get("forward") for layer in self._layers if is_packable(layer)}
        try:
            for layer in supported:
                layer.forward = Exchanged(_product, layer, self._layers[layer])  # type: ignore[method-assign]
            yield
        finally:
            for layer, before in supported.items():
                layer.__dict__.pop("forward", None)
                if before is not None:
                    layer.forward = before  # type: ignore[method-assign]


def _product(layer: nn.Linear, packed: PackedWeights, x: Tensor) -> Tensor:
    if x.dtype != torch.bfloat16:
        if torch.get_autocast_dtype("cpu") != torch.bfloat16 or not torch.is_autocast_enabled("cpu"):
            return nn.functional.linear(x, layer.weight, layer.bias)
        x = x.bfloat16()
    return packed.multiply(x, layer.weight, layer.bias)


def is_packable(layer: nn.Linear) -> bool:
    """Return whether a linear layer's products can take packed weights."""
    weight = layer.weight.data
    ordinary = type(weight) is Tensor and (layer.bias is None or layer.bias.dtype == torch.bfloat16)
    ours = isinstance(vars(layer).get("forward"), Exchanged | None)
    return ours and ordinary and weight.device.type == "cpu" and weight.dtype == torch.bfloat16
