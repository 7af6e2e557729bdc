"""Collective operations over the processes of a run; a single process gets back its own values."""

from typing import Any, TypeVar

import torch
from torch import Tensor, distributed

Value = TypeVar("Value")


def world_size() -> int:
    """Return the number of processes."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def global_rank() -> int:
    """Return the rank of this process."""
    return distributed.get_rank() if world_size() > 1 else 0


def all_gather_objects(value: Value) -> list[Value]:
    """Gather one value of each process, by rank.

    All processes must call this. The value is pickled: keep it small.
    """
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    distributed.all_gather_object(values, value)
    return values


def sum_over_processes(values: dict[str, Tensor]) -> dict[str, Tensor]:
    """Sum each value over all processes, in one message.

    Args:
        values: tensors on one device, with the same names and shapes in the same order in every process.
    """
    if world_size() == 1 or not values:
        return values
    flat = torch.cat([value.float().flatten() for value in values.values()])
    distributed.all_reduce(flat)
    parts = flat.split([value.numel() for value in values.values()])
    return {name: part.view_as(values[name]) for name, part in zip(values, parts, strict=True)}


def sum_numbers(values: dict[str, float], device: torch.device) -> dict[str, Tensor]:
    """Sum plain numbers over all processes.

    Args:
        values: the same names in the same order in every process.
        device: of the sums.
    """
    return sum_over_processes({name: torch.tensor(float(value), device=device) for name, value in values.items()})


def barrier() -> None:
    """Wait until all processes get here."""
    if world_size() > 1:
        distributed.barrier()
