"""Rollouts on prompts: sampled completions and off-policy traces, graded by a reward function."""

import logging
from collections import Counter
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from lit_rft.batches import Prompt, PromptBatch
from lit_rft.generation import SamplingSettings
from lit_rft.models.processes import distinct_names
from lit_rft.rewards.calling import RewardFunction, close_reward
from lit_rft.rollouts.grading import grade
from lit_rft.rollouts.policy import Policy, measured
from lit_rft.rollouts.rollout import Rollout
from lit_rft.rollouts.sources import CompletionSampler, innermost_state
from lit_rft.transcripts import completion_transcript

logger = logging.getLogger(__name__)


class CompletionSource:
    """Groups of completions to prompts, with their rewards.

    A group has `group_size` members: up to `traces_per_group` of the prompt's off-policy traces, the rest sampled.

    Args:
        reward: reward function.
        sampling: of the completions.
        group_size: members per group, >= 1.
        traces_per_group: maximum number of off-policy traces in a group; a prompt with more cycles through them.
        imitated_traces: traces per prompt outside its group, for a likelihood term: they have no advantage.
        sampler: samples with the policy; None for a `CompletionSampler` in this process.
        max_concurrent: maximum number of completions sampled at the same time.
        seed: of the sampling.
    """

    def __init__(
        self,
        reward: RewardFunction,
        sampling: SamplingSettings,
        *,
        group_size: int = 8,
        traces_per_group: int = 0,
        imitated_traces: int = 0,
        sampler: CompletionSampler | None = None,
        max_concurrent: int = 64,
        seed: int = 0,
    ) -> None:
        self.reward, self.sampling, self.seed = reward, sampling, seed
        self.group_size, self.traces_per_group, self.imitated_traces = group_size, traces_per_group, imitated_traces
        self.sampler, self.max_concurrent = sampler or CompletionSampler(), max_concurrent
        self.metrics: dict[str, Tensor] = {}
        self.env_steps = 0  # none; as for episodes
        self._batches = 0  # so far: prompts cycle through their traces
        self._warned = False

    @measured("rollout")
    def __call__(self, policy: Policy, batch: PromptBatch) -> list[Rollout]:
        """Return the groups one after another, then the imitated traces.

        Raises:
            RewardError: In all processes, if the reward function fails in one of them.
        """
        prompts = batch.prompts
        self._warn_without_traces(prompts)
        traces = self._traces(policy, prompts, self.traces_per_group)
        held = Counter(trace.group for trace in traces)
        names = distinct_names([prompt.problem.id for prompt in prompts])
        named = [(f"{policy.occasion}/{name}", prompt.ids) for name, prompt in zip(names, prompts, strict=True)]
        sizes = [self.group_size - held[group] for group in range(len(prompts))]
        groups = self.sampler(policy, named, sizes, self.sampling, seed=self.seed, max_concurrent=self.max_concurrent)
        rollouts = []
        for group, (prompt, completions) in enumerate(zip(prompts, groups, strict=True)):
            rollouts += [
                _rollout(policy, prompt, sampled.ids, policy.chat.text(sampled.ids), group=group, off_policy=False,
                         finished=sampled.finished, sampled_log_probs=[sampled.log_probs])
                for sampled in completions
            ]  # fmt: skip
            rollouts += [trace for trace in traces if trace.group == group]
        with policy.phases.measure("reward"):
            self.metrics = grade(rollouts, [prompt.problem for prompt in prompts], self.reward, policy.device)
        rollouts += self._traces(policy, prompts, self.imitated_traces, counts_in_baseline=False)
        self._batches += 1
        return rollouts

    def traces(self, policy: Policy, batch: PromptBatch) -> list[Rollout]:
        """Return all off-policy traces of a batch, for supervised fine-tuning."""
        traces = self._traces(policy, batch.prompts, None)
        self._batches += 1
        return traces

    def _traces(
        self, policy: Policy, prompts: Sequence[Prompt], number: int | None, counts_in_baseline: bool = True
    ) -> list[Rollout]:
        """Return up to `number` traces per prompt (None: all), starting one further in each batch."""
        traces = []
        for group, prompt in enumerate(prompts):
            for turn in range(len(prompt.traces) if number is None else min(number, len(prompt.traces))):
                index = (self._batches + turn) % len(prompt.traces)
                ids, log_probs = prompt.traces[index], prompt.trace_log_probs[index]
                trace = _rollout(
                    policy, prompt, ids, prompt.trace_texts[index], group=group, off_policy=True,
                    finished=ids[-1] == policy.chat.end_of_turn_id, counts_in_baseline=counts_in_baseline,
                    behaviour_log_probs=[log_probs] if log_probs else [],
                )  # fmt: skip
                traces.append(trace)
        return traces

    def _warn_without_traces(self, prompts: Sequence[Prompt]) -> None:
        """Warn for data loaders other than the data module's, which refuses to train without any trace."""
        wanted = self.traces_per_group + self.imitated_traces > 0
        if wanted and not self._warned and not any(prompt.traces for prompt in prompts):
            self._warned = True
            logger.warning("none of a batch's %d prompts has an off-policy trace: this step is plain GRPO",
                           len(prompts))  # fmt: skip

    def close(self) -> None:
        close_reward(self.reward)
        self.sampler.close()

    def state_dict(self) -> dict[str, Any]:
        return {"batches": self._batches}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._batches = innermost_state(state)["batches"]


def _rollout(policy: Policy, prompt: Prompt, ids: list[int], text: str, **fields: Any) -> Rollout:
    problem = prompt.problem
    transcript = completion_transcript(problem.id, prompt.ids, ids, policy.chat.end_of_turn_id)
    return Rollout([transcript], text, task=problem.source, ground_truth=problem.ground_truth, **fields)
