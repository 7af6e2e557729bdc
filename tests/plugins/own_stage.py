"""REINFORCE with a leave-one-out baseline (Ahmadian et al. 2024, arXiv 2402.14740), as a user would write a stage."""

from __future__ import annotations

from collections import defaultdict

from torch import Tensor

from lit_rft.batches import PromptBatch
from lit_rft.generation import SamplingSettings
from lit_rft.models import utterance_log_probs
from lit_rft.models.processes import sum_numbers
from lit_rft.objectives import Sums
from lit_rft.rewards import MathReward, RewardFunction
from lit_rft.rollouts import CompletionSource, Rollout, RolloutBatch
from lit_rft.stages import (
    AnsweringSettings,
    BatchingSettings,
    OptimizerSettings,
    PolicyModule,
    PolicySettings,
    ProblemEvaluator,
)
from lit_rft.transcripts import TranscriptBatch, count_utterances


class Reinforce(PolicyModule):
    r"""L = -1/N sum_i ( R_i - mean_{j != i} R_j ) log pi(y_i | x), over N completions.

    Args:
        policy: model and initial weights.
        optimizer: AdamW and its schedule.
        batching: micro-batches of an optimiser step.
        sampling: of the completions, in training and evaluation.
        reward: reward function in training; null for `MathReward`, which grades evaluation.
        group_size: completions per prompt, >= 2.
        seed: of the sampling.
    """

    source: CompletionSource

    def __init__(
        self,
        policy: PolicySettings | None = None,
        optimizer: OptimizerSettings | None = None,
        batching: BatchingSettings | None = None,
        sampling: SamplingSettings | None = None,
        reward: RewardFunction | None = None,
        group_size: int = 4,
        seed: int = 0,
    ) -> None:
        super().__init__(policy, optimizer, batching)
        sampling = sampling or SamplingSettings(max_new_tokens=64, temperature=1.0)
        verifier = MathReward(num_workers=1)
        self.source = CompletionSource(reward or verifier, sampling, group_size=group_size, seed=seed)
        self.evaluator = ProblemEvaluator(verifier, AnsweringSettings(sampling, seed=seed))
        self.stateful = {"source": self.source}

    def training_step(self, batch: PromptBatch, batch_idx: int) -> None:
        policy = self.current_policy()
        rollouts = self.source(policy, batch)
        self.check_rewards(rollouts)
        leave_one_out(rollouts)
        number = sum_numbers({"completions": float(len(rollouts))}, self.device)["completions"]

        def loss(micro: TranscriptBatch) -> tuple[Tensor, Sums]:
            end = policy.chat.end_of_turn_id
            log_probs = utterance_log_probs(policy.model, micro, end_of_turn_id=end, ends=False).tokens
            return -(RolloutBatch.of(micro, rollouts).advantages * log_probs.sum(1)).sum() / number, {}

        transcripts = [transcript for rollout in rollouts for transcript in rollout.transcripts]
        step = self.step_batch(transcripts, count_utterances(transcripts))
        self.log_terms(self.optimize(step.micro_batches, loss))
        rewards = sum_numbers({"reward": sum(rollout.reward for rollout in rollouts)}, self.device)
        self.log_terms({"reward": rewards["reward"] / number})
        self.log_source()


def leave_one_out(rollouts: list[Rollout]) -> None:
    """Set each rollout's advantage over the mean reward of the others of its group."""
    groups: defaultdict[int, list[Rollout]] = defaultdict(list)
    for rollout in rollouts:
        groups[rollout.group].append(rollout)
    for group in groups.values():
        total = sum(rollout.reward for rollout in group)
        for rollout in group:
            rollout.advantage = rollout.reward - (total - rollout.reward) / (len(group) - 1)
