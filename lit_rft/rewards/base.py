"""Weighted sums of reward functions, and their metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lit_rft.rewards.calling import RewardError, RewardFunction, check_reward, compute_rewards, reward_name


class RewardSum:
    """Weighted sum of reward functions.

    Args:
        functions: with either signature of `compute_rewards`. None for a completion means not applicable and adds 0;
            at least one function must be applicable.
        weights: one per function; null for all 1.

    Raises:
        ValueError: If the numbers of functions and weights differ, or a function has neither form.
    """

    def __init__(self, functions: Sequence[RewardFunction], weights: Sequence[float] | None = None) -> None:
        self.functions = list(functions)
        self.weights = [1.0] * len(self.functions) if weights is None else list(weights)
        if len(self.functions) != len(self.weights) or not self.functions:
            raise ValueError(
                f"expected one weight per reward function, got {len(self.functions)} functions, {len(self.weights)} "
                "weights"
            )
        for function in self.functions:
            check_reward(function)
        self.parts: list[dict[str, float]] = []  # of the last call: name -> reward, before the weight

    def __call__(
        self,
        completions: Sequence[str],
        rows: Sequence[Mapping[str, Any]],
        prompts: Sequence[Any] | None = None,
        completion_ids: Sequence[Sequence[int]] | None = None,
    ) -> list[float]:
        """Compute the weighted sum of each completion's rewards.

        Raises:
            RewardError: For a function that returned something else than a number per completion; see
                `compute_rewards`.
        """
        total = [0.0] * len(completions)
        self.parts = [{} for _ in completions]
        applies = [False] * len(completions)
        names = _distinct([reward_name(function) for function in self.functions])
        for function, weight, name in zip(self.functions, self.weights, names, strict=True):
            rewards = compute_rewards(function, completions, rows, prompts, completion_ids, allow_none=True)
            for index, reward in enumerate(rewards):
                if reward is not None:
                    total[index] += weight * reward
                    applies[index] = True
                    self.parts[index][name] = float(reward)
        if not all(applies):
            index = applies.index(False)
            raise RewardError(
                f"no reward function applies to completion {index} of problem {rows[index].get('id', '?')}: "
                f"all of {', '.join(names)} returned None"
            )
        return total

    def metrics(self) -> dict[str, float]:
        """Return the summed counts of all functions."""
        counts: dict[str, float] = {}
        for function in self.functions:
            for name, value in reward_metrics(function).items():
                counts[name] = counts.get(name, 0.0) + value
        return counts

    def reward_settings(self) -> list[Any]:
        """Return the settings of all functions, each with its weight."""
        parts = zip(self.functions, self.weights, strict=True)
        return [[describe_reward(function), float(weight)] for function, weight in parts]

    def close(self) -> None:
        """Stop the worker processes of all functions."""
        for function in self.functions:
            getattr(function, "close", lambda: None)()


def describe_reward(function: RewardFunction) -> dict[str, Any]:
    """Return a reward function's name, and its settings if it has `reward_settings`."""
    settings = getattr(function, "reward_settings", None)
    return {"name": reward_name(function), "settings": settings() if settings is not None else None}


def reward_metrics(function: RewardFunction) -> dict[str, float]:
    """Return the counts of a reward function's last call, with constant names; empty for a plain function."""
    metrics = getattr(function, "metrics", None)
    counts: dict[str, float] = metrics() if metrics is not None else {}
    return counts


def reward_parts(function: RewardFunction) -> list[dict[str, float]]:
    """Return the rewards of a sum's functions by name, for each completion of its last call; empty for others."""
    parts: list[dict[str, float]] = getattr(function, "parts", [])
    return parts


def _distinct(names: Sequence[str]) -> list[str]:
    """Number names that occur several times."""
    return [name if names.count(name) == 1 else f"{name} {names[:i].count(name) + 1}" for i, name in enumerate(names)]
