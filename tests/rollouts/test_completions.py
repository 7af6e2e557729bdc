"""Groups of completions and traces: their layout, the traces' turns, and what a checkpoint keeps of them."""

from pathlib import Path
from typing import Any

import pytest
import torch

from lit_rft.batches import Prompt, PromptBatch
from lit_rft.generation import SamplingSettings
from lit_rft.models import load_backbone, load_tokenizer
from lit_rft.models.backbone import model_end_ids
from lit_rft.problems import Problem
from lit_rft.rewards import RewardError
from lit_rft.rollouts import CompletionSource, Policy
from lit_rft.transcripts import ChatFormat, PromptFormat

SAMPLING = SamplingSettings(4, 1.0)


def length(completions: Any, rows: Any) -> list[float]:
    return [float(len(text)) for text in completions]


@pytest.fixture(scope="module")
def policy(tiny_model_folder: Path) -> Policy:
    chat, model = ChatFormat(load_tokenizer(str(tiny_model_folder))), load_backbone(str(tiny_model_folder))
    chat.add_end_ids(model_end_ids(model))
    return Policy(model, chat, step=3)


def batch(policy: Policy, *num_traces: int) -> PromptBatch:
    """A prompt for each number of traces."""
    form, prompts = PromptFormat(policy.chat.tokenizer), []
    for index, number in enumerate(num_traces):
        texts = [f"trace {turn}" for turn in range(number)]
        problem = Problem(f"p{index}", ({"role": "user", "content": f"Question {index}?"},), "1", tuple(texts))
        ids = [form.completion_ids(text) for text in texts]
        prompts.append(Prompt(problem, form.prompt_ids(problem.prompt), ids, texts, [[]] * number))
    return PromptBatch(prompts)


def test_a_group_is_filled_up_with_samples(policy: Policy) -> None:
    source = CompletionSource(length, SAMPLING, group_size=3, traces_per_group=2)
    rollouts = source(policy, batch(policy, 3, 1, 0))
    assert [(rollout.group, rollout.off_policy) for rollout in rollouts] == [
        (0, False), (0, True), (0, True), (1, False), (1, False), (1, True), (2, False), (2, False), (2, False),
    ]  # fmt: skip
    assert all(rollout.reward == len(rollout.text) and rollout.counts_in_baseline for rollout in rollouts)
    assert float(source.metrics["reward_seconds"]) >= 0


def test_a_problem_twice_in_a_batch_has_other_completions(policy: Policy) -> None:
    prompts = batch(policy, 0).prompts
    rollouts = CompletionSource(length, SAMPLING, group_size=3)(policy, PromptBatch(prompts * 2))
    texts = [[rollout.text for rollout in rollouts if rollout.group == group] for group in (0, 1)]
    assert texts[0] != texts[1]
    alone = CompletionSource(length, SAMPLING, group_size=3)(policy, PromptBatch(prompts))
    assert [rollout.text for rollout in alone] == texts[0]


def test_imitated_traces_come_last_and_stand_apart(policy: Policy) -> None:
    source = CompletionSource(length, SAMPLING, group_size=2, imitated_traces=1)
    rollouts = source(policy, batch(policy, 2, 0))
    assert [rollout.counts_in_baseline for rollout in rollouts] == [True] * 4 + [False]
    assert rollouts[-1].off_policy and rollouts[-1].reward == 0.0


def test_traces_take_turns_across_a_resume(policy: Policy) -> None:
    def texts(source: CompletionSource) -> list[str]:
        return [rollout.text for rollout in source(policy, batch(policy, 3)) if rollout.off_policy]

    source = CompletionSource(length, SAMPLING, group_size=2, traces_per_group=1)
    assert texts(source) == ["trace 0"]
    assert [trace.text for trace in source.traces(policy, batch(policy, 3))] == ["trace 1", "trace 2", "trace 0"]
    resumed = CompletionSource(length, SAMPLING, group_size=2, traces_per_group=1)
    resumed.load_state_dict(source.state_dict())
    assert texts(source) == texts(resumed) == ["trace 2"]


def test_samples_depend_on_seed_and_step(policy: Policy) -> None:
    def texts(seed: int, step: int) -> list[str]:
        source = CompletionSource(length, SAMPLING, group_size=2, seed=seed)
        return [rollout.text for rollout in source(Policy(policy.model, policy.chat, step), batch(policy, 0, 0))]

    assert texts(0, 3) == texts(0, 3)
    assert len({tuple(texts(seed, step)) for seed, step in ((0, 3), (1, 3), (0, 4))}) == 3


def test_the_policy_stays_as_it_is(policy: Policy) -> None:
    policy.model.train()
    before = {name: value.clone() for name, value in policy.model.state_dict().items()}
    CompletionSource(length, SAMPLING, group_size=2)(policy, batch(policy, 0))
    assert policy.model.training
    assert all(torch.equal(value, before[name]) for name, value in policy.model.state_dict().items())


def test_a_reward_that_fails_is_named(policy: Policy) -> None:
    source = CompletionSource(lambda completions, rows: [0.0], SAMPLING, group_size=2)
    with pytest.raises(RewardError, match="returned 1 rewards for 2 completions"):
        source(policy, batch(policy, 0))


def test_close_stops_the_workers_of_the_reward() -> None:
    class Workers:
        closed = 0

        def __call__(self, completions: Any, rows: Any) -> list[float]:
            return length(completions, rows)

        def close(self) -> None:
            self.closed += 1

    reward = Workers()
    CompletionSource(reward, SAMPLING).close()
    CompletionSource(length, SAMPLING).close()  # has none
    assert reward.closed == 1
