"""The limits of a machine, for comparison with measurements, and the shares of operations in the time of a step."""

from __future__ import annotations

import contextlib
import copy
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

# part of a step -> substrings of its operations' names; the first match counts. Batched products are attention's,
# as are softmaxes on a CPU (log_softmax is for log-probabilities); on a GPU kernel names do not reveal their part.
PARTS = {
    "attention": ("attention", "flash", "fmha", "_blockwise", "bmm", "aten::softmax", "aten::_softmax"),
    "matrix products": ("mm", "linear", "matmul", "gemm", "cutlass", "cublas", "nvjet"),
    "logits": ("log_softmax", "logsumexp", "nll_loss", "cross_entropy", "softmax"),
    "copies and casts": ("copy", "cat", "index", "gather", "scatter", "clone", "contiguous", "fill", "zero", "_to_"),
    "elementwise": ("mul", "add", "silu", "rsqrt", "pow", "mean", "neg", "sub", "div", "sum", "cos", "sin", "where"),
}


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(work: Callable[[], Any], device: torch.device, repeats: int = 5) -> float:
    """Return the best time of some repetitions, after one that does not count."""
    work()
    best = float("inf")
    for _ in range(repeats):
        synchronize(device)
        started = time.perf_counter()
        work()
        synchronize(device)
        best = min(best, time.perf_counter() - started)
    return best


def matrix_peak(device: torch.device) -> float:
    """Measure the FLOP per second of a bf16 matrix product, the best of some sizes."""
    sizes = (1024, 2048) if device.type == "cpu" else (4096, 8192)
    inner = 1536 if device.type == "cpu" else 8192
    best = 0.0
    for size in sizes:
        a, b = (torch.randn(shape, device=device).bfloat16() for shape in ((size, inner), (inner, inner)))
        best = max(best, 2 * size * inner * inner / seconds_of(lambda a=a, b=b: a @ b, device))  # type: ignore[misc]
    return best


def copy_bandwidth(device: torch.device, gigabytes: float = 0.5) -> float:
    """Measure the bytes per second that a copy reads and writes."""
    source = torch.zeros(int(gigabytes * 1e9 / 4), device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / seconds_of(lambda: target.copy_(source), device)


def product_weights(model: nn.Module) -> int:
    """Count the weights in products with every token, without those of embeddings."""
    embeddings = _embeddings(model)
    return sum(p.numel() for p in model.parameters() if id(p) not in embeddings)


def _embeddings(model: nn.Module) -> set[int]:
    return {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}


def _head_size(config: Any) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def training_flop(model: Any, lengths: Sequence[int], chosen: int, reused: Sequence[int] = ()) -> float:
    """Count the FLOP of a training pass over sequences.

    As PaLM (Chowdhery et al. 2022, appendix B), with causal attention: trainable weights are used three times, frozen
    ones twice.

    Args:
        model: with or without adapters.
        lengths: tokens of each sequence.
        chosen: number of tokens that need logits.
        reused: lengths of prompts that are not recomputed: 7 times the same for 8 sequences with one prompt.
    """
    config = model.config.get_text_config()
    apart = _embeddings(model) | {id(model.get_output_embeddings().weight)}
    weights = [p for p in model.parameters() if p.dim() > 1 and id(p) not in apart]
    uses = sum(p.numel() * (6 if p.requires_grad else 4) for p in weights)
    heads = config.num_attention_heads * _head_size(config) * config.num_hidden_layers
    # two forward and four backward products, half of their squares, two FLOP each
    attention = 6 * heads * (sum(length**2 for length in lengths) - sum(length**2 for length in reused))
    head = model.get_output_embeddings().weight
    logits = (6 if head.requires_grad else 4) * head.numel() * chosen
    return uses * (sum(lengths) - sum(reused)) + attention + logits


@contextlib.contextmanager
def decoding(model: Any, rows: int, context: int) -> Iterator[Callable[[], Any]]:
    """Prepare a decoding step of `rows` sequences after `context` tokens, run once for warm-up."""
    from lit_rft.generation.decoder import Decoder

    decoder, slots = Decoder(model, rows, 0), list(range(rows))
    with decoder.ready():
        decoder.read({slot: [1 + slot % 7] * context for slot in slots})
        decoder.step(slots, [1] * rows)
        yield lambda: decoder.step(slots, [1] * rows)


@torch.no_grad()
def decode_speed(model: Any, rows: int, context: int, steps: int = 16, repeats: int = 3) -> dict[str, float]:
    """Measure a decoding step of `rows` sequences after `context` tokens: bytes and FLOP per second.

    Every step reads all weights and the used part of the cache; the output layer is one of its products. Medians of
    some repetitions.
    """
    device, config = next(model.parameters()).device, model.config
    step_seconds = []
    with decoding(model, rows, context) as step:
        for _ in range(repeats):
            synchronize(device)
            started = time.perf_counter()
            for _ in range(steps):
                step()
            synchronize(device)
            step_seconds.append((time.perf_counter() - started) / steps)
    seconds = statistics.median(step_seconds)
    head = model.get_output_embeddings().weight
    weights = product_weights(model) + (head.numel() if config.tie_word_embeddings else 0)
    positions = (context + steps * repeats // 2) * rows
    cached = 2 * config.num_hidden_layers * config.num_key_value_heads * _head_size(config) * positions
    return {
        "seconds": seconds,
        "tokens_per_second": rows / seconds,
        "bytes_per_second": (weights + cached) * head.element_size() / seconds,
        "flop_per_second": 2 * weights * rows / seconds,
    }


def fixed_seconds(model: Any, rows: int, context: int) -> float:
    """Measure the dispatch overhead: a step of a model with as many layers and heads, but hardly any computation."""
    from transformers import AutoModelForCausalLM

    config = copy.deepcopy(model.config.get_text_config())
    size = 8 * config.num_attention_heads
    config.update({"hidden_size": size, "head_dim": 8, "intermediate_size": 8, "vocab_size": 64})
    device, dtype = next(model.parameters()).device, model.dtype
    thin = AutoModelForCausalLM.from_config(config).to(device, dtype).eval()
    return decode_speed(thin, rows, context)["seconds"]


def _part(name: str, parent: Any) -> str:
    """Return the part of an operation; all operations within attention belong to attention."""
    while parent is not None:
        if any(word in parent.name.lower() for word in PARTS["attention"]):
            return "attention"
        parent = parent.cpu_parent
    return next((part for part, words in PARTS.items() if any(word in name for word in words)), "other")


@torch.no_grad()
def decode_profile(model: Any, rows: int, context: int, steps: int = 4) -> dict[str, Any]:
    """Return the kernel launches of a decoding step (None without a GPU), and the shares of its operations."""
    with decoding(model, rows, context) as step, _profiler() as profile:
        for _ in range(steps):
            step()
        synchronize(next(model.parameters()).device)
    launches = sum(event.count for event in _kernels(profile) if not event.key.startswith(("Memcpy", "Memset")))
    return {"launches": launches / steps if torch.cuda.is_available() else None, "shares": _shares(profile)}


def decode_shares(model: Any, rows: int, context: int) -> dict[str, float]:
    """Return the share of each kind of operation in the time of a decoding step."""
    shares: dict[str, float] = decode_profile(model, rows, context)["shares"]
    return shares


@contextlib.contextmanager
def shares() -> Iterator[dict[str, float]]:
    """Fill in the share of each kind of operation in the total time; of kernels on a GPU."""
    result: dict[str, float] = {}
    with _profiler() as profile:
        yield result
    result.update(_shares(profile))


def _profiler() -> Any:
    kinds = torch.profiler.ProfilerActivity
    return torch.profiler.profile(activities=[kinds.CPU, *([kinds.CUDA] if torch.cuda.is_available() else [])])


def _kernels(profile: Any) -> list[Any]:
    """Return the operations on the GPU, averaged by name: kernels, copies and fills."""
    on_gpu = (e for e in profile.key_averages() if e.device_type == torch.autograd.DeviceType.CUDA)
    return [event for event in on_gpu if not getattr(event, "is_user_annotation", False)]


def _shares(profile: Any) -> dict[str, float]:
    total = dict.fromkeys([*PARTS, "other"], 0.0)
    if torch.cuda.is_available():  # operations would count in addition to their kernels
        for event in _kernels(profile):
            total[_part(event.key.lower(), None)] += event.self_device_time_total
    else:
        for event in profile.events():
            total[_part(event.key.lower(), event.cpu_parent)] += event.self_cpu_time_total
    total_seconds = sum(total.values()) or 1.0  # an empty profile must not fail
    return {part: took / total_seconds for part, took in total.items()}
