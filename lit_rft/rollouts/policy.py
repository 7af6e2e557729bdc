"""A policy, as rollout sources and evaluators see it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from lit_rft._phases import Phases
from lit_rft._phases import measured as measured
from lit_rft.generation import ConversationGenerator, Conversations
from lit_rft.transcripts import ChatFormat


def _no_identity() -> dict[str, Any]:
    return {}


@dataclass(frozen=True)
class Policy:
    """A language model at one optimiser step.

    Args:
        model: with or without adapters.
        chat: chat format of its tokenizer.
        step: optimiser steps so far; it enters the names and seeds of rollouts (see `occasion`), and is the version of
            the weights for a generation server.
        level_adapters: adapter of each level of an agent that does not act with `default`.
        numerics: precision and attention implementation, which stored features depend on.
        identity: returns model, weights and other facts that distinguish policies, for records. All processes must call
            it.
        samplers: level -> makes its sampler from the arguments of `ConversationGenerator`, which is the default.
        phases: seconds of the phases of a training step, which sources and updates measure.
        sampling_round: number of earlier rounds of sampling in this step, which have other samples of the same prompts.
    """

    model: nn.Module
    chat: ChatFormat
    step: int = 0
    level_adapters: Mapping[str, str] = field(default_factory=dict)
    numerics: str = ""
    identity: Callable[[], dict[str, Any]] = _no_identity
    samplers: Mapping[str, Callable[..., Conversations]] = field(default_factory=dict)
    phases: Phases = field(default_factory=Phases)
    sampling_round: int = 0

    @property
    def occasion(self) -> str:
        """Name of the step and of its round of sampling; it enters the names that seed samples."""
        return f"{self.step}+{self.sampling_round}" if self.sampling_round else str(self.step)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def adapter(self, level: str) -> str:
        """Return the name of the adapter that acts at a level."""
        return self.level_adapters.get(level, "default")

    def sampler(self, level: str) -> Callable[..., Conversations]:
        """Return what makes the sampler of a level."""
        return self.samplers.get(level, ConversationGenerator)
