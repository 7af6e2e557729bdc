"""Offline Q-learning of tokens: implicit language Q-learning on stored episodes."""

from dataclasses import replace
from functools import partial
from typing import Any

from lit_rft.agents import Agent
from lit_rft.batches import StepTranscripts
from lit_rft.generation import ConversationGenerator
from lit_rft.models.processes import sum_numbers
from lit_rft.objectives import polyak_update
from lit_rft.rollouts.policy import Policy
from lit_rft.stages.core.data_check import STEPS
from lit_rft.stages.core.episode_stage import EpisodeStage
from lit_rft.stages.core.settings import ActingSettings, BatchingSettings, OptimizerSettings, PolicySettings
from lit_rft.stages.core.token_critics import TokenCritics, TokenCriticSettings
from lit_rft.stages.core.token_q_update import PerturbedReadOut, TokenQUpdate


class ILQL(EpisodeStage):
    r"""Implicit language Q-learning (Snell et al. 2023, arXiv 2206.11871) on stored episodes, flat or hierarchical.

    The policy imitates all episodes of the data, good and bad; critics learn the value of its tokens, and acting shifts
    its probabilities: log pi(w | h) + advantage_weight (min Q_target(h, w) - V(h)). Losses: `TokenQUpdate`.

    Deviations from the paper: Q heads are low-rank on the output embedding (`LowRankQ`), so that vocabularies of
    150,000 tokens fit; policy and critics share one network, and critics do not train it unless `critic.gradients`.
    With a hierarchy each level's transcript is a trajectory of its own, with the rewards of GLIDER's second stage.
    `OfflineHierarchicalRL` with `best_of` is the utterance-level form.

    Args:
        policy: model and initial weights.
        optimizer: AdamW of the policy; schedule, decay and clipping apply to the critics too.
        acting: sampling and environment workers in validation, test and predict.
        agent: the agent that acts; null for `HierarchicalAgent`.
        batching: micro-batches of an optimiser step.
        critic: settings of the critics.
        likelihood_coef: of the policy's likelihood loss, >= 0.
        advantage_weight: of the advantage when acting, >= 0; 0 acts with the imitating policy.
        max_advantage: upper bound of the advantage when acting; null for none.
        chunk_tokens: logits, and Q of the vocabulary, are computed in chunks of this many tokens.

    Raises:
        ValueError: For a value out of range, or a generation server, which knows no critics.
    """

    training_batch = STEPS
    needs_outcomes = True  # data modules add them

    def __init__(
        self,
        policy: PolicySettings | None = None,
        optimizer: OptimizerSettings | None = None,
        acting: ActingSettings | None = None,
        agent: Agent | None = None,
        batching: BatchingSettings | None = None,
        critic: TokenCriticSettings | None = None,
        likelihood_coef: float = 1.0,
        advantage_weight: float = 16.0,
        max_advantage: float | None = None,
        chunk_tokens: int = 256,
    ) -> None:
        super().__init__(policy, optimizer or OptimizerSettings(learning_rate=1e-5), acting, agent, batching)
        if not advantage_weight >= 0:
            raise ValueError(f"advantage_weight must be >= 0, got {advantage_weight}")
        if self.acting.server is not None and advantage_weight > 0:
            raise ValueError("a generation server does not know the critics: unset acting.server")
        self.advantage_weight, self.max_advantage = advantage_weight, max_advantage
        self.critics = TokenCritics(critic or TokenCriticSettings())
        self.weight_parts = [self.critics]
        self.update = TokenQUpdate(self.critics, likelihood_coef, chunk_tokens)

    def training_step(self, batch: StepTranscripts, batch_idx: int) -> None:
        micro_batches = self.step_batch(batch.transcripts, batch.num_utterances).micro_batches
        tokens = {"tokens": float(sum(int(micro.utterance_mask.sum()) for micro in micro_batches))}
        num_tokens = sum_numbers(tokens, self.device)["tokens"].clamp_min(1)
        self.log_terms(
            self.optimize(micro_batches, partial(self.update.loss, policy=self.current_policy(), num_tokens=num_tokens))
        )
        critic = self.critics.critic
        assert critic is not None
        polyak_update(critic.target.parameters(), critic.online.parameters(), rate=self.critics.settings.polyak_rate)

    def current_policy(self) -> Policy:
        policy = super().current_policy()
        assert self.critics.critic is not None
        if self.advantage_weight == 0:
            return policy
        read_out = PerturbedReadOut(self.critics.critic, self.advantage_weight, self.max_advantage)
        sampler = partial(ConversationGenerator, read_out=read_out)
        return replace(policy, samplers=dict.fromkeys(self.agent.levels, sampler))

    def evaluation_source(self) -> dict[str, Any]:
        decoding = {"advantage_weight": self.advantage_weight, "max_advantage": self.max_advantage}
        return super().evaluation_source() | decoding
