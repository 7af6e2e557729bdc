"""Diagnostics that add up over micro-batches and processes."""

import torch
from torch import Tensor

# name -> a sum, scalar, or a mean as its sum and its count, [2] (see `mean_parts`)
Sums = dict[str, Tensor]


def mean_parts(total: Tensor, count: Tensor) -> Tensor:
    """Describe a mean by parts that add up over micro-batches: [2], detached.

    Args:
        total: sum of the values, scalar.
        count: number of values, scalar.
    """
    return torch.stack([total.detach().to(torch.float32), count.to(total.device, torch.float32)])
