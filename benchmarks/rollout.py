"""Completions a second: `sample_groups` against transformers' `generate`, on the same prompts.

    python benchmarks/rollout.py

SmolLM2-135M-Instruct in bf16, word problems (gsm_symbolic), groups of 8; 8, 32 and 64 completions at temperature 1, all
of 96 tokens (equal), or until they end by themselves, at most 256 (ragged; `generate` goes on until the last one ends).
Both sides sample tokens of their own, so tokens a second are compared. In turns, the median counts. Beside it single
decoding steps of ours, against what the machine copies and multiplies at most: 1 row is bound by reading the weights,
64 by multiplying with them. Writes `benchmarks/results/rollout.json`.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch
from limits import copy_bandwidth, decode_speed, matrix_peak, synchronize
from peers import machine, show, versions, write

ROWS, GROUP, EQUAL, RAGGED, CONTEXT = (8, 32, 64), 8, 96, 256, 128
NEVER = 5  # <gh_stars>, a token that the model does not say


def ours(model: Any, prompts: list[list[int]], length: int, end: int) -> tuple[float, int]:
    """Seconds and tokens."""
    from lit_rft.rollout import SamplingSettings, sample_groups

    named = [(str(p), ids) for p, ids in enumerate(prompts)]
    started = time.perf_counter()
    groups = sample_groups(
        model, named, [GROUP] * len(prompts), SamplingSettings(length, 1.0), end, num_slots=GROUP * len(prompts)
    )
    return time.perf_counter() - started, sum(len(one.ids) for group in groups for one in group)


def left_padded(rows: Sequence[list[int]], fill: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and attention mask, as `generate` takes them."""
    width = max(map(len, rows))
    ids = torch.tensor([[fill] * (width - len(row)) + row for row in rows], device=device)
    return ids, torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)


@torch.no_grad()
def theirs(model: Any, prompts: list[list[int]], length: int, end: int) -> tuple[float, int]:
    rows = [ids for ids in prompts for _ in range(GROUP)]
    device, (ids, mask) = model.device, left_padded(rows, 0, model.device)
    synchronize(device)
    started = time.perf_counter()
    out = model.generate(
        input_ids=ids, attention_mask=mask, max_new_tokens=length, min_new_tokens=length if end == NEVER else None,
        do_sample=True, temperature=1.0, top_k=0, top_p=1.0, eos_token_id=end, pad_token_id=0, use_cache=True,
    )  # fmt: skip
    synchronize(device)
    seconds = time.perf_counter() - started
    new = out[:, ids.shape[1] :]
    ended = (new == end).int().cumsum(1)
    return seconds, int((ended - (new == end).int() == 0).sum())  # up to the end token, with it


def compare(
    model: Any, prompts: list[list[int]], lengths: dict[str, tuple[int, int]], all_rows: Sequence[int], rounds: int
) -> dict[str, dict[str, float]]:
    """Tokens a second of both sides.

    Args:
        lengths: kind -> at most so many tokens a completion, and the token that ends it.
    """
    for side in (ours, theirs):
        side(model, prompts[:1], 4, NEVER)  # warm
    cases: dict[str, dict[str, float]] = {}
    for kind, (length, end) in lengths.items():
        for rows in all_rows:
            chosen = prompts[: rows // GROUP]
            runs = [(ours(model, chosen, length, end), theirs(model, chosen, length, end)) for _ in range(rounds)]
            speeds = [[tokens / seconds for seconds, tokens in side] for side in zip(*runs, strict=True)]
            mine, other = map(statistics.median, speeds)
            cases[f"{kind}, {rows} rows"] = {"lit-rft": mine, "generate": other, "ratio": mine / other}
            print(kind, rows, speeds, flush=True)
    return cases


def against_limits(model: Any, all_rows: Sequence[int], context: int = CONTEXT) -> dict[str, dict[str, float]]:
    """Decoding steps, and their part of what the machine copies and multiplies at most."""
    device = next(model.parameters()).device
    bandwidth, peak = copy_bandwidth(device), matrix_peak(device)
    found = {}
    for rows in all_rows:
        speed = decode_speed(model, rows, context)
        found[f"{rows} rows"] = speed | {
            "of_copy_bandwidth": speed["bytes_per_second"] / bandwidth,
            "of_matrix_peak": speed["flop_per_second"] / peak,
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    from lit_rft.models import load_backbone, load_tokenizer
    from lit_rft.problems import generate_problems
    from lit_rft.transcripts import PromptFormat

    info = machine()
    model = load_backbone("smollm2-135m-instruct", dtype=torch.bfloat16).eval()
    form = PromptFormat(load_tokenizer("smollm2-135m-instruct"))
    prompts = [form.prompt_ids(problem.prompt) for problem in generate_problems("gsm_symbolic", max(ROWS) // GROUP)]
    torch.manual_seed(0)
    lengths = {"equal": (EQUAL, NEVER), "ragged": (RAGGED, form.end_of_turn_id)}
    cases = compare(model, prompts, lengths, ROWS, options.rounds)
    limits = against_limits(model, (1, *ROWS))
    settings = {"rows": ROWS, "group": GROUP, "lengths": lengths, "prompt_tokens": list(map(len, prompts))}
    result = {"tokens_per_second": cases, "decoding": limits}
    write("rollout", {"machine": info, "versions": versions(), "settings": settings} | result)
    show("tokens a second", cases)
    show("decoding steps", limits)


if __name__ == "__main__":
    main()
