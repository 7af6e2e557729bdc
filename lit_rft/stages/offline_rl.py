"""GLIDER's second stage: offline hierarchical reinforcement learning."""

from dataclasses import replace
from functools import partial
from typing import Any, Literal

from lit_rft.agents import Agent
from lit_rft.batches import StepTranscripts
from lit_rft.generation.best_of import BestOfConversations
from lit_rft.rollouts.policy import Policy
from lit_rft.stages.core.actor_critic import ActorCritic, CriticUpdateFunction
from lit_rft.stages.core.critic_updates import check_transcripts
from lit_rft.stages.core.data_check import STEPS
from lit_rft.stages.core.episode_stage import EpisodeStage, weights_of_levels
from lit_rft.stages.core.settings import (
    ActingSettings,
    BatchingSettings,
    CriticSettings,
    OptimizerSettings,
    PolicySettings,
)
from lit_rft.stages.core.utterance_q import q_of_utterances


class OfflineHierarchicalRL(EpisodeStage):
    r"""Actor and critics on stored episodes, expert and medium-quality ones (GLIDER, ICML 2025, L_Q, L_V, L_pi).

    The reward of the high level is the environment's over each subgoal, that of the low level an intrinsic one for
    completing it: equations in `lit_rft.stages.core.actor_critic.ActorCritic`, rewards in the agent's `outcomes`.
    `FlatAgent` is the flat counterpart, advantage-weighted actor-critic (AWAC) on one transcript of actions.

    Deviations from the paper: by default L_V uses the data's utterances instead of freshly sampled ones
    (`value_actions`), its expectile is above 0.5 (see `expectile_value_loss`), heads are per level
    (`critic.per_level`), and a low-level trajectory ends with its subgoal.

    Args:
        policy: model and initial weights: an adapter folder, a checkpoint of any stage, or null (from scratch). A
            checkpoint with critics initialises them too.
        optimizer: AdamW of the actor; schedule, decay and clipping apply to the critics too.
        acting: sampling and environment workers in validation, test and predict.
        agent: the agent that acts; null for `HierarchicalAgent`.
        batching: micro-batches of an optimiser step.
        critic: settings of the critics.
        critic_update: critic losses and weights of the actor's loss: `IQLUpdate` (the paper's equations, the default),
            `SarsaUpdate` (its public release: no V, Q towards r + gamma Q_target(s', u'), the actor weighted by
            Q_target itself, the low level by likelihood alone), `TDUpdate` (r + gamma V(s') in the place of Q), or any
            `CriticUpdate`.
        value_actions: utterances in L_V: the data's, or one sampled by the policy in each state (the paper; slow: see
            `sample_decisions`).
        average_tokens: log pi(u|s) per token, or (the equation) its sum.
        level_weights: weights >= 0 of the losses, by level of the agent; 1 for levels left out.
        chunk_tokens: logits are computed in chunks of this many tokens.
        best_of: utterances sampled at each decision when acting; the one with the highest Q is played. 1 for the
            policy itself. With several, a high `advantage_temperature` makes it Q-learning of utterances.

    Raises:
        ValueError: For a value out of range, or `best_of` with a generation server, which knows no critics; in `fit`,
            for a critic update that reads later decisions with an agent that has a transcript for each.
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
        critic: CriticSettings | None = None,
        critic_update: CriticUpdateFunction | None = None,
        value_actions: Literal["dataset", "policy"] = "dataset",
        average_tokens: bool = False,
        level_weights: dict[str, float] | None = None,
        chunk_tokens: int = 256,
        best_of: int = 1,
    ) -> None:
        super().__init__(policy, optimizer or OptimizerSettings(learning_rate=1e-5), acting, agent, batching)
        if best_of < 1:
            raise ValueError(f"best_of must be >= 1, got {best_of}")
        if best_of > 1 and self.acting.server is not None:
            raise ValueError("a generation server does not know the critics: unset acting.server or best_of")
        self.best_of = best_of
        self.critic_settings = critic or CriticSettings()
        self.actor_critic = ActorCritic(
            self.agent.levels, self.critic_settings, self.acting, critic_update=critic_update,
            value_actions=value_actions, average_tokens=average_tokens,
            level_weights=weights_of_levels(self.agent, level_weights), chunk_tokens=chunk_tokens,
        )  # fmt: skip
        self.critic_update, self.weight_parts = self.actor_critic.critic_update, [self.actor_critic.critics]

    def check_training(self) -> None:
        check_transcripts(self.agent, self.critic_update)
        super().check_training()

    def training_step(self, batch: StepTranscripts, batch_idx: int) -> None:
        step = self.step_batch(batch.transcripts, batch.num_utterances)
        self.log_terms(self.actor_critic.update(self.current_policy(), step, self.optimize))

    def current_policy(self) -> Policy:
        policy = super().current_policy()
        if self.best_of == 1:
            return policy
        scores = {level: partial(q_of_utterances, self.actor_critic, policy, level) for level in self.agent.levels}
        samplers = {
            level: partial(BestOfConversations, number=self.best_of, score=score) for level, score in scores.items()
        }
        return replace(policy, samplers=samplers)

    def evaluation_source(self) -> dict[str, Any]:
        return super().evaluation_source() | ({} if self.best_of == 1 else {"best_of": self.best_of})

    def on_train_epoch_start(self) -> None:
        self.actor_critic.q_and_returns = []

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        self.actor_critic.features.flush()

    def on_fit_end(self) -> None:
        self.actor_critic.features.flush()
