"""The choice of fast paths: one call decides which of them a model uses, and logs it."""

import logging
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import nn

from lit_rft.models.accel import (
    blockwise_attention,
    decoding_attention,
    decoding_layers,
    fused_layers,
    log_prob_gradients,
    packed_weights,
)
from lit_rft.models.accel.switch import FAST_PATHS, FastPathName, choose, chosen_paths
from lit_rft.models.backbone import causal_lm

logger = logging.getLogger(__name__)


class Situation(NamedTuple):
    """The conditions of a model's training and sampling."""

    model: nn.Module
    device: str  # device type: cpu, cuda, ...
    dtype: torch.dtype  # of products
    sharded: bool


# path -> why it is not applicable. Other paths depend only on the architecture, whose outputs are compared with the
# default implementation on first use: a forward pass would take too long at the start of a run.
_OBSTACLES: dict[FastPathName, Callable[[Situation], str | None]] = {
    "blockwise_attention": lambda s: _not_sdpa(s.model) or blockwise_attention.obstacle(s.device, s.dtype),
    "fused_layers": lambda s: fused_layers.obstacle(s.model, s.device, s.sharded),
    "packed_weights": lambda s: packed_weights.obstacle(s.device, s.dtype),
    "log_prob_gradients": lambda s: log_prob_gradients.obstacle(s.model),
    "decoding_attention": lambda s: decoding_attention.obstacle(s.model),
    "fused_decoding": lambda s: decoding_layers.obstacle(s.model, s.device, s.dtype),
    "shared_openings": lambda s: _not_cpu(s.device),
    "lookup_drafts": lambda s: _not_cpu(s.device),
    "cuda_graphs": lambda s: _no_graphs(s.device, s.sharded),
}


def accelerate(
    model: nn.Module,
    choice: str | bool | Sequence[str] = "auto",
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    sharded: bool = False,
) -> None:
    """Decide which fast paths a model uses; one log line names them.

    Each path checks device, data type and architecture when it is used. Without any of them the model computes as
    transformers, PEFT and torch do. May be called again.

    Args:
        model: with or without adapters.
        choice: `auto` for all paths, `off` for none, or a list of names.
        device: device of training; default the model's current one.
        dtype: of its products, including autocast; default the model's.
        sharded: whether its weights are sharded over processes.

    Raises:
        ValueError: an unknown name; the message lists the names.
    """
    names = chosen_paths(choice)
    lm = causal_lm(model)
    device_type = torch.device(device if device is not None else lm.device).type
    situation = Situation(model, device_type, dtype or lm.dtype, sharded)
    choose(model, names)
    fused_layers.unfuse(model)
    if "fused_layers" in names and not sharded:
        fused_layers.fuse(model, pack="packed_weights" in names)
    _report(type(lm).__name__, obstacles(names, situation))


def obstacles(names: frozenset[str], situation: Situation) -> dict[FastPathName, str | None]:
    """Return why each fast path is off; None for those that are on.

    Args:
        names: the chosen paths.
        situation: the conditions of the run.
    """
    reasons: dict[FastPathName, str | None] = {}
    for name in FAST_PATHS:
        obstacle = _OBSTACLES.get(name)
        reasons[name] = (obstacle(situation) if obstacle else None) if name in names else "not in policy.accelerate"
    return reasons


def _report(model: str, reasons: dict[FastPathName, str | None]) -> None:
    on = [name for name, reason in reasons.items() if reason is None]
    lost = [f"{name} ({reason})" for name, reason in reasons.items() if reason and reason.startswith("torch ")]
    logger.info(
        "%s uses the fast paths %s%s", model, ", ".join(on) or "none", f"; lost: {', '.join(lost)}" if lost else ""
    )
    for name, reason in reasons.items():
        if reason is not None:
            logger.debug("fast path %s is off: %s", name, reason)


def _not_cpu(device: str) -> str | None:
    return None if device == "cpu" else f"the device is {device}, not cpu"


def _no_graphs(device: str, sharded: bool) -> str | None:
    if device != "cuda":
        return f"the device is {device}, not cuda"
    return "the weights are sharded" if sharded else None


def _not_sdpa(model: nn.Module) -> str | None:
    attention = causal_lm(model).config._attn_implementation
    return None if attention == "sdpa" else f"attention is {attention}, not sdpa"
