"""The critic's objectives on a small hierarchical task that is solved exactly.

A corridor with the goal at its right end. The high level chooses how far to go next (its utterances), which takes the
low level as many steps. The behaviour that made the data goes the wrong way more often than not, so that hardly any
episode is good as a whole: what is best has to be stitched together. Tables take the place of networks.
"""

import itertools
from typing import NamedTuple

import pytest
import torch

from lit_rft.objectives import (
    advantage_weights,
    expectile_value_loss,
    polyak_update,
    q_loss,
    td_target,
    weighted_likelihood_loss,
)

PLACES, GOAL, DISCOUNT = 6, 5, 0.9
CHOICES = (-1, 1, 2)  # subgoals: one step back, one forward, two forward


class Data(NamedTuple):
    state: torch.Tensor
    choice: torch.Tensor
    reward: torch.Tensor
    next_state: torch.Tensor
    steps: torch.Tensor
    terminated: torch.Tensor


def move(place: int, choice: int) -> tuple[int, int, float, bool]:
    """Where a subgoal leads, how many steps it takes, what it earns, whether that ends the task."""
    step = CHOICES[choice]
    reached = min(max(place + step, 0), GOAL)
    # the long way is slow, and each step costs
    return reached, abs(step), (1.0 if reached == GOAL else 0.0) - 0.07 * abs(step) ** 2, reached == GOAL


def behaviour(place: int) -> torch.Tensor:
    """Mostly back in the left half, mostly by the wrong kind of step in the right half."""
    return torch.tensor([0.6, 0.3, 0.1] if place < 3 else [0.5, 0.1, 0.4], dtype=torch.float64)


def make_data(copies: int = 1000) -> Data:
    """Each choice as often as the behaviour makes it: the expectations of the losses, without sampling noise."""
    rows = []
    for place, choice in itertools.product(range(GOAL), range(len(CHOICES))):
        reached, steps, reward, ended = move(place, choice)
        rows += [(place, choice, reward, reached, steps, ended)] * round(copies * float(behaviour(place)[choice]) / 100)
    columns = list(zip(*rows, strict=True))
    return Data(
        torch.tensor(columns[0]), torch.tensor(columns[1]), torch.tensor(columns[2], dtype=torch.float64),
        torch.tensor(columns[3]), torch.tensor(columns[4]), torch.tensor(columns[5]),
    )  # fmt: skip


def dynamic_programming(by_step: bool, best: bool) -> torch.Tensor:
    """Q of the best policy, or of the behaviour."""
    q = torch.zeros(PLACES, len(CHOICES), dtype=torch.float64)
    for _ in range(500):
        v = torch.tensor([float(q[p].max()) if best else float(behaviour(p) @ q[p]) for p in range(PLACES)])
        for place, choice in itertools.product(range(GOAL), range(len(CHOICES))):
            reached, steps, reward, ended = move(place, choice)
            q[place, choice] = reward + (0.0 if ended else DISCOUNT ** (steps if by_step else 1) * float(v[reached]))
    return q


def train_critic(data: Data, expectile: float, by_step: bool) -> tuple[torch.Tensor, torch.Tensor]:
    q = torch.zeros(PLACES, len(CHOICES), dtype=torch.float64, requires_grad=True)
    v = torch.zeros(PLACES, dtype=torch.float64, requires_grad=True)
    slow_q, slow_v = q.detach().clone(), v.detach().clone()
    optimizer = torch.optim.SGD([q, v], lr=2.0)
    for _ in range(3000):
        targets = td_target(
            data.reward, slow_v[data.next_state], data.terminated, discount=DISCOUNT,
            steps=data.steps if by_step else None,
        )  # fmt: skip
        loss = q_loss(q[data.state, data.choice], targets).loss
        seen = slow_q[data.state, data.choice]
        loss = loss + expectile_value_loss(v[data.state], seen, expectile=expectile).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        polyak_update([slow_q, slow_v], [q.detach(), v.detach()], rate=0.5)
    return q.detach(), v.detach()


@pytest.mark.parametrize("by_step", [False, True])
@pytest.mark.parametrize(("expectile", "best", "atol"), [(0.5, False, 1e-6), (0.995, True, 0.02)])
def test_the_critic_finds_the_true_values(expectile: float, best: bool, atol: float, by_step: bool) -> None:
    q, v = train_critic(make_data(), expectile, by_step)
    expected = dynamic_programming(by_step, best)
    assert torch.allclose(q[:GOAL], expected[:GOAL], atol=atol)
    behaved = torch.stack([behaviour(place) for place in range(PLACES)])
    values = expected.max(-1).values if best else (behaved * expected).sum(-1)
    assert torch.allclose(v[:GOAL], values[:GOAL], atol=atol)


def fit_policy(data: Data, weights: torch.Tensor) -> torch.Tensor:
    logits = torch.zeros(PLACES, len(CHOICES), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.05)
    for _ in range(600):
        likelihood = logits.log_softmax(-1)[data.state, data.choice]
        optimizer.zero_grad()
        weighted_likelihood_loss(likelihood, weights).backward()
        optimizer.step()
    return logits.detach().softmax(-1)


def value_of(policy: torch.Tensor) -> float:
    v = torch.zeros(PLACES, dtype=torch.float64)
    for _ in range(500):
        new = v.clone()
        for place in range(GOAL):
            new[place] = 0.0
            for choice in range(len(CHOICES)):
                reached, _, reward, ended = move(place, choice)
                new[place] += policy[place, choice] * (reward + (0.0 if ended else DISCOUNT * v[reached]))
        v = new
    return float(v[0])


def test_likelihood_copies_the_behaviour_and_advantages_stitch_the_best_way() -> None:
    data = make_data()
    q, v = train_critic(data, 0.995, by_step=False)
    weights = advantage_weights(
        q[data.state, data.choice], v[data.state], advantage_temperature=0.02, max_weight=20.0
    ).weights
    copied, extracted = fit_policy(data, torch.ones_like(weights)), fit_policy(data, weights)
    behaved = value_of(torch.stack([behaviour(p) for p in range(PLACES)]))
    best = float(dynamic_programming(by_step=False, best=True)[0].max())
    assert value_of(copied) == pytest.approx(behaved, abs=0.02)  # SFT: as bad as the data
    assert value_of(extracted) > best - 0.05
    assert behaved < best - 0.3
    wanted = dynamic_programming(by_step=False, best=True)[:GOAL].argmax(-1)
    assert torch.equal(extracted[:GOAL].argmax(-1), wanted)
    assert not torch.equal(copied[:GOAL].argmax(-1), wanted)
