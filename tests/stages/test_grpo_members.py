"""Which members of a group count in which term of the loss, and with what normalizer."""

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from grpo_parts import grpo_parts

from lit_rft.batches import Prompt
from lit_rft.datamodules import PromptLoader
from lit_rft.generation import SamplingSettings
from lit_rft.models import load_tokenizer
from lit_rft.problems import Problem
from lit_rft.stages import MixedPolicyGRPO, OptimizerSettings, PolicySettings
from lit_rft.testing.tiny_stage import ADAPTERS, fit
from lit_rft.transcripts import PromptFormat

VARIED = SamplingSettings(12, 1.0, stop_token_ids=tuple(range(100, 160)))  # completions of different lengths
TRACE = "a long answer that was written by somebody else"


def rewards(completions: Any, rows: Any) -> list[float]:
    """Different within nearly every group."""
    return [float(sum(map(ord, text)) % 5) for text in completions]


def first_step(
    model: Path, *, cut: bool = False, sampling: SamplingSettings = VARIED, **objective: Any
) -> tuple[Any, dict[str, float]]:
    """A step on two prompts with a trace each: the stage, and what it logged.

    Args:
        cut: the trace has no end of turn, as one that was too long.
    """
    form = PromptFormat(load_tokenizer(str(model)))
    trace = form.completion_ids(TRACE)[: -1 if cut else None]
    prompts = []
    for n in range(2):
        problem = Problem(f"p{n}", ({"role": "user", "content": f"Question {n}?"},), "1", (TRACE,))
        prompts.append(Prompt(problem, form.prompt_ids(problem.prompt), [trace], [TRACE], [[]]))
    L.seed_everything(0, verbose=False)
    settings: dict[str, Any] = {"group_size": 3, "entropy_coef": 0.0, "policy_shaping": None} | objective
    stage = MixedPolicyGRPO(
        PolicySettings(str(model), ADAPTERS), OptimizerSettings(5e-3), sampling=sampling, reward=rewards,
        **grpo_parts(**settings),
    )  # fmt: skip
    trainer = fit(stage, PromptLoader(prompts, batch_size=2), 1)
    return stage, {name: float(value) for name, value in trainer.callback_metrics.items()}


def test_imitated_traces_do_not_enter_the_policy_loss(tiny_model_folder: Path) -> None:
    """`sft_coef` with `traces_per_group=0`: the policy loss is that of the rollouts alone, numerator and normalizer."""
    stage, logged = first_step(tiny_model_folder, traces_per_group=0, sft_coef=1.0)
    assert len(stage.samples) == 6 and not any(one.off_policy for one in stage.samples)
    # one update per rollout: every importance ratio is 1
    total = sum(one.advantage * one.length for one in stage.samples)
    expected = -total / sum(one.length for one in stage.samples)
    assert abs(expected) > 1e-3 and logged["train/sft_loss"] > 0
    assert logged["train/policy_loss"] == pytest.approx(expected, rel=1e-4)
    _, without = first_step(tiny_model_folder, traces_per_group=0)
    assert logged["train/policy_loss"] == pytest.approx(without["train/policy_loss"], rel=1e-5)


def test_a_cut_trace_counts_where_cut_rollouts_do_not(tiny_model_folder: Path) -> None:
    """`mask_truncated` leaves out rollouts without an end; a trace that was cut to its maximum length stays."""
    stage, logged = first_step(tiny_model_folder, cut=True, sampling=SamplingSettings(4, 1.0), mask_truncated=True)
    own = [one for one in stage.samples if not one.off_policy]
    traces = [one for one in stage.samples if one.off_policy]
    assert all(not one.finished for one in [*own, *traces])  # 4 tokens are too few for a random model to end
    counted = torch.tensor([one.length for one in traces]).sum()
    ids = {one.transcripts[0].episode_id for one in traces}
    assert len(ids) == 2 and all(one.advantage for one in traces)
    # the plain ratio to a behaviour policy of probability 1: the trace's own probability
    expected = -sum(one.advantage * one.length for one in traces) / counted * logged["train/trace_prob_mean"]
    same_advantage = len({round(one.advantage, 6) for one in traces}) == 1
    assert logged["train/trace_prob_mean"] > 0 and logged["train/off_policy_loss"] != 0
    assert not same_advantage or logged["train/policy_loss"] == pytest.approx(float(expected), rel=1e-3)
    assert not {"train/on_policy_loss", "train/clip_fraction"} & logged.keys()  # no on-policy token counts


def test_a_group_of_one_is_a_completion(tiny_model_folder: Path) -> None:
    stage, _ = first_step(tiny_model_folder, group_size=1)
    assert stage.objective.traces_per_group == 0 and [s.off_policy for s in stage.samples] == [False, False]
