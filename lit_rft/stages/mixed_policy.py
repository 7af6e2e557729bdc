"""Updates on groups that hold on-policy members and off-policy ones: LUFFY's, wherever the groups come from."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lit_rft.generation import SamplingSettings
from lit_rft.models.features import frozen_backbone
from lit_rft.models.log_probs import UtteranceLogProbs, utterance_log_probs
from lit_rft.models.sharding import unsharded
from lit_rft.objectives import (
    MixedPolicyLoss,
    Sums,
    group_advantages,
    kl_estimate,
    masked_token_mean,
    mean_parts,
    mixed_policy_loss,
    truncated_importance_weights,
)
from lit_rft.stages.optimization import mean_over_steps
from lit_rft.stages.policy import PolicyModule
from lit_rft.stages.rollouts import Rollout, RolloutBatch, group_statistics, summarize_groups
from lit_rft.stages.settings import ObjectiveSettings
from lit_rft.transcripts import StepBatch, TranscriptBatch, count_utterances, step_batch


class MixedPolicyUpdates(PolicyModule):
    """What `MixedPolicyGRPO` and `MixedPolicyEpisodes` share, from a rollout's members to optimiser steps.

    Subclasses call `set_objective` once, and `improve` with the members of each rollout.
    """

    objective: ObjectiveSettings
    sampling: SamplingSettings  # of the on-policy members
    rollouts = 0  # so far: whose turn it is among a prompt's traces

    def set_objective(
        self,
        objective: ObjectiveSettings,
        sampling: SamplingSettings,
        *,
        max_tokens: int,
        micro_batch_tokens: int,
        chunk_tokens: int,
        packing: bool = False,
    ) -> None:
        """Say how to learn.

        Args:
            max_tokens: that a member may have: what `normalizer: max_length` divides by.
        Raises: ValueError for greedy sampling of several members.
        """
        if sampling.temperature == 0 and objective.group_size - objective.traces_per_group > 1:
            raise ValueError("sampling.temperature must be > 0: greedy completions of a prompt are all the same")
        self.objective, self.sampling, self.max_tokens = objective, sampling, max_tokens
        self.micro_batch_tokens, self.chunk_tokens, self.packing = micro_batch_tokens, chunk_tokens, packing
        self.steps_per_batch = objective.mini_batches * objective.epochs
        self.samples: list[Rollout] = []  # of the last rollout

    @property
    def needs_traces(self) -> bool:
        """Whether training without any off-policy trace would be another method; data modules check it."""
        objective = self.objective
        return objective.traces_per_group > 0 or objective.sft_coef > 0 or objective.sft_steps > 0

    def update_policy(self, members: list[Rollout], num_groups: int) -> dict[str, Tensor]:
        """`mini_batches` times `epochs` optimiser steps on a rollout; returns what there is to log.

        Args:
            num_groups: of this process, which has every so-many-th one of a batch.
        """
        number = self.objective.mini_batches
        parts = self._mini_batches(members, num_groups)
        if number * self.objective.epochs > 1:
            self._remember_log_probs(members)
        metrics = [self._policy_step(part) for _ in range(self.objective.epochs) for part in parts]
        sums = {k: torch.tensor(v, device=self.device) for k, v in group_statistics(members).items()}
        return mean_over_steps(metrics) | summarize_groups(self.sum_over_processes(sums))

    def _mini_batches(self, members: list[Rollout], num_groups: int) -> list[list[Rollout]]:
        """Whole groups, one stretch of the batch after the other: the same however many processes share it.

        Returns: as many parts in every process, some of them perhaps empty.
        """
        mine = torch.tensor(float(num_groups), device=self.device)
        total = int(self.sum_over_processes({"groups": mine})["groups"])
        parts: list[list[Rollout]] = [[] for _ in range(self.objective.mini_batches)]
        for one in members:
            place = one.group * self.trainer.world_size + self.global_rank
            parts[place * len(parts) // total].append(one)
        return parts

    def log_step(self, metrics: dict[str, Tensor]) -> None:
        """Log against optimiser steps."""
        self.rollouts += 1
        for name, value in metrics.items():
            self.log(f"train/{name}", value, prog_bar=name in ("loss", "reward"))
        self.log("step", float(self.global_step))  # a rollout may be several optimiser steps

    @property
    def num_tokens(self) -> int:
        """Tokens of the last rollout of this process, prompts included."""
        return sum(len(transcript) for one in self.samples for transcript in one.transcripts)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["rollouts"] = self.rollouts

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self.rollouts = checkpoint.get("rollouts", 0)

    def assign_advantages(self, members: Sequence[Rollout]) -> None:
        """Give members, which have their rewards, their advantages.

        Raises: NonFiniteLossError in all processes if a reward is not finite.
        """
        bad = [one.transcripts[0].episode_id for one in members if not math.isfinite(one.reward)]
        self.stop_together(bool(bad), bad, "a reward")
        if not members:
            return
        advantages = group_advantages(
            torch.tensor([one.reward for one in members], dtype=torch.float64),
            torch.tensor([one.group for one in members]),
            off_policy_mask=torch.tensor([one.off_policy for one in members]),
            on_policy_statistics=self.objective.on_policy_statistics,
            scale_by_std=self.objective.scale_by_std,
        )
        for one, advantage in zip(members, advantages.tolist(), strict=True):
            one.advantage = advantage

    @torch.no_grad()
    def _remember_log_probs(self, members: Sequence[Rollout]) -> None:
        """pi_old of the on-policy members, for updates after the first."""
        assert self.policy is not None
        own = [one for one in members if not one.off_policy]
        training = self.policy.training
        self.policy.eval()  # as they were sampled: without dropout
        with unsharded(self.policy):
            for micro in self._split(own).micro_batches:
                RolloutBatch(micro, own).keep("old_log_probs", self._forward(micro).tokens)
        self.policy.train(training)

    # --- one optimiser step ------------------------------------------------------------------------------------------

    def _policy_step(self, members: list[Rollout]) -> dict[str, Tensor]:
        settings = self.objective
        counted = [one for one in members if one.finished or one.off_policy or not settings.mask_truncated]
        numbers = {
            "all": sum(one.length for one in counted if one.counts_in_baseline),
            "off": sum(one.length for one in counted if one.off_policy),
        }
        total = self.sum_over_processes({k: torch.tensor(float(n), device=self.device) for k, n in numbers.items()})
        # where a term has no gradient there is no pass: equal rewards say nothing
        everything = settings.entropy_coef > 0 or settings.kl_coef > 0
        needed = [one for one in counted if everything or one.advantage or (settings.sft_coef > 0 and one.off_policy)]
        return self.optimize(self._split(needed).micro_batches, partial(self._loss, members=needed, total=total))

    def _split(self, members: Sequence[Rollout]) -> StepBatch:
        transcripts = [transcript for one in members for transcript in one.transcripts]
        return step_batch(
            transcripts, count_utterances(transcripts), micro_batch_tokens=self.micro_batch_tokens, pad_id=0,
            packing=self.packing,
        ).to(self.device)  # fmt: skip

    def _forward(self, micro: TranscriptBatch, entropy: bool = False) -> UtteranceLogProbs:
        assert self.policy is not None and self.chat is not None
        return utterance_log_probs(
            self.policy, micro, end_of_turn_id=self.chat.end_of_turn_id, temperature=self.sampling.temperature or 1.0,
            chunk_tokens=self.chunk_tokens, ends=False, entropy=entropy,
        )  # fmt: skip

    def _loss(self, micro: TranscriptBatch, members: list[Rollout], total: dict[str, Tensor]) -> tuple[Tensor, Sums]:
        """Compute the share of the loss of a micro-batch, and its diagnostics."""
        settings, rows = self.objective, RolloutBatch(micro, members)
        found = self._forward(micro, entropy=settings.entropy_coef > 0)
        off = rows.each("off_policy", torch.bool)
        compared = micro.utterance_mask & rows.each("counts_in_baseline", torch.bool)[:, None]
        terms = self._policy_loss(found.tokens, rows, off, compared, total["all"])
        parts = _sums_of(terms, compared, off) | self._other_terms(micro, found, compared, off, total)
        weights = {"entropy": -settings.entropy_coef, "kl": settings.kl_coef, "sft_loss": settings.sft_coef}
        loss = terms.loss + sum(weights[name] * parts[name] for name in weights if name in parts)
        return loss, parts

    def _policy_loss(
        self, log_probs: Tensor, rows: RolloutBatch, off: Tensor, compared: Tensor, tokens: Tensor
    ) -> MixedPolicyLoss:
        settings = self.objective
        old = log_probs.detach()
        if settings.mini_batches * settings.epochs > 1:
            old = rows.tokens("old_log_probs", log_probs, 0.0)
        weights = None
        if settings.importance_cap is not None:
            sampled = rows.tokens("sampled_log_probs", log_probs, 0.0)
            weights = truncated_importance_weights(old, sampled, max_weight=settings.importance_cap)
            weights = torch.where(off[:, None], torch.ones_like(weights), weights)
        return mixed_policy_loss(
            log_probs,
            rows.each("advantage", log_probs.dtype),
            compared,
            off,
            old_log_probs=old,
            behaviour_log_probs=rows.tokens("behaviour_log_probs", log_probs, math.nan),
            policy_shaping=settings.policy_shaping,
            clip_low=settings.clip_low,
            clip_high=settings.clip_high,
            token_weights=weights,
            normalizer=tokens.clamp_min(1) if settings.normalizer == "tokens" else self.max_tokens,
        )

    def _other_terms(
        self,
        micro: TranscriptBatch,
        found: UtteranceLogProbs,
        compared: Tensor,
        off: Tensor,
        total: dict[str, Tensor],
    ) -> dict[str, Tensor]:
        """Entropy, divergence and likelihood, those that count."""
        settings, number, parts = self.objective, total["all"].clamp_min(1), {}
        if settings.entropy_coef > 0:
            parts["entropy"] = masked_token_mean(found.entropy, compared, normalizer=number)
        if settings.kl_coef > 0:
            divergence = kl_estimate(found.tokens, self._reference(micro))
            parts["kl"] = masked_token_mean(divergence, compared, normalizer=number)
        if settings.sft_coef > 0:
            traces = micro.utterance_mask & off[:, None]
            parts["sft_loss"] = -masked_token_mean(found.tokens, traces, normalizer=total["off"].clamp_min(1))
        return parts

    def _reference(self, micro: TranscriptBatch) -> Tensor:
        """Log-probabilities under the policy without its adapter: no second model."""
        assert self.policy is not None
        with frozen_backbone(self.policy):
            return self._forward(micro).tokens

    def sft_step(self, members: Sequence[Rollout]) -> dict[str, Tensor]:
        """One optimiser step of plain supervised fine-tuning."""
        number = torch.tensor(float(sum(one.length for one in members)), device=self.device)
        total = self.sum_over_processes({"off": number})["off"]
        if total == 0:
            raise ValueError("objective.sft_steps needs off-policy traces, and this batch has none: check the data")

        def loss(micro: TranscriptBatch) -> tuple[Tensor, Sums]:
            return -masked_token_mean(self._forward(micro).tokens, micro.utterance_mask, normalizer=total), {}

        return self.optimize(self._split(members).micro_batches, loss)


def _sums_of(terms: MixedPolicyLoss, compared: Tensor, off: Tensor) -> Sums:
    """Return diagnostics of a micro-batch that add up."""
    on_tokens, off_tokens = (compared & ~off[:, None]).sum(), (compared & off[:, None]).sum()
    return {
        "policy_loss": terms.loss,
        "on_policy_loss": mean_parts(terms.on_policy_loss * on_tokens, on_tokens),
        "off_policy_loss": mean_parts(terms.off_policy_loss * off_tokens, off_tokens),
        "trace_prob_mean": mean_parts(terms.trace_prob_mean * off_tokens, off_tokens),
        "clip_fraction": mean_parts(terms.clip_fraction * on_tokens, on_tokens),
    }
