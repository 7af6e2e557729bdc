"""Named advantages: against slow loops in float64, and their knobs."""

import math
import statistics
from typing import Any

import pytest
import torch

from lit_rft.advantages import RLOO, OverlongPenalty, ReinforcePlusPlus, reinforce_plus_plus
from lit_rft.advantages.overlong import overlong_penalty
from lit_rft.advantages.rloo import leave_one_out_advantages
from lit_rft.objectives import moments
from lit_rft.rollouts import GroupAdvantages, Rollout, assign_advantages
from lit_rft.transcripts import completion_transcript

REWARDS, GROUPS = [1.0, 0.0, 0.5, 3.0, 3.0, -1.0, 2.0], [4, 4, 4, 7, 7, 9, 4]


def make_rollouts(rewards: Any = REWARDS, groups: Any = GROUPS, lengths: Any = None) -> list[Rollout]:
    return [
        Rollout([completion_transcript(f"{n}", [5, 6], [8] * (length - 1) + [2], 2)], "", group, False, True, reward)
        for n, (reward, group, length) in enumerate(zip(rewards, groups, lengths or [3] * len(rewards), strict=True))
    ]


def test_rloo_equals_a_slow_loop() -> None:
    found = RLOO()(make_rollouts()).tolist()
    for i, reward in enumerate(REWARDS):
        others = [REWARDS[j] for j in range(len(REWARDS)) if j != i and GROUPS[j] == GROUPS[i]]
        assert found[i] == pytest.approx(reward - statistics.mean(others) if others else 0.0, abs=1e-12)


def test_rloo_is_the_centred_reward_stretched() -> None:
    rewards, group = torch.tensor(REWARDS[:3]), torch.zeros(3)
    torch.testing.assert_close(leave_one_out_advantages(rewards, group), (rewards - rewards.mean()) * 3 / 2)
    assert leave_one_out_advantages(torch.zeros(0), torch.zeros(0)).shape == (0,)
    for value, number in ((0.1, 3), (0.7, 7), (-0.3, 6)):  # exactly: a group without a signal costs no pass
        equal = torch.full((number,), value, dtype=torch.float64)
        assert leave_one_out_advantages(equal, torch.zeros(number)).tolist() == [0.0] * number


@pytest.mark.parametrize("group_baseline", [False, True])
def test_reinforce_plus_plus_equals_a_slow_loop(group_baseline: bool) -> None:
    values = list(REWARDS)
    if group_baseline:
        mean = {g: statistics.mean(r for r, h in zip(REWARDS, GROUPS, strict=True) if h == g) for g in GROUPS}
        values = [r - mean[g] for r, g in zip(REWARDS, GROUPS, strict=True)]
    expected = [(v - statistics.mean(values)) / (statistics.pstdev(values) + 1e-8) for v in values]
    assert ReinforcePlusPlus(group_baseline)(make_rollouts()).tolist() == pytest.approx(expected, abs=1e-9)


def test_the_batch_is_that_of_all_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shares of a batch, with the sums of all of it, give what the whole gives."""
    whole, rollouts = ReinforcePlusPlus()(make_rollouts()), make_rollouts()
    shares = [rollouts[:2], [], rollouts[2:]]
    sums = moments(torch.tensor(REWARDS, dtype=torch.float64))
    monkeypatch.setattr(reinforce_plus_plus, "sum_over_processes", lambda values: dict.fromkeys(values, sums))
    torch.testing.assert_close(torch.cat([ReinforcePlusPlus()(share) for share in shares]), whole)


@pytest.mark.parametrize("reward", [0.1, 1e6, -3.0])
def test_equal_rewards_have_no_advantage(reward: float) -> None:
    found = ReinforcePlusPlus()(make_rollouts([reward] * 7))
    assert found.abs().max() < 1e-6 * max(abs(reward), 1)
    assert RLOO()(make_rollouts([reward] * 7)).abs().max() < 1e-9 * max(abs(reward), 1)


@pytest.mark.parametrize(("length", "expected"), [(1, 0.0), (6, 0.0), (7, -0.25), (9, -0.75), (10, -1.0), (12, -1.0)])
def test_the_penalty_grows_within_the_buffer(length: int, expected: float) -> None:
    assert overlong_penalty(length, max_length=10, buffer=4) == expected


def test_overlong_rollouts_lose_in_their_group_and_traces_do_not() -> None:
    rollouts = make_rollouts([1.0, 1.0, 1.0], [0, 0, 0], [3, 8, 12])
    rollouts[2].off_policy = True
    found = OverlongPenalty(10, 4, 0.5, GroupAdvantages(scale_by_std=False))(rollouts)
    mean = (1.0 + 0.75 + 1.0) / 3
    assert found.tolist() == pytest.approx([1 - mean, 0.75 - mean, 1 - mean])
    assert [rollout.reward for rollout in rollouts] == [1.0, 1.0, 1.0]
    assert OverlongPenalty(10, 4, 0.0)(rollouts).tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("knob", [(11, 4), (10, 6), (10, 4, 0.5), (10, 4, 1.0, RLOO())],
                         ids=["max_length", "buffer", "penalty", "advantages"])  # fmt: skip
def test_every_knob_of_the_penalty_counts(knob: Any) -> None:
    rollouts = make_rollouts([1.0, 0.0, 1.0, 1.0], [0] * 4, [3, 6, 8, 9])
    assert not torch.allclose(OverlongPenalty(*knob)(rollouts), OverlongPenalty(10, 4)(rollouts))


@pytest.mark.parametrize("bad", [(10, 0), (10, 11), (10, 4, -1.0), (10, 4, math.nan)])
def test_bad_settings_are_refused(bad: Any) -> None:
    with pytest.raises(ValueError, match="must be"):
        OverlongPenalty(*bad)


@pytest.mark.parametrize("advantages", [RLOO(), ReinforcePlusPlus(), ReinforcePlusPlus(True), OverlongPenalty(9, 2),
                                        GroupAdvantages()], ids=lambda part: type(part).__name__)  # fmt: skip
def test_a_process_without_rollouts_takes_part(advantages: Any) -> None:
    """Advantages over the batch sum over processes: one that stayed away would let the others wait."""
    calls = []

    def counted(rollouts: Any) -> torch.Tensor:
        calls.append(len(rollouts))
        found: torch.Tensor = advantages(rollouts)
        return found

    assert assign_advantages([], counted) == [] and calls == [0]
