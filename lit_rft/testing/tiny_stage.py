"""Stages on a tiny model, and a trainer for them."""

import dataclasses
from pathlib import Path
from typing import Any

import lightning as L
import torch

from lit_rft.agents import FlatAgent, HierarchicalAgent, HierarchyPrompts, add_outcomes
from lit_rft.datamodules import StepLoader
from lit_rft.models import LoraSettings, load_tokenizer
from lit_rft.stages import (
    BatchingSettings,
    CriticSettings,
    EpisodeStage,
    FSDP2Strategy,
    HierarchicalSFT,
    OfflineHierarchicalRL,
    OptimizerSettings,
    PolicySettings,
)
from lit_rft.testing.tiny import let_adapters_act, make_episode
from lit_rft.transcripts import ChatFormat

AGENT = HierarchicalAgent(HierarchyPrompts("Plan.", "Act."))
FLAT = FlatAgent("Act.")
PLAYER = dataclasses.replace(AGENT, max_length=900, subgoal_steps=2)  # for a short context
FLAT_PLAYER = dataclasses.replace(FLAT, max_length=900)
# between micro-batch sizes: the update must be the same
SPLITS = [
    BatchingSettings(1),
    BatchingSettings(700),
    BatchingSettings(2000, packing=True),
    BatchingSettings(700, packing=True),
]
BATCHING = BatchingSettings(2000)
ADAPTERS = LoraSettings(rank=4, alpha=8, dropout=0.0, target_modules="all-linear")


def make_stage(model: Path, *, lora: LoraSettings | None = ADAPTERS, seed: int = 0, **options: Any) -> HierarchicalSFT:
    """Make a stage of supervised fine-tuning on a tiny model.

    Args:
        model: the folder of `save_tiny_model`.
        lora: the adapters; None trains all weights.
        seed: of the adapters' initial weights.
        **options: of the stage.
    """
    optimizer = options.pop("optimizer", OptimizerSettings(learning_rate=5e-3))
    policy = PolicySettings(model=str(model), lora=lora, **options.pop("policy", {}))
    L.seed_everything(seed, verbose=False)
    return HierarchicalSFT(policy, optimizer, **{"agent": AGENT, "batching": BATCHING, **options})


def make_offline(model: Path, *, seed: int = 0, **options: Any) -> OfflineHierarchicalRL:
    """Make a stage of offline RL: `make_stage` with critics."""
    lora, policy = options.pop("lora", ADAPTERS), options.pop("policy", {})
    settings = {
        "optimizer": OptimizerSettings(learning_rate=5e-3),
        "critic": CriticSettings(learning_rate=1e-2),
        "agent": AGENT,
        "batching": BATCHING,
    }
    L.seed_everything(seed, verbose=False)
    return OfflineHierarchicalRL(PolicySettings(model=str(model), lora=lora, **policy), **{**settings, **options})


def make_loader(
    model: Path, *, agent: Any = AGENT, episodes: int = 6, outcomes: bool = False, **options: Any
) -> StepLoader:
    """Make a data loader of artificial episodes for these stages.

    Args:
        model: the folder of `save_tiny_model`, for its tokenizer.
        agent: renders the episodes as transcripts.
        episodes: number of episodes.
        outcomes: add rewards and ends, required by offline RL; every second episode is then cut by a time limit.
        **options: of the loader.
    """
    chat = ChatFormat(load_tokenizer(str(model)))
    transcripts = []
    for seed in range(episodes):
        episode = make_episode(seed, 2 + seed % 3)
        if outcomes and seed % 2:  # a time limit in the middle of a subgoal
            episode.outcome.terminated, episode.outcome.truncated = False, True
            episode.subgoals[-1].completed = False
        made = agent.transcripts(episode, chat)
        transcripts.append(add_outcomes(made, episode, chat, agent) if outcomes else made)
    return StepLoader(transcripts, **{"batch_size": 3, **options})


def fit(stage: EpisodeStage, loader: Any, steps: int = 2, **options: Any) -> L.Trainer:
    """Train a stage for some optimiser steps on the CPU, writing nothing.

    Args:
        stage: to train.
        loader: its data.
        steps: number of optimiser steps.
        **options: of the trainer, for example `callbacks=[...]`.

    Returns:
        The trainer after the last step.
    """
    settings = {
        "max_steps": steps,
        "max_epochs": -1,
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "limit_val_batches": 0,
    }
    trainer = L.Trainer(**{**settings, **options})
    trainer.fit(stage, loader)
    return trainer


def speak_out(stage: EpisodeStage) -> None:
    """Randomise new adapters so that they change the policy's outputs."""
    L.seed_everything(3, verbose=False)
    stage.configure_model()
    assert stage.policy is not None
    let_adapters_act(stage.policy)


def trained(stage: EpisodeStage) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in stage.named_parameters() if p.requires_grad}


def gradient_norms(trainer: L.Trainer) -> dict[str, torch.Tensor]:
    """Return the gradient norms of the last step: Adam's update does not depend on the scale of gradients."""
    norms = {name: value for name, value in trainer.callback_metrics.items() if name.endswith("grad_norm")}
    assert norms
    return norms


def updated(stage: EpisodeStage) -> dict[str, torch.Tensor]:
    """Return the trained weights, and the norms of the last step's gradients."""
    return trained(stage) | gradient_norms(stage.trainer)


def differs(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor], rtol: float = 1e-4, atol: float = 1e-6) -> bool:
    """Return whether weights differ."""
    return any(not torch.allclose(a[name], b[name], rtol, atol) for name in a if not name.endswith("grad_norm"))


def make_strategy(name: str) -> Any:
    """Make `auto`, `ddp`, or `fsdp` (weights sharded over processes)."""
    return FSDP2Strategy() if name == "fsdp" else name
