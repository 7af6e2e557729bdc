"""Prefix-RFT's rollouts: lengths of prefixes, their continuation and reward, refusals, and training."""

import math
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from recorder import Recorder

from lit_rft import MixedPolicyGRPO, SamplingSettings
from lit_rft._phases import Phases
from lit_rft.batches import Prompt, PromptBatch
from lit_rft.datamodules import PromptLoader
from lit_rft.generation import Completion
from lit_rft.losses import PrefixRFT
from lit_rft.models import load_tokenizer
from lit_rft.problems import Problem
from lit_rft.rollouts import CompletionSource, Rollout
from lit_rft.sources import DynamicSampling, TracePrefixes
from lit_rft.stages import MixedPolicyEpisodes, ObjectiveSettings, OptimizerSettings, PolicySettings
from lit_rft.testing.tiny_stage import differs, fit, trained
from lit_rft.transcripts import PromptFormat

END, LIMIT = 2, 12
TRACES = {
    "a": [list(range(100, 109)) + [END]],
    "b": [list(range(200, 219)) + [END], list(range(300, 304)) + [END]],
    "c": [],
}


class Chat:
    end_of_turn_id = END

    def text(self, ids: Any) -> str:
        return " ".join(map(str, ids))


class Policy:
    device, chat = torch.device("cpu"), Chat()

    def __init__(self, step: int = 0, sampling_round: int = 0) -> None:
        self.step, self.phases = step, Phases()
        self.occasion = f"{step}+{sampling_round}" if sampling_round else str(step)


class Sampler:
    """Completions of six tokens, the last one an end."""

    def __init__(self) -> None:
        self.asked: list[list[tuple[str, list[int]]]] = []

    def __call__(self, policy: Any, prompts: Any, sizes: Any, sampling: Any, **_: Any) -> list[list[Completion]]:
        self.asked.append(list(prompts))
        return [[Completion([7] * 5 + [END], [-0.5] * 6, True)] * size for size in sizes]


def make_source(settings: Any = None, reward: Any = None) -> tuple[Any, Sampler]:
    sampler = Sampler()
    inner = CompletionSource(
        reward or (lambda completions, rows: [float(len(text.split())) for text in completions]),
        SamplingSettings(LIMIT, 1.0), group_size=3, traces_per_group=1, sampler=sampler,
    )  # type: ignore[arg-type]  # fmt: skip
    return (settings or TracePrefixes())(inner), sampler


def batch(names: str) -> PromptBatch:
    prompts = []
    for name in names:
        traces = TRACES[name]
        prompts.append(
            Prompt(Problem(name, (), "1"), [5, ord(name)], traces, ["from the data"] * len(traces), [[]] * len(traces))
        )
    return PromptBatch(prompts)


def prefix_length(rollout: Rollout) -> int:
    return sum(math.isnan(value) for value in rollout.behaviour_log_probs[0])


def test_a_prefix_is_continued_and_graded_with_its_continuation() -> None:
    source, sampler = make_source(TracePrefixes(high=0.6, low_end=0.6))
    rollouts = source(Policy(), batch("ac"))
    assert [(r.group, r.off_policy) for r in rollouts] == [
        (0, False),
        (0, False),
        (0, True),
        (1, False),
        (1, False),
        (1, False),
    ]
    (name, ids), *others = sampler.asked[0]
    assert name == "0/a/prefix" and not others and ids == [5, ord("a"), *TRACES["a"][0][:6]]
    continued = rollouts[2]
    assert continued.transcripts[0].utterance_ids(0) == [*TRACES["a"][0][:6], *[7] * 5, END]
    assert prefix_length(continued) == 6 and continued.behaviour_log_probs[0][6:] == [-0.5] * 6
    assert continued.finished and continued.reward == 12 and rollouts[0].reward == 6
    assert float(source.metrics["continued_prefixes"]) == 1 and float(source.metrics["prefix_share"]) == pytest.approx(
        0.6
    )


def test_a_continued_prefix_is_at_most_as_long_as_a_completion() -> None:
    source, _ = make_source(TracePrefixes(high=0.8, low_end=0.8))
    (continued,) = [r for r in source(Policy(), batch("a")) if r.off_policy]
    assert prefix_length(continued) == 8 and continued.length == LIMIT and not continued.finished
    assert [len(row) for row in continued.behaviour_log_probs] == [LIMIT]


def test_the_end_of_a_trace_is_never_given() -> None:
    source, _ = make_source(TracePrefixes(high=1.0, low_end=1.0))
    (continued,) = [r for r in source(Policy(), batch("a")) if r.off_policy]
    assert prefix_length(continued) == 9


def test_prefixes_shorten_along_a_cosine() -> None:
    settings = TracePrefixes(0.9, 0.1, decay_steps=100)
    assert [settings.low(step) for step in (0, 50, 100, 500)] == pytest.approx([0.9, 0.5, 0.1, 0.1])
    lengths: dict[int, list[int]] = {}
    for step in (0, 50, 100):
        for seed in range(40):
            source, _ = make_source(TracePrefixes(0.9, 0.1, 100, seed))
            (continued,) = [r for r in source(Policy(step), batch("a")) if r.off_policy]
            lengths.setdefault(step, []).append(prefix_length(continued))
    assert set(lengths[0]) <= {8, 9} and min(lengths[50]) == 5 and max(lengths[50]) == 8
    assert min(lengths[100]) == 1 and max(lengths[100]) == 8


def test_any_of_several_traces_is_chosen_independently_of_earlier_steps() -> None:
    source, _ = make_source(TracePrefixes(1.0, 1.0))
    first_tokens = []
    for step in range(12):
        again, _ = make_source(TracePrefixes(1.0, 1.0))
        found = [next(r for r in s(Policy(step), batch("b")) if r.off_policy) for s in (source, again)]
        ids = [rollout.transcripts[0].utterance_ids(0) for rollout in found]
        assert ids[0] == ids[1]  # nothing to save for an exact resumption
        first_tokens.append(ids[0][0])
    assert set(first_tokens) == {200, 300}


def test_a_later_round_of_a_step_draws_other_prefixes_under_names_of_its_own() -> None:
    source, sampler = make_source(TracePrefixes(high=0.9, low_end=0.1, decay_steps=1))
    lengths = []
    for number in range(8):
        (continued,) = [r for r in source(Policy(3, number), batch("a")) if r.off_policy]
        lengths.append(prefix_length(continued))
    names = [asked[0][0] for asked in sampler.asked if asked[0][0].endswith("/prefix")]
    assert names == ["3/a/prefix", *(f"3+{number}/a/prefix" for number in range(1, 8))]
    assert len(set(lengths)) > 1


def test_stages_without_one_trace_per_group_are_refused() -> None:
    def stage(traces: int, source: Any) -> Any:
        return MixedPolicyGRPO(objective=ObjectiveSettings(traces_per_group=traces), source=source)

    stage(1, lambda source: TracePrefixes()(DynamicSampling(2)(source)))
    for traces in (0, 2):
        with pytest.raises(ValueError, match=f"set objective.traces_per_group to 1, got {traces}"):
            stage(traces, TracePrefixes())
    with pytest.raises(ValueError, match="TracePrefixes needs completions of prompts, not episodes"):
        MixedPolicyEpisodes(source=TracePrefixes())
    for objective in ({"sft_coef": 1.0}, {"imitated_traces": 1}):
        with pytest.raises(ValueError, match=r"continued by the policy, .*: set objective.sft_coef to 0"):
            MixedPolicyGRPO(
                objective=ObjectiveSettings(traces_per_group=1, **objective),  # type: ignore[arg-type]
                source=lambda source: DynamicSampling(2)(TracePrefixes()(source)),
            )
    for wrong in ({"high": 1.5}, {"high": 0.3, "low_end": 0.5}, {"low_end": -0.1}, {"decay_steps": 0}):
        with pytest.raises(ValueError, match=r"expected 0 <= source\.low_end <= source\.high <= 1"):
            TracePrefixes(**wrong)  # type: ignore[arg-type]


# --- training --------------------------------------------------------------------------------------------------------


def share_of_vowels(completions: Any, rows: Any) -> list[float]:
    return [sum(letter in "aeiou" for letter in text) / max(len(text), 1) for text in completions]


def train(model: Path, source: Any, loss: Any, steps: int) -> tuple[MixedPolicyGRPO, list[dict[str, float]]]:
    form, trace, prompts = PromptFormat(load_tokenizer(str(model))), "aeiouaei", []
    for n in range(2):
        problem = Problem(f"p{n}", ({"role": "user", "content": f"Question {n}?"},), "1", (trace,))
        prompts.append(Prompt(problem, form.prompt_ids(problem.prompt), [form.completion_ids(trace)], [trace], [[]]))
    L.seed_everything(0, verbose=False)
    stage = MixedPolicyGRPO(
        PolicySettings(model=str(model), lora=None), OptimizerSettings(learning_rate=1e-2),
        ObjectiveSettings(group_size=6, traces_per_group=1, entropy_coef=0.0),
        SamplingSettings(max_new_tokens=8, temperature=1.0), reward=share_of_vowels, source=source, loss=loss,
    )  # fmt: skip
    recorder = Recorder()
    fit(stage, PromptLoader(prompts, batch_size=2), steps, callbacks=[recorder])
    return stage, recorder.logged


def test_the_reward_rises(tiny_model_folder: Path) -> None:
    _, logged = train(tiny_model_folder, TracePrefixes(decay_steps=20), PrefixRFT(), 32)
    rewards = [metrics["train/reward"] for metrics in logged]
    assert sum(rewards[-3:]) / 3 > sum(rewards[:3]) / 3 + 0.15, rewards
    assert logged[0]["train/continued_prefixes"] == 2
    assert logged[0]["train/prefix_share"] > 0.7 and logged[-1]["train/prefix_share"] < 0.95
    assert 0.2 <= logged[0]["train/prefix_trained_fraction"] <= 0.5


def test_every_knob_changes_the_result(tiny_model_folder: Path) -> None:
    settings = [
        (TracePrefixes(), PrefixRFT()), (TracePrefixes(0.5), PrefixRFT()), (TracePrefixes(decay_steps=2), PrefixRFT()),
        (TracePrefixes(low_end=0.5, decay_steps=2), PrefixRFT()), (TracePrefixes(decay_steps=2, seed=1), PrefixRFT()),
        (TracePrefixes(), PrefixRFT(1.0)), (None, PrefixRFT()),
    ]  # fmt: skip
    runs = [trained(train(tiny_model_folder, source, loss, 5)[0]) for source, loss in settings]
    for index, run in enumerate(runs):
        assert all(differs(run, other, rtol=1e-5, atol=1e-7) for other in runs[:index])
