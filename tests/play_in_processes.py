"""For tests/test_two_processes.py: `test` and `predict`, in one or two processes.

`episodes`: a hierarchical agent on the corridor; `prompts`: a policy that answers problems.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L

from lit_rft.callbacks import CompletionFiles, EpisodeFiles
from lit_rft.datamodules import MathPromptDataModule, TrajectoryDataModule
from lit_rft.generation import SamplingSettings
from lit_rft.problems import Problem, write_problems
from lit_rft.stages import ActingSettings, AnsweringSettings, MixedPolicyGRPO, PolicySettings
from lit_rft.testing.corridor import CorridorSuite
from lit_rft.testing.tiny_stage import PLAYER, make_stage, make_strategy


def vowels(completions: Any, rows: Any) -> list[float]:
    return [float(sum(letter in "aeiou" for letter in text) % 2) for text in completions]


def make(kind: str, model: str, adapter: str, folder: Path) -> tuple[Any, Any, L.Callback]:
    """Three episodes, or five problems: the processes get unequal shares."""
    if kind == "episodes":
        acting = ActingSettings(SamplingSettings(6, 1.0), parallel_episodes=2)
        data: Any = TrajectoryDataModule(model, suite=CorridorSuite(measure=True), data_dir=str(folder), tasks=["walk"])
        settings: dict[str, Any] = {"lora": None, "acting": acting, "agent": PLAYER, "policy": {"start_from": adapter}}
        data.eval_split = data.predict_split = "test"
        return make_stage(Path(model), **settings), data, EpisodeFiles()
    problems = [
        Problem(f"p{n}", ({"role": "user", "content": "Why? " * (1 + n)},), "1", ("answer",), source="ab"[n % 2])
        for n in range(5)
    ]
    if not (folder / "problems.jsonl").exists():
        write_problems(folder / "problems.jsonl", problems)
    file = [str(folder / "problems.jsonl")]
    sampling = SamplingSettings(8, 1.0)
    stage = MixedPolicyGRPO(
        PolicySettings(model=model, lora=None, start_from=adapter), sampling=sampling, reward=vowels, verifier=vowels,
        answering=AnsweringSettings(sampling=sampling, num_samples=3),
    )  # fmt: skip
    return stage, MathPromptDataModule(model, file, eval_files=file, eval_batch_size=2), CompletionFiles()


def main(arguments: Sequence[str]) -> None:
    kind, model, adapter, folder, devices, strategy = arguments
    run(kind, model, adapter, Path(folder), int(devices), strategy)


def run(kind: str, model: str, adapter: str, folder: Path, devices: int, strategy: str) -> None:
    L.seed_everything(0, verbose=False)
    stage, data, files = make(kind, model, adapter, folder)
    trainer = L.Trainer(
        accelerator="cpu", devices=devices, strategy=make_strategy(strategy), logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=folder, callbacks=[files],
    )  # fmt: skip
    (metrics,) = trainer.test(stage, datamodule=data, verbose=False)
    trainer.predict(stage, datamodule=data, return_predictions=False)
    if trainer.is_global_zero:
        (folder / "metrics.json").write_text(json.dumps(metrics))
