"""A complete GRPO step against TRL: rollout, rewards, loss, gradients, optimiser.

    python benchmarks/gpu/grpo.py --output runs/gpu

A random model in the shape of Qwen2.5-1.5B, 16 prompts of 200 tokens x 8 completions of at most 256, LoRA of rank 16 on
the attention's projections, bf16, as in `benchmarks/grpo_step.py`; all completions are sampled at once, and a
micro-batch is one group, on all sides. Each side has its own process; the second step counts (the first one compiles
and allocates). TRL without gradient checkpointing, as lit-rft, and with it, its default.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kit import Kit, begin, environment  # first: it adds the shared modules to the path

import grpo_step  # isort: skip
from made_up import make_model, make_problems
from peers import say

FULL: dict[str, Any] = {"shape": "qwen2.5-1.5b", "prompts": 16, "prompt": 200, "new": 256, "micro_batch_tokens": 2400}
TINY: dict[str, Any] = {"shape": "tiny", "prompts": 2, "prompt": 20, "new": 8, "micro_batch_tokens": 1024}
SIDES = ("lit-rft", "trl", "trl-defaults")


def alternating(texts: Sequence[str]) -> list[float]:
    """Return rewards that differ within each group: random ids hardly form text, so rewards of texts would be equal."""
    return [float(n % 2) for n in range(len(texts))]


def run_side(side: str, model: str, work: dict[str, Any]) -> dict[str, float]:
    problems = make_problems(work["prompts"], work["prompt"])
    if side == "lit-rft":
        return grpo_step.ours(model, problems, work["new"], work["micro_batch_tokens"], 2, alternating)
    return grpo_step.theirs(model, problems, work["new"], 2, side == "trl-defaults", alternating)


def in_process(kit: Kit, side: str, model: Path) -> dict[str, Any]:
    """Measure one side in its own process."""
    import json

    command = [sys.executable, __file__, "--size", kit.size, "--side", side, "--model", str(model)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=max(5.0, kit.seconds_left()))
    except subprocess.TimeoutExpired:
        return {"failed": "stopped when time was up"}
    lines = [line for line in done.stdout.splitlines() if line.startswith("figures: ")]
    if done.returncode or not lines:
        raise RuntimeError(f"{side} failed:\n{done.stdout[-1000:]}{done.stderr[-3000:]}")
    figures: dict[str, Any] = json.loads(lines[-1].removeprefix("figures: "))
    return figures | {"completion_tokens_per_second": figures["completion_tokens"] / figures["seconds"]}


def main() -> None:
    kit, options = begin(
        "grpo", __doc__,
        lambda parser: parser.add_argument("--side", choices=SIDES, help="run one side only"),
        lambda parser: parser.add_argument("--model", help="the model's folder, for that"),
    )  # fmt: skip
    work = TINY if kit.tiny else FULL
    if options.side:
        say(**run_side(options.side, options.model, work))
        return
    kit.figures |= environment() | {"settings": {**work, "group": grpo_step.GROUP, "lora_rank": grpo_step.RANK}}
    kit.write()
    at_least = 0 if kit.tiny else 60
    sides = SIDES if importlib.util.find_spec("trl") else SIDES[:1]
    with tempfile.TemporaryDirectory() as folder:
        model = make_model(work["shape"], Path(folder))
        for side in sides:
            kit.measure(side, lambda side=side: in_process(kit, side, model), at_least=at_least)
    kit.finish()


if __name__ == "__main__":
    main()
