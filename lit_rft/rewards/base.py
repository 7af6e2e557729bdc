"""What a reward function is, and sums of several."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

# completions and, one for each, the rows of data they answer (`ground_truth` among them) -> a reward for each
RewardFunction = Callable[[Sequence[str], Sequence[Mapping[str, Any]]], Sequence[float]]


class RewardSum:
    """Several reward functions, each with a weight.

    Args:
        functions: each takes the completions and, one for each, their rows of data; it returns a reward for each.
        weights: one a function; null for all 1.
    Raises: ValueError if the numbers of functions and weights differ.
    """

    def __init__(self, functions: Sequence[RewardFunction], weights: Sequence[float] | None = None) -> None:
        self.functions, self.weights = list(functions), list(weights or [1.0] * len(functions))
        if len(self.functions) != len(self.weights) or not self.functions:
            raise ValueError(f"{len(self.functions)} reward functions need as many weights, got {len(self.weights)}")

    def __call__(self, completions: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> list[float]:
        """The weighted sum of each completion's rewards.

        Raises: ValueError if a function does not return one number for each completion.
        """
        total = [0.0] * len(completions)
        for function, weight in zip(self.functions, self.weights, strict=True):
            rewards = [float(reward) for reward in function(completions, rows)]
            if len(rewards) != len(completions):
                name = getattr(function, "__name__", type(function).__name__)
                raise ValueError(f"{name} returned {len(rewards)} rewards for {len(completions)} completions")
            total = [sum_ + weight * reward for sum_, reward in zip(total, rewards, strict=True)]
        return total

    def metrics(self) -> dict[str, float]:
        """Those of all functions, added up."""
        found: dict[str, float] = {}
        for function in self.functions:
            for name, value in reward_metrics(function).items():
                found[name] = found.get(name, 0.0) + value
        return found

    def close(self) -> None:
        """End what the functions keep running."""
        for function in self.functions:
            getattr(function, "close", lambda: None)()


def reward_metrics(function: RewardFunction) -> dict[str, float]:
    """What a reward function counted in its last call, always by the same names; nothing for a plain function."""
    metrics = getattr(function, "metrics", None)
    found: dict[str, float] = metrics() if metrics is not None else {}
    return found
