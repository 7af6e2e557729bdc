"""Profiles of a decoding step and of an update, before and after the fast paths.

    python benchmarks/profiles.py

SmolLM2-135M-Instruct in bf16: decoding steps of 1, 8 and 64 rows after 128 tokens; supervised fine-tuning with LoRA
r 16 on all linear layers, on expert episodes of ScienceWorld (the steps of `training_step.py`). Each with
`policy.accelerate: off`, as transformers, PEFT and torch compute it, and with `auto`: seconds, and the share of each
kind of operation. Writes `benchmarks/results/profiles.json`.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from limits import decode_shares, decode_speed
from peers import machine, show, versions, write
from timed import Clock
from training_step import MODEL, fit, make_loader, profiled

ROWS, CONTEXT, CHOICES = (1, 8, 64), 128, ("off", "auto")


def decoding() -> dict[str, dict[str, float]]:
    """Measure decoding steps: milliseconds, and shares of the operations."""
    from lit_rft.models import accelerate, load_backbone

    model: Any = load_backbone(MODEL, dtype=torch.bfloat16).eval()
    table = {}
    for rows in ROWS:
        for choice in CHOICES:
            # a step without the cache would read everything again
            accelerate(model, choice if choice == "auto" else ["kv_cache"])
            milliseconds = 1e3 * decode_speed(model, rows, CONTEXT)["seconds"]
            table[f"{rows} rows, {choice}"] = {"ms": milliseconds, **decode_shares(model, rows, CONTEXT)}
    return table


def update() -> dict[str, dict[str, float]]:
    """Measure the second epoch of supervised fine-tuning: seconds per step, and shares of the operations."""
    loader, table = make_loader("sft"), {}
    for choice in CHOICES:
        clock = Clock()
        fit("sft", MODEL, loader, clock, accelerate=choice)
        seconds = clock.seconds[len(loader) :]
        table[choice] = {"seconds": sum(seconds) / len(seconds), **profiled("sft", MODEL, loader, accelerate=choice)}
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.parse_args()
    result = {"decoding": decoding(), "update": update()}
    write("profiles", {"machine": machine(), "versions": versions("lightning"), **result})
    for title, table in result.items():
        show(title, table)


if __name__ == "__main__":
    main()
