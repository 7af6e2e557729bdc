"""LUFFY's stage on a tiny model: what a rollout holds, what is logged and refused, and every knob counts."""

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from grpo_parts import grpo_parts
from grpo_stage import after, differ, make_grpo, make_prompts, vowels
from recorder import Recorder

from lit_rft.datamodules import PromptLoader
from lit_rft.generation import SamplingSettings
from lit_rft.rewards import RewardError, RewardSum
from lit_rft.stages import (
    OptimizerSettings,
)
from lit_rft.testing.tiny_stage import fit, trained


def test_a_rollout_holds_groups_of_own_and_other_completions(tiny_model_folder: Path) -> None:
    stage, recorder = make_grpo(tiny_model_folder), Recorder()
    fit(stage, PromptLoader(make_prompts(tiny_model_folder), batch_size=2), 1, callbacks=[recorder])
    assert [one.group for one in stage.samples] == [0] * 4 + [1] * 4
    assert [one.off_policy for one in stage.samples] == [False, False, False, True] * 2
    for one in stage.samples:
        assert one.reward == vowels([one.text], [{}])[0]
        assert sum(map(len, one.sampled_log_probs)) == (0 if one.off_policy else one.length)
    for group in (0, 1):
        assert sum(one.advantage for one in stage.samples if one.group == group) == pytest.approx(0, abs=1e-6)
    names = ("loss", "reward", "reward_std", "no_signal_fraction", "on_policy_loss", "off_policy_loss",
             "trace_prob_mean", "clip_fraction", "entropy", "sampled_entropy", "completion_length",
             "truncated_fraction", "trace_reward")  # fmt: skip
    assert {f"train/{name}" for name in names} <= set(recorder.logged[0])


def test_schedules_know_how_many_steps_a_rollout_has(tiny_model_folder: Path) -> None:
    rates = []

    class Sees(L.Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    linear = OptimizerSettings(learning_rate=1e-3, schedule="linear")
    for steps, expected in ((-1, [0.75, 0.5, 0.25, 0.0]), (4, [0.5, 0.0])):
        rates.clear()
        stage = make_grpo(tiny_model_folder, objective={"mini_batches": 2}, optimizer=linear)
        loader = PromptLoader(make_prompts(tiny_model_folder), batch_size=2)
        fit(stage, loader, steps, max_epochs=2, callbacks=[Sees()])
        assert rates == pytest.approx([1e-3 * share for share in expected], abs=1e-9)


@pytest.fixture(scope="module")
def base(tiny_model_folder: Path) -> dict[str, torch.Tensor]:
    return after(tiny_model_folder, steps=3)


@pytest.mark.parametrize(
    "knob",
    [
        {"objective": {"group_size": 5}},
        {"objective": {"traces_per_group": 0}},
        {"objective": {"traces_per_group": 2}},
        {"objective": {"scale_by_std": False}},
        {"objective": {"on_policy_statistics": True}},
        {"objective": {"policy_shaping": None}},
        {"objective": {"policy_shaping": 0.5}},
        {"objective": {"normalizer": "max_length"}},
        {"objective": {"entropy_coef": 0.5}},
        {"objective": {"kl_coef": 0.5}},
        {"objective": {"sft_coef": 0.5}},
        {"objective": {"sft_coef": 0.5, "traces_per_group": 0}},
        {"objective": {"sft_steps": 1}},
        {"objective": {"mini_batches": 2}},
        {"objective": {"epochs": 2}},
        {"objective": {"mask_truncated": True}},
        {"objective": {"importance_cap": 0.5}},
        {"optimizer": OptimizerSettings(learning_rate=1e-3)},
        {"sampling": SamplingSettings(max_new_tokens=5, temperature=1.0)},
        {"sampling": SamplingSettings(max_new_tokens=8, temperature=0.5)},
        {"reward": lambda completions, rows: [float(len(text) % 3) for text in completions]},
        {"seed": 3},
    ],
    ids=lambda knob: "reward" if "reward" in knob else str(knob),  # a function has another name in each process
)
def test_every_knob_changes_the_result(
    tiny_model_folder: Path, base: dict[str, torch.Tensor], knob: dict[str, Any]
) -> None:
    seed = knob.get("seed", 0)
    rest = {name: value for name, value in knob.items() if name != "seed"}
    if seed:
        stage = make_grpo(tiny_model_folder)
        stage.source.seed = seed
        fit(stage, PromptLoader(make_prompts(tiny_model_folder), batch_size=2), 3)
        assert differ(base, trained(stage))
    else:
        assert differ(base, after(tiny_model_folder, steps=3, **rest))


@pytest.mark.parametrize("side", ["clip_low", "clip_high"])
def test_clipping_counts_where_a_rollout_is_used_again(tiny_model_folder: Path, side: str) -> None:
    again = {"epochs": 3}
    plain = after(tiny_model_folder, steps=3, objective=again)
    assert differ(plain, after(tiny_model_folder, steps=3, objective={**again, side: 0.001}))


def test_what_rewards_took_and_counted_is_logged(tiny_model_folder: Path) -> None:
    class Counting:
        def __call__(self, completions: Any, rows: Any) -> list[float]:
            return vowels(completions, rows)

        def metrics(self) -> dict[str, float]:
            return {"killed": 3.0}

    recorder = Recorder()
    stage = make_grpo(tiny_model_folder, reward=RewardSum([Counting(), vowels, Counting()]))
    fit(stage, PromptLoader(make_prompts(tiny_model_folder), batch_size=2), 1, callbacks=[recorder])
    assert recorder.logged[0]["train/reward_killed"] == 6.0
    assert recorder.logged[0]["train/reward_seconds"] > 0


def test_a_reward_that_is_not_finite_stops_before_the_step(tiny_model_folder: Path) -> None:
    stage = make_grpo(tiny_model_folder, reward=lambda completions, rows: [float("nan")] * len(completions))
    stage.configure_model()
    before = trained(stage)
    with pytest.raises(RewardError, match=r"<lambda> returned nan for completion 0 of problem p\d: expected a finite"):
        fit(stage, PromptLoader(make_prompts(tiny_model_folder), batch_size=2), 1)
    assert not differ(before, trained(stage))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"group_size": 0}, "group_size must be >= 1"),
        ({"traces_per_group": 9}, r"must be in 0\.\.group_size=8, got 9"),
        ({"policy_shaping": 0.0}, "policy_shaping must be > 0 or null"),
        ({"entropy_coef": -1.0}, "entropy_coef must be >= 0"),
        ({"importance_cap": 0.0}, "importance_cap must be > 0 or null"),
        ({"clip_low": -0.1}, "loss.clip_low must be >= 0, got -0.1"),
        ({"clip_high": float("nan")}, "loss.clip_high must be >= 0, got nan"),
    ],
)
def test_bad_settings_are_refused(bad: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        grpo_parts(**bad)


def test_greedy_groups_are_refused(tiny_model_folder: Path) -> None:
    with pytest.raises(ValueError, match="greedy completions of a prompt are all the same"):
        make_grpo(tiny_model_folder, sampling=SamplingSettings(8, 0.0))


def test_half_precision_throughout_is_refused(tiny_model_folder: Path) -> None:
    """Lightning makes it the type of all new tensors, rewards and advantages among them."""
    loader = PromptLoader(make_prompts(tiny_model_folder), batch_size=2)
    with pytest.raises(ValueError, match="bf16-true would keep rewards and advantages in three digits"):
        fit(make_grpo(tiny_model_folder), loader, 1, precision="bf16-true")
