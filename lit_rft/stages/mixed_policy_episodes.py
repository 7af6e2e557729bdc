"""GRPO over episodes of text environments, with expert episodes in the groups."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from lit_rft._seeds import resolve_seed
from lit_rft.agents import Agent, PlayedEpisode
from lit_rft.batches import EpisodeGroupBatch
from lit_rft.envs.jobs import EpisodeJobs
from lit_rft.generation import SamplingSettings
from lit_rft.rollouts import Rollout
from lit_rft.stages.data_check import GROUPS
from lit_rft.stages.exploration import ExploringStage
from lit_rft.stages.mixed_policy import AdvantagesFunction, MixedPolicyUpdates, PolicyLossFunction
from lit_rft.stages.serving import check_served
from lit_rft.stages.settings import (
    ActingSettings,
    BatchingSettings,
    ObjectiveSettings,
    OptimizerSettings,
    PolicySettings,
)


class MixedPolicyEpisodes(MixedPolicyUpdates, ExploringStage):
    """`MixedPolicyGRPO` where a group is episodes of one task and variation: some that the policy plays, and an
    expert's. The reward is an episode's final score; its advantage is that of every token of its actions (and subgoals,
    with a hierarchy).

    One training step is a rollout: episodes of a batch of tasks, then `mini_batches` times `epochs` optimiser steps.
    An episode whose environment failed is in no group.

    Args:
        policy: which model, and from where it starts.
        optimizer: AdamW and its schedule.
        objective: groups, coefficients and number of updates.
        exploration: how the policy samples in training.
        acting: how episodes are played, and sampled in validation, test and predict.
        agent: the agent that acts; null for `HierarchicalAgent`.
        batching: micro-batches of an optimiser step.
        chunk_tokens: logits are made for so many tokens at a time.
        seed: of the rollouts; null for the run's `seed_everything`.
        loss: policy loss, any `lit_rft.rollouts.PolicyLoss`; default `MixedPolicyLoss`, LUFFY's.
        advantages: any `lit_rft.rollouts.Advantages`; default `GroupAdvantages`.
    """

    training_batch = GROUPS

    def __init__(
        self,
        policy: PolicySettings | None = None,
        optimizer: OptimizerSettings | None = None,
        objective: ObjectiveSettings | None = None,
        exploration: SamplingSettings | None = None,
        acting: ActingSettings | None = None,
        agent: Agent | None = None,
        batching: BatchingSettings | None = None,
        chunk_tokens: int = 256,
        seed: int | None = None,
        loss: PolicyLossFunction | None = None,
        advantages: AdvantagesFunction | None = None,
    ) -> None:
        ExploringStage.__init__(self, policy, optimizer, acting, agent, batching)
        self.set_objective(
            objective or ObjectiveSettings(), exploration or SamplingSettings(temperature=1.0),
            max_tokens=self.agent.max_length, chunk_tokens=chunk_tokens, loss=loss, advantages=advantages,
        )  # fmt: skip
        check_served(self.acting.server, self.sampling, self.loss)
        self.seed = resolve_seed(seed)

    def training_step(self, batch: EpisodeGroupBatch, batch_idx: int) -> None:
        self.check_batch(batch, self.training_batch)
        if self.global_step < self.objective.sft_steps:
            self.log_step(self.sft_step(self._experts(batch.groups, None)))
            return
        self.log_step(self.update_policy(self.rollout(batch), len(batch.groups)))

    def rollout(self, batch: EpisodeGroupBatch) -> list[Rollout]:
        """Episodes of each task, its experts' among them, with rewards and advantages."""
        experts = self._experts(batch.groups, self.traces_per_group)
        jobs, group_of = [], {}
        for number, group in enumerate(batch.groups):
            held = sum(one.group == number for one in experts)
            for turn in range(self.objective.group_size - held):
                job = dataclasses.replace(group.job, id=f"{group.job.id}/{self.global_step}/{turn}")
                jobs.append(job)
                group_of[job.id] = number
        played = self.explore(EpisodeJobs(jobs, batch.jobs.make_env, batch.jobs.tasks), self.sampling, self.seed)
        self.log_round(played)
        members = [self._member(one, group_of[one.episode.id]) for one in played]
        members = [one for one in members if one.transcripts] + experts
        members.sort(key=lambda one: one.group)
        self.assign_advantages(members)
        self.samples = members
        if self.objective.sft_coef > 0 and self.traces_per_group == 0:
            members = members + self._experts(batch.groups, 1, counts_in_baseline=False)
        return members

    def _member(self, played: PlayedEpisode, group: int) -> Rollout:
        """An episode as it was played; without transcripts if its environment failed."""
        episode = played.episode
        pairs = [] if episode.outcome.reason == "env_error" else zip(played.transcripts, played.log_probs, strict=True)
        kept = [(t.without_last_prompt(), log_probs) for t, log_probs in pairs if t.num_decisions]
        return Rollout(
            [transcript for transcript, _ in kept],
            "\n".join(step.action for step in episode.steps),
            group,
            off_policy=False,
            finished=episode.outcome.reason != "context_full",
            reward=episode.outcome.score,
            sampled_log_probs=[[value for decision in log_probs for value in decision] for _, log_probs in kept],
        )

    def _experts(self, groups: Sequence[Any], number: int | None, counts_in_baseline: bool = True) -> list[Rollout]:
        """So many expert episodes of each task, or all; of more than are wanted, others each time."""
        found = []
        for place, group in enumerate(groups):
            for turn in range(len(group.experts) if number is None else min(number, len(group.experts))):
                expert = group.experts[(self.rollouts + turn) % len(group.experts)]
                found.append(
                    Rollout(
                        list(expert.transcripts),
                        expert.text,
                        place,
                        True,
                        True,
                        reward=expert.score,
                        counts_in_baseline=counts_in_baseline,
                    )
                )
        return found
