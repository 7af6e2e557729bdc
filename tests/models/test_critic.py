"""Critic heads: level by level, gradients where they belong."""

import pytest
import torch

from lit_rft.models import Critic, CriticHeads
from lit_rft.objectives import polyak_update

FEATURES = torch.randn(5, 16, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("per_level", [False, True])
def test_heads_equal_a_loop_over_decisions(per_level: bool) -> None:
    heads = CriticHeads(16, per_level=per_level)
    for level in range(3):
        for read, modules in ((heads.q, heads.q_heads), (heads.v, heads.v_heads)):
            expected = [modules[level if per_level else 0](row)[0] for row in FEATURES]
            torch.testing.assert_close(read(FEATURES, level), torch.stack(expected))
        assert not torch.allclose(heads.q(FEATURES, level), heads.v(FEATURES, level))
    assert [len(list(module)) for module in heads.q_heads] == [5] * (3 if per_level else 1)  # 3 linear, 2 ReLU


def test_levels_do_not_share_what_they_learn_unless_told_to() -> None:
    for per_level in (True, False):
        heads = CriticHeads(16, per_level=per_level)
        before = [heads.q(FEATURES, level).detach() for level in (0, 1)]
        optimizer = torch.optim.SGD(heads.parameters(), lr=0.5)
        (heads.q(FEATURES, 0) - 3).square().mean().backward()
        optimizer.step()
        assert (heads.q(FEATURES, 0) != before[0]).all()
        assert torch.equal(heads.q(FEATURES, 1), before[1]) is per_level


def test_no_gradient_reaches_the_features_and_targets_get_none() -> None:
    critic, features = Critic(16), FEATURES.clone().requires_grad_()
    sum(
        critic.online.q(features, level).sum() + critic.online.v(features, level).sum() for level in range(3)
    ).backward()
    assert features.grad is None
    assert all(p.grad is not None for p in critic.online.parameters())
    assert not any(p.requires_grad for p in critic.target.parameters())


def test_targets_begin_equal_and_follow() -> None:
    critic = Critic(16)
    assert torch.equal(critic.target.q(FEATURES, 1), critic.online.q(FEATURES, 1))
    for parameter in critic.online.parameters():
        parameter.data.add_(1.0)
    polyak_update(critic.target.parameters(), critic.online.parameters(), rate=0.25)
    pairs = zip(critic.target.parameters(), critic.online.parameters(), strict=True)
    assert all(torch.allclose(target, online - 0.75, atol=1e-6) for target, online in pairs)


def test_values_keep_float32_under_bf16_autocast() -> None:
    heads = CriticHeads(16)
    plain = heads.q(FEATURES, 0)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(heads.q(FEATURES, 0), plain)
    assert heads.q(FEATURES.bfloat16(), 0).dtype == torch.float32
