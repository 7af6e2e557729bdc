"""Updates on groups of on-policy and off-policy rollouts: LUFFY's, wherever the groups come from."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lit_rft.generation import SamplingSettings
from lit_rft.models.log_probs import UtteranceLogProbs, utterance_log_probs
from lit_rft.models.reference import reference_policy
from lit_rft.models.sharding import unsharded
from lit_rft.objectives import Sums, kl_estimate, masked_token_mean
from lit_rft.rollouts.advantages import GroupAdvantages, group_statistics, summarize_groups
from lit_rft.rollouts.losses import MixedPolicyLoss, Normalizer
from lit_rft.rollouts.rollout import Rollout, RolloutBatch, keep_old_log_probs
from lit_rft.stages.optimization import mean_over_steps
from lit_rft.stages.policy import PolicyModule
from lit_rft.stages.settings import ObjectiveSettings
from lit_rft.transcripts import StepBatch, TranscriptBatch, count_utterances

# a `PolicyLoss` and `Advantages`; the command line takes callables by class_path
PolicyLossFunction = Callable[..., Any]
AdvantagesFunction = Callable[..., Any]


class MixedPolicyUpdates(PolicyModule):
    """From rollouts to optimiser steps, wherever the rollouts come from.

    Subclasses call `set_objective` once, and `update_policy` with the rollouts of each batch.
    """

    objective: ObjectiveSettings
    sampling: SamplingSettings  # of the on-policy rollouts
    default_traces = 1  # of a group, where the objective does not set it
    rollouts = 0  # batches so far: they take turns with the traces of a prompt

    def set_objective(
        self,
        objective: ObjectiveSettings,
        sampling: SamplingSettings,
        *,
        max_tokens: int,
        chunk_tokens: int,
        loss: PolicyLossFunction | None = None,
        advantages: AdvantagesFunction | None = None,
    ) -> None:
        """Set how to learn.

        Args:
            max_tokens: that a rollout may have, for `Normalizer.max_length`.
        Raises: ValueError for greedy sampling of several rollouts.
        """
        if objective.traces_per_group is None:
            traces = min(self.default_traces, objective.group_size)
            objective = dataclasses.replace(objective, traces_per_group=traces)
        self.loss = loss if loss is not None else MixedPolicyLoss()
        self.advantages = advantages if advantages is not None else GroupAdvantages()
        if sampling.temperature == 0 and objective.group_size - (objective.traces_per_group or 0) > 1:
            raise ValueError("sampling.temperature must be > 0: greedy completions of a prompt are all the same")
        self.objective, self.sampling, self.max_tokens = objective, sampling, max_tokens
        self.chunk_tokens = chunk_tokens
        self.steps_per_batch = objective.mini_batches * objective.epochs
        self.samples: list[Rollout] = []  # of the last rollout

    @property
    def needs_traces(self) -> bool:
        """Whether training without any off-policy trace would be another method; data modules check it."""
        objective = self.objective
        return self.traces_per_group > 0 or objective.sft_coef > 0 or objective.sft_steps > 0

    @property
    def traces_per_group(self) -> int:
        return self.objective.traces_per_group or 0

    @property
    def needs_reference(self) -> bool:  # type: ignore[override]
        return self.objective.kl_coef > 0

    def update_policy(self, rollouts: list[Rollout], num_groups: int) -> dict[str, Tensor]:
        """Make `mini_batches` times `epochs` optimiser steps; returns diagnostics to log.

        Args:
            num_groups: of this process, which has every world_size-th of a batch.
        """
        number = self.objective.mini_batches
        parts = self._mini_batches(rollouts, num_groups)
        if number * self.objective.epochs > 1:
            self._remember_log_probs(rollouts)
        metrics = [self._policy_step(part) for _ in range(self.objective.epochs) for part in parts]
        sums = {k: torch.tensor(v, device=self.device) for k, v in group_statistics(rollouts).items()}
        return mean_over_steps(metrics) | summarize_groups(self.sum_over_processes(sums))

    def _mini_batches(self, rollouts: list[Rollout], num_groups: int) -> list[list[Rollout]]:
        """Split into consecutive runs of complete groups: the same however many processes share a batch.

        Returns: as many parts in every process, some of them perhaps empty.
        """
        mine = torch.tensor(float(num_groups), device=self.device)
        total = int(self.sum_over_processes({"groups": mine})["groups"])
        parts: list[list[Rollout]] = [[] for _ in range(self.objective.mini_batches)]
        for rollout in rollouts:
            place = rollout.group * self.trainer.world_size + self.global_rank
            parts[place * len(parts) // total].append(rollout)
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
        return sum(len(transcript) for rollout in self.samples for transcript in rollout.transcripts)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["rollouts"] = self.rollouts

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self.rollouts = checkpoint.get("rollouts", 0)

    def assign_advantages(self, rollouts: Sequence[Rollout]) -> None:
        """Set the advantages of rollouts that have their rewards.

        Raises: NonFiniteLossError in all processes if a reward is not finite.
        """
        bad = [r.transcripts[0].episode_id for r in rollouts if not math.isfinite(r.reward)]
        self.stop_together(bool(bad), bad, "a reward")
        if not rollouts:
            return
        for rollout, advantage in zip(rollouts, self.advantages(rollouts).tolist(), strict=True):
            rollout.advantage = advantage

    @torch.no_grad()
    def _remember_log_probs(self, rollouts: Sequence[Rollout]) -> None:
        """Set pi_old of the on-policy rollouts, for updates after the first."""
        assert self.policy is not None
        on_policy = [rollout for rollout in rollouts if not rollout.off_policy]
        training = self.policy.training
        self.policy.eval()  # as they were sampled: without dropout
        with unsharded(self.policy):
            for micro in self._split(on_policy).micro_batches:
                keep_old_log_probs(micro, on_policy, self._forward(micro).tokens)
        self.policy.train(training)

    # --- one optimiser step ------------------------------------------------------------------------------------------

    def _policy_step(self, rollouts: list[Rollout]) -> dict[str, Tensor]:
        settings = self.objective
        counted = [r for r in rollouts if r.finished or r.off_policy or not settings.mask_truncated]
        compared = [rollout for rollout in counted if rollout.counts_in_baseline]
        numbers = {
            "tokens": sum(rollout.length for rollout in compared),
            "rollouts": len(compared),
            "traces": sum(rollout.length for rollout in counted if rollout.off_policy),
        }
        counts = self.sum_over_processes({k: torch.tensor(float(n), device=self.device) for k, n in numbers.items()})
        # where a term has no gradient there is no pass: equal rewards say nothing
        everything = settings.entropy_coef > 0 or settings.kl_coef > 0
        needed = [r for r in counted if everything or r.advantage or (settings.sft_coef > 0 and r.off_policy)]
        return self.optimize(self._split(needed).micro_batches, partial(self._loss, rollouts=needed, counts=counts))

    def _split(self, rollouts: Sequence[Rollout]) -> StepBatch:
        transcripts = [transcript for rollout in rollouts for transcript in rollout.transcripts]
        return self.step_batch(transcripts, count_utterances(transcripts))

    def _forward(self, micro: TranscriptBatch, entropy: bool = False) -> UtteranceLogProbs:
        assert self.policy is not None and self.chat is not None
        return utterance_log_probs(
            self.policy, micro, end_of_turn_id=self.chat.end_of_turn_id, temperature=self.sampling.temperature or 1.0,
            chunk_tokens=self.chunk_tokens, ends=False, entropy=entropy,
        )  # fmt: skip

    def _loss(self, micro: TranscriptBatch, rollouts: list[Rollout], counts: dict[str, Tensor]) -> tuple[Tensor, Sums]:
        """Compute the share of the loss of a micro-batch, and its diagnostics."""
        settings, batch = self.objective, RolloutBatch.of(micro, rollouts)
        outputs = self._forward(micro, entropy=settings.entropy_coef > 0)
        normalizer = Normalizer(counts["tokens"].clamp_min(1), counts["rollouts"].clamp_min(1), self.max_tokens)
        policy_loss, sums = self.loss(outputs.tokens, batch, normalizer=normalizer)
        terms = self._other_terms(micro, outputs, batch, counts)
        coefficients = {"entropy": -settings.entropy_coef, "kl": settings.kl_coef, "sft_loss": settings.sft_coef}
        loss = policy_loss + sum(coefficients[name] * term for name, term in terms.items())
        return loss, {"policy_loss": policy_loss, **sums, **terms}

    def _other_terms(
        self, micro: TranscriptBatch, outputs: UtteranceLogProbs, batch: RolloutBatch, counts: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Compute entropy, divergence and likelihood of traces, where their coefficients are not 0."""
        settings, number, terms = self.objective, counts["tokens"].clamp_min(1), {}
        if settings.entropy_coef > 0:
            terms["entropy"] = masked_token_mean(outputs.entropy, batch.mask, normalizer=number)
        if settings.kl_coef > 0:
            divergence = kl_estimate(outputs.tokens, self._reference_log_probs(micro))
            terms["kl"] = masked_token_mean(divergence, batch.mask, normalizer=number)
        if settings.sft_coef > 0:
            traces = micro.utterance_mask & batch.off_policy[:, None]
            terms["sft_loss"] = -masked_token_mean(outputs.tokens, traces, normalizer=counts["traces"].clamp_min(1))
        return terms

    def _reference_log_probs(self, micro: TranscriptBatch) -> Tensor:
        """Log-probabilities under the policy that the stage started from: no second model."""
        assert self.policy is not None
        with reference_policy(self.policy):
            return self._forward(micro).tokens

    def sft_step(self, rollouts: Sequence[Rollout]) -> dict[str, Tensor]:
        """Make one optimiser step of plain supervised fine-tuning."""
        number = torch.tensor(float(sum(rollout.length for rollout in rollouts)), device=self.device)
        total = self.sum_over_processes({"off": number})["off"]
        if total == 0:
            raise ValueError("objective.sft_steps needs off-policy traces, and this batch has none: check the data")

        def loss(micro: TranscriptBatch) -> tuple[Tensor, Sums]:
            return -masked_token_mean(self._forward(micro).tokens, micro.utterance_mask, normalizer=total), {}

        return self.optimize(self._split(rollouts).micro_batches, loss)
