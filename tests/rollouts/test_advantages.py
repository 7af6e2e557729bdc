"""Advantages of rollouts are those of their groups; what is reported of groups equals a count by hand."""

import pytest
import torch

from lit_rft.objectives import group_advantages
from lit_rft.rollouts import GroupAdvantages, Rollout
from lit_rft.rollouts.advantages import assign_advantages, group_statistics, summarize_groups
from lit_rft.transcripts import completion_transcript


def make(
    group: int, reward: float, tokens: int = 1, *, finished: bool = True, off: bool = False, counts: bool = True
) -> Rollout:
    transcript = completion_transcript("p", [5, 6], [9] * tokens, 2)
    log_probs = [] if off else [[-0.5] * tokens]
    return Rollout([transcript], "", group, off, finished, reward, log_probs, counts_in_baseline=counts)


@pytest.mark.parametrize("on_policy_statistics", [False, True])
@pytest.mark.parametrize("scale_by_std", [False, True])
def test_rollouts_are_compared_within_their_groups(scale_by_std: bool, on_policy_statistics: bool) -> None:
    rollouts = [make(0, 1.0), make(1, 3.0), make(0, 2.0, off=True), make(1, 0.5), make(0, 0.0)]
    expected = group_advantages(
        torch.tensor([1.0, 3.0, 2.0, 0.5, 0.0], dtype=torch.float64),
        torch.tensor([0, 1, 0, 1, 0]),
        off_policy_mask=torch.tensor([False, False, True, False, False]),
        on_policy_statistics=on_policy_statistics,
        scale_by_std=scale_by_std,
    )
    advantages = GroupAdvantages(scale_by_std, on_policy_statistics)(rollouts)
    torch.testing.assert_close(advantages, expected, rtol=0, atol=0)
    mean = 0.5 if on_policy_statistics else 1.0  # of the first group
    assert advantages[0].sign() == float(torch.tensor(1.0 - mean).sign())


def test_statistics_of_groups() -> None:
    rollouts = [
        make(0, 1.0, 2), make(0, 3.0, 4, finished=False), make(0, 6.0, 9, off=True),
        make(1, 2.0, 2, off=True),
        make(1, 2.0, 3), make(1, 2.0, 1, finished=False), make(2, 5.0, 1),
        make(3, 9.0, 1, off=True, counts=False),
    ]  # fmt: skip
    sums = group_statistics(rollouts)
    assert sums == {
        "completions": 5.0, "reward": 13.0, "reward_squared": 1 + 9 + 4 + 4 + 25.0, "trace_reward": 8.0, "traces": 2.0,
        "groups": 3.0, "without_signal": 2.0, "length": 11.0, "truncated": 2.0, "nll": 0.5 * 11,
    }  # fmt: skip
    report = summarize_groups({name: torch.tensor(value) for name, value in sums.items()})
    rewards = torch.tensor([1.0, 3.0, 2.0, 2.0, 5.0])
    expected = {
        "reward": 2.6, "reward_std": float(rewards.std(correction=0)), "completion_length": 2.2,
        "truncated_fraction": 0.4, "sampled_entropy": 0.5, "no_signal_fraction": 2 / 3, "trace_reward": 4.0,
    }  # fmt: skip
    assert {name: float(value) for name, value in report.items()} == pytest.approx(expected)


def test_advantages_may_be_whole_numbers() -> None:
    rollouts = [make(0, 1.0), make(0, 0.0)]
    assign_advantages(rollouts, lambda rollouts: [1, -1])
    assert [rollout.advantage for rollout in rollouts] == [1.0, -1.0]
    assert all(isinstance(rollout.advantage, float) for rollout in rollouts)


def test_what_is_not_there_is_not_reported() -> None:
    sums = {name: torch.tensor(value) for name, value in group_statistics([]).items()}
    assert summarize_groups(sums) == {}
    only_trace = {name: torch.tensor(value) for name, value in group_statistics([make(0, 1.0, off=True)]).items()}
    assert set(summarize_groups(only_trace)) == {"no_signal_fraction", "trace_reward"}
