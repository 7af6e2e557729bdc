"""For tests/callbacks/test_rollout_files_two_processes.py: mixed-policy GRPO that keeps its rollouts."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import lightning as L
from mixed_policy_in_processes import make

from lit_rft.callbacks import AtomicCheckpointIO, RandomState, RolloutFiles, RunCheckpoint
from lit_rft.testing.tiny_stage import ADAPTERS


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("folder", type=Path)
    parser.add_argument("steps", type=int)
    parser.add_argument("--devices", type=int, default=2)
    parser.add_argument("--ckpt_path")
    options = parser.parse_args(arguments)
    L.seed_everything(0, verbose=False)
    stage, data = make("prompts", options.model, options.folder, None, ADAPTERS.target_modules)
    trainer = L.Trainer(
        max_epochs=-1, max_steps=options.steps, accelerator="cpu", devices=options.devices, logger=False,
        strategy="ddp" if options.devices > 1 else "auto", enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=options.folder, limit_val_batches=0, plugins=[AtomicCheckpointIO()],
        callbacks=[RandomState(), RolloutFiles(share=1.0), RunCheckpoint(every_n_steps=2)],
    )  # fmt: skip
    trainer.fit(stage, datamodule=data, ckpt_path=options.ckpt_path)
