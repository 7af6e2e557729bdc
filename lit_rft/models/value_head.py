"""State values of tokens: a small head on the policy's hidden states (PPO)."""

import torch
from torch import Tensor, nn


class ValueHeads(nn.Module):
    """V(h), one head per level: three linear layers with ReLU, as wide as the hidden states.

    The last layer starts at 0: before any training each value is 0, and advantages are returns. Gradients stop at the
    hidden states, so that the head never changes the policy.

    Args:
        size: of the hidden states.
        num_levels: of the agent; 1 for completions.
    """

    def __init__(self, size: int, num_levels: int = 1) -> None:
        super().__init__()
        self.heads = nn.ModuleList(_head(size) for _ in range(num_levels))

    def forward(self, hidden: Tensor, level: Tensor) -> Tensor:
        """Return values in float32, [N].

        Args:
            hidden: hidden states, [N, D].
            level: index of each state's level, [N].
        """
        values = hidden.new_zeros(len(hidden), dtype=torch.float32)
        # differences of values are small: bf16's three digits would drown them
        with torch.autocast(hidden.device.type, enabled=False):
            for index, head in enumerate(self.heads):
                rows = level == index
                values = values.masked_scatter(rows, head(hidden[rows].detach().float()).squeeze(-1))
        return values


def _head(size: int) -> nn.Sequential:
    last = nn.Linear(size, 1)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.Linear(size, size), nn.ReLU(), nn.Linear(size, size), nn.ReLU(), last)
