"""LUFFY: GRPO whose groups hold on-policy rollouts and off-policy traces."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lit_rft.models.features import frozen_backbone
from lit_rft.models.log_probs import UtteranceLogProbs, utterance_log_probs
from lit_rft.objectives import (
    group_advantages,
    kl_estimate,
    masked_token_mean,
    mixed_policy_loss,
    truncated_importance_weights,
)
from lit_rft.rewards.base import RewardFunction
from lit_rft.rollout import SamplingSettings, sample_groups
from lit_rft.stages.answering import AnsweringStage, PromptRound
from lit_rft.stages.mixed_rollout import Completion, group_statistics, of_batch, padded_rows, summarize_groups
from lit_rft.stages.optimization import add_to, mean_over_steps
from lit_rft.stages.settings import AnsweringSettings, ObjectiveSettings, OptimizerSettings, PolicySettings
from lit_rft.transcripts import StepBatch, TranscriptBatch, completion_transcript, count_utterances, step_batch


class MixedPolicyGRPO(AnsweringStage):
    r"""Reasoning under off-policy guidance (LUFFY, NeurIPS 2025, arXiv 2504.14945).

        A_i = ( R_i - mean(R_on u R_off) ) / std(R_on u R_off)                                      `group_advantages`
        L   = -1/Z ( sum_off f(pi/pi_phi) A  +  sum_on CLIP(pi/pi_old, A, eps) )                   `mixed_policy_loss`
              - entropy_coef H + kl_coef KL(pi || pi_ref) - sft_coef log pi(trace)

    One training step is a rollout: completions of a batch of prompts by the policy as it is, their rewards and
    advantages, then `mini_batches` times `epochs` optimiser steps. `traces_per_group=0` is GRPO; docs/algorithms.md
    says which settings make the release and the baselines it is compared with.

    Args:
        policy: which model, and from where it starts.
        optimizer: AdamW and its schedule.
        objective: groups, advantages and loss.
        sampling: of the rollouts.
        reward: gives completions their rewards.
        answering: of problems in validation, test and predict.
        micro_batch_tokens: at most so many tokens go through the model at once.
        rollout_slots: completions sampled at the same time.
        chunk_tokens: logits are made for so many tokens at a time.
        seed: of the rollouts.
    """

    def __init__(
        self,
        policy: PolicySettings | None = None,
        optimizer: OptimizerSettings | None = None,
        objective: ObjectiveSettings | None = None,
        sampling: SamplingSettings | None = None,
        reward: RewardFunction | None = None,
        answering: AnsweringSettings | None = None,
        micro_batch_tokens: int = 8192,
        rollout_slots: int = 64,
        chunk_tokens: int = 512,
        seed: int = 0,
    ) -> None:
        super().__init__(policy, optimizer or OptimizerSettings(learning_rate=1e-6), reward, answering)
        self.objective = objective or ObjectiveSettings()
        self.sampling = sampling or SamplingSettings(max_new_tokens=8192, temperature=1.0)
        if self.sampling.temperature == 0 and self.objective.group_size - self.objective.traces_per_group > 1:
            raise ValueError("sampling.temperature must be > 0: greedy completions of a prompt are all the same")
        self.micro_batch_tokens, self.rollout_slots = micro_batch_tokens, rollout_slots
        self.chunk_tokens, self.seed = chunk_tokens, seed
        self.samples: list[Completion] = []  # of the last rollout

    # --- a training step ---------------------------------------------------------------------------------------------

    def training_step(self, batch: PromptRound, batch_idx: int) -> None:
        if self.global_step < self.objective.sft_steps:
            self._log(self._likelihood_step(self._traces(batch.prompts, None)))
            return
        completions = self.rollout(batch.prompts)
        parts = self._mini_batches(completions)
        if len(parts) * self.objective.epochs > 1:
            self._remember_log_probs(completions)
        metrics = [self._policy_step(part) for _ in range(self.objective.epochs) for part in parts]
        sums = {k: torch.tensor(v, device=self.device) for k, v in group_statistics(completions).items()}
        self._log(mean_over_steps(metrics) | summarize_groups(self.sum_over_processes(sums)))

    def _log(self, metrics: dict[str, Tensor]) -> None:
        for name, value in metrics.items():
            self.log(f"train/{name}", value, prog_bar=name in ("loss", "reward"))
        self.log("step", float(self.global_step))  # a rollout may be several optimiser steps

    # --- the rollout -------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def rollout(self, prompts: Sequence[Any]) -> list[Completion]:
        """Completions of each prompt, its traces among them, with rewards and advantages."""
        assert self.policy is not None and self.chat is not None
        traces = self._traces(prompts, self.objective.traces_per_group)
        held = [sum(one.group == group for one in traces) for group in range(len(prompts))]
        named = [(f"{self.global_step}/{prompt.problem.id}", prompt.ids) for prompt in prompts]
        groups = sample_groups(
            self.policy, named, [self.objective.group_size - number for number in held], self.sampling,
            self.chat.end_of_turn_id, seed=self.seed, num_slots=self.rollout_slots,
        )  # fmt: skip
        completions = []
        for number, (prompt, group) in enumerate(zip(prompts, groups, strict=True)):
            for sampled in group:
                transcript = self._transcript(prompt, sampled.ids)
                text = self.chat.text(sampled.ids)
                completions.append(
                    Completion(transcript, text, number, False, sampled.finished, sampled_log_probs=sampled.log_probs)
                )
            completions += [trace for trace in traces if trace.group == number]
        self._give_rewards(completions, prompts)
        self.samples = completions
        if self.objective.sft_coef > 0 and self.objective.traces_per_group == 0:
            completions = completions + self._traces(prompts, 1, in_group=False)
        return completions

    def _traces(self, prompts: Sequence[Any], number: int | None, in_group: bool = True) -> list[Completion]:
        """So many off-policy completions of each prompt, or all; of more than are wanted, others each time."""
        assert self.chat is not None
        found = []
        for group, prompt in enumerate(prompts):
            for turn in range(len(prompt.traces) if number is None else min(number, len(prompt.traces))):
                index = (self.global_step + turn) % len(prompt.traces)
                ids = prompt.traces[index]
                finished = ids[-1] == self.chat.end_of_turn_id
                text = prompt.trace_texts[index]
                transcript = self._transcript(prompt, ids)
                found.append(Completion(transcript, text, group, True, finished, in_group=in_group))
        return found

    def _transcript(self, prompt: Any, ids: list[int]) -> Any:
        assert self.chat is not None
        return completion_transcript(prompt.problem.id, prompt.ids, ids, self.chat.end_of_turn_id)

    def _give_rewards(self, completions: list[Completion], prompts: Sequence[Any]) -> None:
        rows = [prompts[one.group].problem.row() for one in completions]
        rewards = [float(reward) for reward in self.reward([one.text for one in completions], rows)]
        pairs = zip(completions, rewards, strict=True)
        bad = [one.transcript.episode_id for one, reward in pairs if not math.isfinite(reward)]
        self.stop_together(bool(bad), bad, "a reward")
        if not completions:
            return
        advantages = group_advantages(
            torch.tensor(rewards, dtype=torch.float64),
            torch.tensor([one.group for one in completions]),
            off_policy_mask=torch.tensor([one.off_policy for one in completions]),
            on_policy_statistics=self.objective.on_policy_statistics,
            scale_by_std=self.objective.scale_by_std,
        )
        for one, reward, advantage in zip(completions, rewards, advantages.tolist(), strict=True):
            one.reward, one.advantage = reward, advantage

    def _mini_batches(self, completions: list[Completion]) -> list[list[Completion]]:
        """Whole groups, dealt out in turns; as many parts in every process, some of them perhaps empty."""
        number = self.objective.mini_batches
        return [[one for one in completions if one.group % number == part] for part in range(number)]

    @torch.no_grad()
    def _remember_log_probs(self, completions: list[Completion]) -> None:
        """pi_old of the on-policy completions, for updates after the first."""
        own = [one for one in completions if not one.off_policy]
        for micro in self._split(own).micro_batches:
            log_probs = self._forward(micro).tokens
            for one, row in zip(of_batch(own, micro), log_probs, strict=True):
                one.old_log_probs = row[: one.length].clone()

    # --- one optimiser step ------------------------------------------------------------------------------------------

    def _policy_step(self, completions: list[Completion]) -> dict[str, Tensor]:
        settings = self.objective
        counted = [one for one in completions if self._counts(one)]
        numbers = {
            "all": sum(one.length for one in counted if one.in_group),
            "off": sum(one.length for one in counted if one.off_policy),
        }
        total = self.sum_over_processes({k: torch.tensor(float(n), device=self.device) for k, n in numbers.items()})
        # where a term has no gradient there is no pass: equal rewards say nothing
        everything = settings.entropy_coef > 0 or settings.kl_coef > 0
        needed = [one for one in counted if everything or one.advantage or (settings.sft_coef > 0 and one.off_policy)]
        sums: dict[str, Tensor] = {}
        micro_batches = self._split(needed).micro_batches
        self.accumulate_and_step([partial(self._loss, micro, needed, total, sums) for micro in micro_batches])
        return self._means(sums)

    def _counts(self, one: Completion) -> bool:
        return one.finished or one.off_policy or not self.objective.mask_truncated

    def _split(self, completions: Sequence[Completion]) -> StepBatch:
        transcripts = [one.transcript for one in completions]
        return step_batch(
            transcripts, count_utterances(transcripts), micro_batch_tokens=self.micro_batch_tokens, pad_id=0
        ).to(self.device)

    def _forward(self, micro: TranscriptBatch, entropy: bool = False) -> UtteranceLogProbs:
        assert self.policy is not None and self.chat is not None
        return utterance_log_probs(
            self.policy, micro, end_of_turn_id=self.chat.end_of_turn_id, temperature=self.sampling.temperature or 1.0,
            chunk_tokens=self.chunk_tokens, entropy=entropy,
        )  # fmt: skip

    def _loss(
        self, micro: TranscriptBatch, completions: list[Completion], total: dict[str, Tensor], sums: dict[str, Tensor]
    ) -> tuple[Tensor, list[str]]:
        """One micro-batch's share of the loss."""
        settings, rows = self.objective, of_batch(completions, micro)
        found = self._forward(micro, entropy=settings.entropy_coef > 0)
        log_probs, mask = found.tokens, micro.utterance_mask
        off = torch.tensor([one.off_policy for one in rows], device=self.device)
        compared = mask & torch.tensor([one.in_group for one in rows], device=self.device)[:, None]
        advantages = torch.tensor([one.advantage for one in rows], dtype=log_probs.dtype, device=self.device)
        old = log_probs.detach()
        if any(one.old_log_probs is not None for one in rows):
            old = padded_rows([one.old_log_probs for one in rows], log_probs)
        weights = None
        if settings.importance_cap is not None:
            sampled = padded_rows([one.sampled_log_probs for one in rows], log_probs)
            weights = truncated_importance_weights(old, sampled, max_weight=settings.importance_cap)
            weights = torch.where(off[:, None], torch.ones_like(weights), weights)
        normalizer = total["all"].clamp_min(1) if settings.normalizer == "tokens" else self.sampling.max_new_tokens
        terms = mixed_policy_loss(
            log_probs, advantages, compared, off, old_log_probs=old, policy_shaping=settings.policy_shaping,
            clip_low=settings.clip_low, clip_high=settings.clip_high, token_weights=weights, normalizer=normalizer,
        )  # fmt: skip
        loss = terms.loss
        on_tokens, off_tokens = (compared & ~off[:, None]).sum(), (compared & off[:, None]).sum()
        parts = {
            "policy_loss": terms.loss.detach(),
            "on_policy_loss": terms.on_policy_loss * on_tokens,
            "off_policy_loss": terms.off_policy_loss * off_tokens,
            "trace_prob": terms.trace_prob_mean * off_tokens,
            "clipped": terms.clip_fraction * on_tokens,
            "on_tokens": on_tokens,
            "off_tokens": off_tokens,
        }
        if settings.entropy_coef > 0:
            entropy = masked_token_mean(found.entropy, compared, normalizer=total["all"].clamp_min(1))
            loss = loss - settings.entropy_coef * entropy
            parts["entropy"] = entropy.detach()
        if settings.kl_coef > 0:
            divergence = masked_token_mean(
                kl_estimate(log_probs, self._reference(micro)), compared, normalizer=total["all"].clamp_min(1)
            )
            loss = loss + settings.kl_coef * divergence
            parts["kl"] = divergence.detach()
        if settings.sft_coef > 0:
            likelihood = masked_token_mean(log_probs, mask & off[:, None], normalizer=total["off"].clamp_min(1))
            loss = loss - settings.sft_coef * likelihood
            parts["sft_loss"] = -likelihood.detach()
        add_to(sums, {**parts, "loss": loss.detach()})
        return loss, micro.episode_ids

    def _reference(self, micro: TranscriptBatch) -> Tensor:
        """Log-probabilities under the policy without its adapter: no second model."""
        assert self.policy is not None
        with frozen_backbone(self.policy):
            return self._forward(micro).tokens

    def _likelihood_step(self, traces: list[Completion]) -> dict[str, Tensor]:
        """Plain supervised fine-tuning on traces."""
        number = torch.tensor(float(sum(one.length for one in traces)), device=self.device)
        total = self.sum_over_processes({"off": number})["off"].clamp_min(1)
        sums: dict[str, Tensor] = {}

        def loss(micro: TranscriptBatch) -> tuple[Tensor, list[str]]:
            value = -masked_token_mean(self._forward(micro).tokens, micro.utterance_mask, normalizer=total)
            add_to(sums, {"loss": value.detach()})
            return value, micro.episode_ids

        self.accumulate_and_step([partial(loss, micro) for micro in self._split(traces).micro_batches])
        return self.total(sums, ["loss"])

    def _means(self, sums: dict[str, Tensor]) -> dict[str, Tensor]:
        """What the step's micro-batches add up to, over all processes."""
        settings = self.objective
        names = [
            "loss",
            "policy_loss",
            "on_policy_loss",
            "off_policy_loss",
            "trace_prob",
            "clipped",
            "on_tokens",
            "off_tokens",
        ]
        optional = {"entropy": settings.entropy_coef, "kl": settings.kl_coef, "sft_loss": settings.sft_coef}
        names += [name for name, coefficient in optional.items() if coefficient > 0]
        whole = self.total(sums, names)
        on, off = whole.pop("on_tokens"), whole.pop("off_tokens")
        clipped, prob = whole.pop("clipped"), whole.pop("trace_prob")
        whole["on_policy_loss"] = whole["on_policy_loss"] / on.clamp_min(1)
        if on > 0:
            whole["clip_fraction"] = clipped / on
        off_loss = whole.pop("off_policy_loss")
        if off > 0:
            whole |= {"off_policy_loss": off_loss / off, "trace_prob_mean": prob / off}
        return whole
