"""Adapters folded into the backbone for as long as a policy acts: decoding is bound by the number of small products."""

from typing import Any

import torch
from torch import Tensor, nn


class MergedAdapters:
    """Folds the active LoRA adapters into the weights they adapt, until `restore`.

    The backbone's own weights are kept aside and put back to the bit (subtracting the update would leave rounding
    errors), which takes memory for the adapted weights once more. In bf16 the folded weights are rounded once: the
    acting policy differs from the training one by about as much as bf16 differs from float32.

    Args:
        model: with PEFT adapters; without any, nothing happens.
    """

    def __init__(self, model: nn.Module) -> None:
        layer: Any
        self._kept: list[tuple[Any, Tensor]] = []
        if not hasattr(model, "peft_config"):
            return
        from peft.tuners.tuners_utils import BaseTunerLayer

        layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
        with torch.no_grad():
            try:
                for layer in layers:
                    self._kept.append((layer, layer.get_base_layer().weight.detach().clone()))
                    layer.merge()
            except BaseException:  # out of memory, most likely
                self.restore()
                raise

    def restore(self) -> None:
        """Put the backbone's weights back and let the adapters act on their own again."""
        with torch.no_grad():
            for layer, weight in self._kept:
                layer.get_base_layer().weight.copy_(weight)
                layer.merged_adapters.clear()
        self._kept = []
