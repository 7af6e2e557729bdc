"""Gradients of sharded and unsharded weights: their norm, and their sum over processes."""

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from lit_rft.models.sharding import total_norm


def clip(parameters: list[nn.Parameter], limit: float) -> Tensor:
    """Scale gradients, sharded or not, down to a maximum norm; returns their norm before."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if not any(isinstance(gradient, DTensor) for gradient in gradients):
        return nn.utils.clip_grad_norm_(parameters, limit)
    norm = total_norm(gradients)
    factor = (limit / (norm + 1e-6)).clamp(max=1.0)
    for gradient in gradients:
        (gradient.to_local() if isinstance(gradient, DTensor) else gradient).mul_(factor)
    return norm


def sum_gradients(parameters: list[nn.Parameter]) -> None:
    """Sum gradients over all processes, in one message.

    A process without a gradient of a weight adds zeros. Where no process has one there is none, as with a single
    process: the optimiser skips such weights. Gradients of sharded weights are sums already.
    """
    parameters = [parameter for parameter in parameters if not isinstance(parameter, DTensor)]
    if not parameters:
        return
    present = torch.tensor([float(p.grad is not None) for p in parameters], device=parameters[0].device)
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    flat = torch.cat([present, *(gradient.flatten().float() for gradient in gradients)])
    torch.distributed.all_reduce(flat)
    parts = flat[len(parameters) :].split([p.numel() for p in parameters])
    for parameter, number, part in zip(parameters, flat[: len(parameters)].tolist(), parts, strict=True):
        parameter.grad = part.view_as(parameter).to(parameter.dtype) if number else None
