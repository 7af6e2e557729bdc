"""A decoding step with and without fused decoder layers, and how much of it could still be gained.

    python benchmarks/decoding_step.py

SmolLM2-135M-Instruct in bf16, 128 tokens of context: rounds of steps with and without `fused_decoding`, in turns; the
number of operations of a step and their shares; the rate of the step's products, weights read from memory, against the
matrix-product peak; attention as batched products against torch's own kernel. Writes
`benchmarks/results/decoding_step.json`.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import statistics
from collections.abc import Callable, Iterator
from typing import Any

import torch
from limits import decode_shares, decode_speed, decoding, matrix_peak, seconds_of
from peers import choose_path, machine, ratios, show, versions, write

ROWS, CONTEXT, ROUNDS = (1, 8, 32, 64), 128, 7
SIDES = {"fused": True, "default": False}


def compare(model: Any, rows: int, rounds: int) -> dict[str, float]:
    """Measure steps of both sides in turns; return median milliseconds, and median, lowest and highest ratio."""
    took: dict[str, list[float]] = {side: [] for side in SIDES}
    for _ in range(rounds):
        for side, fused in SIDES.items():
            choose_path(model, "fused_decoding", fused)
            took[side].append(1e3 * decode_speed(model, rows, CONTEXT, steps=12, repeats=1)["seconds"])
    medians = {f"{side}, ms": statistics.median(values) for side, values in took.items()}
    return medians | ratios(took["default"], took["fused"])


@torch.no_grad()
def count_operations(model: Any, rows: int, fused: bool) -> int:
    """Count the operations of a step, those within others included."""
    choose_path(model, "fused_decoding", fused)
    with decoding(model, rows, CONTEXT) as step, torch.profiler.profile() as profile:
        step()
    return sum(event.count for event in profile.key_averages() if "::" in event.key)


def product_rate(model: Any, rows: int) -> float:
    """Measure the FLOP per second of a step's packed products with a new weight each time, as in a step."""
    config = model.config.get_text_config()
    size, inner, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    joint = (config.num_attention_heads + 2 * config.num_key_value_heads) * size // config.num_attention_heads
    seconds = flop = 0.0
    for inputs, outputs, number in ((size, joint, 1), (size, size, 1), (size, inner, 2), (inner, size, 1)):
        weights = [torch.randn(outputs, inputs).bfloat16() for _ in range(layers)]
        packed = itertools.cycle([torch.ops.mkldnn._reorder_linear_weight(weight, rows) for weight in weights])
        x = torch.randn(rows, inputs).bfloat16()
        seconds += number * layers * _best(functools.partial(_product, x, packed), layers)
        flop += number * layers * 2.0 * rows * inputs * outputs
    return flop / seconds


def _product(x: torch.Tensor, packed: Iterator[torch.Tensor]) -> Any:
    return torch.ops.mkldnn._linear_pointwise(x, next(packed), None, "none", [], "")


def _best(work: Callable[[], Any], times: int) -> float:
    """Return the seconds of one call, of the best of some repetitions of `times` calls."""
    return seconds_of(lambda: [work() for _ in range(times)], torch.device("cpu")) / times


def attention_milliseconds(model: Any, rows: int, keys: int = 192) -> dict[str, float]:
    """Measure one layer's attention of single queries, a new cache each time: batched products, and torch's kernel."""
    from lit_rft.models.accel.decoding_attention import grouped_query_attention

    config = model.config.get_text_config()
    heads, groups, layers = config.num_attention_heads, config.num_key_value_heads, config.num_hidden_layers
    size = config.hidden_size // heads
    caches = [torch.randn(2, rows, groups, keys, size).bfloat16() for _ in range(layers)]
    queries, mask = torch.randn(rows, heads, 1, size).bfloat16(), torch.zeros(rows, 1, 1, keys).bfloat16()
    grouped = queries.view(rows, groups, heads // groups, size)

    def products(each: Iterator[torch.Tensor]) -> Any:
        return grouped_query_attention(None, queries, *next(each), mask)

    def kernel(each: Iterator[torch.Tensor]) -> Any:
        return torch.nn.functional.scaled_dot_product_attention(grouped, *next(each), attn_mask=mask)

    return {
        name: 1e3 * _best(functools.partial(work, itertools.cycle(caches)), layers)
        for name, work in (("products, ms", products), ("kernel, ms", kernel))
    }


@torch.no_grad()
def measure(model: Any, all_rows: tuple[int, ...] = ROWS, rounds: int = ROUNDS) -> dict[str, Any]:
    """Return all figures by number of rows."""
    peak = matrix_peak(torch.device("cpu"))
    steps, rest = {}, {}
    for rows in all_rows:
        steps[f"{rows} rows"] = compare(model, rows, rounds)
        rest[f"{rows} rows"] = {
            **{f"operations, {side}": count_operations(model, rows, fused) for side, fused in SIDES.items()},
            "products, of peak": product_rate(model, rows) / peak,
            **attention_milliseconds(model, rows),
        }
    choose_path(model, "fused_decoding", True)
    shares = {f"{rows} rows": decode_shares(model, rows, CONTEXT) for rows in all_rows}
    return {"steps": steps, "parts": rest, "shares": shares, "matrix_peak": peak}


def main() -> None:
    argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0]).parse_args()
    from lit_rft.models import load_backbone

    model: Any = load_backbone("smollm2-135m-instruct", dtype=torch.bfloat16)
    result = {"machine": machine(), "versions": versions(), **measure(model.eval())}
    write("decoding_step", result)
    for name in ("steps", "parts", "shares"):
        show(name, result[name])
    print(f"matrix-product peak: {result['matrix_peak'] / 1e9:.0f} GFLOP/s")


if __name__ == "__main__":
    main()
