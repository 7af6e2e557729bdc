"""The reference policy: a stage's initial policy, for divergences."""

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from lit_rft.models.features import frozen_backbone
from lit_rft.models.merging import use_adapter
from lit_rft.models.modes import evaluation_mode

REFERENCE = "reference"  # name of the adapter


def is_reference(name: str) -> bool:
    """Return whether the weight of this name belongs to the reference adapter."""
    return f".{REFERENCE}." in name


def check_reference(policy: nn.Module) -> None:
    """Check that a model has adapters, without which it has no reference.

    Raises:
        ValueError: The model has none.
    """
    if not hasattr(policy, "peft_config"):
        raise ValueError("a divergence from the initial policy needs LoRA: set policy.lora, or kl_coef 0")


def add_reference(policy: nn.Module) -> None:
    """Add a frozen copy of the current adapter.

    Raises:
        ValueError: The model has no adapters.
    """
    check_reference(policy)
    peft_model: Any = policy
    config = copy.deepcopy(peft_model.peft_config["default"])
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        peft_model.add_adapter(REFERENCE, config)
        weights = dict(policy.named_parameters())
        for name, parameter in weights.items():
            if is_reference(name):
                parameter.copy_(weights[name.replace(f".{REFERENCE}.", ".default.")])
                parameter.requires_grad_(False)


@contextlib.contextmanager
def reference_policy(policy: nn.Module) -> Iterator[None]:
    """Switch temporarily to the reference: the frozen copy of the adapter, or the pretrained model without one.

    Dropout is off, and no gradients are computed.

    Raises:
        ValueError: The model has no adapters.
    """
    if REFERENCE not in getattr(policy, "peft_config", ()):
        with frozen_backbone(policy):
            yield
        return
    with evaluation_mode(policy), torch.no_grad(), use_adapter(policy, REFERENCE):
        yield
