"""The benchmarks of speed on a GPU, without any download: a random model of the shape of Qwen2.5-1.5B, made-up text.

    python benchmarks/gpu.py
    python benchmarks/gpu.py --size tiny --rounds 1 --output /tmp/gpu     # a try, anywhere

A GRPO step against TRL (where that is installed; the second one), rollouts against transformers' `generate`, a training
step against the plain way, and how far both are from the device's limits. bf16; flash attention in the training step
where it is installed (a GRPO step that shares prompts has an attention of its own). Sides are in processes of their
own, in turns, medians; rollouts are in one process. Each item is written into `gpu.json` when it is done.
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
from peers import RESULTS, in_turns, machine, say, show, versions, write

SHAPES: dict[str, dict[str, int]] = {
    "qwen2.5-1.5b": {"hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28,
                     "num_attention_heads": 12, "num_key_value_heads": 2, "vocab_size": 151936},
    "tiny": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
             "num_key_value_heads": 2, "vocab_size": 512},
}  # fmt: skip
# prompts, tokens of a prompt and of a completion, transcripts a step, tokens of a transcript, of a micro-batch
WORK = {
    "qwen2.5-1.5b": {
        "prompts": 16,
        "prompt": 200,
        "new": 512,
        "transcripts": 4,
        "transcript": 2000,
        "micro_batch_tokens": 8192,
    },
    "tiny": {"prompts": 2, "prompt": 20, "new": 8, "transcripts": 4, "transcript": 200, "micro_batch_tokens": 1024},
}
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ITEMS = {"grpo_step": ("lit-rft", "trl"), "training_step": ("lit-rft", "plain", "shares"), "rollout": ("both",)}


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


def make_loader(work: dict[str, int]) -> Any:
    """Two steps of transcripts as long as ScienceWorld's: observations of some ten words, short actions."""
    from lit_rft.datamodules import StepLoader
    from lit_rft.transcripts import Transcript

    randoms = random.Random(0)
    transcripts = []
    for number in range(2 * work["transcripts"]):
        transcript = Transcript("flat", 2, f"t{number}")
        while len(transcript) < work["transcript"] * randoms.uniform(0.5, 1.0):
            transcript.append_prompt([randoms.randrange(3, 250) for _ in range(90)])
            transcript.append_utterance([*(randoms.randrange(3, 250) for _ in range(11)), 2])
        transcripts.append([transcript])
    return StepLoader(
        transcripts, batch_size=work["transcripts"], micro_batch_tokens=work["micro_batch_tokens"], pad_id=0
    )


def run_side(item: str, side: str, size: str, folder: str, rounds: int) -> None:
    work = WORK[size]
    policy = {"attention": "flash_attention_2"} if importlib.util.find_spec("flash_attn") else {}
    if item == "grpo_step":  # the second step: a GPU's first one compiles and allocates
        if side == "trl":
            say(**grpo_step.theirs(folder, make_problems(work), work["new"], steps=2))
        else:
            say(**grpo_step.ours(folder, make_problems(work), work["new"], work["micro_batch_tokens"], steps=2))
    elif item == "training_step" and side == "shares":
        say(**training_step.profiled("sft", folder, make_loader(work), **policy))
    elif item == "training_step":
        runner: Any = {"lit-rft": training_step.ours, "plain": training_step.plain}[side]
        say(**runner("sft", folder, make_loader(work), **policy))
    else:
        say(**rollouts(work, folder, rounds))


def rollouts(work: dict[str, int], folder: str, rounds: int) -> dict[str, Any]:
    from lit_rft.models import load_backbone, load_tokenizer
    from lit_rft.transcripts import PromptFormat

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = load_backbone(folder, dtype=torch.bfloat16).eval().to(device)
    form = PromptFormat(load_tokenizer(folder))
    prompts = [form.prompt_ids(problem.prompt) for problem in make_problems(work)]
    rows = [count for count in (8, 32, 64, 128) if count <= rollout.GROUP * len(prompts)]
    cases = rollout.compare(model, prompts, {"equal": (work["new"], rollout.NEVER)}, rows, rounds)
    return {"tokens_per_second": cases, "decoding": rollout.against_limits(model, (1, *rows), work["prompt"])}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--size", choices=sorted(SHAPES), default="qwen2.5-1.5b")
    parser.add_argument("--items", nargs="+", choices=sorted(ITEMS), default=list(ITEMS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder")
    parser.add_argument("--side", help="run one side of one item only")
    parser.add_argument("--model", help="the model's folder, for that")
    options = parser.parse_args()
    if options.side:
        run_side(options.items[0], options.side, options.size, options.model, options.rounds)
        return
    result: dict[str, Any] = {"machine": machine(), "versions": versions(), "size": options.size}
    with tempfile.TemporaryDirectory() as folder:
        make_model(options.size, Path(folder))
        for item in options.items:
            result[item] = run_item(item, options.rounds, "--size", options.size, "--model", folder)
            write("gpu", result, options.output)
    report(result)


def run_item(item: str, rounds: int, *arguments: str) -> dict[str, Any]:
    sides = [side for side in ITEMS[item] if side != "trl" or importlib.util.find_spec("trl")]
    more = ("--items", item, *arguments)
    if item == "rollout":
        return in_turns(__file__, sides, 1, *more, "--rounds", str(rounds))["both"][0]
    if item == "grpo_step":
        return grpo_step.compare(in_turns(__file__, sides, rounds, *more))
    profile = in_turns(__file__, ("shares",), 1, *more)["shares"][0]
    return training_step.compare(in_turns(__file__, ("lit-rft", "plain"), rounds, *more)) | {"shares": profile}


def report(result: dict[str, Any]) -> None:
    for item in ("grpo_step", "training_step"):
        if item in result:
            show(item, result[item]["median"])
            print("ratios:", result[item]["ratio"])
    if "rollout" in result:
        show("tokens a second", result["rollout"]["tokens_per_second"])
        show("decoding steps", result["rollout"]["decoding"])


if __name__ == "__main__":
    main()
