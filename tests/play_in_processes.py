"""A script for tests/test_runs.py: `test` and `predict` on the corridor, in one or two processes."""

import json
import sys
from pathlib import Path

import lightning as L
from tiny_env import CorridorProtocol
from tiny_stage import make_stage

from lit_rft.callbacks import EpisodeFiles
from lit_rft.datamodules import TrajectoryDataModule
from lit_rft.rollout import SamplingSettings
from lit_rft.stages import ActingSettings


def main(model: str, folder: str, devices: int) -> None:
    acting = ActingSettings(SamplingSettings(6, 1.0), max_length=900, subgoal_steps=2, parallel_episodes=2)
    stage = make_stage(Path(model), acting=acting)
    # three episodes: the processes get unequal shares
    data = TrajectoryDataModule(model, protocol=CorridorProtocol(), data_dir=folder, tasks=["walk"])
    data.eval_split = data.predict_split = "test"
    trainer = L.Trainer(
        accelerator="cpu", devices=devices, strategy="ddp" if devices > 1 else "auto", logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=folder, callbacks=[EpisodeFiles()],
    )  # fmt: skip
    (metrics,) = trainer.test(stage, datamodule=data, verbose=False)
    trainer.predict(stage, datamodule=data, return_predictions=False)
    if trainer.is_global_zero:
        (Path(folder) / "metrics.json").write_text(json.dumps(metrics))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
