"""Utterance-level critics: Q and V as small heads on the backbone's features (GLIDER)."""

import copy

import torch
from torch import Tensor, nn


class CriticHeads(nn.Module):
    """Q(s, u) and V(s) of every level: three linear layers with ReLU each, as wide as the features.

    Args:
        feature_size: size of the backbone's hidden states.
        num_levels: number of the agent's levels.
        per_level: use separate heads for each level; false (GLIDER) shares them, and only the features distinguish
            levels.
    """

    def __init__(self, feature_size: int, *, num_levels: int = 3, per_level: bool = True) -> None:
        super().__init__()
        self.per_level = per_level
        sets = num_levels if per_level else 1
        self.q_heads = nn.ModuleList(_head(feature_size) for _ in range(sets))
        self.v_heads = nn.ModuleList(_head(feature_size) for _ in range(sets))

    def q(self, features: Tensor, level: int) -> Tensor:
        """Compute Q(s, u) of decisions of one level.

        Args:
            features: hidden states at utterance ends, [N, D].
            level: its index.

        Returns:
            Values [N] in float32.
        """
        return self._read_out(self.q_heads, features, level)

    def v(self, features: Tensor, level: int) -> Tensor:
        """Compute V(s) of states of one level.

        Args:
            features: hidden states at state ends, [N, D].
            level: its index.

        Returns:
            Values [N] in float32.
        """
        return self._read_out(self.v_heads, features, level)

    def _read_out(self, heads: nn.ModuleList, features: Tensor, level: int) -> Tensor:
        head = heads[level if self.per_level else 0]
        # differences between values are small: lost in the three digits of bf16
        with torch.autocast(features.device.type, enabled=False):
            values: Tensor = head(features.detach().float()).squeeze(-1)
        return values


class Critic(nn.Module):
    """Online heads and their target copies, which follow slowly (`polyak_update`).

    Args: see `CriticHeads`.
    """

    def __init__(self, feature_size: int, *, num_levels: int = 3, per_level: bool = True) -> None:
        super().__init__()
        self.online = CriticHeads(feature_size, num_levels=num_levels, per_level=per_level)
        self.target = copy.deepcopy(self.online).requires_grad_(False)


def _head(size: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(size, size), nn.ReLU(), nn.Linear(size, size), nn.ReLU(), nn.Linear(size, 1))
