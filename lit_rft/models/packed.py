"""Weights in the order in which the CPU multiplies them: a product of few rows puts them into it anew each time."""

import contextlib
import functools
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn


@functools.cache
def multiplies_bf16() -> bool:
    """Whether this CPU has products of bf16, and this torch the library for them."""
    return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


class PackedProducts:
    """Linear layers that multiply with packed copies of their weights while a model decodes; products stay the same.

    Serves plain linear layers whose weights are bf16, on a CPU that multiplies bf16 (oneDNN); the others stay as they
    are. Takes memory for those weights once more.

    Args:
        model: with the weights as they are when it is to be `active`; a weight that has changed is packed anew.
        rows: how many rows most products have.
    """

    def __init__(self, model: nn.Module, rows: int) -> None:
        self.rows = rows
        # a subclass may multiply in its own way
        linear = [layer for layer in model.modules() if type(layer) is nn.Linear]
        self._layers = linear if multiplies_bf16() else []
        self._packed: dict[nn.Linear, tuple[tuple[int, int], Tensor]] = {}

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """The model with packed weights; no gradients within."""
        served = [layer for layer in self._layers if _is_served(layer)]
        try:
            for layer in served:
                layer.forward = self._forward(layer)  # type: ignore[method-assign, assignment]
            yield
        finally:
            for layer in served:
                layer.__dict__.pop("forward", None)

    def _forward(self, layer: nn.Linear) -> Callable[[Tensor], Tensor]:
        weight, bias = layer.weight.data, layer.bias if layer.bias is None else layer.bias.data
        state = (weight.data_ptr(), layer.weight._version)
        known = self._packed.get(layer)
        if known is None or known[0] != state:
            known = self._packed[layer] = state, torch.ops.mkldnn._reorder_linear_weight(weight, self.rows)
        packed = known[1]

        def forward(x: Tensor) -> Tensor:
            if x.dtype != torch.bfloat16:
                return nn.functional.linear(x, layer.weight, layer.bias)
            return torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")

        return forward


def _is_served(layer: nn.Linear) -> bool:
    weight = layer.weight.data
    plain = type(weight) is Tensor and (layer.bias is None or layer.bias.dtype == torch.bfloat16)
    return plain and weight.device.type == "cpu" and weight.dtype == torch.bfloat16 and "forward" not in vars(layer)
