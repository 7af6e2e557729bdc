"""For tests/test_two_processes.py: mixed-policy GRPO on prompts or on the corridor, in one or two processes."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch

from lit_rft.callbacks import AtomicCheckpointIO, RandomState, RunCheckpoint
from lit_rft.datamodules import EpisodeGroupDataModule, MathPromptDataModule
from lit_rft.generation import SamplingSettings, ServerSettings
from lit_rft.models import LoraSettings
from lit_rft.models.sharding import full_state
from lit_rft.problems import Problem, write_problems
from lit_rft.stages import (
    ActingSettings,
    AnsweringSettings,
    BatchingSettings,
    MixedPolicyEpisodes,
    MixedPolicyGRPO,
    ObjectiveSettings,
    OptimizerSettings,
    PolicySettings,
)
from lit_rft.testing.corridor import CorridorSuite
from lit_rft.testing.tiny_stage import ADAPTERS, PLAYER, gradient_norms, make_strategy


def vowels(completions: Any, rows: Any) -> list[float]:
    return [float(sum(letter in "aeiou" for letter in text) % 2) for text in completions]


def refuse(completions: Any, rows: Any) -> list[float]:
    raise RuntimeError("no reward today")


def make(kind: str, model: str, folder: Path, url: str | None, targets: str | list[str]) -> tuple[Any, Any]:
    server = ServerSettings(url, timeout=60, patience=5) if url is not None else None
    lora = LoraSettings(ADAPTERS.rank, ADAPTERS.alpha, ADAPTERS.dropout, targets)
    common: dict[str, Any] = {
        "policy": PolicySettings(model=model, lora=lora),
        "optimizer": OptimizerSettings(learning_rate=5e-3),
        "objective": ObjectiveSettings(group_size=3, mini_batches=2, kl_coef=0.1, sft_coef=0.1),
        "batching": BatchingSettings(400),
    }
    if kind == "prompts":
        problems = [
            Problem(f"p{n}", ({"role": "user", "content": "Why? " * (1 + n % 3)},), "1", (f"answer {n}" * (1 + n),))
            for n in range(6)
        ]
        write_problems(folder / "problems.jsonl", problems)
        answering = AnsweringSettings(server=server)
        stage: Any = MixedPolicyGRPO(sampling=SamplingSettings(8, 1.0), reward=vowels, answering=answering, **common)
        files = [str(folder / "problems.jsonl")]
        return stage, MathPromptDataModule(model, files, batch_size=3, max_trace_length=512)
    acting = ActingSettings(SamplingSettings(6), parallel_episodes=2, server=server)
    stage = MixedPolicyEpisodes(exploration=SamplingSettings(6, 1.0), acting=acting, agent=PLAYER, **common)
    return stage, EpisodeGroupDataModule(
        model=model,
        suite=CorridorSuite(),
        data_dir=str(folder),
        train_episodes_per_task=3,
        batch_size=3,
    )


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=("prompts", "episodes"))
    parser.add_argument("model")
    parser.add_argument("folder", type=Path)
    parser.add_argument("devices", type=int)
    parser.add_argument("steps", type=int)
    parser.add_argument("strategy", choices=("auto", "ddp", "fsdp"))
    parser.add_argument("--ckpt_path")
    parser.add_argument("--url", help="of a server that samples")
    parser.add_argument("--fails", type=int, help="the process whose rewards fail")
    parser.add_argument("--targets", nargs="+", default=ADAPTERS.target_modules)
    options = parser.parse_args(arguments)
    L.seed_everything(0, verbose=False)
    stage, data = make(options.kind, options.model, options.folder, options.url, options.targets)
    trainer = L.Trainer(
        max_epochs=-1, max_steps=options.steps, accelerator="cpu", devices=options.devices, logger=False,
        strategy=make_strategy(options.strategy), enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=options.folder, limit_val_batches=0,
        plugins=[AtomicCheckpointIO()], callbacks=[RandomState(), RunCheckpoint(every_n_steps=1)],
    )  # fmt: skip
    if options.fails == trainer.global_rank:
        stage.source.reward = refuse
    trainer.fit(stage, datamodule=data, ckpt_path=options.ckpt_path)
    trains = {n for n, p in stage.named_parameters() if p.requires_grad}
    state = full_state(stage) if options.strategy == "fsdp" else stage.state_dict()
    weights = {name: value for name, value in state.items() if name in trains}
    torch.save(weights | gradient_norms(trainer), options.folder / f"rank{trainer.global_rank}.pt")


if __name__ == "__main__":
    main(sys.argv[1:])
