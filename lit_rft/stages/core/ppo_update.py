"""PPO's update: token-wise advantages by GAE, clipped policy loss, clipped value loss."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lit_rft.models.forward import hidden_states
from lit_rft.models.log_probs import utterance_log_probs
from lit_rft.models.modes import evaluation_mode
from lit_rft.models.processes import sum_numbers, sum_over_processes
from lit_rft.models.reference import reference_policy
from lit_rft.models.sharding import unsharded
from lit_rft.objectives import (
    GAE,
    Sums,
    clipped_value_loss,
    kl_estimate,
    mean_parts,
    moments,
    whitened,
)
from lit_rft.rollouts.chains import Chain, ChainGAE, EstimatorFunction
from lit_rft.rollouts.losses import MixedPolicyLoss, Normalizer, loss_of
from lit_rft.rollouts.policy import Policy, measured
from lit_rft.rollouts.rollout import Rollout, RolloutBatch
from lit_rft.rollouts.update_record import UpdateRecord
from lit_rft.stages.core.diagnostics import mean_over_steps
from lit_rft.stages.core.loss_needs import check_ppo_loss
from lit_rft.stages.core.mini_batches import split_rollouts
from lit_rft.stages.core.optimize import Optimize
from lit_rft.stages.core.settings import BatchingSettings
from lit_rft.stages.core.values import PPOSettings, ValuePart
from lit_rft.transcripts import Transcript, TranscriptBatch, count_utterances, step_batch

Loss = Callable[[TranscriptBatch], tuple[Tensor, Sums]]


class Decisions(NamedTuple):
    """Token-wise values of one transcript before the update, [N] each: all tokens of its utterances in order."""

    log_probs: Tensor
    values: Tensor
    advantages: Tensor
    returns: Tensor


class PPOUpdate:
    """Advantages of transcripts, and the losses of their optimiser steps.

    By default each level is a chain of its own: with a hierarchy, the high level's decisions and the low level's are
    two. Rewards, durations and ends of decisions are the transcripts' outcomes.

    Args:
        settings: of PPO.
        batching: micro-batches of an optimiser step.
        values: the stage's value heads.
        loss: policy loss, any `lit_rft.rollouts.PolicyLoss`; None for the clipped one of `MixedPolicyLoss`.
        advantages: any `lit_rft.rollouts.AdvantageEstimator`; None for `ChainGAE`.
        temperature: of the sampling; the ratios are those of the same distribution.
        max_tokens: maximum tokens of a rollout, for `Normalizer.max_length`.
    """

    def __init__(
        self,
        settings: PPOSettings,
        batching: BatchingSettings,
        values: ValuePart,
        *,
        loss: Callable[..., Any] | None = None,
        advantages: EstimatorFunction | None = None,
        temperature: float = 1.0,
        max_tokens: int,
    ) -> None:
        self.settings, self.batching, self.values = settings, batching, values
        self.policy_loss: Callable[..., Any] = loss if loss is not None else MixedPolicyLoss()
        check_ppo_loss(self.policy_loss)
        self.advantages = advantages if advantages is not None else ChainGAE(settings.utterance_level)
        self.temperature, self.max_tokens = temperature or 1.0, max_tokens
        self.record: UpdateRecord | None = None  # of the last batch's tokens, for callbacks
        self._before: dict[int, Decisions] = {}  # by `id()` of the transcript
        self._rollout: dict[int, int] = {}  # number of a transcript's rollout, likewise
        self._kl = 0.0  # sum over the tokens of the last batch of this process

    def __call__(self, policy: Policy, rollouts: Sequence[Rollout], optimize: Optimize) -> dict[str, Tensor]:
        """Make all optimiser steps on a batch of rollouts.

        Args:
            policy: the one that sampled.
            rollouts: of this process; their transcripts have outcomes.
            optimize: makes an optimiser step.

        Returns:
            Metrics over all processes.
        """
        metrics = self.prepare(policy, rollouts)
        parts = enumerate(self.mini_batches(rollouts), start=policy.step)
        steps = [optimize(*self.step(replace(policy, step=step), part)) for step, part in parts]
        return mean_over_steps(steps) | metrics

    @measured("update")
    @torch.no_grad()
    def prepare(self, policy: Policy, rollouts: Sequence[Rollout]) -> dict[str, Tensor]:
        """Compute values, advantages and log-probabilities under the policy that sampled; returns metrics."""
        self._kl = 0.0
        evaluated: dict[int, tuple[Tensor, Chain]] = {}
        with unsharded(policy.model), evaluation_mode(policy.model):  # as it sampled: without dropout
            for micro in self._split(policy, [t for rollout in rollouts for t in rollout.transcripts]):
                evaluated |= self._evaluate(policy, micro)
        self._before = self._estimate(rollouts, evaluated)
        self._rollout = {id(t): number for number, rollout in enumerate(rollouts) for t in rollout.transcripts}
        return self._whiten(policy)

    def before(self, transcript: Transcript) -> Decisions:
        """Return what `prepare` has computed for a transcript of the last batch."""
        return self._before[id(transcript)]

    def mini_batches(self, rollouts: Sequence[Rollout]) -> list[list[Transcript]]:
        """Return the transcripts of each optimiser step: complete rollouts, in their order.

        Args:
            rollouts: of this process.
        """
        parts = split_rollouts(rollouts, self.settings.mini_batches)
        return [[t for rollout in part for t in rollout.transcripts] for part in parts] * self.settings.epochs

    def step(self, policy: Policy, transcripts: Sequence[Transcript]) -> tuple[list[TranscriptBatch], Loss]:
        """Return micro-batches and loss of an optimiser step, as `PolicyModule.optimize` takes them."""
        micro_batches = self._split(policy, transcripts)
        numbers = {
            "tokens": float(sum(int(micro.utterance_mask.sum()) for micro in micro_batches)),
            "rollouts": float(len({self._rollout[id(transcript)] for transcript in transcripts})),
        }
        counts = {name: number.clamp_min(1) for name, number in sum_numbers(numbers, policy.device).items()}
        normalizer = Normalizer(counts["tokens"], counts["rollouts"], self.max_tokens, step=policy.step)
        return micro_batches, partial(self._loss, policy=policy, normalizer=normalizer)

    def _split(self, policy: Policy, transcripts: Sequence[Transcript]) -> list[TranscriptBatch]:
        batch = step_batch(
            transcripts, count_utterances(transcripts), micro_batch_tokens=self.batching.micro_batch_tokens, pad_id=0,
            packing=self.batching.packing,
        )  # fmt: skip
        return batch.to(policy.device).micro_batches

    def _loss(self, micro: TranscriptBatch, policy: Policy, normalizer: Normalizer) -> tuple[Tensor, Sums]:
        """Compute the share of the loss of a micro-batch, and its diagnostics."""
        log_probs, values = self._forward(policy, micro)
        before = [self.before(transcript) for transcript in micro.transcripts]
        mask, number = micro.utterance_mask, micro.utterance_mask.sum()
        grids = [_grid(mask, [getattr(b, name) for b in before]) for name in ("log_probs", "advantages")]
        off_policy = torch.zeros(len(mask), dtype=torch.bool, device=mask.device)
        batch = RolloutBatch(mask, off_policy, grids[1], old_log_probs=grids[0])
        policy_loss, sums = loss_of(self.policy_loss, log_probs, batch, normalizer=normalizer)
        if self.record is not None:
            self.record.add(micro, log_probs, batch, policy_loss)
        value = clipped_value_loss(
            values, torch.cat([b.values for b in before]), torch.cat([b.returns for b in before]),
            clip=self.settings.value_clip, normalizer=normalizer.tokens,
        )  # fmt: skip
        sums = {**sums, "policy_loss": policy_loss, "value_loss": value.loss,
                "value_clip_fraction": mean_parts(value.clip_fraction * number, number)}  # fmt: skip
        return policy_loss + self.settings.value_coef * value.loss, sums

    def _forward(self, policy: Policy, micro: TranscriptBatch, hidden: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return log-probabilities, [U, L], and the values before each token, flat [N]."""
        hidden = hidden_states(policy.model, micro) if hidden is None else hidden
        log_probs = utterance_log_probs(
            policy.model, micro, end_of_turn_id=policy.chat.end_of_turn_id, temperature=self.temperature,
            chunk_tokens=self.settings.chunk_tokens, hidden=hidden, ends=False,
        ).tokens  # fmt: skip
        before = hidden.flatten(0, 1)[micro.preceding[micro.utterance_mask]]
        levels = self._levels(micro)[:, None].expand_as(micro.utterance_mask)[micro.utterance_mask]
        assert self.values.heads is not None
        return log_probs, self.values.heads(before, levels)

    def _levels(self, micro: TranscriptBatch) -> Tensor:
        """Return the index of the value head of each utterance, [U]."""
        heads = torch.tensor([self.values.levels.index(name) for name in micro.levels], device=micro.level.device)
        return heads[micro.level]

    # --- advantages --------------------------------------------------------------------------------------------------

    def _evaluate(self, policy: Policy, micro: TranscriptBatch) -> dict[int, tuple[Tensor, Chain]]:
        """Return log-probabilities and values of a micro-batch's transcripts, by `id()` of the transcript."""
        hidden = hidden_states(policy.model, micro)
        log_probs, values = self._forward(policy, micro, hidden)
        assert self.values.heads is not None
        after = self.values.heads(hidden.flatten(0, 1)[micro.next_state_ends], self._levels(micro))
        mask, penalty = micro.utterance_mask, torch.zeros_like(values)
        if self.settings.kl_coef > 0:
            with reference_policy(policy.model):
                reference = self._forward(policy, micro)[0]
            penalty = self.settings.kl_coef * (log_probs - reference)[mask]
            self._kl += float(kl_estimate(log_probs, reference)[mask].sum())
        lengths, start = mask.sum(1), 0
        evaluated = {}
        for index, transcript in enumerate(micro.transcripts):
            rows = micro.transcript_index == index
            tokens = slice(start, start := start + int(lengths[rows].sum()))
            chain = Chain(
                transcript.level, lengths[rows], micro.rewards[rows], micro.steps[rows], micro.terminated[rows],
                values[tokens], after[rows], penalty[tokens],
            )  # fmt: skip
            evaluated[id(transcript)] = (log_probs[rows][mask[rows]], chain)
        return evaluated

    def _estimate(
        self, rollouts: Sequence[Rollout], evaluated: dict[int, tuple[Tensor, Chain]]
    ) -> dict[int, Decisions]:
        """Return the transcripts' values with their advantages, in the order of `evaluated`."""
        estimates: dict[int, GAE] = {}
        for rollout in rollouts:
            decisions = rollout.decisions or [[]] * len(rollout.transcripts)
            pairs = zip(rollout.transcripts, decisions, strict=True)
            chains = [evaluated[id(transcript)][1]._replace(decisions=rows) for transcript, rows in pairs]
            results = self.advantages(chains, discount=self.settings.discount, gae_lambda=self.settings.gae_lambda)
            estimates |= {id(t): estimate for t, estimate in zip(rollout.transcripts, results, strict=True)}
        return {
            key: Decisions(log_probs, chain.values, *estimates[key]) for key, (log_probs, chain) in evaluated.items()
        }

    def _whiten(self, policy: Policy) -> dict[str, Tensor]:
        """Whiten the advantages over all processes, and return metrics of the values before the update."""
        empty = torch.zeros(0, device=policy.device)
        precise = torch.float32 if policy.device.type == "mps" else torch.float64  # MPS has no float64
        joined = {
            name: torch.cat([getattr(d, name) for d in self._before.values()] or [empty]).to(precise)
            for name in ("advantages", "values", "returns")
        }
        error = joined["returns"] - joined["values"]
        sums = sum_over_processes(
            {"advantages": moments(joined["advantages"]), "returns": moments(joined["returns"]),
             "error": moments(error), "kl": torch.tensor(self._kl, device=policy.device)}
        )  # fmt: skip
        if self.settings.whiten:
            for key, decisions in self._before.items():
                advantages = whitened(decisions.advantages, sums["advantages"])
                self._before[key] = decisions._replace(advantages=advantages)
        number = sums["returns"][0].clamp_min(1)
        spread = {name: sums[name][2] / number - (sums[name][1] / number).square() for name in ("returns", "error")}
        metrics = {
            "value_mean": (sums["returns"][1] - sums["error"][1]) / number,
            "return_mean": sums["returns"][1] / number,
            "explained_variance": 1 - spread["error"] / spread["returns"].clamp_min(1e-12),
        }
        return metrics | ({"kl": sums["kl"] / number} if self.settings.kl_coef > 0 else {})


def _grid(mask: Tensor, values: Sequence[Tensor]) -> Tensor:
    """Return flat token-wise values as [U, L], 0 in padding."""
    flat = torch.cat(list(values))
    return flat.new_zeros(mask.shape).masked_scatter(mask, flat)
