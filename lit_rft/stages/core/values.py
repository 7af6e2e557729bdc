"""Settings of PPO, and its value heads as a part of a stage."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lit_rft.models.backbone import state_size
from lit_rft.models.value_head import ValueHeads
from lit_rft.stages.core.parts import WeightPart


@dataclass(frozen=True)
class PPOSettings:
    """Settings of PPO (Schulman et al. 2017, arXiv 1707.06347).

    Args:
        discount: per environment step, in [0, 1]; tokens of one utterance pass no time.
        gae_lambda: of generalised advantage estimation, in [0, 1].
        utterance_level: one advantage per utterance, from V at its first token, in place of one per token.
        whiten: shift and scale advantages over the batch to mean 0 and standard deviation 1.
        kl_coef: penalty of log(pi / pi_ref) in each token's reward, >= 0; needs LoRA. It is part of the returns.
        value_coef: weight of the value loss, >= 0.
        value_clip: values move at most this far from those of before the update; null for no limit.
        value_learning_rate: of the value heads, > 0.
        mini_batches: optimiser steps per epoch on a batch of rollouts.
        epochs: passes over a batch of rollouts.
        chunk_tokens: logits are computed in chunks of this many tokens.
    """

    discount: float = 1.0
    gae_lambda: float = 0.95
    utterance_level: bool = False
    whiten: bool = True
    kl_coef: float = 0.0
    value_coef: float = 1.0
    value_clip: float | None = 0.2
    value_learning_rate: float = 1e-4
    mini_batches: int = 1
    epochs: int = 1
    chunk_tokens: int = 256

    def __post_init__(self) -> None:
        for name in ("discount", "gae_lambda"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"ppo.{name} must be in [0, 1], got {getattr(self, name)}")
        for name in ("kl_coef", "value_coef"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"ppo.{name} must be >= 0, got {getattr(self, name)}")
        for name in ("mini_batches", "epochs", "chunk_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"ppo.{name} must be >= 1, got {getattr(self, name)}")
        if not self.value_learning_rate > 0 or (self.value_clip is not None and not self.value_clip > 0):
            raise ValueError(
                f"ppo.value_learning_rate and value_clip must be > 0 (value_clip may be null), got "
                f"{self.value_learning_rate} and {self.value_clip}"
            )


class ValuePart(WeightPart):
    """The value heads of a stage, added to it as `value_heads`.

    Args:
        levels: names, in the order of the heads.
        learning_rate: of the heads.
    """

    def __init__(self, levels: Sequence[str], learning_rate: float) -> None:
        self.levels, self.learning_rate = tuple(levels), learning_rate
        self.heads: ValueHeads | None = None

    def add(self, stage: Any) -> None:
        if stage.precision == "bf16-true":
            raise ValueError("precision bf16-true would keep values in three digits: use bf16-mixed")
        size = state_size(stage.policy)
        self.heads = ValueHeads(size, len(self.levels))
        stage.value_heads = self.heads

    def parameter_groups(self) -> list[dict[str, Any]]:
        assert self.heads is not None
        return [{"params": list(self.heads.parameters()), "lr": self.learning_rate, "name": "value"}]
