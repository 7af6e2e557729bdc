"""The parts of GRPO from one set of settings, each where it belongs."""

from __future__ import annotations

import dataclasses
from typing import Any

from lit_rft.rollouts import GroupAdvantages, MixedPolicyLoss
from lit_rft.stages import ObjectiveSettings


def letter_sum(completions: Any, rows: Any) -> list[float]:
    """A reward that differs within nearly every group."""
    return [float(sum(map(ord, text)) % 5) for text in completions]


PARTS: dict[str, Any] = {"objective": ObjectiveSettings, "loss": MixedPolicyLoss, "advantages": GroupAdvantages}


def grpo_parts(**settings: Any) -> dict[str, Any]:
    """Constructor arguments of a stage.

    Args:
        settings: fields of any of the parts.
    """
    fields = {name: {field.name for field in dataclasses.fields(part)} for name, part in PARTS.items()}
    assert settings.keys() <= set().union(*fields.values()), settings
    return {
        name: part(**{key: value for key, value in settings.items() if key in fields[name]})
        for name, part in PARTS.items()
    }
