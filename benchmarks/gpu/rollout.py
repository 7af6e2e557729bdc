"""Decoding 8, 64 and 256 rows against transformers' `generate`, and what one step is made of.

    python benchmarks/gpu/rollout.py --output runs/gpu

A random model in the shape of Qwen2.5-1.5B in bf16, prompts of 200 tokens in groups of 8, completions of 256 tokens at
temperature 1. `generate` with its dynamic cache and with its static one (which it compiles: warmed up, not counted).
One step: milliseconds, beside the time that reading the weights and the cache takes at the bandwidth of a copy, and
kernel launches as the profiler counts them.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kit import DEVICE, begin, environment  # first: it finds the shared modules

import torch  # isort: skip
from limits import copy_bandwidth, decode_shares, decode_speed, decoding, synchronize
from made_up import make_model, make_problems
from peers import peak_memory
from rollout import GROUP, left_padded, ours  # benchmarks/rollout.py: this file itself is __main__

from lit_rft.models import load_backbone, load_tokenizer
from lit_rft.transcripts import PromptFormat

FULL: dict[str, Any] = {"shape": "qwen2.5-1.5b", "rows": (8, 64, 256), "prompt": 200, "new": 256}
TINY: dict[str, Any] = {"shape": "tiny", "rows": (8, 16), "prompt": 20, "new": 8}


def by_generate(model: Any, prompts: Sequence[list[int]], new: int, cache: str) -> dict[str, float]:
    """Tokens per second of `generate`; none of its completions ends early."""
    rows = [ids for ids in prompts for _ in range(GROUP)]
    ids, mask = left_padded(rows, 0, model.device)

    def sample(length: int) -> float:
        synchronize(model.device)
        started = time.perf_counter()
        with torch.no_grad():
            out = model.generate(
                input_ids=ids, attention_mask=mask, max_new_tokens=length, min_new_tokens=length, do_sample=True,
                temperature=1.0, top_k=0, top_p=1.0, pad_token_id=0, use_cache=True, cache_implementation=cache,
            )  # fmt: skip
        synchronize(model.device)
        assert out.shape[1] == ids.shape[1] + length
        return time.perf_counter() - started

    warm = sample(new if cache == "static" else 4)  # a static cache is compiled for its length
    seconds = sample(new)
    return {"seconds": seconds, "warm_up_seconds": warm, "tokens_per_second": len(rows) * new / seconds}


def by_us(model: Any, prompts: list[list[int]], new: int) -> dict[str, float]:
    never = model.config.vocab_size - 1  # a token that a random model hardly ever says
    ours(model, prompts[:1], 4, [never])  # warm
    seconds, tokens = ours(model, prompts, new, [never])
    return {"seconds": seconds, "tokens_per_second": tokens / seconds, "peak_gb": peak_memory()}


def one_step(model: Any, rows: int, context: int, bandwidth: float) -> dict[str, Any]:
    """Milliseconds of one decoding step, those that reading its weights and cache takes, and launches."""
    speed = decode_speed(model, rows, context)
    read = speed["bytes_per_second"] * speed["seconds"]
    figures = {
        "milliseconds": 1e3 * speed["seconds"], "milliseconds_of_reading": 1e3 * read / bandwidth,
        "launches": launches(model, rows, context), "shares": decode_shares(model, rows, context),
    }  # fmt: skip
    return figures


@torch.no_grad()
def launches(model: Any, rows: int, context: int) -> float | None:
    """Kernel launches of a step, and how much of the step the GPU is busy; None without a GPU."""
    if DEVICE.type != "cuda":
        return None
    kinds = torch.profiler.ProfilerActivity
    steps = 4
    profiler = torch.profiler.profile(activities=[kinds.CPU, kinds.CUDA])
    with decoding(model, rows, context) as step, profiler as profile:
        for _ in range(steps):
            step()
        synchronize(DEVICE)
    return sum(event.count for event in profile.key_averages() if "LaunchKernel" in event.key) / steps


def main() -> None:
    kit, _ = begin("rollout", __doc__)
    work = TINY if kit.tiny else FULL
    kit.figures |= environment() | {"settings": {**work, "group": GROUP, "precision": "bf16"}}
    new = work["new"]
    with tempfile.TemporaryDirectory() as folder:
        path = make_model(work["shape"], Path(folder))
        model: Any = load_backbone(str(path), dtype=torch.bfloat16).eval().to(DEVICE)
        form = PromptFormat(load_tokenizer(str(path)))
        problems = make_problems(max(work["rows"]) // GROUP, work["prompt"])
        prompts = [form.prompt_ids(problem.prompt) for problem in problems]
        bandwidth = copy_bandwidth(DEVICE, 2.0 if DEVICE.type == "cuda" else 0.1)
        kit.figures["copy_gb_per_second"] = bandwidth / 1e9
        for rows in work["rows"]:
            given = prompts[: rows // GROUP]
            kit.measure(f"lit-rft, {rows} rows", lambda given=given: by_us(model, given, new), 10)
            kit.measure(f"one step, {rows} rows", lambda n=rows: one_step(model, n, work["prompt"], bandwidth), 5)
            kit.measure(f"generate, {rows} rows", lambda given=given: by_generate(model, given, new, "dynamic"), 10)
        for rows in work["rows"]:
            given, name = prompts[: rows // GROUP], f"generate with a static cache, {rows} rows"
            kit.measure(name, lambda given=given: by_generate(model, given, new, "static"), 20)
    kit.finish()


if __name__ == "__main__":
    main()
