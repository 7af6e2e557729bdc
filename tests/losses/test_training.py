"""Each named loss and advantage trains the tiny model to a higher reward, through the public stage."""

from pathlib import Path
from typing import Any

import lightning as L
import pytest

from lit_rft import GRPO, SamplingSettings
from lit_rft.advantages import RLOO, OverlongPenalty, ReinforcePlusPlus
from lit_rft.batches import Prompt
from lit_rft.datamodules import PromptLoader
from lit_rft.losses import CISPO, GSPO, MaskedWeights, SamplerCorrected, SequenceWeights, TruncatedWeights, TwoSidedClip
from lit_rft.models.backbone import load_tokenizer
from lit_rft.problems import Problem
from lit_rft.rollouts import GroupAdvantages, MixedPolicyLoss
from lit_rft.sources import DynamicSampling
from lit_rft.stages import ObjectiveSettings, OptimizerSettings, PolicySettings
from lit_rft.testing.tiny_stage import differs, fit, trained
from lit_rft.transcripts import PromptFormat


def share_of_vowels(completions: Any, rows: Any) -> list[float]:
    return [sum(letter in "aeiou" for letter in text) / max(len(text), 1) for text in completions]


def make_prompts(model: Path) -> list[Prompt]:
    form = PromptFormat(load_tokenizer(str(model)))
    problems = [Problem(f"p{n}", ({"role": "user", "content": f"Question {n}?"},), "1", ()) for n in range(2)]
    return [Prompt(problem, form.prompt_ids(problem.prompt), [], [], []) for problem in problems]


class Rewards(L.Callback):
    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self.values.append(float(trainer.callback_metrics["train/reward"]))


def train(model: Path, parts: dict[str, Any], steps: int, epochs: int = 2) -> tuple[GRPO, list[float]]:
    L.seed_everything(0, verbose=False)
    stage = GRPO(
        PolicySettings(model=str(model), lora=None),
        OptimizerSettings(learning_rate=1e-2),
        ObjectiveSettings(group_size=8, epochs=epochs, entropy_coef=0.0),
        SamplingSettings(max_new_tokens=8, temperature=1.0),
        reward=share_of_vowels,
        **parts,
    )
    rewards = Rewards()
    fit(stage, PromptLoader(make_prompts(model), batch_size=2), steps, callbacks=[rewards])
    return stage, rewards.values


# the settings of the overlays luffy/dr_grpo.yaml and luffy/dapo.yaml, with this file's lengths
DR_GRPO = {"loss": MixedPolicyLoss(normalizer="max_length"), "advantages": GroupAdvantages(scale_by_std=False)}
DAPO = {"loss": MixedPolicyLoss(clip_high=0.28), "advantages": OverlongPenalty(8, 2, 0.1), "source": DynamicSampling(2)}


@pytest.mark.parametrize(
    "parts",
    [
        {"loss": GSPO(0.1, 0.2)}, {"loss": CISPO()}, {"loss": TwoSidedClip()},
        {"loss": SamplerCorrected(GSPO(0.1, 0.2), SequenceWeights())},
        {"loss": SamplerCorrected(CISPO(), MaskedWeights())},
        {"advantages": RLOO()}, {"advantages": ReinforcePlusPlus()},
        {"advantages": ReinforcePlusPlus(group_baseline=True)}, {"advantages": OverlongPenalty(8, 2, 0.1)},
        {"loss": SamplerCorrected(CISPO(), TruncatedWeights())},
        DR_GRPO, DAPO,
    ],
    ids=lambda parts: "-".join(type(part).__name__ for part in parts.values()),
)  # fmt: skip
def test_the_reward_rises(parts: dict[str, Any], tiny_model_folder: Path) -> None:
    _, rewards = train(tiny_model_folder, parts, 24)
    assert sum(rewards[-3:]) / 3 > sum(rewards[:3]) / 3 + 0.15, rewards


@pytest.mark.parametrize(
    "settings",
    [
        [GSPO(0.01, 0.02), GSPO(0.1, 0.02), GSPO(0.01, 0.2)],
        [CISPO(None, 0.1), CISPO(0.1, 0.1), CISPO(None, 1.0)],
        [TwoSidedClip(0.1, 0.1, 1.2), TwoSidedClip(0.3, 0.1, 1.2), TwoSidedClip(0.1, 0.15, 1.2),
         TwoSidedClip(0.1, 0.1, 4.0), TwoSidedClip(0.1, 0.1, 1.2, "max_length")],
        [SamplerCorrected(weights=MaskedWeights()), SamplerCorrected(weights=MaskedWeights(2.0)),
         SamplerCorrected(CISPO(), MaskedWeights()), SamplerCorrected(weights=SequenceWeights(0.5, drop=True))],
        [ReinforcePlusPlus(), ReinforcePlusPlus(group_baseline=True), RLOO(), None],
    ],
    ids=["gspo", "cispo", "two_sided", "sampler", "advantages"],
)  # fmt: skip
def test_every_knob_changes_the_result(settings: list[Any], tiny_model_folder: Path) -> None:
    """Four updates on a rollout take the ratios out of the clipping ranges."""
    part = "loss" if hasattr(settings[0], "needs") else "advantages"
    runs = [trained(train(tiny_model_folder, {part: value}, 8, epochs=4)[0]) for value in settings]
    assert all(differs(runs[0], other, rtol=1e-5, atol=1e-7) for other in runs[1:])
