"""Acting by the best of several utterances by Q: the right level's head, and better than the policy itself."""

from pathlib import Path
from typing import Any

import exact
import pytest
import torch

from lit_rft.generation import ConversationGenerator, ServerSettings
from lit_rft.models.features import frozen_features
from lit_rft.stages import ActingSettings, CriticSettings, IQLUpdate, OfflineHierarchicalRL
from lit_rft.testing.fork import OPTIMUM, uniform_episodes
from lit_rft.testing.tiny_stage import AGENT, fit, make_offline
from lit_rft.transcripts import Transcript, collate_padded


@pytest.mark.parametrize("features", ["frozen", "adapted"])
def test_scores_are_q_of_the_levels_head(features: Any, tiny_model_folder: Path) -> None:
    stage = make_offline(tiny_model_folder, critic=CriticSettings(features=features), best_of=3)
    stage.configure_model()
    policy = stage.current_policy()
    pairs: list[Any] = [([5, 9, 30], [11, 2]), ([5, 9, 30, 31], [12, 13, 2])]
    found = {level: policy.sampler(level).keywords["score"](pairs) for level in AGENT.levels}  # type: ignore[attr-defined]
    assert not torch.allclose(found["high"], found["low"])
    assert stage.evaluation_source()["best_of"] == 3
    if features == "frozen":
        for code, level in enumerate(AGENT.levels):
            for n, (context, ids) in enumerate(pairs):
                transcript = Transcript(level, 2)
                transcript.append_prompt(context)
                transcript.append_utterance(ids)
                feature = frozen_features(policy.model, collate_padded([transcript], 0)).utterance
                torch.testing.assert_close(found[level][n], stage.critic.online.q(feature, code)[0])  # type: ignore[union-attr, operator]


def test_one_sample_is_the_policy_itself(tiny_model_folder: Path) -> None:
    stage = make_offline(tiny_model_folder)
    stage.configure_model()
    assert stage.current_policy().sampler("high") is ConversationGenerator
    assert "best_of" not in stage.evaluation_source()
    with pytest.raises(ValueError, match="best_of must be >= 1, got 0"):
        make_offline(tiny_model_folder, best_of=0)
    with pytest.raises(ValueError, match="does not know the critics"):
        make_offline(tiny_model_folder, best_of=2, acting=ActingSettings(server=ServerSettings("http://127.0.0.1:9")))


@pytest.mark.slow  # half a minute
def test_the_best_of_imitated_actions_is_the_best_path(tiny_model_folder: Path, tmp_path: Path) -> None:
    """The policy imitates random play; Q chooses among its samples."""
    critic = CriticSettings(learning_rate=1e-2, discount=1.0, polyak_rate=0.2)
    update = IQLUpdate(1e6, expectile=0.8)  # all weights are 1: imitation
    stage = exact.make(
        OfflineHierarchicalRL, tiny_model_folder, learning_rate=1e-3, critic=critic, critic_update=update, best_of=8
    )
    fit(stage, exact.loader(tiny_model_folder, uniform_episodes(), outcomes=True), 240)
    assert exact.average_return(stage, tiny_model_folder, tmp_path) >= 0.95 * OPTIMUM
    stage.best_of = 1
    assert exact.average_return(stage, tiny_model_folder, tmp_path) < 0.65
