"""How a step of GRPO is split, laid out and sampled changes nothing; what costs no pass."""

import logging
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from grpo_stage import after, differ, make_grpo, make_prompts, vowels
from recorder import Recorder

from lit_rft.datamodules import PromptLoader
from lit_rft.models import LoraSettings
from lit_rft.rollouts import MixedPolicyLoss, RolloutBatch
from lit_rft.stages import AnsweringSettings, BatchingSettings
from lit_rft.stages.core import group_update, micro_batches
from lit_rft.stages.core.group_update import GroupUpdate
from lit_rft.testing.tiny import make_model, make_tokenizer
from lit_rft.testing.tiny_stage import fit, speak_out, trained, updated
from lit_rft.transcripts import shared_step_batch


@pytest.mark.parametrize("normalizer", ["tokens", "max_length"])
def test_micro_batches_change_nothing(tiny_model_folder: Path, normalizer: str) -> None:
    objective = {"normalizer": normalizer, "kl_coef": 0.1, "sft_coef": 0.1, "mini_batches": 2, "epochs": 2}
    whole = after(tiny_model_folder, steps=4, objective=objective)
    for tokens in (1, 150, 400):
        split = after(tiny_model_folder, steps=4, objective=objective, batching=BatchingSettings(tokens))
        for name in whole:
            torch.testing.assert_close(split[name], whole[name], rtol=1e-3, atol=5e-5, msg=f"{name}, {tokens} tokens")


def test_packing_needs_prompts_that_are_not_shared(tiny_model_folder: Path) -> None:
    packed = {"batching": BatchingSettings(packing=True)}
    with pytest.raises(ValueError, match="packing has no effect with share_prompts"):
        make_grpo(tiny_model_folder, **packed)
    plain = after(tiny_model_folder, share_prompts=False)
    for name, weight in after(tiny_model_folder, share_prompts=False, **packed).items():
        torch.testing.assert_close(weight, plain[name], rtol=1e-3, atol=5e-5)


@pytest.mark.parametrize("objective", [{}, {"kl_coef": 0.1, "sft_coef": 0.1, "epochs": 2}], ids=str)
def test_sharing_prompts_changes_nothing(
    tiny_model_folder: Path, objective: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    counted = lambda *a, **k: calls.append(1) or shared_step_batch(*a, **k)  # noqa: E731
    monkeypatch.setattr(micro_batches, "shared_step_batch", counted)
    shared = after(tiny_model_folder, steps=4, objective=objective)
    assert calls
    calls.clear()
    plain = after(tiny_model_folder, steps=4, objective=objective, share_prompts=False)
    assert not calls
    for name in shared:
        torch.testing.assert_close(shared[name], plain[name], rtol=1e-3, atol=5e-5)


def test_prompts_are_shared_in_half_precision_too(tiny_model_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Float32 adapters on a bf16 backbone can be tried only as they train, under autocast."""
    stage = make_grpo(tiny_model_folder)
    fit(stage, PromptLoader(make_prompts(tiny_model_folder), batch_size=2), 1, precision="bf16-mixed")
    assert stage.update.split.share_prompts and "recomputes the prompt for each completion" not in caplog.text


@pytest.mark.parametrize(
    ("architecture", "targets"), [("bloom", "all-linear"), ("mamba", ["in_proj", "x_proj"])], ids=["bloom", "mamba"]
)
def test_what_no_fast_path_serves_trains_too_and_says_so_once(
    architecture: str, targets: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer = make_tokenizer()
    settings = {"state_size": 4} if architecture == "mamba" else {}
    make_model(architecture, len(tokenizer), **settings).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    lora = LoraSettings(rank=4, alpha=8, dropout=0.0, target_modules=targets)
    with caplog.at_level(logging.WARNING, "lit_rft"):
        whole = after(tmp_path, steps=3, lora=lora)
    said = [record.message for record in caplog.records if record.name.startswith("lit_rft")]
    for line in ("recomputes the full prefix at every sampled token", "recomputes the prompt for each completion"):
        assert sum(line in message for message in said) == 1, said
    assert any(weight.abs().max() > 1e-3 for name, weight in whole.items() if "lora_B" in name)  # it did train
    split = after(tmp_path, steps=3, lora=lora, batching=BatchingSettings(1))
    for name in whole:
        torch.testing.assert_close(split[name], whole[name], rtol=1e-3, atol=5e-5)


def test_merged_adapters_sample_what_training_sees(tiny_model_folder: Path) -> None:
    merged = after(tiny_model_folder, steps=3)
    plain = after(tiny_model_folder, steps=3, answering=AnsweringSettings(merge_adapters=False))
    for name in merged:
        torch.testing.assert_close(merged[name], plain[name], rtol=1e-3, atol=5e-5)


def test_rollouts_do_not_depend_on_how_many_are_sampled_at_once(tiny_model_folder: Path) -> None:
    prompts, found = make_prompts(tiny_model_folder), []
    for slots in (1, 3, 64):
        stage = make_grpo(tiny_model_folder, max_concurrent=slots)
        fit(stage, PromptLoader(prompts, batch_size=4), 1)
        found.append([(one.text, one.reward) for one in stage.samples])
    assert found[0] == found[1] == found[2]


def test_groups_without_a_signal_cost_no_pass(tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = make_grpo(
        tiny_model_folder, objective={"entropy_coef": 0.0}, reward=lambda completions, rows: [1.0] * len(completions)
    )
    passes = []
    original = group_update.utterance_log_probs
    monkeypatch.setattr(group_update, "utterance_log_probs", lambda *a, **k: passes.append(1) or original(*a, **k))
    stage.configure_model()
    before = trained(stage)
    recorder = Recorder()
    fit(stage, PromptLoader(make_prompts(tiny_model_folder), batch_size=2), 2, callbacks=[recorder])
    assert not passes and recorder.logged[-1]["train/no_signal_fraction"] == 1.0
    assert not differ(before, trained(stage))


def test_a_group_without_a_signal_beside_one_with_it_costs_no_pass(
    tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reward(completions: Any, rows: Any) -> list[float]:
        odd = [row["id"] in ("p1", "p3") for row in rows]
        return [value if has else 1.0 for value, has in zip(vowels(completions, rows), odd, strict=True)]

    seen: list[set[str]] = []
    original = group_update.utterance_log_probs

    def forward(model: Any, micro: Any, **options: Any) -> Any:
        seen.append({name.partition("/")[0] for name in micro.episode_ids})
        return original(model, micro, **options)

    def updates(entropy_coef: float) -> dict[str, torch.Tensor]:
        seen.clear()
        stage = make_grpo(tiny_model_folder, reward=reward, objective={"entropy_coef": entropy_coef})
        fit(stage, PromptLoader(make_prompts(tiny_model_folder), batch_size=4), 2)
        return updated(stage)

    monkeypatch.setattr(group_update, "utterance_log_probs", forward)
    skipped = updates(0.0)
    assert seen and set().union(*seen) == {"p1", "p3"}
    whole = updates(1e-30)  # needs them all
    assert set().union(*seen) == {"p0", "p1", "p2", "p3"}
    for name, value in whole.items():
        torch.testing.assert_close(skipped[name], value, rtol=1e-4, atol=1e-6)


def test_one_update_needs_no_old_log_probs_and_equals_the_pass_that_would_make_them(tiny_model_folder: Path) -> None:
    plain = after(tiny_model_folder, steps=2)

    class Remembers(GroupUpdate):
        def step(self, policy: Any, rollouts: Any) -> Any:
            assert not any(rollout.old_log_probs for rollout in rollouts)
            self.keep_old_log_probs(policy, rollouts)
            return super().step(policy, rollouts)

    compared = []

    def loss(log_probs: torch.Tensor, rollouts: RolloutBatch, *, normalizer: Any) -> Any:
        assert rollouts.old_log_probs is not None
        on = ~rollouts.off_policy
        torch.testing.assert_close(rollouts.old_log_probs[on], log_probs.detach()[on], rtol=1e-4, atol=1e-5)
        compared.append(int(on.sum()))
        return policy_loss(log_probs, rollouts, normalizer=normalizer)

    L.seed_everything(0, verbose=False)
    stage = make_grpo(tiny_model_folder)
    policy_loss, stage.update.policy_loss = stage.update.policy_loss, loss
    stage.update.__class__ = Remembers
    fit(stage, PromptLoader(make_prompts(tiny_model_folder), batch_size=2), 2)
    assert sum(compared) > 0
    for name, value in trained(stage).items():
        torch.testing.assert_close(value, plain[name], rtol=1e-3, atol=5e-5)


def test_sampled_log_probs_are_those_of_the_training_pass(tiny_model_folder: Path) -> None:
    stage, fresh, silent = (make_grpo(tiny_model_folder) for _ in range(3))
    for one in (stage, fresh):  # the weights before the step, and ones whose adapters do nothing
        speak_out(one)
    silent.configure_model()
    fit(stage, PromptLoader(make_prompts(tiny_model_folder), batch_size=2), 1)
    silent.update.keep_old_log_probs(silent.current_policy(), stage.samples)
    without = torch.cat([one.old_log_probs[0] for one in stage.samples if not one.off_policy])
    fresh.update.keep_old_log_probs(fresh.current_policy(), stage.samples)
    for one in stage.samples:
        if not one.off_policy:
            sampled = torch.tensor(one.sampled_log_probs[0])
            torch.testing.assert_close(one.old_log_probs[0], sampled, rtol=1e-4, atol=1e-4)
    acting = torch.cat([one.old_log_probs[0] for one in stage.samples if not one.off_policy])
    assert (acting - without).abs().max() > 0.1


def test_mini_batches_are_stretches_of_the_batch(tiny_model_folder: Path) -> None:
    stage = make_grpo(tiny_model_folder, objective={"mini_batches": 2})
    fit(stage, PromptLoader(make_prompts(tiny_model_folder), batch_size=4), 2)
    parts = stage.update.mini_batches(stage.current_policy(), stage.samples)
    assert [sorted({one.group for one in part}) for part in parts] == [[0, 1], [2, 3]]


def test_losses_know_the_optimiser_step_within_a_batch(tiny_model_folder: Path) -> None:
    steps: list[int] = []

    def loss(log_probs: Any, rollouts: Any, *, normalizer: Any) -> Any:
        steps.append(normalizer.step)
        return MixedPolicyLoss()(log_probs, rollouts, normalizer=normalizer)

    stage = make_grpo(tiny_model_folder, objective={"mini_batches": 2, "epochs": 2}, loss=loss)
    fit(stage, PromptLoader(make_prompts(tiny_model_folder), batch_size=4), 8)
    assert sorted(set(steps)) == list(range(8)) and steps == sorted(steps)
