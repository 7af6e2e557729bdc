"""A stage that answers six problems, and Lightning's trainer for it."""

import json
from pathlib import Path
from typing import Any

import lightning as L

from lit_rft.datamodules import MathPromptDataModule
from lit_rft.generation import SamplingSettings
from lit_rft.stages import AnsweringSettings, MixedPolicyGRPO, ObjectiveSettings, OptimizerSettings, PolicySettings
from lit_rft.testing.tiny_stage import ADAPTERS


def vowels(completions: Any, rows: Any) -> list[float]:
    return [float(sum(letter in "aeiou" for letter in text) % 2) for text in completions]


def make(model: Path, reward: Any = None, **answering: Any) -> MixedPolicyGRPO:
    L.seed_everything(0, verbose=False)
    settings = {"sampling": SamplingSettings(8, 1.0), "num_samples": 2, "num_samples_by_source": {"amc": 4}}
    return MixedPolicyGRPO(
        PolicySettings(model=str(model), lora=ADAPTERS),
        OptimizerSettings(learning_rate=1e-3),
        ObjectiveSettings(group_size=4),
        SamplingSettings(8, 1.0),
        reward=reward or vowels,
        verifier=reward or vowels,
        answering=AnsweringSettings(**{**settings, **answering}),
    )


def make_data(model: Path, files: str, **options: Any) -> MathPromptDataModule:
    settings = {"train_files": [files], "eval_files": [files], "batch_size": 2, "eval_batch_size": 2,
                "max_trace_length": 64}  # fmt: skip
    return MathPromptDataModule(str(model), **{**settings, **options})


def trainer(folder: Path, **options: Any) -> L.Trainer:
    settings: dict[str, Any] = {
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": folder,
    }
    return L.Trainer(**{**settings, **options})


def write_rows(path: Path, letter: str, number: int, **more: Any) -> str:
    """Problems whose numbers are those of every other file."""
    rows = [{"id": n, "prompt": f"{letter}{n}?", "ground_truth": str(n), **more} for n in range(number)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)
