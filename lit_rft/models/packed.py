"""Weights in the order in which the CPU multiplies them: a product puts them into it anew each time."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn


@functools.cache
def multiplies_bf16() -> bool:
    """Whether this CPU has products of bf16, and this torch the library for them."""
    return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


class PackedWeight:
    """A bf16 weight that is packed when it is first asked for, and anew if it has changed.

    Args:
        rows: how many rows most products have.
        transposed: for products with the transposed weight.
    """

    def __init__(self, rows: int, transposed: bool = False) -> None:
        self.rows, self.transposed = rows, transposed
        self._state: tuple[int, int] | None = None
        self._packed: Tensor | None = None

    def multiply(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """x W^T + bias, or x W if transposed; no gradients."""
        state = (weight.data_ptr(), weight._version)
        if state != self._state:
            ordered = weight.detach().t().contiguous() if self.transposed else weight.detach()
            self._state, self._packed = state, torch.ops.mkldnn._reorder_linear_weight(ordered, self.rows)
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._packed, bias, "none", [], "")
        return out

    def __reduce__(self) -> Any:
        return PackedWeight, (self.rows, self.transposed)  # packed weights cannot be copied


class Exchanged:
    """A forward of ours in place of a layer's own. (A class, so that it is known: where a layer has one of someone
    else, it is left alone.)"""

    def __init__(self, function: Callable[..., Tensor], *bound: Any) -> None:
        self.function, self.bound = function, bound

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.function(*self.bound, *args, **kwargs)


class PackedProducts:
    """Linear layers that multiply with packed copies of their weights while a model decodes; products stay the same.

    Serves plain linear layers whose weights are bf16, on a CPU that multiplies bf16 (oneDNN); the others stay as they
    are. Takes memory for those weights once more.

    Args:
        model: with the weights as they are when it is to be `active`; a weight that has changed is packed anew.
        rows: how many rows most products have.
    """

    def __init__(self, model: nn.Module, rows: int) -> None:
        # a subclass may multiply in its own way
        linear = [layer for layer in model.modules() if type(layer) is nn.Linear]
        self._layers = {layer: PackedWeight(rows) for layer in linear} if multiplies_bf16() else {}

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """The model with packed weights; no gradients within."""
        served = {layer: vars(layer).get("forward") for layer in self._layers if _is_served(layer)}
        try:
            for layer in served:
                layer.forward = Exchanged(_product, layer, self._layers[layer])  # type: ignore[method-assign]
            yield
        finally:
            for layer, before in served.items():
                layer.__dict__.pop("forward", None)
                if before is not None:
                    layer.forward = before  # type: ignore[method-assign]


def _product(layer: nn.Linear, packed: PackedWeight, x: Tensor) -> Tensor:
    if x.dtype != torch.bfloat16:
        if torch.get_autocast_dtype("cpu") != torch.bfloat16 or not torch.is_autocast_enabled("cpu"):
            return nn.functional.linear(x, layer.weight, layer.bias)
        x = x.bfloat16()
    return packed.multiply(x, layer.weight, layer.bias)


def _is_served(layer: nn.Linear) -> bool:
    weight = layer.weight.data
    plain = type(weight) is Tensor and (layer.bias is None or layer.bias.dtype == torch.bfloat16)
    ours = isinstance(vars(layer).get("forward"), Exchanged | None)
    return ours and plain and weight.device.type == "cpu" and weight.dtype == torch.bfloat16
