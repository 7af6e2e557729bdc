"""Merged adapters for sampling, without the many small products of decoding, and the choice of the adapter."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

_Place = tuple[nn.Module, str]  # a layer, and the name of one of its parameters


class MergedWeights:
    """An adapter merged into the weights, and float32 weights cast for autocast, for use while a policy samples.

    The backbone's own weights are never changed, only exchanged: they come back bit for bit, and a weight shared by
    two layers is exchanged in the adapted one only. This takes memory for a second copy of the exchanged weights. In
    bf16 the merged weights are rounded once: the sampling policy differs from the trained one by about the rounding
    error of bf16.

    Args:
        model: its weights must not change while this object is used.
        adapter: name of the PEFT adapter, if there are any.
    """

    def __init__(self, model: nn.Module, adapter: str = "default") -> None:
        self._model, self._adapter = model, adapter
        self._adapted = _adapted_layers(model)
        self._trains_layers = any(".modules_to_save." in name for name, _ in model.named_parameters())
        self._cast: dict[_Place, nn.Parameter] | None = None
        with _ordinary_tensors():
            self._merged = self._merge()

    def _merge(self) -> dict[_Place, nn.Parameter]:
        bases = [layer.get_base_layer() for layer in self._adapted]  # a layer may have several adapters (experts)
        base_weights = {(base, name): weight for base in bases for name, weight in base.named_parameters(recurse=False)}
        try:
            _exchange({place: _frozen(weight.clone()) for place, weight in base_weights.items()})
            for layer in self._adapted:
                layer.merge(adapter_names=[self._adapter])
            return {(base, name): getattr(base, name) for base, name in base_weights}
        finally:
            _exchange(base_weights)
            for layer in self._adapted:
                layer.merged_adapters.clear()

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Use the merged weights: no adapter products, and no casts under autocast."""
        exchanged = self._merged | self._cast_for_autocast()
        before = {(layer, name): getattr(layer, name) for layer, name in exchanged}
        # layers trained in full (modules_to_save) switch with the adapter and are not merged
        with use_adapter(self._model, self._adapter) if self._trains_layers else contextlib.nullcontext():
            try:
                _exchange(exchanged)
                for layer in self._adapted:
                    layer.merged_adapters[:] = [self._adapter]
                yield
            finally:
                _exchange(before)
                for layer in self._adapted:
                    layer.merged_adapters.clear()

    def _cast_for_autocast(self) -> dict[_Place, nn.Parameter]:
        """Cast the weights of linear layers to autocast's type, which would cast them again for each token."""
        device = next(self._model.parameters()).device.type
        if not torch.is_autocast_enabled(device):
            return {}
        if self._cast is None:
            dtype = torch.get_autocast_dtype(device)
            small = {part for layer in self._adapted for part in layer.modules() if part is not layer.get_base_layer()}
            linear = [layer for layer in self._model.modules() if type(layer) is nn.Linear and layer not in small]
            all_places = {(layer, name): p for layer in linear for name, p in layer.named_parameters(recurse=False)}
            wide = [place for place, parameter in all_places.items() if parameter.dtype == torch.float32]
            with _ordinary_tensors():
                self._cast = {place: _frozen(self._merged.get(place, all_places[place]).to(dtype)) for place in wide}
        return self._cast


@contextlib.contextmanager
def _ordinary_tensors() -> Iterator[None]:
    """Leave inference mode (set by Lightning's evaluation): its tensors lack the version counter that packing needs."""
    with torch.inference_mode(False), torch.no_grad():
        yield


def _frozen(weight: torch.Tensor) -> nn.Parameter:
    return nn.Parameter(weight.detach(), requires_grad=False)


def _exchange(weights: dict[_Place, nn.Parameter]) -> None:
    for (layer, name), parameter in weights.items():
        setattr(layer, name, parameter)


@contextlib.contextmanager
def use_adapter(model: nn.Module, adapter: str) -> Iterator[None]:
    """Switch a model temporarily to another of its adapters; the set of trainable weights does not change."""
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
