"""For tests/test_baselines_two_processes.py: PPO, DPO and ILQL, in one or two processes."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch

from lit_rft.callbacks import AtomicCheckpointIO, RandomState, RunCheckpoint
from lit_rft.datamodules import (
    EpisodePairDataModule,
    MathPromptDataModule,
    OnlineDataModule,
    PreferenceDataModule,
    TrajectoryDataModule,
)
from lit_rft.envs import GymSuite
from lit_rft.episodes import write_episodes
from lit_rft.generation import SamplingSettings
from lit_rft.models.sharding import full_state
from lit_rft.problems import Problem, write_problems
from lit_rft.stages import (
    DPO,
    ILQL,
    PPO,
    ActingSettings,
    BatchingSettings,
    OptimizerSettings,
    PolicySettings,
    PPOEpisodes,
    PPOSettings,
    TokenCriticSettings,
    TrajectoryDPO,
)
from lit_rft.testing.corridor import CorridorSuite
from lit_rft.testing.tiny import make_episode
from lit_rft.testing.tiny_stage import ADAPTERS, PLAYER, gradient_norms, make_strategy


def vowels(completions: Any, rows: Any) -> list[float]:
    return [float(sum(letter in "aeiou" for letter in text) % 2) for text in completions]


def make(kind: str, model: str, folder: Path) -> tuple[Any, Any]:
    """Three items in a batch: unequal shares."""
    common: dict[str, Any] = {
        "policy": PolicySettings(model=model, lora=ADAPTERS), "optimizer": OptimizerSettings(learning_rate=5e-3),
        "batching": BatchingSettings(700),
    }  # fmt: skip
    acting = {"agent": PLAYER, "acting": ActingSettings(SamplingSettings(6), parallel_episodes=2)}
    ppo = PPOSettings(mini_batches=1, epochs=2, kl_coef=0.1, value_learning_rate=1e-2)
    if kind == "ppo":
        problems = [Problem(f"p{n}", ({"role": "user", "content": "Why? " * (1 + n % 3)},), "1", ()) for n in range(6)]
        write_problems(folder / "problems.jsonl", problems)
        stage: Any = PPO(ppo=ppo, sampling=SamplingSettings(8, 1.0), reward=vowels, group_size=2, **common)
        return stage, MathPromptDataModule(model, [str(folder / "problems.jsonl")], batch_size=3)
    if kind == "ppo_episodes":
        stage = PPOEpisodes(ppo=ppo, exploration=SamplingSettings(6, 1.0), **acting, **common)
        suite = GymSuite("plugins.vowels_env.Vowels", step_limit=2, seeds={"train": 6})
        data = {"model": model, "suite": suite, "data_dir": str(folder)}
        return stage, OnlineDataModule(**data, rounds=4, episodes_per_round=3)
    if kind == "dpo":
        rows = [{"prompt": "Why? " * (1 + n % 3), "chosen": "yes" * n, "rejected": "no"} for n in range(1, 7)]
        (folder / "pairs.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
        return DPO(**common), PreferenceDataModule([str(folder / "pairs.jsonl")], model=model, batch_size=3)
    stored = {"model": model, "suite": CorridorSuite(), "data_dir": str(folder), "batch_size": 3, "agent": PLAYER}
    write_episodes(folder / "stored.jsonl", [make_episode(seed, 2 + seed % 4) for seed in range(6)])
    if kind == "ilql":
        critic = TokenCriticSettings(learning_rate=1e-2, rank=8, polyak_rate=0.5)
        return ILQL(critic=critic, **acting, **common), TrajectoryDataModule(
            train_files=[str(folder / "stored.jsonl")], **stored
        )
    worse = [make_episode(seed, 4 + seed % 2) for seed in range(6)]
    for episode in worse:
        episode.outcome.score = episode.steps[-1].score = 0.3
        episode.outcome.success = False
        episode.id += "/explored"
    write_episodes(folder / "explored.jsonl", worse)
    files = {"explored_files": [str(folder / "explored.jsonl")], "train_files": [str(folder / "stored.jsonl")]}
    return TrajectoryDPO(**acting, **common), EpisodePairDataModule(**files, **stored)


def main(arguments: Sequence[str]) -> None:
    kind, model, folder, devices, steps, strategy, *more = arguments
    L.seed_everything(0, verbose=False)
    stage, data = make(kind, model, Path(folder))
    trainer = L.Trainer(
        max_epochs=-1, max_steps=int(steps), accelerator="cpu", devices=int(devices), logger=False,
        strategy=make_strategy(strategy), enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=folder, limit_val_batches=0,
        plugins=[AtomicCheckpointIO()], callbacks=[RandomState(), RunCheckpoint(every_n_steps=1)],
    )  # fmt: skip
    trainer.fit(stage, datamodule=data, ckpt_path=more[0] if more else None)
    kept = {n for n, p in stage.named_parameters() if p.requires_grad or ".target." in n}
    state = full_state(stage) if strategy == "fsdp" else stage.state_dict()
    weights = {name: value for name, value in state.items() if name in kept}
    torch.save(weights | gradient_norms(trainer), Path(folder) / f"rank{trainer.global_rank}.pt")
