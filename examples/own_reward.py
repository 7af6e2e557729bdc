"""GRPO on problems of your own, with a reward of your own.

python examples/own_reward.py [MODEL]
"""

import sys
import tempfile
from pathlib import Path

import lightning as L

from lit_rft import GRPO, MathPromptDataModule, Problem, RewardSum, write_problems
from lit_rft.generation import SamplingSettings
from lit_rft.stages import ObjectiveSettings, OptimizerSettings, PolicySettings
from lit_rft.testing import save_tiny_model


def right(completions, ground_truth, **columns):
    """1 where the ground truth is in the completion."""
    return [float(truth in text) for text, truth in zip(completions, ground_truth, strict=True)]


def short(completions, **columns):
    """1 for an empty completion, falling to 0 at 16 characters."""
    return [max(0.0, 1 - len(text) / 16) for text in completions]


def write_sums(path):
    """Write ten problems; docs/problems.md describes the fields."""
    sums = [(a, a + 3) for a in range(10)]
    write_problems(
        path,
        [Problem(f"sum-{a}", ({"role": "user", "content": f"What is {a} + {b}?"},), str(a + b)) for a, b in sums],
    )


def main(model, folder):
    L.seed_everything(0, verbose=False)
    write_sums(Path(folder) / "sums.jsonl")
    stage = GRPO(
        PolicySettings(model, lora=None),
        OptimizerSettings(learning_rate=0.03),
        ObjectiveSettings(group_size=8),
        SamplingSettings(max_new_tokens=16, temperature=1.0),
        reward=RewardSum([right, short], weights=[1.0, 0.5]),
    )
    data = MathPromptDataModule(train_files=[str(Path(folder) / "sums.jsonl")], batch_size=4)
    trainer = L.Trainer(max_steps=8, accelerator="cpu", limit_val_batches=0, logger=False, default_root_dir=folder,
                        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)  # fmt: skip
    trainer.fit(stage, datamodule=data)
    for rollout in stage.samples[:3]:
        print(f"{rollout.reward:.2f} {rollout.reward_parts} {rollout.text!r}")
    return stage.samples


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(sys.argv[1] if len(sys.argv) > 1 else str(save_tiny_model(Path(folder) / "model")), folder)
