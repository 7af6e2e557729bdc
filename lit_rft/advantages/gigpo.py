"""GiGPO: comparison of episodes within a group, and of decisions in equal states (Feng et al., arXiv 2505.10978)."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lit_rft.objectives import discounted_returns, group_advantages
from lit_rft.objectives.checks import check_fraction, check_non_negative
from lit_rft.rollouts import GroupAdvantages, Rollout


class GiGPO:
    r"""Sum of an episode's advantage and one of each decision within its step group (eq. 3-8).

        A_it = A^E_i + step_weight A^S_it
        A^S_it = (R_it - mean) / std    over all decisions of the group's episodes in the same state as (i, t)

    R_it is the return from decision t on. States are equal if their observations are. With a hierarchy, levels and
    subgoals are part of the state: the high level's subgoals are compared with each other, and the low level's actions
    for the same subgoal.

    Args:
        step_weight: omega >= 0; 0 for the episodes' advantages alone.
        discount: per environment step, in [0, 1].
        scale_by_std: divide A^S by the standard deviation of the step group.
        episode_advantages: A^E, any `lit_rft.rollouts.Advantages` with one value per rollout; default
            `GroupAdvantages`.

    Raises:
        ValueError: a setting is out of its range; on a call, rollouts are completions, which have no decisions.
    """

    def __init__(
        self,
        step_weight: float = 1.0,
        discount: float = 0.95,
        scale_by_std: bool = True,
        episode_advantages: Callable[..., Any] | None = None,
    ) -> None:
        check_non_negative(step_weight=step_weight)
        check_fraction(discount=discount)
        self.step_weight, self.discount, self.scale_by_std = step_weight, discount, scale_by_std
        self.episode_advantages = episode_advantages if episode_advantages is not None else GroupAdvantages()

    def __call__(self, rollouts: Sequence[Rollout]) -> list[list[list[float]]]:
        if not all(rollout.episode is not None for rollout in rollouts):
            raise ValueError("GiGPO compares the decisions of episodes, and completions have none: use GroupAdvantages")
        of_episodes: Tensor = self.episode_advantages(rollouts)
        decisions = [rollout.decisions for rollout in rollouts]
        returns = [self._returns(rollout) for rollout in rollouts]
        groups: dict[tuple[Any, ...], int] = {}
        keys = [
            groups.setdefault((rollout.group, d.level, d.state, d.goal), len(groups))
            for rollout, rows in zip(rollouts, decisions, strict=True)
            for row in rows
            for d in row
        ]
        values = [late[d.step] for late, rows in zip(returns, decisions, strict=True) for row in rows for d in row]
        steps = group_advantages(
            torch.tensor(values, dtype=torch.float64), torch.tensor(keys), scale_by_std=self.scale_by_std
        )
        of_steps = iter((self.step_weight * steps).tolist())
        return [
            [[episode + next(of_steps) for _ in row] for row in rows]
            for episode, rows in zip(of_episodes.tolist(), decisions, strict=True)
        ]

    def _returns(self, rollout: Rollout) -> list[float]:
        """Return the return from each step on, and 0 after the last."""
        assert rollout.episode is not None
        rewards = torch.tensor([step.reward for step in rollout.episode.steps], dtype=torch.float64)
        last = torch.arange(len(rewards)) == len(rewards) - 1
        returns, _ = discounted_returns(rewards, torch.zeros_like(last), last, discount=self.discount)
        return [*returns.tolist(), 0.0]
