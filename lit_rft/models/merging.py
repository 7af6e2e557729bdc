"""Which adapter acts, and adapters folded into the backbone: decoding is bound by the number of small products."""

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn


class FoldedAdapter:
    """An adapter added to the weights it adapts, to be put in their place while a policy acts.

    The backbone's own weights are never changed, they are only exchanged: what was there comes back to the bit. This
    takes memory for the adapted weights once more. In bf16 the folded weights are rounded once: the acting policy
    differs from the training one by about as much as bf16 differs from float32.

    Args:
        model: with PEFT adapters; without any, nothing happens.
        adapter: which one.
    """

    def __init__(self, model: nn.Module, adapter: str = "default") -> None:
        self._adapter = adapter
        self._folded: list[tuple[Any, nn.Parameter, Tensor]] = []
        layer: Any
        for layer in _adapted_layers(model):
            weights = [p for p in (layer.get_base_layer().weight, layer.get_base_layer().bias) if p is not None]
            originals = [weight.data for weight in weights]
            try:
                for weight, original in zip(weights, originals, strict=True):
                    weight.data = original.clone()
                layer.merge(adapter_names=[adapter])
                self._folded += [(layer, weight, weight.data) for weight in weights]
            finally:
                for weight, original in zip(weights, originals, strict=True):
                    weight.data = original
                layer.merged_adapters.clear()

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """The model with this adapter, in which no adapter has to be computed."""
        originals = [weight.data for _, weight, _ in self._folded]
        try:
            for layer, weight, folded in self._folded:
                weight.data = folded
                layer.merged_adapters[:] = [self._adapter]
            yield
        finally:
            for (layer, weight, _), original in zip(self._folded, originals, strict=True):
                weight.data = original
                layer.merged_adapters.clear()


@contextlib.contextmanager
def acting_adapter(model: nn.Module, adapter: str) -> Iterator[None]:
    """The model with another of its adapters; which weights train stays as it was."""
    peft_model: Any = model
    if not hasattr(model, "peft_config") or peft_model.active_adapter == adapter:
        yield
        return
    before = peft_model.active_adapter
    trains = {parameter: parameter.requires_grad for parameter in model.parameters()}
    peft_model.set_adapter(adapter)
    try:
        yield
    finally:
        peft_model.set_adapter(before)
        for parameter, requires_grad in trains.items():
            parameter.requires_grad_(requires_grad)


def _adapted_layers(model: nn.Module) -> list[Any]:
    if not hasattr(model, "peft_config"):
        return []
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
