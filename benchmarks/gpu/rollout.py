"""Decoding of 8, 64 and 256 rows against transformers' `generate`, and the shares of operations in one step.

    python benchmarks/gpu/rollout.py --output runs/gpu

A random model in the shape of Qwen2.5-1.5B in bf16, prompts of 200 tokens in groups of 8, completions of 256 tokens at
temperature 1. `generate` with its dynamic and its static cache (which it compiles during warm-up, not timed); lit-rft
with CUDA graphs and without them (eager). One step: milliseconds, and the time to read the weights and the cache at
copy bandwidth. Kernel launches and shares of an eager step are measured last, since the profiler slows down later work;
they and the static cache only if a minute is left.
"""

from __future__ import annotations

import functools
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kit import DEVICE, Kit, begin, environment  # first: it adds the shared modules to the path

import torch  # isort: skip
from limits import copy_bandwidth, decode_profile, decode_speed, synchronize
from made_up import make_model, make_problems
from peers import peak_memory
from rollout import GROUP, left_padded, ours  # benchmarks/rollout.py: this file is __main__

from lit_rft.generation.recompute import make_decoder
from lit_rft.models import load_backbone, load_tokenizer
from lit_rft.models.accel import FAST_PATHS, accelerate
from lit_rft.transcripts import PromptFormat

FULL: dict[str, Any] = {"shape": "qwen2.5-1.5b", "rows": (8, 64, 256), "prompt": 200, "new": 256}
TINY: dict[str, Any] = {"shape": "tiny", "rows": (8, 16), "prompt": 20, "new": 8}


def by_generate(model: Any, prompts: Sequence[list[int]], new: int, cache: str) -> dict[str, float]:
    """Measure the tokens per second of `generate`; none of its completions ends early."""
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

    static = cache == "static"
    warm = sample(new if static else 4)  # a static cache is compiled for its length
    seconds = min(sample(new) for _ in range(2 if static else 1))  # the first run may still compile or capture
    speed = len(rows) * new / seconds
    return {"seconds": seconds, "warm_up_seconds": warm, "tokens_per_second": speed, "peak_gb": peak_memory()}


def switch_graphs(model: Any, on: bool) -> None:
    """Turn CUDA graphs on or off; all other fast paths stay on."""
    accelerate(model, [name for name in FAST_PATHS if on or name != "cuda_graphs"])


def by_us(model: Any, prompts: list[list[int]], new: int, graphs: bool) -> dict[str, Any]:
    """Measure the tokens per second of this library with its default decoder."""
    switch_graphs(model, graphs)
    never = model.config.vocab_size - 1  # a token that a random model rarely samples
    warm, _ = ours(model, prompts, 4 if not graphs else min(new, 8), [never])
    seconds, tokens = ours(model, prompts, new, [never])
    decoder = make_decoder(model, 1, never)  # anything but Decoder is a fallback
    return {
        "seconds": seconds, "warm_up_seconds": warm, "tokens_per_second": tokens / seconds, "peak_gb": peak_memory(),
        "decoder": type(decoder).__name__, "graphs": decoder.graphs is not None,  # False if capturing failed
    }  # fmt: skip


def one_step(model: Any, rows: int, context: int, bandwidth: float, graphs: bool) -> dict[str, float]:
    """Measure the milliseconds of one decoding step, and of reading its weights and cache."""
    switch_graphs(model, graphs)
    speed = decode_speed(model, rows, context)
    read = speed["bytes_per_second"] * speed["seconds"]
    return {"milliseconds": 1e3 * speed["seconds"], "milliseconds_of_reading": 1e3 * read / bandwidth}


def measure(kit: Kit, model: Any, prompts: list[list[int]], work: dict[str, Any], bandwidth: float) -> None:
    """Measure all items, the most informative first."""
    new, context = work["new"], work["prompt"]
    given = {rows: prompts[: rows // GROUP] for rows in work["rows"]}
    for rows, subset in given.items():
        kit.measure(f"lit-rft, {rows} rows", lambda subset=subset: by_us(model, subset, new, True), 5)
    for rows, subset in given.items():
        kit.measure(f"generate, {rows} rows", lambda subset=subset: by_generate(model, subset, new, "dynamic"), 8)
    for rows, subset in given.items():
        kit.measure(f"lit-rft eager, {rows} rows", lambda subset=subset: by_us(model, subset, new, False), 12)
    for graphs, kind in ((True, "one step"), (False, "one eager step")):
        for rows in given:
            step = functools.partial(one_step, model, rows, context, bandwidth, graphs)
            kit.measure(f"{kind}, {rows} rows", step, 3)
    at_least = 0 if kit.tiny else 60
    for rows in given:
        profile = functools.partial(decode_profile, model, rows, context)  # without graphs, which have a single launch
        kit.measure(f"profile of an eager step, {rows} rows", profile, at_least)
    for rows, prompts in given.items():
        name = f"generate with a static cache, {rows} rows"
        kit.measure(name, lambda prompts=prompts: by_generate(model, prompts, new, "static"), at_least)


def main() -> None:
    kit, _ = begin("rollout", __doc__)
    work = TINY if kit.tiny else FULL
    kit.figures |= environment() | {"settings": {**work, "group": GROUP, "precision": "bf16"}}
    kit.write()
    with tempfile.TemporaryDirectory() as folder:
        path = make_model(work["shape"], Path(folder))
        model: Any = load_backbone(str(path), dtype=torch.bfloat16).eval().to(DEVICE)
        form = PromptFormat(load_tokenizer(str(path)))
        problems = make_problems(max(work["rows"]) // GROUP, work["prompt"])
        prompts = [form.prompt_ids(problem.prompt) for problem in problems]
        bandwidth = copy_bandwidth(DEVICE, 2.0 if DEVICE.type == "cuda" else 0.1)
        kit.figures["copy_gb_per_second"] = bandwidth / 1e9
        measure(kit, model, prompts, work, bandwidth)
    kit.finish()


if __name__ == "__main__":
    main()
