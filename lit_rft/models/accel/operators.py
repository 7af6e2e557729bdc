"""Private operators of torch for fast paths: a version of torch without one loses the path, never a run."""

import functools
from collections.abc import Sequence
from typing import Any

import torch

SOFTMAX_BACKWARD = "_softmax_backward_data"
BF16_SUPPORT = "ops.mkldnn._is_mkldnn_bf16_supported"
PACK_WEIGHT = "ops.mkldnn._reorder_linear_weight"
PACKED_PRODUCT = "ops.mkldnn._linear_pointwise"
FUSED_PRODUCT = "ops.mkldnn._linear_pointwise.binary"


def missing_operator(names: Sequence[str]) -> str | None:
    """Return the first operator that this version of torch lacks, with an explanation, or None.

    Args:
        names: below `torch`, with dots.
    """
    for name in names:
        place: Any = torch
        for part in name.split("."):
            place = getattr(place, part, None)
            if place is None:
                return f"torch {torch.__version__} has no torch.{name}"
    return None


def multiplies_bf16() -> bool:
    """Return whether this CPU has bf16 products, and this torch the library (oneDNN) for them."""
    return torch.backends.mkldnn.is_available() and not missing_operator([BF16_SUPPORT]) and _supports_bf16()


@functools.cache
def _supports_bf16() -> bool:
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def bf16_obstacle(device: str, dtype: torch.dtype) -> str | None:
    """Return why products on a device are not in bf16 on a CPU that supports them, or None."""
    if device != "cpu":
        return f"serves CPUs only, not {device}"
    if dtype != torch.bfloat16:
        return f"serves bf16 only, not {str(dtype).removeprefix('torch.')}"
    return missing_operator([BF16_SUPPORT]) or (None if multiplies_bf16() else "this CPU does not multiply bf16")
