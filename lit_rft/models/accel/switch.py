"""The switch of the fast paths: their names, and which of them a model may use."""

import weakref
from collections.abc import Sequence
from typing import Literal, get_args

from torch import nn

from lit_rft.models.backbone import causal_lm

FastPathName = Literal[
    "packed_sequences",
    "shared_prompts",
    "blockwise_attention",
    "fused_layers",
    "packed_weights",
    "log_prob_gradients",
    "decoding_attention",
    "fused_decoding",
    "kv_cache",
    "shared_openings",
    "lookup_drafts",
    "cuda_graphs",
]
FAST_PATHS: tuple[FastPathName, ...] = get_args(FastPathName)

_chosen: "weakref.WeakKeyDictionary[nn.Module, frozenset[str]]" = weakref.WeakKeyDictionary()


def chosen_paths(choice: str | bool | Sequence[str]) -> frozenset[str]:
    """Return the names of the fast paths that a setting allows.

    Args:
        choice: `auto` (or true) for all, `off` (or false, as YAML reads `off`) for none, or a list of names.

    Raises:
        ValueError: an unknown name; the message lists the names.
    """
    if choice == "auto" or choice is True:
        return frozenset(FAST_PATHS)
    if choice == "off" or choice is False:
        return frozenset()
    names = frozenset([choice] if isinstance(choice, str) else choice)
    unknown = sorted(map(str, names - set(FAST_PATHS)))
    if unknown or isinstance(choice, str):
        raise ValueError(
            f"policy.accelerate must be auto, off or a list of fast paths ({', '.join(FAST_PATHS)}), got "
            f"{choice if isinstance(choice, str) else ', '.join(unknown)}"
        )
    return names


def choose(model: nn.Module, names: frozenset[str]) -> None:
    """Allow a model these fast paths and no others."""
    _chosen[causal_lm(model)] = names


def is_on(model: nn.Module, name: FastPathName) -> bool:
    """Return whether a model may use a fast path; without a choice for the model, all are allowed."""
    return name in _chosen.get(causal_lm(model), FAST_PATHS)
