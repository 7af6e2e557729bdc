"""Weights, gradients and optimiser states sharded over devices (PyTorch's FSDP2).

Weights are gathered once per optimiser step or rollout, not once per pass: within `unsharded` no pass needs another
process, so processes may make different numbers of passes. Beside its share of float32 weights, gradients and optimiser
states, a device needs memory for all weights (in the half precision, if one is used) and, in training, for the
gradients of all trainable weights.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from lit_rft.models.backbone import causal_lm


def shard(model: nn.Module, mesh: Any, *, half: torch.dtype | None = None) -> None:
    """Shard a causal language model, with or without adapters, over the devices of a mesh, layer by layer.

    Gradients are summed over devices. Output layers tied to the embedding stay unsharded.

    Args:
        model: to shard in place.
        mesh: with one dimension.
        half: data type of gathered weights; None for that of the weights.

    Raises:
        ValueError: The model has no list of layers.
    """
    lm = causal_lm(model)
    decoder, head = lm.get_decoder(), lm.get_output_embeddings()
    tied = {id(p) for p in decoder.parameters()} & {id(p) for p in head.parameters()}
    shared = {p for p in head.parameters() if id(p) in tied}
    precision = MixedPrecisionPolicy(half, torch.float32 if half else None, cast_forward_inputs=False)
    settings: dict[str, Any] = {"mesh": mesh, "mp_policy": precision, "ignored_params": shared}
    for layer in _layers(decoder):
        fully_shard(layer, **settings)
    fully_shard(decoder, **settings)
    if not shared:
        fully_shard(head, **settings)
    for part in sharded_parts(model):
        part.set_gradient_divide_factor(1.0)
        part.set_force_sum_reduction_for_comms(True)


def _layers(decoder: nn.Module) -> nn.ModuleList:
    """Return the list of a decoder's blocks, under any name."""
    lists = [child for child in decoder.children() if isinstance(child, nn.ModuleList)]
    if not lists:
        raise ValueError(f"{type(decoder).__name__} has no list of layers to shard over devices: use another strategy")
    return max(lists, key=len)


def sharded_parts(model: nn.Module) -> list[FSDPModule]:
    """Return the sharded parts of a model; none if it is unsharded."""
    return [part for part in model.modules() if isinstance(part, FSDPModule)]


@contextlib.contextmanager
def unsharded(model: nn.Module) -> Iterator[None]:
    """Gather all weights on every device; all processes enter and leave together. No effect on an unsharded model.

    Meanwhile gradients accumulate on each device, until `reduce_in_next_backward`.
    """
    parts = sharded_parts(model)
    for part in parts:
        part.unshard()
        part.set_reshard_after_forward(False, recurse=False)
        part.set_reshard_after_backward(False, recurse=False)
        part.set_requires_gradient_sync(False, recurse=False)
    try:
        yield
    finally:
        for part in parts:
            part.reshard()


def reduce_in_next_backward(model: nn.Module) -> None:
    """Sum the gradients of all passes over all processes in the next backward pass, which all processes must make."""
    for part in sharded_parts(model):
        part.set_requires_gradient_sync(True, recurse=False)


def total_norm(gradients: list[Tensor]) -> Tensor:
    """Compute the 2-norm of gradients, sharded or not."""
    split = [g for g in gradients if isinstance(g, DTensor)]
    norms = [nn.utils.get_total_norm([g for g in gradients if not isinstance(g, DTensor)])]
    if split:
        norms.append(nn.utils.get_total_norm(split).full_tensor())  # type: ignore[attr-defined]
    return torch.stack([norm.to(gradients[0].device) for norm in norms]).norm()


def full_state(model: nn.Module) -> dict[str, Tensor]:
    """Gather all weights of a sharded model on the CPU of the first process; a collective call."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    state: dict[str, Any] = get_model_state_dict(model, options=options)
    return state


def adapter_state(model: nn.Module) -> dict[str, Tensor]:
    """Return the unsharded weights of a model's adapters alone; a collective call if it is sharded."""
    adapters = {name: p.detach() for name, p in model.named_parameters() if "lora_" in name}
    return {name: p.full_tensor() if isinstance(p, DTensor) else p for name, p in adapters.items()}
