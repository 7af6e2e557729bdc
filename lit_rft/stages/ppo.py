"""PPO on completions of prompts, and on episodes of text environments."""

from dataclasses import replace
from typing import Any

from lit_rft._seeds import resolve_seed
from lit_rft.agents import Agent, learnable_transcripts
from lit_rft.generation import SamplingSettings
from lit_rft.rewards.calling import RewardFunction
from lit_rft.rollouts.advantages import group_metrics
from lit_rft.rollouts.chains import EstimatorFunction
from lit_rft.rollouts.completions import CompletionSource
from lit_rft.rollouts.episodes import EpisodeSource
from lit_rft.rollouts.rollout import Rollout
from lit_rft.stages.core.data_check import PROMPTS, ROUNDS, warn_of_context
from lit_rft.stages.core.episode_stage import EpisodeStage, check_room
from lit_rft.stages.core.evaluate_problems import ProblemEvaluator, choose_rewards
from lit_rft.stages.core.group_update import PolicyLossFunction
from lit_rft.stages.core.policy import PolicyModule
from lit_rft.stages.core.ppo_update import PPOUpdate
from lit_rft.stages.core.settings import (
    ActingSettings,
    AnsweringSettings,
    BatchingSettings,
    OptimizerSettings,
    PolicySettings,
)
from lit_rft.stages.core.values import PPOSettings, ValuePart
from lit_rft.transcripts import COMPLETION, DecisionOutcome, Transcript


class PPO(PolicyModule):
    r"""Proximal policy optimisation on completions (arXiv 1707.06347; token-level as in LMRL-Gym, arXiv 2311.18232).

        A by GAE over the completion's tokens, the reward at its last one, -kl_coef log(pi / pi_ref) at each
        L = CLIP(pi / pi_old, A) + value_coef 1/2 max( (V - R)^2, (clip(V) - R)^2 )

    Args:
        policy: model and initial weights.
        optimizer: AdamW and its schedule, of the policy.
        ppo: of advantages, values and updates.
        sampling: of the rollouts.
        reward: reward function of the training completions; null for `MathReward`.
        verifier: see `MixedPolicyGRPO`.
        answering: sampling of answers in validation, test and predict.
        batching: micro-batches of an optimiser step.
        group_size: completions per prompt.
        max_concurrent: maximum number of completions sampled at the same time.
        seed: of the rollouts; null for the run's `seed_everything`.
        loss: policy loss; null for the clipped one of `MixedPolicyLoss`.
    """

    training_batch = PROMPTS
    source: CompletionSource
    evaluator: ProblemEvaluator
    needs_traces = False

    def __init__(
        self,
        policy: PolicySettings | None = None,
        optimizer: OptimizerSettings | None = None,
        ppo: PPOSettings | None = None,
        sampling: SamplingSettings | None = None,
        reward: RewardFunction | None = None,
        verifier: RewardFunction | None = None,
        answering: AnsweringSettings | None = None,
        batching: BatchingSettings | None = None,
        group_size: int = 1,
        max_concurrent: int = 64,
        seed: int | None = None,
        loss: PolicyLossFunction | None = None,
    ) -> None:
        super().__init__(policy, optimizer or OptimizerSettings(learning_rate=1e-6), batching)
        self.ppo = ppo or PPOSettings()
        self.sampling = sampling or SamplingSettings(temperature=1.0)
        self.max_tokens = self.sampling.max_new_tokens
        self.steps_per_batch = self.ppo.mini_batches * self.ppo.epochs
        self.needs_reference = self.ppo.kl_coef > 0
        self.reward, self.verifier = choose_rewards(reward, verifier)
        self.answering = (answering or AnsweringSettings()).with_default_seed()
        self.evaluator = ProblemEvaluator(self.verifier, self.answering)
        self.source = CompletionSource(
            self.reward, self.sampling, group_size=group_size, sampler=self.evaluator.sampler,
            max_concurrent=max_concurrent, seed=resolve_seed(seed),
        )  # fmt: skip
        self.stateful = {"source": self.source}
        values = ValuePart([COMPLETION], self.ppo.value_learning_rate)
        self.weight_parts = [values]
        self.update = PPOUpdate(
            self.ppo, self.batching, values, loss=loss, temperature=self.sampling.temperature,
            max_tokens=self.max_tokens,
        )  # fmt: skip

    def training_step(self, batch: Any, batch_idx: int) -> None:
        rollouts = self.samples = self.source(self.current_policy(), batch)
        self.check_rewards(rollouts)
        for rollout in rollouts:  # a completion that was cut has ended, too: nothing follows it
            rollout.transcripts[0].outcomes = [DecisionOutcome(rollout.reward, 1, True)]
        metrics = self.update(self.current_policy(), rollouts, self.optimize)
        self.log_terms(metrics | group_metrics(rollouts, self.device))
        self.log_source()

    def on_fit_start(self) -> None:
        super().on_fit_start()
        warn_of_context(self, self.max_tokens)


class PPOEpisodes(EpisodeStage):
    """PPO on episodes that the policy plays, flat or hierarchical.

    The recursion runs over the tokens that the agent wrote; observations take no part. With a hierarchy each level is a
    chain of its own: the high level earns the environment's rewards, the low level its intrinsic ones, which end with
    the subgoal (as in GLIDER). `OnlineDataModule` gives the episodes to play.

    Args:
        policy: model and initial weights.
        optimizer: AdamW and its schedule, of the policy.
        ppo: of advantages, values and updates.
        exploration: sampling in training.
        acting: sampling and environment workers in validation, test and predict.
        agent: the agent that acts; null for `HierarchicalAgent`.
        batching: micro-batches of an optimiser step.
        seed: of the rollouts; null for the run's `seed_everything`.
        loss: policy loss; null for the clipped one of `MixedPolicyLoss`.
        advantages: any `lit_rft.rollouts.AdvantageEstimator`; null for GAE over each level by itself.
    """

    training_batch = ROUNDS
    source: EpisodeSource

    def __init__(
        self,
        policy: PolicySettings | None = None,
        optimizer: OptimizerSettings | None = None,
        ppo: PPOSettings | None = None,
        exploration: SamplingSettings | None = None,
        acting: ActingSettings | None = None,
        agent: Agent | None = None,
        batching: BatchingSettings | None = None,
        seed: int | None = None,
        loss: PolicyLossFunction | None = None,
        advantages: EstimatorFunction | None = None,
    ) -> None:
        super().__init__(policy, optimizer or OptimizerSettings(learning_rate=1e-6), acting, agent, batching)
        self.ppo = ppo or PPOSettings()
        self.exploration = exploration or SamplingSettings(temperature=1.0)
        check_room(self.agent, "exploration", self.exploration)
        self.steps_per_batch = self.ppo.mini_batches * self.ppo.epochs
        self.needs_reference = self.ppo.kl_coef > 0
        self.source = EpisodeSource(self.evaluator.runner, self.exploration, resolve_seed(seed))
        self.stateful = {"source": self.source}
        values = ValuePart(self.agent.levels, self.ppo.value_learning_rate)
        self.weight_parts = [values]
        self.update = PPOUpdate(
            self.ppo, self.batching, values, loss=loss, advantages=advantages,
            temperature=self.exploration.temperature, max_tokens=self.agent.max_length,
        )  # fmt: skip

    def training_step(self, batch: Any, batch_idx: int) -> None:
        rollouts = self.source(self.current_policy(), batch)
        self.check_rewards(rollouts)
        self.samples = [replace(rollout, transcripts=self._learnable(rollout)) for rollout in rollouts]
        self.log_terms(self.update(self.current_policy(), self.samples, self.optimize))
        self.log_source()

    def _learnable(self, rollout: Rollout) -> list[Transcript]:
        """Return the transcripts to train on, token for token as they were played, as far as the context permits."""
        assert self.chat is not None and rollout.episode is not None
        return learnable_transcripts(list(rollout.transcripts), rollout.episode, self.chat, self.agent)
