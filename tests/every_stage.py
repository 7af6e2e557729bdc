"""Every stage on the tiny model with its data, made in one way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L

from lit_rft.batches import Prompt
from lit_rft.datamodules import EpisodeGroupDataModule, OnlineDataModule, PromptLoader
from lit_rft.generation import SamplingSettings
from lit_rft.models import load_tokenizer
from lit_rft.problems import Problem
from lit_rft.stages import (
    ActingSettings,
    BatchingSettings,
    CriticSettings,
    MixedPolicyEpisodes,
    MixedPolicyGRPO,
    ObjectiveSettings,
    OnlineHighLevelFinetune,
    OnlineSettings,
    OptimizerSettings,
    PolicySettings,
)
from lit_rft.testing.corridor import CorridorSuite
from lit_rft.testing.tiny_stage import ADAPTERS, PLAYER, make_loader, make_offline, make_stage
from lit_rft.transcripts import PromptFormat

STAGES = ["sft", "offline_rl", "online", "grpo", "episodes"]
OPTIMIZER = OptimizerSettings(learning_rate=5e-3)
ACTING = ActingSettings(SamplingSettings(6), parallel_episodes=2)


def make(kind: str, model: Path, folder: Path) -> tuple[Any, Any]:
    """A stage on the tiny model, and its data."""
    if kind == "sft":
        return make_stage(model, batching=BatchingSettings(2000, packing=True)), make_loader(model)
    if kind == "offline_rl":
        return make_offline(model, batching=BatchingSettings(2000, packing=True)), make_loader(model, outcomes=True)
    L.seed_everything(0, verbose=False)
    policy = PolicySettings(str(model), ADAPTERS)
    acting: dict[str, Any] = {"optimizer": OPTIMIZER, "agent": PLAYER, "acting": ACTING}
    data: dict[str, Any] = {"model": str(model), "data_dir": str(folder)}
    data["suite"] = CorridorSuite()
    if kind == "online":
        online = OnlineSettings(SamplingSettings(6, 1.0), 4, 1.0, 2)
        stage = OnlineHighLevelFinetune(online, policy=policy, critic=CriticSettings(learning_rate=1e-2), **acting)
        return stage, OnlineDataModule(**data, collect_tasks=["walk"], rounds=2, episodes_per_round=2)
    objective = ObjectiveSettings(group_size=3, kl_coef=0.1)
    if kind == "episodes":
        stage = MixedPolicyEpisodes(policy, objective=objective, exploration=SamplingSettings(6, 1.0), **acting)
        return stage, EpisodeGroupDataModule(**data, train_episodes_per_task=2, batch_size=2)
    return make_grpo(policy, objective), make_prompts(model)


def make_grpo(policy: PolicySettings, objective: ObjectiveSettings) -> MixedPolicyGRPO:
    def lengths(completions: Any, rows: Any) -> list[float]:
        return [float(len(text) % 3) for text in completions]

    return MixedPolicyGRPO(policy, OPTIMIZER, objective, SamplingSettings(8, 1.0), lengths)


def make_prompts(model: Path) -> PromptLoader:
    form = PromptFormat(load_tokenizer(str(model)))
    prompts = []
    for n in range(4):
        problem = Problem(f"p{n}", ({"role": "user", "content": "Question?" * (1 + n % 2)},), "1", ("an answer",))
        ids = form.prompt_ids(problem.prompt)
        prompts.append(Prompt(problem, ids, [form.completion_ids("an answer")], ["an answer"], [[]]))
    return PromptLoader(prompts, batch_size=2)
