"""A frozen adapter for some levels of an agent, beside the one that trains."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_rft.stages.core.parts import WeightPart

FROZEN = "frozen"  # name of the adapter


def is_frozen(name: str) -> bool:
    """Return whether the weight of this name belongs to the frozen adapter."""
    return f".{FROZEN}." in name


class FrozenLevels(WeightPart):
    """A snapshot of the initial adapter, with which the frozen levels act; it gets no gradient."""

    def add(self, stage: Any) -> None:
        """Add the snapshot, or load it from the adapter folder of an online run."""
        policy = stage.policy
        if not hasattr(policy, "peft_config"):
            raise ValueError("freezing levels needs LoRA: set policy.lora, frozen_levels: [], or an agent of one level")
        start = stage.policy_settings.start_from
        if start is not None and (Path(start) / FROZEN / "adapter_config.json").is_file():
            skills = Path(start) / FROZEN
            if missing := policy.load_adapter(str(skills), FROZEN, is_trainable=False).missing_keys:
                raise ValueError(f"the adapter {skills} lacks {len(missing)} weights (first: {missing[0]})")
        else:
            policy.add_adapter(FROZEN, policy.peft_config["default"])
            weights = dict(policy.named_parameters())
            with torch.no_grad():
                for name in self.saved_names(weights):
                    weights[name].copy_(weights[name.replace(f".{FROZEN}.", ".default.")])
        for name, parameter in policy.named_parameters():
            if is_frozen(name):
                parameter.requires_grad_(False)
        policy.set_adapter("default")

    def saved_names(self, names: Iterable[str]) -> list[str]:
        return [name for name in names if is_frozen(name) and ("lora_" in name or ".modules_to_save." in name)]

    def starting_weights(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """Freeze the skills of an earlier stage's adapter; those of an online stage stay as they are."""
        if self.saved_names(weights):
            return weights
        skills = {k.replace(".default.", f".{FROZEN}."): v for k, v in weights.items() if ".default." in k}
        return {**weights, **skills}
