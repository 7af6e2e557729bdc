"""GRPO over episodes of text environments, with expert episodes in the groups."""

from lit_rft._seeds import resolve_seed
from lit_rft.agents import Agent
from lit_rft.batches import EpisodeGroupBatch
from lit_rft.generation import SamplingSettings
from lit_rft.rollouts.advantages import AdvantagesFunction, GroupAdvantages
from lit_rft.rollouts.episode_groups import EpisodeGroupSource
from lit_rft.rollouts.sources import GroupSource, SourceFunction
from lit_rft.stages.core.data_check import GROUPS
from lit_rft.stages.core.episode_stage import EpisodeStage, check_room
from lit_rft.stages.core.group_update import GroupUpdate, PolicyLossFunction
from lit_rft.stages.core.loss_needs import check_served
from lit_rft.stages.core.settings import (
    ActingSettings,
    BatchingSettings,
    ObjectiveSettings,
    OptimizerSettings,
    PolicySettings,
)


class MixedPolicyEpisodes(EpisodeStage):
    """`MixedPolicyGRPO` on groups of episodes of the same problem: some that the policy plays, and an expert's.

    The reward is an episode's final score; its advantage is that of every token of its actions (and subgoals, with a
    hierarchy). One training step is a rollout: episodes of a batch of problems, then `mini_batches` times `epochs`
    optimiser steps. An episode whose environment failed is in no group.

    Args:
        policy: model and initial weights.
        optimizer: AdamW and its schedule.
        objective: groups, coefficients and number of updates.
        exploration: sampling in training.
        acting: sampling and environment workers in validation, test and predict.
        agent: the agent that acts; null for `HierarchicalAgent`.
        batching: micro-batches of an optimiser step.
        chunk_tokens: logits are computed in chunks of this many tokens.
        seed: of the rollouts; null for the run's `seed_everything`.
        loss: policy loss, any `lit_rft.rollouts.PolicyLoss`; default `MixedPolicyLoss`, LUFFY's.
        advantages: any `lit_rft.rollouts.Advantages`; default `GroupAdvantages`.
        source: builds a source around the stage's own, such as `lit_rft.sources.DynamicSampling`; null for none.
    """

    training_batch = GROUPS
    source: GroupSource

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
        source: SourceFunction | None = None,
    ) -> None:
        super().__init__(policy, optimizer, acting, agent, batching)
        self.objective = (objective or ObjectiveSettings()).with_default_traces(1)
        self.sampling = exploration or SamplingSettings(temperature=1.0)
        check_room(self.agent, "exploration", self.sampling)
        self.seed, self.max_tokens = resolve_seed(seed), self.agent.max_length
        self.steps_per_batch, self.single_steps = self.objective.steps_per_batch, self.objective.sft_steps
        self.needs_traces, self.needs_reference = self.objective.needs_traces, self.objective.kl_coef > 0
        self.source = EpisodeGroupSource(
            self.evaluator.runner, self.sampling, seed=self.seed, **self.objective.group_sizes
        )
        if source is not None:
            self.source = source(self.source)
        self.stateful = {"source": self.source}
        self.advantages = advantages if advantages is not None else GroupAdvantages()
        self.update = GroupUpdate(
            self.objective, self.batching, loss=loss, temperature=self.sampling.temperature,
            max_tokens=self.max_tokens, chunk_tokens=chunk_tokens,
        )  # fmt: skip
        self.loss = self.update.policy_loss
        check_served(self.acting.server, self.sampling, self.loss)

    def training_step(self, batch: EpisodeGroupBatch, batch_idx: int) -> None:
        self.samples, metrics = self.update(
            self.current_policy(), batch, self.optimize, source=self.source, advantages=self.advantages
        )
        self.log_terms(metrics)
        self.log_source()
