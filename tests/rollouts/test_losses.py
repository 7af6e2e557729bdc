"""Policy losses as parts: the default one adds up, and one of the user's own trains from the command line."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from command import main
from plugins.gspo_loss import GSPOLoss, sequence_losses

from lit_rft.objectives import mixed_policy_loss
from lit_rft.rollouts import GroupAdvantages, MixedPolicyLoss, Normalizer, Rollout, RolloutBatch
from lit_rft.rollouts.rollout import keep_old_log_probs
from lit_rft.transcripts import collate_padded, completion_transcript


def make_batch(rows: int = 4, tokens: int = 5) -> tuple[torch.Tensor, RolloutBatch]:
    generator = torch.Generator().manual_seed(0)
    log_probs = -torch.rand(rows, tokens, generator=generator)
    mask = torch.arange(tokens) < torch.tensor([5, 3, 1, 4])[:, None]
    off = torch.tensor([False, True, False, False])
    batch = RolloutBatch(mask, off, torch.randn(rows, generator=generator))
    batch.old_log_probs = log_probs + 0.3 * torch.randn(rows, tokens, generator=generator)
    batch.sampled_log_probs = log_probs + 0.3 * torch.randn(rows, tokens, generator=generator)
    return log_probs, batch


def part(batch: RolloutBatch, rows: slice) -> RolloutBatch:
    return RolloutBatch(*(None if value is None else value[rows] for value in vars(batch).values()))


@pytest.mark.parametrize("loss", [MixedPolicyLoss(importance_cap=1.1), MixedPolicyLoss(normalizer="max_length"),
                                  GSPOLoss()], ids=str)  # fmt: skip
def test_losses_and_diagnostics_add_up_over_micro_batches(loss: Any) -> None:
    log_probs, batch = make_batch()
    normalizer = Normalizer(batch.mask.sum(), torch.tensor(4), 7)
    full, sums = loss(log_probs, batch, normalizer=normalizer)
    halves = [loss(log_probs[rows], part(batch, rows), normalizer=normalizer) for rows in (slice(0, 1), slice(1, 4))]
    torch.testing.assert_close(halves[0][0] + halves[1][0], full)
    for name, value in sums.items():
        torch.testing.assert_close(halves[0][1][name] + halves[1][1][name], value)


@pytest.mark.parametrize(
    "settings",
    [{}, {"policy_shaping": None}, {"policy_shaping": 0.5}, {"clip_low": 0.01}, {"clip_high": 0.01},
     {"normalizer": "max_length"}, {"importance_cap": 1.1}],
    ids=str,
)  # fmt: skip
def test_the_default_loss_is_the_objective_on_the_batch(settings: dict[str, Any]) -> None:
    log_probs, batch = make_batch()
    batch.behaviour_log_probs = torch.full_like(log_probs, math.nan)
    batch.behaviour_log_probs[1, :2] = -0.5
    normalizer = Normalizer(torch.tensor(9), torch.tensor(4), 7)
    loss, sums = MixedPolicyLoss(**settings)(log_probs, batch, normalizer=normalizer)
    assert batch.old_log_probs is not None and batch.sampled_log_probs is not None
    weights = (batch.old_log_probs - batch.sampled_log_probs).exp().clamp_max(1.1)
    weights[batch.off_policy] = 1.0
    knobs = {"policy_shaping": 0.1, "clip_low": 0.2, "clip_high": 0.2} | settings
    terms = mixed_policy_loss(
        log_probs, batch.advantages, batch.mask, batch.off_policy,
        old_log_probs=batch.old_log_probs, behaviour_log_probs=batch.behaviour_log_probs,
        token_weights=weights if knobs.pop("importance_cap", None) else None,
        normalizer=7 if knobs.pop("normalizer", None) else torch.tensor(9), **knobs,
    )  # fmt: skip
    torch.testing.assert_close(loss, terms.loss)
    for name in ("on_policy_loss", "off_policy_loss", "trace_prob_mean", "clip_fraction"):
        torch.testing.assert_close(sums[name][0] / sums[name][1], getattr(terms, name), check_dtype=False)
    assert [float(sums[name][1]) for name in ("on_policy_loss", "off_policy_loss")] == [10, 3]
    if settings:
        assert loss != MixedPolicyLoss()(log_probs, batch, normalizer=normalizer)[0]


def test_before_the_first_update_the_ratio_is_one() -> None:
    log_probs, batch = make_batch()
    batch.old_log_probs = None
    normalizer = Normalizer(batch.mask.sum(), torch.tensor(4), 7)
    log_probs.requires_grad_()
    loss, sums = MixedPolicyLoss(policy_shaping=None)(log_probs, batch, normalizer=normalizer)
    loss.backward()
    on = ~batch.off_policy
    expected = -(batch.advantages[:, None] * batch.mask) / batch.mask.sum()
    assert log_probs.grad is not None and sums["clip_fraction"][0] == 0
    torch.testing.assert_close(log_probs.grad[on], expected[on])


def test_gspo_equals_a_slow_loop() -> None:
    log_probs, batch = make_batch()
    assert batch.old_log_probs is not None
    losses, clipped = sequence_losses(log_probs, batch.old_log_probs, batch.mask, batch.advantages, 0.05, 0.1)
    for row in range(len(log_probs)):
        ratios = [float(log_probs[row, t] - batch.old_log_probs[row, t]) for t in range(5) if batch.mask[row, t]]
        ratio, advantage = math.exp(sum(ratios) / len(ratios)), float(batch.advantages[row])
        expected = -min(ratio * advantage, min(max(ratio, 0.95), 1.1) * advantage)
        assert float(losses[row]) == pytest.approx(expected, rel=1e-5)
    assert clipped.any() and not clipped.all()


def test_a_batch_holds_the_values_of_the_rollout_of_each_row() -> None:
    transcripts = [completion_transcript(f"{n}", [5, 6, 7], [9] * (n + 1) + [2], 2) for n in range(3)]
    rollouts = [
        Rollout([transcripts[0]], "", 0, False, True, advantage=0.5, sampled_log_probs=[[-1.0, -2.0]]),
        Rollout([transcripts[1]], "", 0, True, True, advantage=-1.0, behaviour_log_probs=[[-3.0] * 3]),
        Rollout([transcripts[2]], "", 0, True, True, counts_in_baseline=False),
    ]
    micro = collate_padded([transcripts[2], transcripts[0], transcripts[1]], pad_id=0)
    batch = RolloutBatch.of(micro, rollouts)
    assert batch.mask.sum(1).tolist() == [0, 2, 3] and batch.off_policy.tolist() == [True, False, True]
    assert batch.advantages.tolist() == [0.0, 0.5, -1.0] and batch.old_log_probs is None
    assert batch.sampled_log_probs is not None and batch.behaviour_log_probs is not None
    assert batch.sampled_log_probs[1, :2].tolist() == [-1.0, -2.0] and batch.behaviour_log_probs[2, 0] == -3.0
    assert batch.behaviour_log_probs[1].isnan().all()
    keep_old_log_probs(micro, rollouts, torch.arange(12.0).reshape(3, 4))
    assert rollouts[0].old_log_probs[0].tolist() == [4.0, 5.0] and rollouts[1].old_log_probs[0].tolist() == [8, 9, 10]
    again = RolloutBatch.of(micro, rollouts)
    assert again.old_log_probs is not None and again.old_log_probs[1, :2].tolist() == [4.0, 5.0]


def test_a_loss_of_the_users_own_trains_by_class_path(tiny_model_folder: Path, tmp_path: Path) -> None:
    problems = tmp_path / "problems.jsonl"
    problems.write_text("".join(json.dumps({"prompt": f"{n}+1?", "answer": str(n + 1)}) + "\n" for n in range(4)))
    config = {
        "trainer": {"default_root_dir": str(tmp_path / "run"), "max_steps": 4, "accelerator": "cpu",
                    "logger": {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {
                        "save_dir": str(tmp_path / "run")}}, "log_every_n_steps": 1},
        "model": {"class_path": "lit_rft.stages.GRPO", "init_args": {
            "policy": {"model": str(tiny_model_folder), "lora": {"dropout": 0.0}},
            "optimizer": {"learning_rate": 0.05},
            "objective": {"group_size": 4, "epochs": 2, "entropy_coef": 0.0},
            "loss": {"class_path": "plugins.gspo_loss.GSPOLoss", "init_args": {"clip_low": 1e-4}},
            "advantages": {"class_path": "lit_rft.rollouts.GroupAdvantages", "init_args": {"scale_by_std": False}},
            "reward": "grpo_parts.letter_sum",
            "sampling": {"max_new_tokens": 6, "temperature": 1.0}}},
        "data": {"class_path": "lit_rft.datamodules.MathPromptDataModule", "init_args": {
            "train_files": [str(problems)], "batch_size": 2}},
    }  # fmt: skip
    path = tmp_path / "gspo.yaml"
    path.write_text(json.dumps(config))
    main(["fit", "-c", str(path)])
    logged = next((tmp_path / "run").rglob("metrics.csv")).read_text()
    assert "train/clip_fraction" in logged and "train/on_policy_loss" not in logged
    saved = torch.load(next((tmp_path / "run").rglob("*.ckpt")), weights_only=True)
    assert saved["hyper_parameters"]["loss"]["init_args"] == {"clip_low": 1e-4, "clip_high": 4e-4}
    assert saved["hyper_parameters"]["advantages"]["init_args"]["scale_by_std"] is False


def test_defaults_are_luffys() -> None:
    assert MixedPolicyLoss() == MixedPolicyLoss(0.1, 0.2, 0.2, "tokens", None)
    assert GroupAdvantages() == GroupAdvantages(True, False)
