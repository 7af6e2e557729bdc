"""For tests/test_two_processes.py: PPO on prompts or on episodes, and sums, in one or two processes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from mixed_policy_in_processes import vowels

from lit_rft.advantages import ReinforcePlusPlus
from lit_rft.datamodules import MathPromptDataModule, OnlineDataModule
from lit_rft.envs import GymSuite
from lit_rft.generation import SamplingSettings
from lit_rft.models.processes import global_rank, sum_over_processes, world_size
from lit_rft.problems import Problem, write_problems
from lit_rft.rollouts import Rollout
from lit_rft.stages import (
    PPO,
    ActingSettings,
    BatchingSettings,
    OptimizerSettings,
    PolicySettings,
    PPOEpisodes,
    PPOSettings,
)
from lit_rft.testing.tiny_stage import ADAPTERS, PLAYER, gradient_norms


def make(kind: str, model: str, folder: Path) -> tuple[Any, Any]:
    common: dict[str, Any] = {
        "policy": PolicySettings(model=model, lora=ADAPTERS),
        "optimizer": OptimizerSettings(learning_rate=5e-3),
        "ppo": PPOSettings(mini_batches=3, kl_coef=0.1, value_learning_rate=1e-2),
        "batching": BatchingSettings(400),
        "seed": 0,
    }
    if kind == "prompts":
        problems = [Problem(f"p{n}", ({"role": "user", "content": "Why? " * (1 + n % 3)},), "1") for n in range(3)]
        write_problems(folder / "problems.jsonl", problems)
        stage: Any = PPO(sampling=SamplingSettings(8, 1.0), reward=vowels, group_size=3, **common)
        return stage, MathPromptDataModule(model, [str(folder / "problems.jsonl")], batch_size=3)
    acting = ActingSettings(SamplingSettings(6), parallel_episodes=2)
    stage = PPOEpisodes(exploration=SamplingSettings(6, 1.0), acting=acting, agent=PLAYER, **common)
    suite = GymSuite("plugins.vowels_env.Vowels", step_limit=2, seeds={"train": 16})
    data = OnlineDataModule(model=model, suite=suite, data_dir=str(folder), rounds=2, episodes_per_round=3)
    return stage, data


def sums(folder: Path) -> None:
    """Sums of large and of small numbers, and advantages of rewards whose spread float32 does not see."""
    part = torch.tensor([1e9 + 1, 2.0] if global_rank() else [0.25, 1.0], dtype=torch.float64)
    values = {
        "double": part, "single": part.float(), "half": part.clamp(max=1.0).bfloat16(),
        "whole": torch.tensor(2**40 + global_rank()),
    }  # fmt: skip
    rewards = [100 + 1e-3 * n for n in range(6)][global_rank() :: world_size()]
    advantages = ReinforcePlusPlus()([Rollout([], "", 0, False, True, reward) for reward in rewards])
    torch.save(sum_over_processes(values) | {"advantages": advantages}, folder / f"rank{global_rank()}.pt")


def main(arguments: Sequence[str]) -> None:
    kind, model, folder, devices = arguments
    if kind == "sums":
        sums(Path(folder))
        return
    L.seed_everything(0, verbose=False)
    stage, data = make(kind, model, Path(folder))
    trainer = L.Trainer(
        max_epochs=-1, max_steps=6, accelerator="cpu", devices=int(devices), logger=False,
        strategy="auto" if devices == "1" else "ddp", enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, default_root_dir=folder, limit_val_batches=0,
    )  # fmt: skip
    trainer.fit(stage, datamodule=data)
    weights = {name: parameter.detach() for name, parameter in stage.named_parameters() if parameter.requires_grad}
    torch.save(weights | gradient_norms(trainer), Path(folder) / f"rank{trainer.global_rank}.pt")
