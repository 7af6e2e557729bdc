"""Updates of a policy from groups of on-policy and off-policy rollouts: GRPO's and LUFFY's."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lit_rft.models.log_probs import UtteranceLogProbs, utterance_log_probs
from lit_rft.models.modes import evaluation_mode
from lit_rft.models.processes import sum_numbers
from lit_rft.models.reference import reference_policy
from lit_rft.models.sharding import unsharded
from lit_rft.objectives import Sums, kl_estimate, masked_token_mean
from lit_rft.rollouts.advantages import AdvantagesFunction, assign_advantages, group_metrics
from lit_rft.rollouts.losses import MixedPolicyLoss, Normalizer, loss_of, needs_of
from lit_rft.rollouts.policy import Policy, measured
from lit_rft.rollouts.rollout import Rollout, RolloutBatch, keep_old_log_probs
from lit_rft.rollouts.sources import GroupSource
from lit_rft.rollouts.update_record import UpdateRecord
from lit_rft.stages.core.diagnostics import mean_over_steps
from lit_rft.stages.core.finite import check_rewards
from lit_rft.stages.core.imitation import imitation_step
from lit_rft.stages.core.loss_needs import check_group_loss
from lit_rft.stages.core.micro_batches import RolloutSplitter
from lit_rft.stages.core.mini_batches import split_groups
from lit_rft.stages.core.optimize import Optimize
from lit_rft.stages.core.settings import BatchingSettings, ObjectiveSettings
from lit_rft.transcripts import TranscriptBatch

PolicyLossFunction = Callable[..., Any]  # a `PolicyLoss`; the command line takes callables by class_path
Loss = Callable[[TranscriptBatch], tuple[Tensor, Sums]]


class GroupUpdate:
    """Mini-batches of rollouts with advantages, and their losses.

        L = policy loss - entropy_coef H + kl_coef KL(pi || pi_ref) - sft_coef log pi(trace)

    Args:
        objective: coefficients, mini-batches and epochs.
        batching: micro-batches of an optimiser step.
        loss: policy loss; None for `MixedPolicyLoss`, LUFFY's.
        temperature: of the sampling; the ratios are those of the same distribution.
        max_tokens: maximum tokens of a rollout, for `Normalizer.max_length`.
        chunk_tokens: logits are computed in chunks of this many tokens.
        share_prompts: compute a prompt once for all completions of its group, where the model supports it.
    """

    def __init__(
        self,
        objective: ObjectiveSettings,
        batching: BatchingSettings,
        *,
        loss: PolicyLossFunction | None = None,
        temperature: float = 1.0,
        max_tokens: int,
        chunk_tokens: int = 256,
        share_prompts: bool = False,
    ) -> None:
        if temperature == 0 and objective.group_size - (objective.traces_per_group or 0) > 1:
            raise ValueError("sampling.temperature must be > 0: greedy completions of a prompt are all the same")
        self.objective = objective
        self.policy_loss: PolicyLossFunction = loss if loss is not None else MixedPolicyLoss()
        check_group_loss(self.policy_loss, objective)
        self.temperature, self.max_tokens, self.chunk_tokens = temperature or 1.0, max_tokens, chunk_tokens
        self.split = RolloutSplitter(batching, share_prompts)
        self.record: UpdateRecord | None = None  # of the last batch's tokens, for callbacks
        self.imitated: list[Rollout] = []  # traces of the last batch outside the groups, for callbacks

    def __call__(
        self, policy: Policy, batch: Any, optimize: Optimize, *, source: GroupSource, advantages: AdvantagesFunction
    ) -> tuple[list[Rollout], dict[str, Tensor]]:
        """Sample rollouts, compare them within their groups, and update the policy; at first, imitate traces alone.

        Returns:
            The members of the groups, none in a step of imitation; and metrics over all processes.
        """
        if policy.step < self.objective.sft_steps:
            self.imitated = source.traces(policy, batch)
            return [], dict(optimize(*imitation_step(self, policy, self.imitated)))
        rollouts = source(policy, batch)
        self.imitated = [rollout for rollout in rollouts if not rollout.counts_in_baseline]
        check_rewards(policy, rollouts)
        samples = assign_advantages(rollouts, advantages)
        steps = enumerate(self.mini_batches(policy, rollouts), start=policy.step)
        metrics = [optimize(*self.step(replace(policy, step=step), part)) for step, part in steps]
        return samples, mean_over_steps(metrics) | group_metrics(samples, policy.device)

    def mini_batches(self, policy: Policy, rollouts: list[Rollout]) -> list[list[Rollout]]:
        """Return the rollouts of each optimiser step: complete groups in their order, in some processes perhaps none.

        For several steps the rollouts get their `old_log_probs` first.
        """
        self.split.check_sharing(policy)
        parts = split_groups(rollouts, self.objective.mini_batches)
        if len(parts) * self.objective.epochs > 1:
            self.keep_old_log_probs(policy, rollouts)
        return parts * self.objective.epochs

    @measured("update")
    @torch.no_grad()
    def keep_old_log_probs(self, policy: Policy, rollouts: Sequence[Rollout]) -> None:
        """Set `old_log_probs` of the on-policy rollouts, under the current policy."""
        on_policy = [rollout for rollout in rollouts if not rollout.off_policy]
        with unsharded(policy.model), evaluation_mode(policy.model):  # as they were sampled: without dropout
            for micro in self.split(policy, on_policy):
                keep_old_log_probs(micro, on_policy, self.log_probs(policy, micro).tokens)

    def step(self, policy: Policy, rollouts: list[Rollout]) -> tuple[list[TranscriptBatch], Loss]:
        """Return micro-batches and loss of an optimiser step; rollouts without a gradient are left out."""
        settings = self.objective
        counted = [r for r in rollouts if r.finished or r.off_policy or not settings.mask_truncated]
        compared = [rollout for rollout in counted if rollout.counts_in_baseline]
        numbers = {
            "tokens": float(sum(rollout.length for rollout in compared)),
            "rollouts": float(len(compared)),
            "traces": float(sum(rollout.length for rollout in counted if rollout.off_policy)),
            "imitated": float(sum(rollout.length for rollout in counted if not rollout.counts_in_baseline)),
        }
        counts = {name: n.clamp_min(1) for name, n in sum_numbers(numbers, policy.device).items()}
        always = settings.entropy_coef > 0 or settings.kl_coef > 0
        imitation = settings.sft_coef > 0
        needed = [r for r in counted if always or r.has_advantage or not r.counts_in_baseline
                  or (imitation and r.off_policy)]  # fmt: skip
        return self.split(policy, needed), partial(self._loss, policy=policy, rollouts=needed, counts=counts)

    def _loss(
        self, micro: TranscriptBatch, policy: Policy, rollouts: list[Rollout], counts: dict[str, Tensor]
    ) -> tuple[Tensor, Sums]:
        """Compute the share of the loss of a micro-batch, and its diagnostics."""
        settings, batch = self.objective, RolloutBatch.of(micro, rollouts)
        needs_entropy = needs_of(self.policy_loss).entropy
        outputs = self.log_probs(policy, micro, entropy=settings.entropy_coef > 0 or needs_entropy)
        batch.entropy = outputs.entropy.detach() if needs_entropy else None
        normalizer = Normalizer(counts["tokens"], counts["rollouts"], self.max_tokens, counts["imitated"], policy.step)
        policy_loss, sums = loss_of(self.policy_loss, outputs.tokens, batch, normalizer=normalizer)
        if self.record is not None:
            self.record.add(micro, outputs.tokens, batch, policy_loss)
        terms: dict[str, Tensor] = {}
        if settings.entropy_coef > 0:
            terms["entropy"] = masked_token_mean(outputs.entropy, batch.mask, normalizer=counts["tokens"])
        if settings.kl_coef > 0:
            with reference_policy(policy.model):
                reference = self.log_probs(policy, micro).tokens
            divergence = kl_estimate(outputs.tokens, reference)
            terms["kl"] = masked_token_mean(divergence, batch.mask, normalizer=counts["tokens"])
        if settings.sft_coef > 0:
            traces = micro.utterance_mask & batch.off_policy[:, None]
            terms["sft_loss"] = -masked_token_mean(outputs.tokens, traces, normalizer=counts["traces"])
        coefficients = {"entropy": -settings.entropy_coef, "kl": settings.kl_coef, "sft_loss": settings.sft_coef}
        loss = policy_loss + sum(coefficients[name] * term for name, term in terms.items())
        return loss, {"policy_loss": policy_loss, **sums, **terms}

    def log_probs(self, policy: Policy, micro: TranscriptBatch, entropy: bool = False) -> UtteranceLogProbs:
        """Return the log-probabilities of a micro-batch's utterances at the sampling temperature."""
        return utterance_log_probs(
            policy.model, micro, end_of_turn_id=policy.chat.end_of_turn_id, temperature=self.temperature,
            chunk_tokens=self.chunk_tokens, ends=False, entropy=entropy,
        )  # fmt: skip
