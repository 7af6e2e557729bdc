"""Advantages by the one-step target: against a plain recomputation, and without Q."""

import math
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from lit_rft.agents import FlatAgent, SwiftAgent
from lit_rft.models.critic import Critic
from lit_rft.models.features import DecisionFeatures
from lit_rft.stages import (
    CriticSettings,
    IQLUpdate,
    OfflineHierarchicalRL,
    OnlineHighLevelFinetune,
    PolicySettings,
    SarsaUpdate,
    TDUpdate,
)
from lit_rft.stages.core.level_decisions import LevelDecisions
from lit_rft.testing.tiny_stage import fit, make_loader, make_offline


def make_decisions(number: int = 6, proposals: Any = None) -> LevelDecisions:
    generator = torch.Generator().manual_seed(0)
    features = DecisionFeatures(*torch.randn(3, number, 8, generator=generator))
    rewards, steps = torch.rand(number, generator=generator), torch.ones(number)
    terminated = torch.arange(number) == number - 1
    return LevelDecisions(features, proposals, "low", 1, rewards, steps, terminated, torch.zeros(number))


@pytest.mark.parametrize(("temperature", "max_weight", "expectile"), [(0.2, 20.0, 0.7), (0.05, 1.5, 0.5)])
def test_targets_weights_and_the_loss_of_v(temperature: float, max_weight: float, expectile: float) -> None:
    torch.manual_seed(1)
    critic, decisions = Critic(8), make_decisions()
    for parameter in critic.target.parameters():  # else both sides of the target would be the same
        parameter.data += 0.1
    settings = CriticSettings(discount=0.9)
    terms = TDUpdate(temperature, max_weight, expectile)(critic, decisions, settings, 6.0)
    values = critic.online.v(decisions.features.state, 1).tolist()
    following = critic.target.v(decisions.features.next_state, 1).tolist()
    loss = 0.0
    for i, value in enumerate(values):
        target = float(decisions.rewards[i]) + (0.0 if decisions.terminated[i] else 0.9 * following[i])
        assert float(terms.q[i]) == pytest.approx(target, abs=1e-5)
        weight = min(math.exp((target - value) / temperature), max_weight)
        assert float(terms.weights[i]) == pytest.approx(weight, rel=1e-3)
        assert bool(terms.clamped[i]) == (weight == max_weight)
        loss += (expectile if target > value else 1 - expectile) * (target - value) ** 2 / 6
    assert float(terms.value_loss) == pytest.approx(loss, rel=1e-4) and float(terms.q_loss) == 0


def lambda_returns(
    decisions: LevelDecisions, settings: CriticSettings, critic: Critic, td_lambda: float
) -> list[float]:
    """Sum the n-step returns of each decision, with weights (1 - lambda) lambda^(n - 1), from their definition."""
    values = critic.target.v(decisions.features.state, 1).tolist()
    following = critic.target.v(decisions.features.next_state, 1).tolist()
    rewards, terminated, owner = decisions.rewards.tolist(), decisions.terminated.tolist(), decisions.owner.tolist()
    steps = decisions.steps.tolist() if settings.discount_each == "step" else [1.0] * len(rewards)
    returns = []
    for i in range(len(rewards)):
        total, left, earned, factor, k = 0.0, 1.0, 0.0, 1.0, i
        while True:
            earned += factor * rewards[k]
            factor *= settings.discount ** steps[k]
            final = terminated[k] or k + 1 == len(rewards) or owner[k + 1] != owner[k]
            after = 0.0 if terminated[k] else following[k] if final else values[k + 1]
            share = left if final else left * (1 - td_lambda)
            total, left = total + share * (earned + factor * after), left * td_lambda
            if final:
                break
            k += 1
        returns.append(total)
    return returns


@pytest.mark.parametrize("discount_each", ["step", "decision"])
@pytest.mark.parametrize("td_lambda", [0.0, 0.5, 1.0])
def test_lambda_returns_are_means_of_n_step_returns(td_lambda: float, discount_each: Any) -> None:
    """Two transcripts; a level's task that ends within the first, and a time limit at the end of the second."""
    torch.manual_seed(1)
    critic, decisions = Critic(8), make_decisions(7)
    for parameter in critic.target.parameters():
        parameter.data += 0.1
    state = decisions.features.state
    after = torch.cat([state[1:], torch.randn(1, 8)])  # a decision ends where the next one begins
    after[3] = torch.randn(8)
    decisions = decisions._replace(
        features=decisions.features._replace(next_state=after),
        owner=torch.tensor([0, 0, 0, 0, 1, 1, 1]),
        terminated=torch.tensor([False, True, False, True, False, False, False]),
        steps=torch.tensor([1.0, 2, 3, 1, 2, 1, 1]),
    )
    settings = CriticSettings(discount=0.9, discount_each=discount_each)
    terms = TDUpdate(0.1, td_lambda=td_lambda)(critic, decisions, settings, 7.0)
    assert terms.q.tolist() == pytest.approx(lambda_returns(decisions, settings, critic, td_lambda), abs=1e-5)
    observed = TDUpdate(0.1, td_lambda=1.0)(critic, decisions, settings, 7.0).q[0]
    factor = 0.9 if discount_each == "decision" else 0.9 ** float(decisions.steps[0])
    assert float(observed) == pytest.approx(float(decisions.rewards[0] + factor * decisions.rewards[1]), abs=1e-5)


def test_v_trains_and_q_does_not(tiny_model_folder: Path) -> None:
    """Without Q no head of it changes; the actor's weights differ from those by Q."""
    results = {}
    for update in (TDUpdate(0.01), IQLUpdate(0.01)):
        stage = make_offline(tiny_model_folder, critic_update=update)
        stage.configure_model()
        before = {name: value.clone() for name, value in stage.critic.online.named_parameters()}
        fit(stage, make_loader(tiny_model_folder, outcomes=True), 2)
        changed = {n.split(".")[0] for n, v in stage.critic.online.named_parameters() if not torch.equal(v, before[n])}
        results[type(update)] = changed
    assert results == {TDUpdate: {"v_heads"}, IQLUpdate: {"v_heads", "q_heads"}}


def test_settings_without_effect_or_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="advantage_temperature must be > 0"):
        TDUpdate(0.0)
    with pytest.raises(ValueError, match=r"expectile must be in \(0, 1\)"):
        TDUpdate(expectile=1.0)
    for td_lambda in (-0.1, 1.1):
        with pytest.raises(ValueError, match=r"td_lambda must be in \[0, 1\]"):
            TDUpdate(td_lambda=td_lambda)
    with pytest.raises(ValueError, match="value_actions=policy has no effect with TDUpdate"):
        TDUpdate()(Critic(8), make_decisions(proposals=torch.zeros(6, 8)), CriticSettings(), 6.0)


class Untouched(L.LightningDataModule):
    """Data that must not be collected."""

    def prepare_data(self) -> None:
        raise AssertionError("data are collected for a training that is refused")


@pytest.mark.parametrize(
    ("agent", "update"),
    [
        (FlatAgent(keep_thoughts=False), SarsaUpdate()), (FlatAgent(keep_thoughts=False), TDUpdate(td_lambda=0.5)),
        (SwiftAgent(), SarsaUpdate()),
    ],
    ids=["sarsa", "lambda", "swift"],
)  # fmt: skip
@pytest.mark.parametrize("kind", [OfflineHierarchicalRL, OnlineHighLevelFinetune])
def test_training_needs_the_later_decisions_that_an_update_reads(
    kind: Any, agent: Any, update: Any, tiny_model_folder: Path
) -> None:
    """With a transcript for each decision, the values of those that follow are in none; evaluation needs none."""
    stage = kind(policy=PolicySettings(str(tiny_model_folder)), agent=agent, critic_update=update)
    with pytest.raises(ValueError, match="has a transcript for each"):
        fit(stage, Untouched())
    options: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = L.Trainer(accelerator="cpu", **options)
    for verb in (trainer.validate, trainer.test, trainer.predict):
        verb(stage, [])


def test_other_updates_and_agents_train(tiny_model_folder: Path) -> None:
    forgetful, flat = FlatAgent(keep_thoughts=False), FlatAgent()
    for agent, update in ((forgetful, TDUpdate()), (forgetful, IQLUpdate()), (flat, SarsaUpdate())):
        stage = make_offline(tiny_model_folder, agent=agent, critic_update=update)
        fit(stage, make_loader(tiny_model_folder, agent=agent, outcomes=True), 1)
