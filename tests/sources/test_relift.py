"""ReLIFT: which traces are collected, when they are imitated, exact resume, and training."""

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from lit_rft import MixedPolicyGRPO, SamplingSettings
from lit_rft.batches import Prompt, PromptBatch
from lit_rft.datamodules import PromptLoader
from lit_rft.models import load_tokenizer
from lit_rft.problems import Problem
from lit_rft.rollouts import Rollout
from lit_rft.sources import ReLIFT
from lit_rft.stages import ObjectiveSettings, OptimizerSettings, PolicySettings
from lit_rft.testing.tiny_stage import differs, fit, trained
from lit_rft.transcripts import PromptFormat, completion_transcript


class Traced:
    """A source of two completions and a trace for each prompt; the rewards are given by the prompt's name."""

    imitated_traces = 1

    def __init__(self, rewards: dict[str, list[float]]) -> None:
        self.rewards, self.metrics = rewards, {"score": torch.tensor(1.0)}

    def __call__(self, policy: Any, batch: PromptBatch) -> list[Rollout]:
        rollouts, traces = [], []
        for group, prompt in enumerate(batch.prompts):
            name = prompt.problem.id
            rollouts += [Rollout([completion_transcript(name, [5], [8, 2], 2)], name, group, False, True, reward)
                         for reward in self.rewards[name]]  # fmt: skip
            traces.append(Rollout([completion_transcript(name, [5], [9, 2], 2)], f"trace of {name}", group, True, True,
                                  counts_in_baseline=False))  # fmt: skip
        return rollouts + traces

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


class Device:
    device = torch.device("cpu")


def ask(source: Any, names: str) -> tuple[list[str], list[str]]:
    """Sampled texts, and those of the imitated traces."""
    batch = PromptBatch([Prompt(Problem(name, (), "1", ()), [5], [], [], []) for name in names])
    rollouts = source(Device(), batch)
    assert all(rollout.group < len(names) for rollout in rollouts)
    sampled = [rollout.text for rollout in rollouts if rollout.counts_in_baseline]
    return sampled, [rollout.text for rollout in rollouts if not rollout.counts_in_baseline]


@pytest.mark.parametrize("settings", [{"traces_per_group": 0}, {"traces_per_group": 1, "sft_coef": 1.0}], ids=str)
def test_a_stage_without_imitated_traces_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="ReLIFT imitates traces outside the groups: set objective"):
        MixedPolicyGRPO(objective=ObjectiveSettings(**settings), source=ReLIFT())
    for enough in ({"traces_per_group": 0, "sft_coef": 1.0}, {"traces_per_group": 1, "imitated_traces": 1}):
        MixedPolicyGRPO(objective=ObjectiveSettings(**enough), source=ReLIFT())


REWARDS = {"a": [0.0, 0.0], "b": [0.0, 1.0], "c": [0.0, 0.0], "d": [1.0, 1.0], "e": [0.0, 0.0], "f": [0.3, 0.0]}


def test_traces_of_failed_prompts_are_imitated_once_there_are_enough() -> None:
    source = ReLIFT(2)(Traced(REWARDS))
    assert ask(source, "ab") == (["a", "a", "b", "b"], [])
    assert float(source.metrics["hard_traces"]) == 1 and float(source.metrics["imitated_traces"]) == 0
    assert ask(source, "dce")[1] == ["trace of a", "trace of c"]
    assert float(source.metrics["hard_traces"]) == 1 and float(source.metrics["imitated_traces"]) == 2
    assert float(source.metrics["score"]) == 1.0
    assert ask(source, "a")[1] == ["trace of e", "trace of a"]
    assert ask(ReLIFT(1)(Traced(REWARDS)), "f")[1] == []
    assert ask(ReLIFT(1, max_reward=0.3)(Traced(REWARDS)), "f")[1] == ["trace of f"]
    with pytest.raises(ValueError, match=r"source.size must be >= 1, got 0"):
        ReLIFT(0)


def test_a_trace_within_the_group_does_not_solve_its_prompt() -> None:
    class WithMember(Traced):
        def __call__(self, policy: Any, batch: PromptBatch) -> list[Rollout]:
            members = [
                Rollout([completion_transcript(prompt.problem.id, [5], [9, 2], 2)], "member", group, True, True, 1.0)
                for group, prompt in enumerate(batch.prompts)
            ]
            return members + super().__call__(policy, batch)

    assert ask(ReLIFT(1)(WithMember(REWARDS)), "a") == (["member", "a", "a"], ["trace of a"])


def test_the_buffer_stays_smaller_than_its_size() -> None:
    source = ReLIFT(2)(Traced(REWARDS))
    for _ in range(4):
        assert len(ask(source, "aceac")[1]) >= 4
        assert len(source.buffer) < 2


def test_a_prompt_without_completions_has_not_failed() -> None:
    assert ask(ReLIFT(1)(Traced({**REWARDS, "a": []})), "ac") == (["c", "c"], ["trace of c"])


def test_the_buffer_is_part_of_checkpoints(tmp_path: Path) -> None:
    source = ReLIFT(2)(Traced(REWARDS))
    ask(source, "a")
    torch.save(source.state_dict(), tmp_path / "state.pt")
    resumed = ReLIFT(2)(Traced(REWARDS))
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert ask(resumed, "c") == ask(source, "c") == (["c", "c"], ["trace of a", "trace of c"])


# --- training --------------------------------------------------------------------------------------------------------


def many_vowels(completions: Any, rows: Any) -> list[float]:
    """Hardly ever right at first."""
    return [float(sum(letter in "aeiou" for letter in text) >= 4) for text in completions]


class Rewards(L.Callback):
    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self.values.append(float(trainer.callback_metrics["train/reward"]))


def train(model: Path, source: Any, steps: int) -> tuple[MixedPolicyGRPO, list[float]]:
    form, trace, prompts = PromptFormat(load_tokenizer(str(model))), "aeiou", []
    for n in range(4):
        problem = Problem(f"p{n}", ({"role": "user", "content": f"Question {n}?"},), "1", (trace,))
        prompts.append(Prompt(problem, form.prompt_ids(problem.prompt), [form.completion_ids(trace)], [trace], [[]]))
    L.seed_everything(0, verbose=False)
    stage = MixedPolicyGRPO(
        PolicySettings(model=str(model), lora=None), OptimizerSettings(learning_rate=1e-2),
        ObjectiveSettings(group_size=4, traces_per_group=0, sft_coef=1.0, entropy_coef=0.0),
        SamplingSettings(max_new_tokens=8, temperature=1.0), reward=many_vowels, source=source,
    )  # fmt: skip
    rewards = Rewards()
    fit(stage, PromptLoader(prompts, batch_size=2), steps, callbacks=[rewards])
    return stage, rewards.values


def test_the_reward_rises_where_reinforcement_alone_has_no_signal(tiny_model_folder: Path) -> None:
    stage, rewards = train(tiny_model_folder, ReLIFT(4), 40)
    assert sum(rewards[:3]) == 0 and sum(rewards[-6:]) / 6 > 0.2, rewards
    assert stage.source.state_dict()["source"]["batches"] == 40


def test_the_number_of_traces_changes_the_result(tiny_model_folder: Path) -> None:
    runs = [trained(train(tiny_model_folder, source, 4)[0]) for source in (None, ReLIFT(4), ReLIFT(3))]
    assert differs(runs[0], runs[1]) and differs(runs[1], runs[2])
