"""LUFFY: GRPO whose groups hold on-policy rollouts and off-policy traces."""

import logging
import time
from collections.abc import Sequence
from typing import Any

import torch

from lit_rft._seeds import resolve_seed
from lit_rft.batches import PromptBatch
from lit_rft.generation import SamplingSettings
from lit_rft.models.accel import can_share_prompts, longest_shared_row
from lit_rft.models.backbone import causal_lm
from lit_rft.models.sharding import unsharded
from lit_rft.rewards.base import reward_metrics
from lit_rft.rewards.calling import RewardError, RewardFunction, compute_rewards
from lit_rft.rollouts import Rollout
from lit_rft.stages.answering import AnsweringStage
from lit_rft.stages.data_check import PROMPTS
from lit_rft.stages.mixed_policy import AdvantagesFunction, MixedPolicyUpdates, PolicyLossFunction
from lit_rft.stages.serving import check_served
from lit_rft.stages.settings import (
    AnsweringSettings,
    BatchingSettings,
    ObjectiveSettings,
    OptimizerSettings,
    PolicySettings,
)
from lit_rft.transcripts import StepBatch, Transcript, completion_transcript, count_utterances, shared_step_batch

logger = logging.getLogger(__name__)


class MixedPolicyGRPO(MixedPolicyUpdates, AnsweringStage):
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
        objective: groups, coefficients and number of updates.
        sampling: of the rollouts.
        reward: gives completions their rewards in training.
        verifier: grades the answers of validation, test and predict; more than 0.5 is right in the reported accuracy.
            null: `reward` where that is a `MathReward`, else a `MathReward` with its defaults.
        answering: of problems in validation, test and predict.
        batching: micro-batches of an optimiser step; `packing` needs `share_prompts` off.
        max_concurrent: maximum number of completions sampled at the same time.
        chunk_tokens: logits are made for so many tokens at a time.
        share_prompts: a prompt is read once for all completions of its group, where the model can do so.
        seed: of the rollouts; null for the run's `seed_everything`.
        loss: policy loss, any `lit_rft.rollouts.PolicyLoss`; default `MixedPolicyLoss`, LUFFY's.
        advantages: any `lit_rft.rollouts.Advantages`; default `GroupAdvantages`.
    """

    training_batch = PROMPTS

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
    ) -> None:
        optimizer = optimizer or OptimizerSettings(learning_rate=1e-6)
        AnsweringStage.__init__(self, policy, optimizer, reward, verifier, answering, batching)
        sampling = sampling or SamplingSettings(max_new_tokens=8192, temperature=1.0)
        self.set_objective(
            objective or ObjectiveSettings(), sampling, max_tokens=sampling.max_new_tokens,
            chunk_tokens=chunk_tokens, loss=loss, advantages=advantages,
        )  # fmt: skip
        check_served(self.answering.server, self.sampling, self.loss)
        self.max_concurrent, self.seed = max_concurrent, resolve_seed(seed)
        self.share_prompts = share_prompts
        if share_prompts and self.batching.packing:
            raise ValueError(
                "batching.packing has no effect with share_prompts, which puts the completions of a prompt into one "
                "row: leave packing out, or set share_prompts to false"
            )
        self._warned_of_traces = False
        self._can_share: bool | None = None

    def on_fit_start(self) -> None:
        super().on_fit_start()
        assert self.policy is not None
        longest = getattr(causal_lm(self.policy).config.get_text_config(), "max_position_embeddings", None)
        if longest is not None and self.sampling.max_new_tokens >= longest:
            logger.warning("sampling.max_new_tokens=%d, but %s was made for %d tokens, the prompt included",
                           self.sampling.max_new_tokens, self.policy_settings.model, longest)  # fmt: skip

    def _shares_prompts(self) -> bool:
        """Tried once, in a training step: there is the precision that training has."""
        if self._can_share is None:
            assert self.policy is not None
            with unsharded(self.policy):
                self._can_share = can_share_prompts(self.policy)
        return self._can_share

    def _split(self, rollouts: Sequence[Rollout]) -> StepBatch:
        if not self.share_prompts:
            return super()._split(rollouts)
        assert self.policy is not None
        groups: dict[int, list[Transcript]] = {}
        for rollout in rollouts:
            groups.setdefault(rollout.group, []).extend(rollout.transcripts)
        number = count_utterances([transcript for group in groups.values() for transcript in group])
        return shared_step_batch(
            list(groups.values()), number, micro_batch_tokens=self.batching.micro_batch_tokens, pad_id=0,
            row_tokens=longest_shared_row(self.policy),
        ).to(self.device)  # fmt: skip

    def training_step(self, batch: PromptBatch, batch_idx: int) -> None:
        self.check_batch(batch, self.training_batch)
        self.share_prompts = self.share_prompts and self._shares_prompts()
        if self.global_step < self.objective.sft_steps:
            self.log_step(self.sft_step(self._traces(batch.prompts, None)))
            return
        self.log_step(self.update_policy(self.rollout(batch.prompts), len(batch.prompts)))

    # --- the rollout -------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def rollout(self, prompts: Sequence[Any]) -> list[Rollout]:
        """Completions of each prompt, its traces among them, with rewards and advantages."""
        assert self.policy is not None and self.chat is not None
        traces = self._traces(prompts, self.traces_per_group)
        self._warn_without_traces(prompts)
        held = [sum(one.group == group for one in traces) for group in range(len(prompts))]
        named = [(f"{self.global_step}/{prompt.problem.id}", prompt.ids) for prompt in prompts]
        sizes = [self.objective.group_size - number for number in held]
        groups = self.sample(named, sizes, self.sampling, self.seed, self.max_concurrent)
        members = []
        for number, (prompt, group) in enumerate(zip(prompts, groups, strict=True)):
            for sampled in group:
                transcript = self._transcript(prompt, sampled.ids)
                text = self.chat.text(sampled.ids)
                members.append(
                    Rollout([transcript], text, number, False, sampled.finished, sampled_log_probs=[sampled.log_probs])
                )
            members += [trace for trace in traces if trace.group == number]
        self._give_rewards(members, prompts)
        self.samples = members
        if self.objective.sft_coef > 0 and self.traces_per_group == 0:
            members = members + self._traces(prompts, 1, counts_in_baseline=False)
        return members

    def _traces(self, prompts: Sequence[Any], number: int | None, counts_in_baseline: bool = True) -> list[Rollout]:
        """So many off-policy completions of each prompt, or all; of more than are wanted, others each time."""
        assert self.chat is not None
        found = []
        for group, prompt in enumerate(prompts):
            for turn in range(len(prompt.traces) if number is None else min(number, len(prompt.traces))):
                index = (self.rollouts + turn) % len(prompt.traces)
                ids, known = prompt.traces[index], prompt.trace_log_probs[index]
                trace = Rollout(
                    [self._transcript(prompt, ids)], prompt.trace_texts[index], group, True,
                    finished=ids[-1] == self.chat.end_of_turn_id, counts_in_baseline=counts_in_baseline,
                    behaviour_log_probs=[known] if known else [],
                )  # fmt: skip
                found.append(trace)
        return found

    def _warn_without_traces(self, prompts: Sequence[Any]) -> None:
        """For data loaders other than the data module's, which refuses to train without any trace."""
        if self.needs_traces and not self._warned_of_traces and not any(prompt.traces for prompt in prompts):
            self._warned_of_traces = True
            logger.warning("none of a batch's %d prompts has an off-policy trace: this step is plain GRPO",
                           len(prompts))  # fmt: skip

    def _transcript(self, prompt: Any, ids: list[int]) -> Any:
        assert self.chat is not None
        return completion_transcript(prompt.problem.id, prompt.ids, ids, self.chat.end_of_turn_id)

    def _give_rewards(self, members: list[Rollout], prompts: Sequence[Any]) -> None:
        rows = [prompts[one.group].problem.row() for one in members]
        started = time.perf_counter()
        rewards, message = [], ""
        try:
            rewards = compute_rewards(
                self.reward, [one.text for one in members], rows,
                prompts=[list(prompts[one.group].problem.prompt) for one in members],
                completion_ids=[list(one.transcripts[0].utterance_ids(0)) for one in members],
            )  # fmt: skip
        except RewardError as error:
            message = str(error)
        messages = [text for text in self.all_gather_objects(message) if text]
        if messages:  # in every process: one that went on would wait for the others for ever
            raise RewardError(messages[0])
        seconds = time.perf_counter() - started
        for one, reward in zip(members, rewards, strict=True):
            one.reward = float(reward)
        self._log_rewarding(seconds, len(members))
        self.assign_advantages(members)

    def _log_rewarding(self, seconds: float, number: int) -> None:
        """Seconds a completion, and what the reward function counted, over all processes."""
        mine = {"seconds": seconds, "number": float(number), **reward_metrics(self.reward)}
        whole = self.sum_over_processes({k: torch.tensor(v, device=self.device) for k, v in mine.items()})
        self.log("train/reward_seconds", whole.pop("seconds") / whole.pop("number").clamp_min(1))
        self.log_dict({f"train/reward_{name}": value for name, value in whole.items()})


class GRPO(MixedPolicyGRPO):
    """Group relative policy optimisation (Shao et al. 2024, arXiv 2402.03300) on prompts with verifiable answers.

    `MixedPolicyGRPO` without off-policy traces; arguments and parts are the same.
    """

    default_traces = 0
