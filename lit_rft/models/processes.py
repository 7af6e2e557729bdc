"""Collective operations over the processes of a run; a single process gets back its own values."""

import functools
import itertools
from collections import Counter
from collections.abc import Sequence
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


def global_index(index: int) -> int:
    """Return the place in the batch of all processes of an item of this process: each has every world_size-th."""
    return index * world_size() + global_rank()


def all_gather_objects(value: Value) -> list[Value]:
    """Gather one value of each process, by rank.

    All processes must call this. The value is pickled: keep it small.
    """
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    distributed.all_gather_object(values, value)
    return values


def distinct_names(names: Sequence[str]) -> list[str]:
    """Return the names of this process's items, numbered where the batch of all processes repeats one.

    All processes must call this.

    Args:
        names: of the items of this process.
    """
    seen, distinct = Counter[str](), list[str]()
    for turn in itertools.zip_longest(*all_gather_objects(list(names))):  # in the order of the batch
        for rank, name in enumerate(turn):
            if name is not None and rank == global_rank():
                distinct.append(f"{name}+{seen[name]}" if seen[name] else name)
            seen[name or ""] += 1
    return distinct


def sum_over_processes(values: dict[str, Tensor]) -> dict[str, Tensor]:
    """Sum each value over all processes, in one message.

    Args:
        values: tensors on one device, with the same names, shapes and types in the same order in every process.

    Returns:
        The sums, with the types and on the device of the values. They are added up in the most precise of the types, at
        least in float32.
    """
    if world_size() == 1 or not values:
        return values
    device = next(iter(values.values())).device
    dtype = functools.reduce(torch.promote_types, [value.dtype for value in values.values()], torch.float32)
    flat = torch.cat([value.to(dtype).flatten() for value in values.values()]).to(_message_device(device))
    distributed.all_reduce(flat)
    parts = flat.to(device).split([value.numel() for value in values.values()])
    sums = zip(values.items(), parts, strict=True)
    return {name: part.view_as(value).to(value.dtype) for (name, value), part in sums}


def _message_device(device: torch.device) -> torch.device:
    """Return the device from which the process group sends: NCCL knows no CPU, Gloo no MPS."""
    if distributed.get_backend() == "nccl":
        return torch.device("cuda", torch.cuda.current_device()) if device.type == "cpu" else device
    return torch.device("cpu") if device.type == "mps" else device


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
