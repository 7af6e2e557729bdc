"""Merged adapters for sampling, which saves the many small products of decoding, and the choice of the adapter."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

_Place = tuple[nn.Module, str]  # a layer, and the name of one of its parameters


class MergedWeights:
    """An adapter added to the weights it adapts, and float32 weights as autocast multiplies with them, to be put in the
    place of the backbone's while a policy acts.

    The backbone's own weights are never changed, they are only exchanged: what was there comes back to the bit, and a
    weight that two layers share is exchanged in the one that is adapted. This takes memory for the exchanged weights
    once more. In bf16 the merged weights are rounded once: the acting policy differs from the training one by about as
    much as bf16 differs from float32.

    Args:
        model: with the weights that it has while this is used.
        adapter: which one of its PEFT adapters, if it has any.
    """

    def __init__(self, model: nn.Module, adapter: str = "default") -> None:
        self._model, self._adapter = model, adapter
        self._adapted = _adapted_layers(model)
        self._trains_layers = any(".modules_to_save." in name for name, _ in model.named_parameters())
        self._cast: dict[_Place, nn.Parameter] | None = None
        with _ordinary_tensors():
            self._folded = self._fold()

    def _fold(self) -> dict[_Place, nn.Parameter]:
        bases = [layer.get_base_layer() for layer in self._adapted]  # one may have several adapters (experts)
        own = {(base, name): parameter for base in bases for name, parameter in base.named_parameters(recurse=False)}
        try:
            _put({place: _frozen(parameter.clone()) for place, parameter in own.items()})
            for layer in self._adapted:
                layer.merge(adapter_names=[self._adapter])
            return {(base, name): getattr(base, name) for base, name in own}
        finally:
            _put(own)
            for layer in self._adapted:
                layer.merged_adapters.clear()

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """The model with these weights, in which no adapter has to be computed, and nothing cast where it is under
        autocast."""
        exchanged = self._folded | self._as_autocast_has_them()
        before = {(layer, name): getattr(layer, name) for layer, name in exchanged}
        # layers that are trained in full (modules_to_save) are exchanged with the adapter, not merged
        with use_adapter(self._model, self._adapter) if self._trains_layers else contextlib.nullcontext():
            try:
                _put(exchanged)
                for layer in self._adapted:
                    layer.merged_adapters[:] = [self._adapter]
                yield
            finally:
                _put(before)
                for layer in self._adapted:
                    layer.merged_adapters.clear()

    def _as_autocast_has_them(self) -> dict[_Place, nn.Parameter]:
        """Weights of linear layers in autocast's type: it would cast all of them again for each token."""
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
                self._cast = {place: _frozen(self._folded.get(place, all_places[place]).to(dtype)) for place in wide}
        return self._cast


@contextlib.contextmanager
def _ordinary_tensors() -> Iterator[None]:
    """Leave inference mode (Lightning evaluates in it): its tensors lack the version counter that packing needs."""
    with torch.inference_mode(False), torch.no_grad():
        yield


def _frozen(weight: torch.Tensor) -> nn.Parameter:
    return nn.Parameter(weight.detach(), requires_grad=False)


def _put(weights: dict[_Place, nn.Parameter]) -> None:
    for (layer, name), parameter in weights.items():
        setattr(layer, name, parameter)


@contextlib.contextmanager
def use_adapter(model: nn.Module, adapter: str) -> Iterator[None]:
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
