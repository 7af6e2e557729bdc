"""LUFFY's stage on a tiny model, with prompts that have traces, and what training makes of it."""

from pathlib import Path
from typing import Any

import lightning as L
import torch
from grpo_parts import grpo_parts

from lit_rft.batches import Prompt
from lit_rft.datamodules import PromptLoader
from lit_rft.generation import SamplingSettings
from lit_rft.models import load_tokenizer
from lit_rft.problems import Problem
from lit_rft.stages import (
    MixedPolicyGRPO,
    OptimizerSettings,
    PolicySettings,
)
from lit_rft.testing.tiny_stage import ADAPTERS, differs, fit, updated
from lit_rft.transcripts import PromptFormat


def vowels(completions: Any, rows: Any) -> list[float]:
    """A reward that a random model sometimes earns."""
    return [float(sum(letter in "aeiou" for letter in text) % 2) for text in completions]


def make_prompts(model: Path, number: int = 4, traces: int = 2) -> list[Prompt]:
    form = PromptFormat(load_tokenizer(str(model)))
    prompts = []
    for index in range(number):
        texts = [f"answer {index} {'long ' * turn}a" for turn in range(traces)]
        problem = Problem(
            f"p{index}", ({"role": "user", "content": f"Question {index}?" * (1 + index % 3)},), "1", tuple(texts)
        )
        ids = form.prompt_ids(problem.prompt)
        prompts.append(Prompt(problem, ids, [form.completion_ids(text) for text in texts], texts, [[]] * traces))
    return prompts


def make_grpo(
    model: Path, *, seed: int = 0, objective: dict[str, Any] | None = None, **options: Any
) -> MixedPolicyGRPO:
    settings: dict[str, Any] = {
        "optimizer": OptimizerSettings(learning_rate=5e-3),
        "sampling": SamplingSettings(max_new_tokens=8, temperature=1.0),
        "reward": vowels,
    }
    lora = options.pop("lora", ADAPTERS)
    L.seed_everything(seed, verbose=False)
    return MixedPolicyGRPO(
        PolicySettings(model=str(model), lora=lora),
        **{**settings, **grpo_parts(**{"group_size": 4, **(objective or {})}), **options},
    )


def after(model: Path, *, steps: int = 2, traces: int = 2, **options: Any) -> dict[str, torch.Tensor]:
    stage = make_grpo(model, **options)
    fit(stage, PromptLoader(make_prompts(model, traces=traces), batch_size=2), steps)
    return updated(stage)


def differ(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return differs(a, b, rtol=1e-5, atol=1e-7)
