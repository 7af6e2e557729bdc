"""Group advantages: against a slow loop, against figures of the public release, and at the edges."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_rft.objectives import group_advantages

REFERENCE = Path(__file__).parents[1] / "reference"


def slow(rewards: list[float], groups: list[int], off: list[bool], only_on: bool, scale: bool) -> list[float]:
    result = []
    for i, reward in enumerate(rewards):
        members = [j for j in range(len(rewards)) if groups[j] == groups[i]]
        counted = [j for j in members if not (only_on and off[j])] or members
        values = [rewards[j] for j in counted]
        mean = sum(values) / len(values)
        std = (sum((v - mean) ** 2 for v in values) / max(len(values) - 1, 1)) ** 0.5
        result.append((reward - mean) / ((std or 1.0) + 1e-6) if scale else reward - mean)
    return result


@pytest.mark.parametrize("scale", [True, False])
@pytest.mark.parametrize("only_on", [True, False])
def test_groups_of_unequal_size_in_any_order_equal_a_slow_loop(only_on: bool, scale: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    groups = torch.tensor([7, 3, 7, 3, 3, 9, 7, 3, 5, 5, 6, 6])  # 9 has one member
    off = torch.tensor([0, 0, 1, 0, 1, 0, 0, 0, 1, 1, 0, 1]).bool()  # 5 has off-policy members only, 6 one other
    rewards = torch.rand(12, generator=generator, dtype=torch.float64)
    found = group_advantages(rewards, groups, off_policy_mask=off, on_policy_statistics=only_on, scale_by_std=scale)
    assert found.tolist() == pytest.approx(slow(rewards.tolist(), groups.tolist(), off.tolist(), only_on, scale))
    assert found[5] == 0
    order = torch.randperm(12, generator=generator)
    shuffled = group_advantages(
        rewards[order], groups[order], off_policy_mask=off[order], on_policy_statistics=only_on, scale_by_std=scale
    )
    torch.testing.assert_close(shuffled, found[order])


def test_equal_rewards_say_nothing() -> None:
    groups = torch.tensor([0, 0, 0, 1, 1])
    assert group_advantages(torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0]), groups).tolist() == [0.0] * 5


def test_every_knob_counts_and_nothing_has_a_gradient() -> None:
    rewards, groups = torch.tensor([1.0, 0.0, 0.0, 1.0], requires_grad=True), torch.zeros(4, dtype=torch.long)
    off = torch.tensor([False, False, False, True])
    base = group_advantages(rewards, groups)
    assert not base.requires_grad
    for knob in ({"scale_by_std": False}, {"std_epsilon": 0.5}, {"off_policy_mask": off, "on_policy_statistics": True}):
        assert not torch.allclose(group_advantages(rewards, groups, **knob), base)  # type: ignore[arg-type]


def test_wrong_arguments_are_named() -> None:
    rewards = torch.zeros(3)
    with pytest.raises(ValueError, match="group must have the shape of rewards"):
        group_advantages(rewards, torch.zeros(2))
    with pytest.raises(ValueError, match="on_policy_statistics needs off_policy_mask"):
        group_advantages(rewards, torch.zeros(3), on_policy_statistics=True)
    with pytest.raises(ValueError, match="off_policy_mask must have the shape of rewards"):
        group_advantages(rewards, torch.zeros(3), off_policy_mask=torch.zeros(2), on_policy_statistics=True)
    with pytest.raises(ValueError, match="rewards must have 1"):
        group_advantages(rewards[None], torch.zeros(1, 3))
    assert group_advantages(torch.zeros(0), torch.zeros(0, dtype=torch.long)).shape == (0,)


def test_the_releases_advantages_are_reproduced() -> None:
    import numpy as np

    arrays = np.load(REFERENCE / "grpo_advantages.npz")
    cases: list[dict[str, Any]] = json.loads((REFERENCE / "grpo_advantages.json").read_text())
    for case in cases:
        names = ("rewards", "group", "off_policy", "advantages")
        rewards, group, off, expected = (torch.tensor(arrays[f"{case['case']}/{name}"]) for name in names)
        found = group_advantages(
            rewards.double(),
            group,
            off_policy_mask=off,
            on_policy_statistics=case["statistics"] == "on-policy rewards only",
            scale_by_std=case["scale_by_std"],
        )
        torch.testing.assert_close(found, expected.double(), rtol=0, atol=1e-6, msg=case["case"])
    assert len(cases) == 32


@pytest.mark.parametrize("scale_by_std", [True, False])
def test_equal_rewards_give_zeros_and_not_nearly_zeros(scale_by_std: bool) -> None:
    rewards = torch.tensor([0.7] * 8 + [0.1, 0.2], dtype=torch.float64)
    group = torch.tensor([0] * 8 + [1] * 2)
    advantages = group_advantages(rewards, group, scale_by_std=scale_by_std)
    assert advantages[:8].tolist() == [0.0] * 8 and (advantages[8:] != 0).all()
