"""The first step of a stage against a recomputation in float64, written from the equations."""

from pathlib import Path
from typing import Any

import pytest
import torch

from lit_rft.models.features import frozen_features
from lit_rft.models.log_probs import utterance_log_probs
from lit_rft.stages import CriticSettings, IQLUpdate
from lit_rft.testing.tiny_stage import AGENT, fit, make_loader, make_offline
from lit_rft.transcripts import collate_padded

EXPECTILE, DISCOUNT, TEMPERATURE, MAX_WEIGHT = 0.7, 0.9, 0.5, 3.0


def offline_stage(model: Path) -> Any:
    """An offline stage whose target critics differ from the online ones, so that no mix-up goes unseen."""
    critic = CriticSettings(learning_rate=1e-2, discount=DISCOUNT)
    stage = make_offline(model, critic=critic, critic_update=IQLUpdate(TEMPERATURE, MAX_WEIGHT, EXPECTILE))
    stage.configure_model()
    randoms = torch.Generator().manual_seed(7)
    for heads in (stage.critic.online, stage.critic.target):
        for parameter in heads.parameters():
            parameter.data.add_(0.1 * torch.randn(parameter.shape, generator=randoms))
    return stage


def expected_losses(stage: Any, loader: Any) -> dict[str, float]:
    """L_Q, L_V and L_pi of each level, one decision at a time."""
    (step,) = list(loader)
    transcripts = step.transcripts
    online, target = stage.critic.online.double(), stage.critic.target.double()

    def value(heads: Any, kind: str, features: torch.Tensor, level: str) -> float:
        network = getattr(heads, f"{kind}_heads")[AGENT.levels.index(level)]
        return float(network(features.double()))

    terms: dict[str, list[tuple[float, float, float]]] = {}
    for transcript in transcripts:
        batch = collate_padded([transcript], 0)
        features = frozen_features(stage.policy, batch)
        log_probs = utterance_log_probs(stage.policy, batch, end_of_turn_id=stage.chat.end_of_turn_id).tokens
        for k, outcome in enumerate(transcript.outcomes):
            level = transcript.level
            q, v = value(online, "q", features.utterance[k], level), value(online, "v", features.state[k], level)
            following = 0.0 if outcome.terminated else value(target, "v", features.next_state[k], level)
            target_q = value(target, "q", features.utterance[k], level)
            gap = target_q - v
            weight = min(torch.tensor((q - v) / TEMPERATURE, dtype=torch.float64).exp().item(), MAX_WEIGHT)
            likelihood = float(log_probs[k][batch.utterance_mask[k]].double().sum())
            terms.setdefault(level, []).append((
                (q - outcome.reward - DISCOUNT * following) ** 2,
                (EXPECTILE if gap > 0 else 1 - EXPECTILE) * gap**2,
                -weight * likelihood,
            ))  # fmt: skip
    names = ("q_loss", "value_loss", "policy_loss")
    return {
        f"train/{level}/{name}": sum(row[n] for row in rows) / len(rows)
        for level, rows in terms.items()
        for n, name in enumerate(names)
    }


def test_first_losses_of_offline_rl(tiny_model_folder: Path) -> None:
    loader = make_loader(tiny_model_folder, episodes=3, outcomes=True)
    with torch.no_grad():
        expected = expected_losses(offline_stage(tiny_model_folder), loader)
    trainer = fit(offline_stage(tiny_model_folder), make_loader(tiny_model_folder, episodes=3, outcomes=True), 1)
    assert len(expected) == 6
    for name, loss in expected.items():
        assert float(trainer.callback_metrics[name]) == pytest.approx(loss, rel=1e-4), name
