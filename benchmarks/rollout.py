"""Completions a second: `sample_groups` against transformers' `generate`, on the same prompts.

    python benchmarks/rollout.py

SmolLM2-135M-Instruct in bf16, word problems (gsm_symbolic), groups of 8; 8, 32 and 64 completions at temperature 1, all
of 96 tokens (equal), or until they end by themselves, at most 256 (ragged; `generate` goes on until the last one ends).
Both sides sample tokens of their own, so tokens a second are compared. In turns, the median counts. Writes
`benchmarks/results/rollout.json`.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import torch
from peers import machine, show, versions, write

ROWS, GROUP, EQUAL, RAGGED = (8, 32, 64), 8, 96, 256
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


@torch.no_grad()
def theirs(model: Any, prompts: list[list[int]], length: int, end: int) -> tuple[float, int]:
    rows = [ids for ids in prompts for _ in range(GROUP)]
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    started = time.perf_counter()
    out = model.generate(
        input_ids=ids, attention_mask=mask, max_new_tokens=length, min_new_tokens=length if end == NEVER else None,
        do_sample=True, temperature=1.0, top_k=0, top_p=1.0, eos_token_id=end, pad_token_id=0, use_cache=True,
    )  # fmt: skip
    seconds = time.perf_counter() - started
    new = out[:, width:]
    ended = (new == end).int().cumsum(1)
    return seconds, int((ended - (new == end).int() == 0).sum())  # up to the end token, with it


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
    for side in (ours, theirs):
        side(model, prompts[:1], 4, NEVER)  # warm
    cases: dict[str, Any] = {}
    for kind, length, end in (("equal", EQUAL, NEVER), ("ragged", RAGGED, form.end_of_turn_id)):
        for rows in ROWS:
            chosen = prompts[: rows // GROUP]
            runs = [
                (ours(model, chosen, length, end), theirs(model, chosen, length, end)) for _ in range(options.rounds)
            ]
            speeds = [[tokens / seconds for seconds, tokens in side] for side in zip(*runs, strict=True)]
            mine, other = map(statistics.median, speeds)
            cases[f"{kind}, {rows} rows"] = {"lit-rft": mine, "generate": other, "ratio": mine / other}
            print(kind, rows, cases[f"{kind}, {rows} rows"], flush=True)
    settings = {
        "rows": ROWS,
        "group": GROUP,
        "equal": EQUAL,
        "ragged": RAGGED,
        "prompt_tokens": list(map(len, prompts)),
    }
    write("rollout", {"machine": info, "versions": versions(), "settings": settings, "tokens_per_second": cases})
    show("tokens a second", cases)


if __name__ == "__main__":
    main()
