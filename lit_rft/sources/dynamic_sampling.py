"""DAPO's dynamic sampling: further prompts in place of groups without a signal (Yu et al. 2025, arXiv 2503.14476)."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lit_rft.models.processes import all_gather_objects, global_index, global_rank, sum_numbers, world_size
from lit_rft.rollouts import GroupSource, Policy, Rollout
from lit_rft.rollouts.advantages import set_group_rewards
from lit_rft.sources.wrapped import WrappedSource, num_groups, select_groups


@dataclass(frozen=True)
class DynamicSampling:
    """Sample prompts of a batch, in their order, until enough groups have different rewards.

    A group whose rewards are all equal has no advantages and is left out (eq. 11). Traces outside groups stay: losses
    imitate them where all completions fail. The data module's `batch_size` is the bound: set it to a multiple of
    `groups`. Prompts of a batch that are not needed are not sampled; a batch without enough groups makes a step with
    fewer. Nothing is carried over, so that a resumed run continues exactly. Metrics count the sampled and kept groups;
    the source's other metrics are means over the rounds, and `sampled_reward` is the mean of all completions. A problem
    that comes again in a later round gets other samples there. Use it around `ReLIFT`, not within it, which needs to
    see the completions that fail.

    Args:
        groups: with different rewards, per step and over all processes, >= 1.
    """

    groups: int

    def __post_init__(self) -> None:
        if self.groups < 1:
            raise ValueError(f"source.groups must be >= 1, got {self.groups}")

    def __call__(self, source: GroupSource) -> WrappedSource:
        return _DynamicSource(source, self.groups)


class _DynamicSource(WrappedSource):
    def __init__(self, source: GroupSource, groups: int) -> None:
        super().__init__(source)
        self.groups = groups
        self._means: dict[str, Tensor] = {}

    @property
    def metrics(self) -> dict[str, Tensor]:
        return {**self._means, **self.more_metrics}

    def __call__(self, policy: Policy, batch: Any) -> list[Rollout]:
        """Return the groups with different rewards; all processes must call this."""
        rank, processes = global_rank(), world_size()
        total = sum(all_gather_objects(num_groups(batch)))
        rollouts: list[Rollout] = []
        kept: set[int] = set()  # places of groups in the batch of all processes
        rounds: list[tuple[int, dict[str, Tensor]]] = []
        start, rewards = 0, [0.0, 0.0]
        while start < total and len(kept) < self.groups:
            end = min(start + self.groups - len(kept), total)
            local = [place // processes for place in range(start, end) if place % processes == rank]
            sampled = self.source(_in_round(policy, len(rounds)), select_groups(batch, local))
            for rollout in sampled:
                rollout.group = local[rollout.group]
            rollouts += sampled
            rewards = [a + b for a, b in zip(rewards, _rewards(sampled), strict=True)]
            with_signal = [global_index(group) for group in _with_signal(sampled)]
            kept |= {place for part in all_gather_objects(with_signal) for place in part}
            rounds.append((end - start, dict(self.source.metrics)))
            start = end
        self._means = _weighted_means(rounds)
        sums = sum_numbers({"reward": rewards[0], "number": rewards[1]}, policy.device)
        counts = {"sampled_groups": start, "kept_groups": len(kept), "sampling_rounds": len(rounds)}
        self.more_metrics = {name: torch.tensor(float(n), device=policy.device) for name, n in counts.items()}
        self.more_metrics["sampled_reward"] = sums["reward"] / sums["number"].clamp_min(1)
        set_group_rewards(rollouts)  # of all, before their completions are left out
        return [r for r in rollouts if global_index(r.group) in kept or not r.counts_in_baseline]


def _in_round(policy: Policy, number: int) -> Policy:
    """Return the policy for a round of sampling: a problem that a batch has twice gets other samples in a later one."""
    return dataclasses.replace(policy, sampling_round=number) if number else policy


def _rewards(rollouts: Sequence[Rollout]) -> list[float]:
    """Return the sum of the rewards of on-policy rollouts, and their number."""
    values = [rollout.reward for rollout in rollouts if not rollout.off_policy]
    return [sum(values), float(len(values))]


def _with_signal(rollouts: Sequence[Rollout]) -> list[int]:
    """Return the groups whose members have different rewards."""
    rewards: dict[int, set[float]] = {}
    for rollout in rollouts:
        if rollout.counts_in_baseline:
            rewards.setdefault(rollout.group, set()).add(rollout.reward)
    return [group for group, values in rewards.items() if len(values) > 1]


def _weighted_means(rounds: Sequence[tuple[int, dict[str, Tensor]]]) -> dict[str, Tensor]:
    """Average the metrics of rounds, weighted by their groups."""
    names = dict.fromkeys(name for _, metrics in rounds for name in metrics)
    means = {}
    for name in names:
        weighted = [(number, metrics[name]) for number, metrics in rounds if name in metrics]
        means[name] = torch.stack([n * value for n, value in weighted]).sum(0) / sum(n for n, _ in weighted)
    return means
