"""Token-level Q-learning's terms, against slow loops and exact solutions."""

import math

import pytest
import torch

from lit_rft.objectives import conservative_q_loss, next_token_values, perturbed_logits, td_target

N, V = 5, 7


def test_the_next_value_is_that_of_the_next_token_written() -> None:
    values = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
    last = torch.tensor([0, 0, 1, 0, 1]).bool()
    final = torch.tensor([9.0, 9.0, 0.0, 9.0, 7.0])
    assert next_token_values(values, last, final_values=final).tolist() == [2.0, 3.0, 0.0, 5.0, 7.0]
    assert next_token_values(values, last).tolist() == [2.0, 3.0, 0.0, 5.0, 0.0]
    assert next_token_values(torch.zeros(0), torch.zeros(0).bool()).shape == (0,)
    with pytest.raises(ValueError, match="last must have the shape of values"):
        next_token_values(values, last[:-1])
    with pytest.raises(ValueError, match="values must have 1 dimension"):
        next_token_values(values[None], last[None])


def test_targets_of_a_chain_are_its_discounted_reward() -> None:
    """With exact values, the target of each token is the discounted final reward."""
    exact = torch.tensor([0.81, 0.9, 1.0, 0.9, 1.0]) * torch.tensor([1.0, 1.0, 1.0, 2.0, 2.0])
    last = torch.tensor([0, 0, 1, 0, 1]).bool()
    rewards = torch.tensor([0.0, 0.0, 1.0, 0.0, 2.0])
    found = td_target(rewards, next_token_values(exact, last), last, discount=0.9)
    torch.testing.assert_close(found, exact)


def test_the_conservative_term_equals_cross_entropy() -> None:
    g = torch.Generator().manual_seed(0)
    q = torch.randn(N, V, generator=g, dtype=torch.float64, requires_grad=True)
    actions = torch.tensor([0, 3, 6, 3, 1])
    total = 0.0
    for k in range(N):
        row = q[k].tolist()
        total += math.log(sum(map(math.exp, row))) - row[int(actions[k])]
    assert float(conservative_q_loss(q, actions)) == pytest.approx(total / N, abs=1e-12)
    assert float(conservative_q_loss(q, actions, normalizer=8)) == pytest.approx(total / 8, abs=1e-12)
    assert torch.autograd.gradcheck(lambda x: conservative_q_loss(x, actions), (q,))
    (gradient,) = torch.autograd.grad(conservative_q_loss(q, actions), q)
    assert (gradient.gather(1, actions[:, None]) < 0).all() and (gradient > 0).sum() == N * (V - 1)


def test_perturbed_logits_are_the_policy_that_solves_the_regularised_problem() -> None:
    """argmax_p E_p[A] - KL(p || pi) / weight is pi exp(weight A), normalised."""
    g = torch.Generator().manual_seed(1)
    log_probs = torch.randn(N, V, generator=g, dtype=torch.float64).log_softmax(-1)
    q, values = torch.randn(N, V, generator=g, dtype=torch.float64), torch.randn(N, generator=g, dtype=torch.float64)
    best = perturbed_logits(log_probs, q, values, weight=2.0).softmax(-1)

    def objective(p: torch.Tensor) -> torch.Tensor:
        return (p * (q - values[:, None])).sum(-1) - (p * (p.log() - log_probs)).sum(-1) / 2.0

    for _ in range(20):
        other = (best.log() + 0.3 * torch.randn(N, V, generator=g, dtype=torch.float64)).softmax(-1)
        assert (objective(other) < objective(best)).all()
    torch.testing.assert_close(perturbed_logits(log_probs, q, values, weight=0.0), log_probs)
    bounded = perturbed_logits(log_probs, q, values, weight=2.0, max_advantage=0.0)
    torch.testing.assert_close(bounded, log_probs + 2.0 * (q - values[:, None]).clamp(max=0.0))
    with pytest.raises(ValueError, match="weight must be >= 0, got -1"):
        perturbed_logits(log_probs, q, values, weight=-1)
