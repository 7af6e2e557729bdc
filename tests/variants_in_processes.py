"""For tests/test_variants_in_processes.py: methods by name on the tiny model, in one or two processes."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch

from lit_rft.advantages import HAE, RLOO, GiGPO, OverlongPenalty, ReinforcePlusPlus
from lit_rft.callbacks import AtomicCheckpointIO, RandomState, RunCheckpoint
from lit_rft.datamodules import EpisodeGroupDataModule, MathPromptDataModule, OnlineDataModule
from lit_rft.envs import GymSuite
from lit_rft.generation import SamplingSettings
from lit_rft.losses import (
    CHORD,
    CISPO,
    GSPO,
    HPT,
    SRFT,
    MaskedWeights,
    PrefixRFT,
    RLPlus,
    SamplerCorrected,
    TwoSidedClip,
)
from lit_rft.problems import Problem, write_problems
from lit_rft.sources import DynamicSampling, ExGRPO, ReLIFT, TracePrefixes
from lit_rft.stages import (
    GRPO,
    ActingSettings,
    BatchingSettings,
    MixedPolicyEpisodes,
    MixedPolicyGRPO,
    ObjectiveSettings,
    OptimizerSettings,
    PolicySettings,
    PPOEpisodes,
    PPOSettings,
)
from lit_rft.testing.corridor import CorridorSuite
from lit_rft.testing.tiny_stage import ADAPTERS, PLAYER, gradient_norms, make_strategy

ACTING = ActingSettings(SamplingSettings(6), parallel_episodes=2)


def common(model: str) -> dict[str, Any]:
    return {
        "policy": PolicySettings(model=model, lora=ADAPTERS),
        "optimizer": OptimizerSettings(learning_rate=5e-3),
        "batching": BatchingSettings(400),
    }


def gigpo(model: str, folder: Path) -> tuple[Any, Any]:
    stage = MixedPolicyEpisodes(
        exploration=SamplingSettings(6, 1.0), acting=ACTING, agent=PLAYER, advantages=GiGPO(),
        objective=ObjectiveSettings(group_size=3, mini_batches=2), **common(model),
    )  # fmt: skip
    data = EpisodeGroupDataModule(
        model=model, suite=CorridorSuite(), data_dir=str(folder), train_episodes_per_task=3, batch_size=3
    )
    return stage, data


def hae(model: str, folder: Path) -> tuple[Any, Any]:
    stage = PPOEpisodes(
        ppo=PPOSettings(value_learning_rate=1e-2, kl_coef=0.1), exploration=SamplingSettings(6, 1.0), acting=ACTING,
        agent=PLAYER, advantages=HAE(), **common(model),
    )  # fmt: skip
    data = OnlineDataModule(
        model=model, suite=GymSuite("plugins.vowels_env.Vowels", step_limit=2, seeds={"train": 6}),
        data_dir=str(folder), rounds=4, episodes_per_round=3,
    )  # fmt: skip
    return stage, data


def some_vowels(completions: Any, rows: Any) -> list[float]:
    """Equal rewards in many groups."""
    return [float(sum(letter in "aeiou" for letter in text) >= 2) for text in completions]


def problems(model: str, folder: Path, **options: Any) -> MathPromptDataModule:
    rows = [
        Problem(f"p{n}", ({"role": "user", "content": "Why? " * (1 + n % 3)},), "1", (f"answer {n}" * (1 + n % 4),))
        for n in range(12)
    ]
    write_problems(folder / "problems.jsonl", rows)
    return MathPromptDataModule(model, [str(folder / "problems.jsonl")], max_trace_length=512, **options)


def dynamic(model: str, folder: Path) -> tuple[Any, Any]:
    stage = GRPO(
        sampling=SamplingSettings(8, 1.0), reward=some_vowels, source=DynamicSampling(3),
        objective=ObjectiveSettings(group_size=4, mini_batches=2, entropy_coef=0.0), **common(model),
    )  # fmt: skip
    return stage, problems(model, folder, batch_size=10)


def on_policy(loss: Any, advantages: Any, model: str, folder: Path) -> tuple[Any, Any]:
    stage = GRPO(
        sampling=SamplingSettings(8, 1.0), reward=some_vowels, loss=loss, advantages=advantages,
        objective=ObjectiveSettings(group_size=4, epochs=2, entropy_coef=0.0), **common(model),
    )  # fmt: skip
    return stage, problems(model, folder, batch_size=3)


def gspo(model: str, folder: Path) -> tuple[Any, Any]:
    return on_policy(GSPO(0.01, 0.02), ReinforcePlusPlus(group_baseline=True), model, folder)


def cispo(model: str, folder: Path) -> tuple[Any, Any]:
    return on_policy(CISPO(), RLOO(), model, folder)


def two_sided(model: str, folder: Path) -> tuple[Any, Any]:
    loss = SamplerCorrected(TwoSidedClip(), MaskedWeights())
    return on_policy(loss, OverlongPenalty(8, 4, advantages=ReinforcePlusPlus()), model, folder)


def srft(model: str, folder: Path) -> tuple[Any, Any]:
    stage = MixedPolicyGRPO(
        sampling=SamplingSettings(8, 1.0), reward=some_vowels, loss=SRFT(),
        objective=ObjectiveSettings(group_size=4, imitated_traces=1, mini_batches=2, entropy_coef=0.0), **common(model),
    )  # fmt: skip
    return stage, problems(model, folder, batch_size=3)


def hpt(model: str, folder: Path) -> tuple[Any, Any]:
    stage = GRPO(
        sampling=SamplingSettings(8, 1.0), reward=some_vowels, loss=HPT(0.3),
        objective=ObjectiveSettings(group_size=4, imitated_traces=1, entropy_coef=0.0), **common(model),
    )  # fmt: skip
    return stage, problems(model, folder, batch_size=3)


def chord(model: str, folder: Path) -> tuple[Any, Any]:
    stage = GRPO(
        sampling=SamplingSettings(8, 1.0), reward=some_vowels, loss=CHORD(decay_steps=3),
        objective=ObjectiveSettings(group_size=4, imitated_traces=1, mini_batches=2, entropy_coef=0.0), **common(model),
    )  # fmt: skip
    return stage, problems(model, folder, batch_size=3)


def rl_plus(model: str, folder: Path) -> tuple[Any, Any]:
    stage = MixedPolicyGRPO(
        sampling=SamplingSettings(8, 1.0), reward=some_vowels, loss=RLPlus(),
        objective=ObjectiveSettings(group_size=4, mini_batches=2, entropy_coef=0.0), **common(model),
    )  # fmt: skip
    return stage, problems(model, folder, batch_size=3)


def prefix_rft(model: str, folder: Path) -> tuple[Any, Any]:
    stage = MixedPolicyGRPO(
        sampling=SamplingSettings(12, 1.0), reward=some_vowels, loss=PrefixRFT(0.4),
        source=TracePrefixes(0.5, decay_steps=3),
        objective=ObjectiveSettings(group_size=4, mini_batches=2, entropy_coef=0.0), **common(model),
    )  # fmt: skip
    return stage, problems(model, folder, batch_size=3)


def relift(model: str, folder: Path) -> tuple[Any, Any]:
    stage = MixedPolicyGRPO(
        sampling=SamplingSettings(8, 1.0), reward=some_vowels, source=ReLIFT(3, max_reward=0.5),
        objective=ObjectiveSettings(group_size=2, traces_per_group=0, sft_coef=1.0, entropy_coef=0.0), **common(model),
    )  # fmt: skip
    return stage, problems(model, folder, batch_size=3)


def exgrpo(model: str, folder: Path) -> tuple[Any, Any]:
    stage = MixedPolicyGRPO(
        sampling=SamplingSettings(8, 1.0), reward=some_vowels, source=ExGRPO(0.7, start_rate=0.0),
        objective=ObjectiveSettings(group_size=4, traces_per_group=1, entropy_coef=0.0), **common(model),
    )  # fmt: skip
    return stage, problems(model, folder, batch_size=5)


KINDS: dict[str, Callable[[str, Path], tuple[Any, Any]]] = {
    "gigpo": gigpo,
    "hae": hae,
    "dynamic": dynamic,
    "gspo": gspo,
    "cispo": cispo,
    "two_sided": two_sided,
    "srft": srft,
    "hpt": hpt,
    "chord": chord,
    "rl_plus": rl_plus,
    "prefix_rft": prefix_rft,
    "relift": relift,
    "exgrpo": exgrpo,
}


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=tuple(KINDS))
    parser.add_argument("model")
    parser.add_argument("folder", type=Path)
    parser.add_argument("devices", type=int)
    parser.add_argument("steps", type=int)
    parser.add_argument("--ckpt_path")
    options = parser.parse_args(arguments)
    L.seed_everything(0, verbose=False)
    stage, data = KINDS[options.kind](options.model, options.folder)
    trainer = L.Trainer(
        max_epochs=-1, max_steps=options.steps, accelerator="cpu", devices=options.devices, logger=False,
        strategy=make_strategy("ddp" if options.devices > 1 else "auto"), enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=options.folder, limit_val_batches=0,
        plugins=[AtomicCheckpointIO()], callbacks=[RandomState(), RunCheckpoint(every_n_steps=1)],
    )  # fmt: skip
    trainer.fit(stage, datamodule=data, ckpt_path=options.ckpt_path)
    weights = {name: p.detach() for name, p in stage.named_parameters() if p.requires_grad}
    torch.save(weights | gradient_norms(trainer), options.folder / f"rank{trainer.global_rank}.pt")


if __name__ == "__main__":
    main(sys.argv[1:])
