"""Online fine-tuning on the corridor with a tiny model."""

from pathlib import Path
from typing import Any

import lightning as L

from lit_rft.callbacks import AtomicCheckpointIO, RandomState, RunCheckpoint
from lit_rft.datamodules import OnlineDataModule
from lit_rft.envs import PoolSettings
from lit_rft.generation import SamplingSettings
from lit_rft.stages import (
    ActingSettings,
    CriticSettings,
    OnlineHighLevelFinetune,
    OnlineSettings,
    OptimizerSettings,
    PolicySettings,
)
from lit_rft.testing.corridor import CorridorSuite
from lit_rft.testing.tiny_stage import (
    ADAPTERS,
    PLAYER,
)

ACTING = ActingSettings(SamplingSettings(6), parallel_episodes=2, pool=PoolSettings(threads=True))


ONLINE = {
    "exploration": SamplingSettings(6, 1.0),
    "buffer_episodes": 4,
    "updates_per_episode": 1.0,
    "batch_episodes": 2,
}


def make_online(model: Path, *, seed: int = 0, online: dict[str, Any] | None = None, **options: Any) -> Any:
    lora, policy = options.pop("lora", ADAPTERS), options.pop("policy", {})
    settings: dict[str, Any] = {
        "optimizer": OptimizerSettings(learning_rate=5e-3),
        "critic": CriticSettings(learning_rate=1e-2),
        "agent": PLAYER,
        "acting": ACTING,
    }
    L.seed_everything(seed, verbose=False)
    return OnlineHighLevelFinetune(
        OnlineSettings(**{**ONLINE, **(online or {})}),
        policy=PolicySettings(model=str(model), lora=lora, **policy),
        **{**settings, **options},
    )


def make_data(model: Path, folder: Path, **options: Any) -> OnlineDataModule:
    settings = {
        "model": str(model),
        "suite": CorridorSuite(),
        "data_dir": str(folder),
        "collect_tasks": ["walk"],
        "rounds": 2,
        "episodes_per_round": 2,
    }
    return OnlineDataModule(**{**settings, **options})


def run(stage: Any, data: Any, folder: Path, steps: int, **options: Any) -> L.Trainer:
    ckpt_path = options.pop("ckpt_path", None)
    settings: dict[str, Any] = {
        "max_steps": steps,
        "max_epochs": -1,
        "accelerator": "cpu",
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "limit_val_batches": 0,
        "default_root_dir": folder,
        "plugins": [AtomicCheckpointIO()],
        "callbacks": [RandomState(), RunCheckpoint(every_n_steps=2)],
    }
    trainer = L.Trainer(**{**settings, **options})
    trainer.fit(stage, datamodule=data, ckpt_path=ckpt_path)
    return trainer
