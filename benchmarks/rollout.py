"""Completions per second: `sample_groups` against transformers' `generate`, on the same prompts.

    python benchmarks/rollout.py
    .venv-vllm/bin/python benchmarks/rollout.py --peer vllm       # after make .venv-vllm/.ready

SmolLM2-135M-Instruct in bf16, word problems (gsm_symbolic), groups of 8; 8, 32 and 64 completions at temperature 1, all
of 96 tokens (equal), or up to EOS and at most 256 (ragged; `generate` continues until the last row ends).
The completions differ, so the metric is tokens per second. Alternating rounds, each in its own process; medians. Also:
single decoding steps of lit-rft against the machine's copy bandwidth and matrix-product peak, shares of operator time,
and dispatch overhead (`fixed_seconds`, the same network with 8-dimensional heads). With `--peer vllm` the `LLM` class
of vLLM takes part in place of `generate`, without an adapter. Writes `benchmarks/results/rollout.json`, with a peer
`rollout_vllm.json`.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from limits import copy_bandwidth, decode_shares, decode_speed, fixed_seconds, matrix_peak, synchronize
from peers import in_process, in_turns, machine, peak_memory, say, show, versions, write

ROWS, GROUP, EQUAL, RAGGED, CONTEXT = (8, 32, 64), 8, 96, 256, 128
SIDES = ("lit-rft", "generate")
NEVER = 5  # <gh_stars>, a token that the model does not generate
MODEL = "smollm2-135m-instruct"


def ours(model: Any, prompts: list[list[int]], length: int, ends: Sequence[int], seed: int = 0) -> tuple[float, int]:
    """Sample with this library; return seconds and tokens."""
    from lit_rft.generation import SamplingSettings, sample_groups

    named = [(str(p), ids) for p, ids in enumerate(prompts)]
    sampling = SamplingSettings(length, 1.0, stop_token_ids=tuple(ends[1:]))
    synchronize(model.device)
    started = time.perf_counter()
    groups = sample_groups(
        model, named, [GROUP] * len(prompts), sampling, ends[0], seed=seed, max_concurrent=GROUP * len(prompts)
    )
    synchronize(model.device)
    return time.perf_counter() - started, sum(len(completion.ids) for group in groups for completion in group)


def left_padded(rows: Sequence[list[int]], fill: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ids and attention mask in the format of `generate`."""
    width = max(map(len, rows))
    ids = torch.tensor([[fill] * (width - len(row)) + row for row in rows], device=device)
    return ids, torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)


@torch.no_grad()
def theirs(model: Any, prompts: list[list[int]], length: int, ends: Sequence[int], seed: int = 0) -> tuple[float, int]:
    torch.manual_seed(seed)
    rows = [ids for ids in prompts for _ in range(GROUP)]
    device, (ids, mask) = model.device, left_padded(rows, 0, model.device)
    synchronize(device)
    started = time.perf_counter()
    out = model.generate(
        input_ids=ids, attention_mask=mask, max_new_tokens=length, do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
        min_new_tokens=length if NEVER in ends else None, eos_token_id=list(ends), pad_token_id=0, use_cache=True,
    )  # fmt: skip
    synchronize(device)
    seconds = time.perf_counter() - started
    stops = torch.isin(out[:, ids.shape[1] :], torch.tensor(ends, device=device)).int()
    return seconds, int((stops.cumsum(1) - stops == 0).sum())  # up to and including the end token


def by_vllm(model: Any, prompts: list[list[int]], length: int, ends: Sequence[int], seed: int = 0) -> tuple[float, int]:
    """Sample with vLLM's `LLM` class; return seconds and tokens."""
    from vllm import SamplingParams

    sampling = SamplingParams(  # with a seed vLLM 0.32 fails: 'CPU Generator does not use offset'
        n=GROUP, temperature=1.0, max_tokens=length, ignore_eos=True, stop_token_ids=list(ends), detokenize=False,
        logprobs=0,
    )  # fmt: skip
    started = time.perf_counter()
    groups = model.generate([{"prompt_token_ids": ids} for ids in prompts], sampling, use_tqdm=False)
    return time.perf_counter() - started, sum(len(sample.token_ids) for group in groups for sample in group.outputs)


def vllm_environment() -> dict[str, str]:
    """Return environment variables with which vLLM is fastest on a small machine.

    By default it leaves a core to its scheduler, and on two cores decodes with one.
    """
    openmp = Path(sys.prefix) / "lib" / "libiomp5.so"  # of the package intel-openmp
    cores = sorted(os.sched_getaffinity(0))
    return {
        "VLLM_CPU_KVCACHE_SPACE": "1",  # GB; by default more than there is
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores)),
        **({"LD_PRELOAD": str(openmp)} if openmp.exists() else {}),
    }


def load(side: str) -> Any:
    """Load the model of a side."""
    from lit_rft.models import load_backbone
    from lit_rft.models.backbone import resolve_model

    if side == "vllm":
        from vllm import LLM

        for name, value in vllm_environment().items():
            os.environ.setdefault(name, value)
        return LLM(model=resolve_model(MODEL), dtype="bfloat16", max_model_len=1024, logprobs_mode="processed_logprobs")
    model = load_backbone(MODEL, dtype=torch.bfloat16).eval()
    model.generation_config.eos_token_id = None  # only the end tokens that are given end a completion
    return model


def run_side(
    side: str,
    model: Any,
    prompts: list[list[int]],
    lengths: dict[str, tuple[int, Sequence[int]]],
    all_rows: Sequence[int],
    number: int,
) -> dict[str, Any]:
    """Measure seconds and tokens of each kind and number of rows, once.

    Args:
        side: of the comparison.
        model: to sample from.
        prompts: token ids.
        lengths: kind -> maximum tokens per completion, and its end tokens.
        all_rows: numbers of rows.
        number: of the round: each has its own samples.
    """
    work = {"lit-rft": ours, "generate": theirs, "vllm": by_vllm}[side]
    work(model, prompts[:1], 4, [NEVER])  # warm-up
    cases = {}
    for kind, (length, ends) in lengths.items():
        for rows in all_rows:
            seconds, tokens = work(model, prompts[: rows // GROUP], length, ends, number)
            cases[f"{kind}, {rows} rows"] = {"seconds": seconds, "tokens": tokens}
    return {"cases": cases, "peak_gb": peak_memory()}


def compare(runs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Return tokens per second of both sides by case: medians, minima, maxima and ratios; and peak memory."""
    table: dict[str, dict[str, float]] = {}
    for case in runs["lit-rft"][0]["cases"]:
        row = table[case] = {}
        for side, side_runs in runs.items():
            speeds = [run["cases"][case]["tokens"] / run["cases"][case]["seconds"] for run in side_runs]
            row |= {side: statistics.median(speeds), f"{side}, lowest": min(speeds), f"{side}, highest": max(speeds)}
        for side in runs.keys() - {"lit-rft"}:
            row["ratio" if side == "generate" else f"ratio to {side}"] = row["lit-rft"] / row[side]
    memory = {side: statistics.median(run["peak_gb"] for run in side_runs) for side, side_runs in runs.items()}
    return {"runs": runs, "tokens_per_second": table, "peak_gb": memory}


def against_limits(model: Any, all_rows: Sequence[int], context: int = CONTEXT) -> dict[str, dict[str, float]]:
    """Measure decoding steps, and their shares of copy bandwidth and matrix-product peak."""
    device = next(model.parameters()).device
    bandwidth, peak = copy_bandwidth(device), matrix_peak(device)
    speeds = {}
    for rows in all_rows:
        speed = decode_speed(model, rows, context)
        speeds[f"{rows} rows"] = speed | {
            "of_copy_bandwidth": speed["bytes_per_second"] / bandwidth,
            "of_matrix_peak": speed["flop_per_second"] / peak,
            "fixed_seconds": fixed_seconds(model, rows, context),
        }
    return speeds


def run_limits(model: Any, all_rows: Sequence[int], context: int = CONTEXT) -> dict[str, Any]:
    """Measure single steps against the machine's limits, and the shares of operations."""
    decoding = against_limits(model, (1, *all_rows), context)
    shares = {f"{rows} rows": decode_shares(model, rows, context) for rows in (1, *all_rows)}
    return {"decoding": decoding, "shares": shares}


def report(result: dict[str, Any]) -> None:
    show("tokens a second", result["tokens_per_second"])
    print("peak memory in GB:", result["peak_gb"])
    show("decoding steps", result["decoding"])
    show("parts of a decoding step", result["shares"])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--side", choices=(*SIDES, "vllm", "limits"), help="run one side only")
    parser.add_argument("--peer", choices=["vllm"], help="in place of `generate`")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--round", type=int, default=0, help="number of the round")
    options = parser.parse_args()
    from lit_rft.models import load_tokenizer
    from lit_rft.problems import generate_problems
    from lit_rft.transcripts import PromptFormat

    form = PromptFormat(load_tokenizer(MODEL))
    prompts = [form.prompt_ids(problem.prompt) for problem in generate_problems("gsm_symbolic", max(ROWS) // GROUP)]
    lengths = {"equal": (EQUAL, [NEVER]), "ragged": (RAGGED, [form.end_of_turn_id])}
    if options.side:
        model = load(options.side)
        if options.side == "limits":
            say(**run_limits(model, ROWS))
        else:
            say(**run_side(options.side, model, prompts, lengths, ROWS, options.round))
        return
    settings = {"rows": ROWS, "group": GROUP, "lengths": lengths, "prompt_tokens": list(map(len, prompts)),
                "precision": "bf16", "context_of_steps": CONTEXT}  # fmt: skip
    result = {"machine": machine(), "versions": versions(), "settings": settings}
    sides = (SIDES[0], options.peer) if options.peer else SIDES
    result |= compare(in_turns(__file__, sides, options.rounds, "--round", "{round}")) | in_process(
        __file__, "--side", "limits"
    )
    write("rollout_vllm" if options.peer else "rollout", result)
    report(result)


if __name__ == "__main__":
    main()
