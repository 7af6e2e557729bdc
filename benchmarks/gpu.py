"""The benchmarks of speed on a GPU, without any download: a random model of the shape of Qwen2.5-1.5B, made-up text.

    python benchmarks/gpu.py
    python benchmarks/gpu.py --size tiny --rounds 1 --output /tmp/gpu     # a try, anywhere

A GRPO step against TRL (where that is installed; the second one), rollouts against transformers' `generate`, training
steps of supervised fine-tuning and offline RL against the plain way, and how far both are from the device's limits.
bf16; flash attention in those training steps where it is installed (a GRPO step that shares prompts has an attention of
its own). Sides are in processes of their own, in turns, medians. Each item is written into `gpu.json` when it is done.
"""

from __future__ import annotations

import argparse
import importlib.util
import random
import tempfile
from pathlib import Path
from typing import Any

import grpo_step
import rollout
import torch
import training_step
from peers import RESULTS, in_process, in_turns, machine, say, show, versions, write

SHAPES: dict[str, dict[str, int]] = {
    "qwen2.5-1.5b": {"hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28,
                     "num_attention_heads": 12, "num_key_value_heads": 2, "vocab_size": 151936},
    "tiny": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
             "num_key_value_heads": 2, "vocab_size": 512},
}  # fmt: skip
# prompts, characters of a prompt, tokens of a completion; episodes a step, their steps, tokens of a micro-batch
WORK = {
    "qwen2.5-1.5b": {"prompts": 16, "prompt": 200, "new": 512, "episodes": 2, "steps": 14, "micro_batch_tokens": 8192},
    "tiny": {"prompts": 2, "prompt": 20, "new": 8, "episodes": 4, "steps": 2, "micro_batch_tokens": 1024},
}
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TRAINING = ("sft", "offline_rl")
ITEMS = ("grpo_step", *TRAINING, "rollout")
ENDS = 256  # a random model says one of every so many tokens as often as any other: ragged completions end with them


def make_model(size: str, folder: Path) -> None:
    """Random weights and a byte-level tokenizer, as a folder that both sides load."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    vocab = {token: i for i, token in enumerate([*special, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>",
        additional_special_tokens=special[1:], chat_template=CHATML,
    )  # fmt: skip
    config = Qwen2Config(**SHAPES[size], max_position_embeddings=32768, rope_theta=1e6, tie_word_embeddings=True,
                         eos_token_id=2, pad_token_id=0, bos_token_id=None)  # fmt: skip
    torch.manual_seed(0)
    Qwen2ForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def words(number: int, randoms: random.Random) -> str:
    return "".join(randoms.choice("abcdefgh ") for _ in range(number))


def make_problems(work: dict[str, int]) -> list[Any]:
    from lit_rft.problems import Problem

    randoms = random.Random(0)
    return [
        Problem(f"p{n}", ({"role": "user", "content": words(work["prompt"], randoms)},), "1")
        for n in range(work["prompts"])
    ]


def make_episodes(work: dict[str, int]) -> list[Any]:
    """Two steps of episodes as long as ScienceWorld's: observations of 90 characters, actions of 10."""
    from lit_rft.episodes import Episode, Outcome, Step, Subgoal

    randoms = random.Random(0)
    episodes = []
    for number in range(2 * work["episodes"]):
        total = max(2, round(work["steps"] * randoms.uniform(0.5, 1.0)))
        steps = [Step(words(10, randoms), words(90, randoms), 1 / total, (n + 1) / total, True) for n in range(total)]
        half = total // 2
        subgoals = [Subgoal(0, half, words(20, randoms), True, "made up"),
                    Subgoal(half, total, words(20, randoms), True, "made up")]  # fmt: skip
        episodes.append(
            Episode(
                id=f"{number}", env="scienceworld", env_version="0", task="find-plant", variation=number, split="train",
                simplification="easy", source={"kind": "made up"}, task_description=words(200, randoms),
                initial_observation=words(90, randoms), steps=steps, subgoals=subgoals,
                outcome=Outcome(1.0, True, True, False, "goal"), step_limit=total,
            )
        )  # fmt: skip
    return episodes


def make_loader(item: str, work: dict[str, int], folder: str, packing: bool) -> Any:
    from lit_rft.datamodules import TrajectoryDataModule
    from lit_rft.episodes import write_episodes

    file = Path(folder) / "episodes.jsonl"
    if not file.exists():
        write_episodes(file, make_episodes(work))
    data = TrajectoryDataModule(
        folder, train_files=[str(file)], outcomes=item == "offline_rl", batch_size=work["episodes"],
        micro_batch_tokens=work["micro_batch_tokens"], max_length=8192, packing=packing,
    )  # fmt: skip
    data.setup("fit")
    return data.train_dataloader()


def run_side(item: str, side: str, size: str, folder: str, number: int) -> dict[str, Any]:
    work = WORK[size]
    policy = {"attention": "flash_attention_2"} if importlib.util.find_spec("flash_attn") else {}
    if item == "grpo_step":  # the second step: a GPU's first one compiles and allocates
        if side == "trl":
            return grpo_step.theirs(folder, make_problems(work), work["new"], steps=2)
        return grpo_step.ours(folder, make_problems(work), work["new"], work["micro_batch_tokens"], steps=2)
    if item in TRAINING:
        runner: Any = {"lit-rft": training_step.ours, "plain": training_step.plain, "shares": training_step.profiled}
        packing = bool(policy) or not torch.cuda.is_available()  # where attention skips other transcripts
        return runner[side](item, folder, make_loader(item, work, folder, packing), **policy)
    return rollouts(side, work, folder, number)


def rollouts(side: str, work: dict[str, int], folder: str, number: int) -> dict[str, Any]:
    from lit_rft.models import load_backbone, load_tokenizer
    from lit_rft.transcripts import PromptFormat

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model: Any = load_backbone(folder, dtype=torch.bfloat16).eval().to(device)
    form = PromptFormat(load_tokenizer(folder))
    prompts = [form.prompt_ids(problem.prompt) for problem in make_problems(work)]
    rows = [count for count in (8, 16, 32, 64, 128) if count <= rollout.GROUP * len(prompts)]
    if side == "limits":
        return rollout.run_limits(model, rows, work["prompt"])
    ends = list(range(rollout.NEVER + 1, model.config.vocab_size, ENDS))
    lengths = {"equal": (work["new"], [rollout.NEVER]), "ragged": (work["new"], ends)}
    return rollout.run_side(side, model, prompts, lengths, rows, number)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--size", choices=sorted(SHAPES), default="qwen2.5-1.5b")
    parser.add_argument("--items", nargs="+", choices=ITEMS, default=ITEMS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--round", type=int, default=0, help="which one a side is run in")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder")
    parser.add_argument("--side", help="run one side of one item only")
    parser.add_argument("--model", help="the model's folder, for that")
    options = parser.parse_args()
    if options.side:
        say(**run_side(options.items[0], options.side, options.size, options.model, options.round))
        return
    settings = {"shape": SHAPES[options.size], **WORK[options.size], "group": rollout.GROUP, "precision": "bf16",
                "lora_rank": grpo_step.RANK,
                "flash_attention": bool(importlib.util.find_spec("flash_attn"))}  # fmt: skip
    found = [name for name in ("trl",) if importlib.util.find_spec(name)]
    result: dict[str, Any] = {"machine": machine(), "versions": versions("lightning", *found), "settings": settings}
    failed = result["failed"] = {}
    with tempfile.TemporaryDirectory() as folder:
        make_model(options.size, Path(folder))
        for item in options.items:
            try:
                result[item] = run_item(item, options.rounds, "--size", options.size, "--model", folder)
            except RuntimeError as error:  # the others are worth having
                failed[item] = str(error)
                print(f"{item} failed: {error}", flush=True)
            write("gpu", result, options.output)
    report(result)
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


def run_item(item: str, rounds: int, *arguments: str) -> dict[str, Any]:
    more = ("--items", item, *arguments)
    if item == "rollout":
        runs = in_turns(__file__, rollout.SIDES, rounds, *more, "--round", "{round}")
        return rollout.compare(runs) | in_process(__file__, "--side", "limits", *more)
    if item == "grpo_step":
        sides = ("lit-rft", "trl") if importlib.util.find_spec("trl") else ("lit-rft",)
        return grpo_step.compare(in_turns(__file__, sides, rounds, *more))
    profile = in_process(__file__, "--side", "shares", *more)
    return training_step.compare(in_turns(__file__, ("lit-rft", "plain"), rounds, *more)) | {"shares": profile}


def report(result: dict[str, Any]) -> None:
    if "grpo_step" in result:
        show("grpo_step", result["grpo_step"]["median"])
        print("ratios:", result["grpo_step"]["ratio"])
    for item in TRAINING:
        if item in result:
            training_step.report(item, result[item])
    if "rollout" in result:
        rollout.report(result["rollout"])


if __name__ == "__main__":
    main()
