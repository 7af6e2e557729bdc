"""Off-policy traces in GRPO: what is learnt from them, and what is said where there are none."""

import json
import logging
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from grpo_stage import differ, make_grpo, make_prompts
from recorder import Recorder

from lit_rft.batches import PromptBatch
from lit_rft.datamodules import MathPromptDataModule, PromptLoader
from lit_rft.testing.tiny_stage import fit, trained


def test_traces_take_turns_however_many_steps_a_rollout_has(tiny_model_folder: Path) -> None:
    stage = make_grpo(tiny_model_folder, objective={"mini_batches": 2})
    seen = []

    class Sees(L.Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            seen.append({one.text for one in stage.samples if one.off_policy})

    fit(stage, PromptLoader(make_prompts(tiny_model_folder), batch_size=4), 4, callbacks=[Sees()])
    assert len(seen) == 2 and not seen[0] & seen[1]


def test_supervised_steps_without_traces_are_refused(tiny_model_folder: Path) -> None:
    stage = make_grpo(tiny_model_folder, objective={"sft_steps": 2})
    with pytest.raises(ValueError, match="sft_steps needs off-policy traces"):
        fit(stage, PromptLoader(make_prompts(tiny_model_folder, traces=0), batch_size=2), 1)


def test_traces_that_are_only_imitated_change_no_advantage(tiny_model_folder: Path) -> None:
    found = []
    for coefficient in (0.0, 1.0):
        stage = make_grpo(tiny_model_folder, objective={"traces_per_group": 0, "sft_coef": coefficient})
        fit(stage, PromptLoader(make_prompts(tiny_model_folder), batch_size=2), 1)
        found.append(([one.advantage for one in stage.samples], trained(stage)))
    assert found[0][0] == found[1][0]
    assert differ(found[0][1], found[1][1])


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
    with pytest.raises(ValueError, match=r"all 4 are longer than max_trace_length=40; raise .*long_traces: cut"):
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
