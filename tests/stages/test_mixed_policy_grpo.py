"""LUFFY's stage on a tiny model: how a step is split changes nothing, every knob counts, no signal costs no pass."""

import json
import logging
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from grpo_parts import grpo_parts

from lit_rft.batches import Prompt, PromptBatch
from lit_rft.datamodules import MathPromptDataModule, PromptLoader
from lit_rft.generation import SamplingSettings
from lit_rft.models import LoraSettings, load_tokenizer
from lit_rft.problems import Problem
from lit_rft.rewards import RewardError, RewardSum
from lit_rft.rollouts import RolloutBatch
from lit_rft.stages import (
    AnsweringSettings,
    BatchingSettings,
    MixedPolicyGRPO,
    OptimizerSettings,
    PolicySettings,
)
from lit_rft.stages.core import group_update, micro_batches
from lit_rft.stages.core.group_update import GroupUpdate
from lit_rft.testing.tiny import make_model, make_tokenizer
from lit_rft.testing.tiny_stage import ADAPTERS, differs, fit, speak_out, trained, updated
from lit_rft.transcripts import PromptFormat, shared_step_batch


def vowels(completions: Any, rows: Any) -> list[float]:
    """A reward that a random model sometimes earns."""
    return [float(sum(letter in "aeiou" for letter in text) % 2) for text in completions]


def make_prompts(model: Path, number: int = 4, traces: int = 2) -> list[Prompt]:
    form = PromptFormat(load_tokenizer(str(model)))
    prompts = []
    for index in range(number):
        texts = [f"answer {index} {'long ' * turn}a" for turn in range(traces)]
        problem = Problem(
            f"p{index}", ({"role": "user", "content": f"Question {index}?" * (1 + index % 3)},), "1", tuple(texts)
        )
        ids = form.prompt_ids(problem.prompt)
        prompts.append(Prompt(problem, ids, [form.completion_ids(text) for text in texts], texts, [[]] * traces))
    return prompts


def make_grpo(
    model: Path, *, seed: int = 0, objective: dict[str, Any] | None = None, **options: Any
) -> MixedPolicyGRPO:
    settings: dict[str, Any] = {
        "optimizer": OptimizerSettings(learning_rate=5e-3),
        "sampling": SamplingSettings(max_new_tokens=8, temperature=1.0),
        "reward": vowels,
    }
    lora = options.pop("lora", ADAPTERS)
    L.seed_everything(seed, verbose=False)
    return MixedPolicyGRPO(
        PolicySettings(model=str(model), lora=lora),
        **{**settings, **grpo_parts(**{"group_size": 4, **(objective or {})}), **options},
    )


def after(model: Path, *, steps: int = 2, traces: int = 2, **options: Any) -> dict[str, torch.Tensor]:
    stage = make_grpo(model, **options)
    fit(stage, PromptLoader(make_prompts(model, traces=traces), batch_size=2), steps)
    return updated(stage)


def differ(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return differs(a, b, rtol=1e-5, atol=1e-7)


class Recorder(L.Callback):
    def __init__(self) -> None:
        self.logged: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        self.logged.append({name: float(value) for name, value in trainer.callback_metrics.items()})


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


@pytest.mark.parametrize("tokens", [1, 150, 400])
@pytest.mark.parametrize("normalizer", ["tokens", "max_length"])
def test_micro_batches_change_nothing(tiny_model_folder: Path, tokens: int, normalizer: str) -> None:
    objective = {"normalizer": normalizer, "kl_coef": 0.1, "sft_coef": 0.1, "mini_batches": 2, "epochs": 2}
    whole = after(tiny_model_folder, steps=4, objective=objective)
    split = after(tiny_model_folder, steps=4, objective=objective, batching=BatchingSettings(tokens))
    for name in whole:
        torch.testing.assert_close(split[name], whole[name], rtol=1e-3, atol=5e-5)


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


def test_traces_take_turns_however_many_steps_a_rollout_has(tiny_model_folder: Path) -> None:
    stage = make_grpo(tiny_model_folder, objective={"mini_batches": 2})
    seen = []

    class Sees(L.Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            seen.append({one.text for one in stage.samples if one.off_policy})

    fit(stage, PromptLoader(make_prompts(tiny_model_folder), batch_size=4), 4, callbacks=[Sees()])
    assert len(seen) == 2 and not seen[0] & seen[1]


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


def test_supervised_steps_without_traces_are_refused(tiny_model_folder: Path) -> None:
    stage = make_grpo(tiny_model_folder, objective={"sft_steps": 2})
    with pytest.raises(ValueError, match="sft_steps needs off-policy traces"):
        fit(stage, PromptLoader(make_prompts(tiny_model_folder, traces=0), batch_size=2), 1)


def test_folded_adapters_sample_what_training_sees(tiny_model_folder: Path) -> None:
    folded = after(tiny_model_folder, steps=3)
    plain = after(tiny_model_folder, steps=3, answering=AnsweringSettings(merge_adapters=False))
    for name in folded:
        torch.testing.assert_close(folded[name], plain[name], rtol=1e-3, atol=5e-5)


def test_rollouts_do_not_depend_on_how_many_are_sampled_at_once(tiny_model_folder: Path) -> None:
    prompts, found = make_prompts(tiny_model_folder), []
    for slots in (1, 3, 64):
        stage = make_grpo(tiny_model_folder, max_concurrent=slots)
        fit(stage, PromptLoader(prompts, batch_size=4), 1)
        found.append([(one.text, one.reward) for one in stage.samples])
    assert found[0] == found[1] == found[2]


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
def test_every_knob_changes_the_result(tiny_model_folder: Path, knob: dict[str, Any]) -> None:
    seed = knob.get("seed", 0)
    base = after(tiny_model_folder, steps=3)
    rest = {name: value for name, value in knob.items() if name != "seed"}
    if seed:
        stage = make_grpo(tiny_model_folder)
        stage.source.seed = seed
        fit(stage, PromptLoader(make_prompts(tiny_model_folder), batch_size=2), 3)
        assert differ(base, trained(stage))
    else:
        assert differ(base, after(tiny_model_folder, steps=3, **rest))


def test_traces_that_are_only_imitated_change_no_advantage(tiny_model_folder: Path) -> None:
    found = []
    for coefficient in (0.0, 1.0):
        stage = make_grpo(tiny_model_folder, objective={"traces_per_group": 0, "sft_coef": coefficient})
        fit(stage, PromptLoader(make_prompts(tiny_model_folder), batch_size=2), 1)
        found.append(([one.advantage for one in stage.samples], trained(stage)))
    assert found[0][0] == found[1][0]
    assert differ(found[0][1], found[1][1])


@pytest.mark.parametrize("side", ["clip_low", "clip_high"])
def test_clipping_counts_where_a_rollout_is_used_again(tiny_model_folder: Path, side: str) -> None:
    again = {"epochs": 3}
    plain = after(tiny_model_folder, steps=3, objective=again)
    assert differ(plain, after(tiny_model_folder, steps=3, objective={**again, side: 0.001}))


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


def test_luffy_learns_from_traces_what_grpo_has_no_signal_for(tiny_model_folder: Path) -> None:
    """Only the trace's words are rewarded: a random model never says them."""

    def said(completions: Any, rows: Any) -> list[float]:
        return [float(text.startswith("answer")) for text in completions]

    def probability(objective: dict[str, Any]) -> float:
        recorder = Recorder()
        stage = make_grpo(tiny_model_folder, objective={"entropy_coef": 0.0, **objective}, reward=said, lora=None)
        fit(stage, PromptLoader(make_prompts(tiny_model_folder, traces=1), batch_size=4), 15, callbacks=[recorder])
        policy = stage.current_policy()
        traces = stage.source.traces(policy, PromptBatch(make_prompts(tiny_model_folder, traces=1)))
        for trace in traces:
            trace.off_policy = False
        stage.update.keep_old_log_probs(policy, traces)
        return float(torch.cat([one.old_log_probs[0] for one in traces]).exp().mean())

    on_policy, mixed = probability({"traces_per_group": 0}), probability({})
    assert mixed > 3 * on_policy


def test_behaviour_probabilities_of_traces_count_where_they_are_known(tiny_model_folder: Path) -> None:
    """log pi_phi = 0 is what is assumed without them."""
    found = []
    for value in (None, 0.0, -1.0):
        prompts = make_prompts(tiny_model_folder)
        for prompt in prompts if value is not None else []:
            prompt.trace_log_probs[:] = [[value] * len(ids) for ids in prompt.traces]
        stage = make_grpo(tiny_model_folder)
        fit(stage, PromptLoader(prompts, batch_size=2), 2)
        found.append(trained(stage))
    assert not differ(found[0], found[1]) and differ(found[0], found[2])


def test_mini_batches_are_stretches_of_the_batch(tiny_model_folder: Path) -> None:
    stage = make_grpo(tiny_model_folder, objective={"mini_batches": 2})
    fit(stage, PromptLoader(make_prompts(tiny_model_folder), batch_size=4), 2)
    parts = stage.update.mini_batches(stage.current_policy(), stage.samples, 4)
    assert [sorted({one.group for one in part}) for part in parts] == [[0, 1], [2, 3]]


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
    ],
)
def test_bad_settings_are_refused(bad: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        grpo_parts(**bad)


def test_greedy_groups_are_refused(tiny_model_folder: Path) -> None:
    with pytest.raises(ValueError, match="greedy completions of a prompt are all the same"):
        make_grpo(tiny_model_folder, sampling=SamplingSettings(8, 0.0))


def fit_on_rows(model: Path, folder: Path, rows: list[dict[str, Any]], **objective: Any) -> L.Trainer:
    path = folder / "problems.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"{n}+1?", "answer": n, **row}) + "\n" for n, row in enumerate(rows)))
    data = MathPromptDataModule(str(model), train_files=[str(path)], batch_size=2, max_trace_length=40)
    trainer = L.Trainer(accelerator="cpu", max_steps=1, logger=False, enable_checkpointing=False,
                        enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder)  # fmt: skip
    trainer.fit(make_grpo(model, objective=objective), datamodule=data)
    return trainer


@pytest.mark.parametrize(
    "objective",
    [{}, {"traces_per_group": 0, "sft_coef": 1.0}, {"traces_per_group": 0, "sft_steps": 1}],
    ids=["traces_per_group", "sft_coef", "sft_steps"],
)
def test_no_trace_at_all_is_refused(objective: dict[str, Any], tiny_model_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"unknown column 'trace'; did you mean 'traces'"):
        fit_on_rows(tiny_model_folder, tmp_path, [{"trace": "It is 1."}] * 4, **objective)
    with pytest.raises(ValueError, match=r"needs off-policy traces, but none of 4 .* none was found; set their column"):
        fit_on_rows(tiny_model_folder, tmp_path, [{"worked": "It is 1."}] * 4, **objective)
    with pytest.raises(ValueError, match=r"all 4 are longer than max_trace_length=40"):
        fit_on_rows(tiny_model_folder, tmp_path, [{"traces": ["so " * 99]}] * 4, **objective)


def test_grpo_needs_no_traces_and_luffy_not_everywhere(
    tiny_model_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert fit_on_rows(tiny_model_folder, tmp_path, [{}] * 4, traces_per_group=0).global_step == 1
    with caplog.at_level(logging.INFO, "lit_rft"):
        trainer = fit_on_rows(tiny_model_folder, tmp_path, [{"traces": ["It is 1."]}, {}, {}, {}])
    assert trainer.global_step == 1
    assert "4 problems, 1 off-policy traces; problems without any: 3" in caplog.text


def test_a_loader_without_traces_is_warned_of_once(tiny_model_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "lit_rft"):
        fit(make_grpo(tiny_model_folder), PromptLoader(make_prompts(tiny_model_folder, traces=0), batch_size=2), 2)
    assert caplog.text.count("none of a batch's 2 prompts has an off-policy trace: this step is plain GRPO") == 1
    caplog.clear()
    with caplog.at_level(logging.WARNING, "lit_rft"):
        stage = make_grpo(tiny_model_folder, objective={"traces_per_group": 0})
        fit(stage, PromptLoader(make_prompts(tiny_model_folder, traces=0), batch_size=2), 1)
    assert "off-policy trace" not in caplog.text
