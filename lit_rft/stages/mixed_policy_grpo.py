"""LUFFY: GRPO whose groups contain on-policy completions and off-policy traces."""

from lit_rft._seeds import resolve_seed
from lit_rft.batches import PromptBatch
from lit_rft.generation import SamplingSettings
from lit_rft.rewards.calling import RewardFunction
from lit_rft.rollouts.advantages import AdvantagesFunction, GroupAdvantages
from lit_rft.rollouts.completions import CompletionSource
from lit_rft.rollouts.sources import GroupSource, SourceFunction
from lit_rft.stages.core.data_check import PROMPTS, warn_of_context
from lit_rft.stages.core.evaluate_problems import ProblemEvaluator, choose_rewards
from lit_rft.stages.core.group_update import GroupUpdate, PolicyLossFunction
from lit_rft.stages.core.loss_needs import check_imitation, check_served
from lit_rft.stages.core.policy import PolicyModule
from lit_rft.stages.core.settings import (
    AnsweringSettings,
    BatchingSettings,
    ObjectiveSettings,
    OptimizerSettings,
    PolicySettings,
)


class MixedPolicyGRPO(PolicyModule):
    r"""Reasoning under off-policy guidance (LUFFY, NeurIPS 2025, arXiv 2504.14945).

        A_i = ( R_i - mean(R_on u R_off) ) / std(R_on u R_off)                                      `group_advantages`
        L   = -1/Z ( sum_off f(pi/pi_phi) A  +  sum_on CLIP(pi/pi_old, A, eps) )                   `mixed_policy_loss`
              - entropy_coef H + kl_coef KL(pi || pi_ref) - sft_coef log pi(trace)

    One training step: completions of a batch of prompts by the current policy, their rewards and advantages, then
    `mini_batches` times `epochs` optimiser steps. docs/algorithms.md lists settings of the release and of baselines.

    Args:
        policy: model and initial weights.
        optimizer: AdamW and its schedule.
        objective: groups, coefficients and number of updates.
        sampling: of the rollouts.
        reward: reward function of the training completions; null for `MathReward`.
        verifier: grades the answers of validation, test and predict; above 0.5 is right in the reported accuracy.
            null: `reward` if that is a `MathReward`, else a `MathReward` with its defaults.
        answering: sampling of answers in validation, test and predict.
        batching: micro-batches of an optimiser step; `packing` needs `share_prompts` off.
        max_concurrent: maximum number of completions sampled at the same time.
        chunk_tokens: logits are computed in chunks of this many tokens.
        share_prompts: compute a prompt once for all completions of its group, where the model supports it.
        seed: of the rollouts; null for the run's `seed_everything`.
        loss: policy loss, any `lit_rft.rollouts.PolicyLoss`; default `MixedPolicyLoss`, LUFFY's.
        advantages: any `lit_rft.rollouts.Advantages`; default `GroupAdvantages`.
        source: builds a source around the stage's own, such as `lit_rft.sources.DynamicSampling`; null for none.
    """

    training_batch = PROMPTS
    source: GroupSource
    evaluator: ProblemEvaluator
    default_traces = 1  # per group, unless `objective` sets it

    def __init__(
        self,
        policy: PolicySettings | None = None,
        optimizer: OptimizerSettings | None = None,
        objective: ObjectiveSettings | None = None,
        sampling: SamplingSettings | None = None,
        reward: RewardFunction | None = None,
        verifier: RewardFunction | None = None,
        answering: AnsweringSettings | None = None,
        batching: BatchingSettings | None = None,
        max_concurrent: int = 64,
        chunk_tokens: int = 256,
        share_prompts: bool = True,
        seed: int | None = None,
        loss: PolicyLossFunction | None = None,
        advantages: AdvantagesFunction | None = None,
        source: SourceFunction | None = None,
    ) -> None:
        super().__init__(policy, optimizer or OptimizerSettings(learning_rate=1e-6), batching)
        self.objective = (objective or ObjectiveSettings()).with_default_traces(self.default_traces)
        self.sampling = sampling or SamplingSettings(max_new_tokens=8192, temperature=1.0)
        self.seed, self.max_tokens = resolve_seed(seed), self.sampling.max_new_tokens
        self.steps_per_batch, self.single_steps = self.objective.steps_per_batch, self.objective.sft_steps
        self.needs_traces, self.needs_reference = self.objective.needs_traces, self.objective.kl_coef > 0
        self.reward, self.verifier = choose_rewards(reward, verifier)
        self.answering = (answering or AnsweringSettings()).with_default_seed()
        self.evaluator = ProblemEvaluator(self.verifier, self.answering)
        self.source = CompletionSource(
            self.reward, self.sampling, sampler=self.evaluator.sampler, max_concurrent=max_concurrent, seed=self.seed,
            **self.objective.group_sizes,
        )  # fmt: skip
        if source is not None:
            self.source = source(self.source)
            check_imitation(self.source, self.objective)
        self.stateful = {"source": self.source}
        self.advantages = advantages if advantages is not None else GroupAdvantages()
        self.update = GroupUpdate(
            self.objective, self.batching, loss=loss, temperature=self.sampling.temperature,
            max_tokens=self.max_tokens, chunk_tokens=chunk_tokens, share_prompts=share_prompts,
        )  # fmt: skip
        self.loss = self.update.policy_loss
        check_served(self.answering.server, self.sampling, self.loss)

    def training_step(self, batch: PromptBatch, batch_idx: int) -> None:
        self.samples, metrics = self.update(
            self.current_policy(), batch, self.optimize, source=self.source, advantages=self.advantages
        )
        self.log_terms(metrics)
        self.log_source()

    def on_fit_start(self) -> None:
        super().on_fit_start()
        warn_of_context(self, self.max_tokens)
