"""Critic heads: level by level, gradients where they belong."""

import pytest
import torch

from lit_rft.models import Critic, CriticHeads
from lit_rft.objectives import polyak_update

LEVEL = torch.tensor([0, 1, 2, 1, 0])
FEATURES = torch.randn(5, 16, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("per_level", [False, True])
def test_heads_equal_a_loop_over_decisions(per_level: bool) -> None:
    heads = CriticHeads(16, per_level=per_level)
    for read, modules in ((heads.q, heads.q_heads), (heads.v, heads.v_heads)):
        expected = [modules[int(code) if per_level else 0](row)[0] for row, code in zip(FEATURES, LEVEL, strict=True)]
        torch.testing.assert_close(read(FEATURES, LEVEL), torch.stack(expected))
    assert not torch.allclose(heads.q(FEATURES, LEVEL), heads.v(FEATURES, LEVEL))
    assert [len(list(module)) for module in heads.q_heads] == [5] * (3 if per_level else 1)  # 3 linear, 2 ReLU


def test_levels_do_not_share_what_they_learn_unless_told_to() -> None:
    for per_level in (True, False):
        heads = CriticHeads(16, per_level=per_level)
        before = heads.q(FEATURES, LEVEL).detach()
        optimizer = torch.optim.SGD(heads.parameters(), lr=0.5)
        high = LEVEL == 0
        (heads.q(FEATURES[high], LEVEL[high]) - 3).square().mean().backward()
        optimizer.step()
        changed = heads.q(FEATURES, LEVEL) != before
        assert changed[high].all()
        assert changed[~high].any().item() is not per_level


def test_no_gradient_reaches_the_features_and_targets_get_none() -> None:
    critic, features = Critic(16), FEATURES.clone().requires_grad_()
    (critic.online.q(features, LEVEL).sum() + critic.online.v(features, LEVEL).sum()).backward()
    assert features.grad is None
    assert all(p.grad is not None for p in critic.online.parameters())
    assert not any(p.requires_grad for p in critic.target.parameters())


def test_targets_begin_equal_and_follow() -> None:
    critic = Critic(16)
    assert torch.equal(critic.target.q(FEATURES, LEVEL), critic.online.q(FEATURES, LEVEL))
    for parameter in critic.online.parameters():
        parameter.data.add_(1.0)
    polyak_update(critic.target.parameters(), critic.online.parameters(), rate=0.25)
    pairs = zip(critic.target.parameters(), critic.online.parameters(), strict=True)
    assert all(torch.allclose(target, online - 0.75, atol=1e-6) for target, online in pairs)


def test_values_keep_float32_under_bf16_autocast() -> None:
    heads = CriticHeads(16)
    plain = heads.q(FEATURES, LEVEL)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(heads.q(FEATURES, LEVEL), plain)
    assert heads.q(FEATURES.bfloat16(), LEVEL).dtype == torch.float32
