"""One GRPO step against TRL's, on the same work: rollout, rewards, loss, gradients and optimiser.

    pip install trl==1.16.0
    python benchmarks/grpo_step.py

SmolLM2-135M-Instruct, LoRA r 16 on q/k/v/o, bf16, 8 word problems (gsm_symbolic) x 8 completions of at most 128 tokens,
temperature 1, no KL term; the reward gives every group a signal. Each step is in a process of its own, in turns; the
median counts. Writes `benchmarks/results/grpo_step.json`.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from typing import Any

from peers import in_turns, machine, medians, peak_memory, say, show, versions, write

PROMPTS, GROUP, NEW_TOKENS, RANK, MICRO_BATCH_TOKENS = 8, 8, 128, 16, 1200
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj"]


def reward_of(text: str) -> float:
    """Of no meaning, but hardly ever the same in a whole group."""
    return float(len(text) % 7)


def ours() -> None:
    import lightning as L

    from lit_rft.datamodules import MathPromptDataModule
    from lit_rft.models import LoraSettings
    from lit_rft.rollout import SamplingSettings
    from lit_rft.stages import MixedPolicyGRPO, ObjectiveSettings, OptimizerSettings, PolicySettings

    def reward(completions: Sequence[str], rows: Any) -> list[float]:
        return [reward_of(text) for text in completions]

    class Clock(L.Callback):
        def on_train_batch_start(self, *_: Any) -> None:
            self.started = time.perf_counter()

        def on_train_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
            seconds = time.perf_counter() - self.started
            tokens = sum(one.length for one in module.samples)
            say(seconds=seconds, completion_tokens=tokens, peak_gb=peak_memory())

    L.seed_everything(0, verbose=False)
    stage = MixedPolicyGRPO(
        PolicySettings("smollm2-135m-instruct", LoraSettings(RANK, 2 * RANK, 0.0, TARGETS)),
        OptimizerSettings(1e-5),
        ObjectiveSettings(GROUP, 0, entropy_coef=0.0),
        SamplingSettings(NEW_TOKENS, 1.0),
        reward,
        micro_batch_tokens=MICRO_BATCH_TOKENS,
    )
    data = MathPromptDataModule("smollm2-135m-instruct", train_tasks={"gsm_symbolic": PROMPTS}, batch_size=PROMPTS)
    trainer = L.Trainer(
        max_steps=1, precision="bf16-mixed", accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0, callbacks=[Clock()],
    )  # fmt: skip
    trainer.fit(stage, datamodule=data)


def theirs() -> None:
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    from lit_rft.models.backbone import resolve_model
    from lit_rft.problems import generate_problems

    tokens = []

    def reward(completions: Sequence[Any], completion_ids: Sequence[Any], **_: Any) -> list[float]:
        tokens.extend(len(ids) for ids in completion_ids)
        return [reward_of(one[0]["content"]) for one in completions]

    class Clock(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.started = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            say(seconds=time.perf_counter() - self.started, completion_tokens=sum(tokens), peak_gb=peak_memory())

    problems = generate_problems("gsm_symbolic", PROMPTS)
    config = GRPOConfig(
        output_dir=tempfile.mkdtemp(), max_steps=1, per_device_train_batch_size=GROUP,
        gradient_accumulation_steps=PROMPTS, num_generations=GROUP, max_completion_length=NEW_TOKENS, temperature=1.0,
        beta=0.0, bf16=True, use_cpu=True, report_to=[], learning_rate=1e-5, logging_steps=1, seed=0,
        model_init_kwargs={"dtype": "bfloat16"}, save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    trainer = GRPOTrainer(
        model=resolve_model("smollm2-135m-instruct"),
        reward_funcs=[reward],
        args=config,
        train_dataset=Dataset.from_list([{"prompt": list(problem.prompt)} for problem in problems]),
        peft_config=LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=TARGETS, task_type="CAUSAL_LM"),
        callbacks=[Clock()],
    )
    trainer.train()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--side", choices=("lit-rft", "trl"), help="run one side only")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    if options.side:
        {"lit-rft": ours, "trl": theirs}[options.side]()
        return
    info = machine()
    runs = in_turns(__file__, ("lit-rft", "trl"), options.rounds)
    sides = {side: medians(found) for side, found in runs.items()}
    for row in sides.values():
        row["completion_tokens_per_second"] = row["completion_tokens"] / row["seconds"]
    ratios = {name: sides["trl"][name] / sides["lit-rft"][name] for name in ("seconds", "peak_gb")}
    settings = {"prompts": PROMPTS, "group": GROUP, "new_tokens": NEW_TOKENS, "lora_rank": RANK, "precision": "bf16"}
    result = {"machine": info, "versions": versions("trl", "lightning"), "settings": settings, "runs": runs,
              "median": sides, "ratio": ratios}  # fmt: skip
    write("grpo_step", result)
    show("one GRPO step", sides)
    print(f"TRL takes {ratios['seconds']:.1f} times as long and {ratios['peak_gb']:.1f} times the memory")


if __name__ == "__main__":
    main()
