"""For tests/test_two_processes.py: online fine-tuning on the corridor, in one or two processes."""

from collections.abc import Sequence
from pathlib import Path

import lightning as L
import torch

from lit_rft.callbacks import AtomicCheckpointIO, RandomState, RunCheckpoint
from lit_rft.datamodules import OnlineDataModule
from lit_rft.generation import SamplingSettings
from lit_rft.models.sharding import full_state
from lit_rft.stages import (
    ActingSettings,
    BatchingSettings,
    CriticSettings,
    OnlineHighLevelFinetune,
    OnlineSettings,
    OptimizerSettings,
    PolicySettings,
)
from lit_rft.testing.corridor import CorridorSuite
from lit_rft.testing.tiny_stage import ADAPTERS, PLAYER, gradient_norms, make_strategy


def main(arguments: Sequence[str]) -> None:
    model, folder, devices, steps, strategy, *more = arguments
    run(model, folder, int(devices), int(steps), strategy, more[0] if more else None)


def run(model: str, folder: str, devices: int, steps: int, strategy: str, ckpt_path: str | None) -> None:
    L.seed_everything(0, verbose=False)
    acting = ActingSettings(SamplingSettings(6), parallel_episodes=1)
    stage = OnlineHighLevelFinetune(
        OnlineSettings(SamplingSettings(6, 1.0), buffer_episodes=5, updates_per_episode=1.0, batch_episodes=2),
        policy=PolicySettings(model=model, lora=ADAPTERS),
        optimizer=OptimizerSettings(learning_rate=5e-3),
        critic=CriticSettings(learning_rate=1e-2),
        agent=PLAYER,
        acting=acting,
        batching=BatchingSettings(700),
    )
    data = OnlineDataModule(
        model=model, suite=CorridorSuite(), data_dir=folder, collect_tasks=["walk"],
        train_files=[f"{folder}/stored.jsonl"],
        rounds=3, episodes_per_round=3,
    )  # fmt: skip
    trainer = L.Trainer(
        max_epochs=-1, max_steps=steps, accelerator="cpu", devices=devices, logger=False,
        strategy=make_strategy(strategy), enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=folder, limit_val_batches=0,
        plugins=[AtomicCheckpointIO()], callbacks=[RandomState(), RunCheckpoint(every_n_steps=1)],
    )  # fmt: skip
    trainer.fit(stage, datamodule=data, ckpt_path=ckpt_path)
    trains = {n for n, p in stage.named_parameters() if p.requires_grad}
    whole = full_state(stage) if strategy == "fsdp" else stage.state_dict()
    weights = {name: value for name, value in whole.items() if name in trains}
    state = {"weights": weights | gradient_norms(trainer)}
    torch.save(state | {"replay": stage.replay.state_dict()}, Path(folder) / f"rank{trainer.global_rank}.pt")
