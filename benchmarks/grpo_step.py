"""One GRPO step against TRL's, on the same work: rollout, rewards, loss, gradients and optimiser.

    pip install trl==1.16.0
    python benchmarks/grpo_step.py

SmolLM2-135M-Instruct, LoRA r 16 on q/k/v/o, bf16, 8 word problems (gsm_symbolic) x 8 completions of at most 128 tokens,
temperature 1, no KL term; the reward gives every group a signal. Micro-batches of one group on all sides. TRL runs with
its defaults, which include gradient checkpointing (`trl-defaults`), and without checkpointing (`trl`), as lit-rft does.
Alternating rounds, each step in its own process; medians. The limit is the seconds of the same products at the
matrix-product peak, or of reading the weights for each token of a completion, measured in each round. Writes
`benchmarks/results/grpo_step.json`.
"""

from __future__ import annotations

import argparse
import functools
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

from limits import synchronize
from peers import in_turns, machine, medians, peak_memory, say, show, versions, write

PROMPTS, GROUP, NEW_TOKENS, RANK, MICRO_BATCH_TOKENS = 8, 8, 128, 16, 1200
Rewards = Callable[[Sequence[str]], list[float]]
MODEL = "smollm2-135m-instruct"
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj"]


def by_length(texts: Sequence[str]) -> list[float]:
    """Return arbitrary rewards that are rarely equal within a group."""
    return [float(len(text) % 7) for text in texts]


def make_problems(number: int = PROMPTS) -> list[Any]:
    from lit_rft.problems import generate_problems

    return generate_problems("gsm_symbolic", number)


def ours(
    model: str,
    problems: Sequence[Any],
    new_tokens: int = NEW_TOKENS,
    micro_batch_tokens: int = MICRO_BATCH_TOKENS,
    steps: int = 1,
    rewards: Rewards = by_length,
) -> dict[str, float]:
    """Measure the last of some steps on all problems."""
    from timed import Clock, quiet_trainer  # imported here to keep Lightning out of the other side's memory

    from lit_rft.batches import Prompt
    from lit_rft.datamodules import PromptLoader
    from lit_rft.generation import SamplingSettings
    from lit_rft.models import LoraSettings, load_tokenizer
    from lit_rft.stages import (
        BatchingSettings,
        MixedPolicyGRPO,
        ObjectiveSettings,
        OptimizerSettings,
        PolicySettings,
    )
    from lit_rft.transcripts import PromptFormat

    def reward(completions: Sequence[str], rows: Any) -> list[float]:
        return rewards(completions)

    clock = Clock()
    trainer = quiet_trainer(clock, max_steps=steps)
    stage = MixedPolicyGRPO(
        PolicySettings(model, LoraSettings(RANK, 2 * RANK, 0.0, TARGETS)),
        OptimizerSettings(1e-5),
        ObjectiveSettings(GROUP, 0, entropy_coef=0.0),
        SamplingSettings(new_tokens, 1.0),
        reward,
        batching=BatchingSettings(micro_batch_tokens),
        max_concurrent=len(problems) * GROUP,  # all at once, as TRL does
    )
    form = PromptFormat(load_tokenizer(model))
    prompts = [Prompt(problem, form.prompt_ids(problem.prompt), [], [], []) for problem in problems]
    trainer.fit(stage, PromptLoader(prompts, batch_size=len(prompts)))
    tokens = sum(sample.length for sample in stage.samples)
    return {"seconds": clock.seconds[-1], "completion_tokens": tokens, "peak_gb": peak_memory()}


SETTINGS_OF_TRL: dict[str, Any] = {
    "per_device_train_batch_size": GROUP, "num_generations": GROUP, "temperature": 1.0, "beta": 0.0, "bf16": True,
    "report_to": [], "learning_rate": 1e-5, "logging_steps": 1, "seed": 0,
    "model_init_kwargs": {"dtype": "bfloat16"}, "save_strategy": "no", "disable_tqdm": True,
}  # fmt: skip


def settings_of_trl(problems: Sequence[Any], new_tokens: int, steps: int, checkpointing: bool) -> Any:
    import torch
    from trl import GRPOConfig

    return GRPOConfig(**SETTINGS_OF_TRL, output_dir=tempfile.mkdtemp(), max_steps=steps,
                      gradient_accumulation_steps=len(problems), max_completion_length=new_tokens,
                      use_cpu=not torch.cuda.is_available(), gradient_checkpointing=checkpointing)  # fmt: skip


def theirs(
    model: str, problems: Sequence[Any], new_tokens: int = NEW_TOKENS, steps: int = 1, checkpointing: bool = False,
    rewards: Rewards = by_length,
) -> dict[str, float]:  # fmt: skip
    """Measure the same with TRL."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import TrainerCallback
    from trl import GRPOTrainer

    from lit_rft.models.backbone import resolve_model

    tokens: list[int] = []
    result: dict[str, float] = {}
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def reward(completions: Sequence[Any], completion_ids: Sequence[Any], **_: Any) -> list[float]:
        tokens.extend(len(ids) for ids in completion_ids)
        return rewards([completion[0]["content"] for completion in completions])

    class Clock(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            tokens.clear()
            synchronize(device)
            self.started = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            synchronize(device)
            seconds = time.perf_counter() - self.started
            result.update(seconds=seconds, completion_tokens=sum(tokens), peak_gb=peak_memory())

    trainer = GRPOTrainer(
        model=resolve_model(model),
        reward_funcs=[reward],
        args=settings_of_trl(problems, new_tokens, steps, checkpointing),
        train_dataset=Dataset.from_list([{"prompt": list(problem.prompt)} for problem in problems]),
        peft_config=LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=TARGETS, task_type="CAUSAL_LM"),
        callbacks=[Clock()],
    )
    trainer.train()
    return result


def limits(model: str, problems: Sequence[Any]) -> dict[str, float]:
    """Measure the machine, and count the weights of the products and the tokens of the prompts, once per group."""
    import torch
    from limits import copy_bandwidth, matrix_peak, product_weights

    from lit_rft.models import load_backbone, load_tokenizer
    from lit_rft.transcripts import PromptFormat

    form, device = PromptFormat(load_tokenizer(model)), torch.device("cpu")
    backbone: Any = load_backbone(model, dtype=torch.bfloat16)
    return {
        "peak": matrix_peak(device), "bandwidth": copy_bandwidth(device), "weights": product_weights(backbone),
        "output_weights": backbone.get_output_embeddings().weight.numel(),
        "prompt_tokens": sum(len(form.prompt_ids(problem.prompt)) for problem in problems),
    }  # fmt: skip


def ideal_seconds(machine: dict[str, float], completion_tokens: float) -> float:
    """Return the least seconds of a step: a forward pass for each token twice, and backward to its inputs once.

    Prompts are read once per group. Attention, adapters, rewards and everything but products take no time.
    """
    weights = machine["weights"] + machine["output_weights"]  # of a completion's token
    prompts = 2 * machine["weights"] * machine["prompt_tokens"]
    decoding = 2 * weights * completion_tokens / machine["peak"]
    reading = NEW_TOKENS * 2 * weights / machine["bandwidth"]  # bf16
    update = 2 * prompts + 4 * weights * completion_tokens
    return max(decoding, reading) + (prompts + update) / machine["peak"]


def compare(runs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Return all sides' runs, their medians, and ratios to ours."""
    machines = runs.get("limits", [])
    sides = {side: medians(figures) for side, figures in runs.items() if side != "limits"}
    for row in sides.values():
        if machines:
            row["of_the_limit"] = ideal_seconds(medians(machines), row["completion_tokens"]) / row["seconds"]
        row["completion_tokens_per_second"] = row["completion_tokens"] / row["seconds"]
    reference = sides["lit-rft"]
    ratios = {
        side: {name: row[name] / reference[name] for name in ("seconds", "peak_gb")}
        for side, row in sides.items()
        if side != "lit-rft"
    }
    return {"runs": runs, "median": sides, "ratio": ratios}


SIDES: dict[str, Any] = {
    "limits": limits,
    "lit-rft": ours,
    "trl": theirs,
    "trl-defaults": functools.partial(theirs, checkpointing=True),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--side", choices=tuple(SIDES), help="run one side only")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    if options.side:
        say(**SIDES[options.side](MODEL, make_problems()))
        return
    info = machine()
    result = compare(in_turns(__file__, tuple(SIDES), options.rounds))
    settings = {"model": MODEL, "prompts": PROMPTS, "group": GROUP, "new_tokens": NEW_TOKENS, "temperature": 1.0,
                "beta": 0.0, "lora_rank": RANK, "target_modules": TARGETS, "precision": "bf16",
                "micro_batch_tokens": MICRO_BATCH_TOKENS}  # fmt: skip
    write("grpo_step", {"machine": info, "versions": versions("trl", "lightning"), "settings": settings} | result)
    show("one GRPO step", result["median"])
    for side, ratio in result["ratio"].items():
        print(f"{side} takes {ratio['seconds']:.1f} times as long and {ratio['peak_gb']:.1f} times the memory")


if __name__ == "__main__":
    main()
