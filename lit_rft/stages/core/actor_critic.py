"""Updates of an actor by weighted likelihood and of utterance-level critics (GLIDER's second and third stage)."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lit_rft.models.forward import hidden_states
from lit_rft.models.log_probs import utterance_log_probs
from lit_rft.objectives import Sums, polyak_update, utterance_log_likelihood, weighted_likelihood_loss
from lit_rft.rollouts.policy import Policy
from lit_rft.stages.core.critic_updates import IQLUpdate, known_returns, reads_values
from lit_rft.stages.core.critics import Critics, FeatureReader
from lit_rft.stages.core.diagnostics import decision_sums, summarize
from lit_rft.stages.core.level_decisions import check_outcomes, decisions_at
from lit_rft.stages.core.optimize import Optimize
from lit_rft.stages.core.settings import ActingSettings, CriticSettings
from lit_rft.transcripts import StepBatch, TranscriptBatch

CriticUpdateFunction = Callable[..., Any]  # a `CriticUpdate`; the command line takes callables by class_path
_LOSSES = ("policy_loss", "q_loss", "value_loss")


class ActorCritic:
    r"""Updates of a policy and critics from decisions and their outcomes.

        L_Q  = E[ ( Q(s,u) - r - gamma^k (1 - terminated) V_target(s') )^2 ]               `td_target`, `q_loss`
        L_V  = E[ |expectile - 1(Q_target < V)| (Q_target(s,u) - V(s))^2 ]                 `expectile_value_loss`
        L_pi = -E[ min(exp((Q - V) / advantage_temperature), max_weight) log pi(u|s) ]     `advantage_weights`,
                                                                                           `weighted_likelihood_loss`

    at each level with its own rewards; expectations are means over the decisions of its level in the optimiser step.

    Args:
        levels: of the agent.
        settings: of the critics.
        acting: sampling of utterances for `value_actions="policy"`.
        critic_update: critic losses and weights of the actor's loss; None for `IQLUpdate`.
        value_actions: utterances in L_V: the data's, or one sampled by the policy in each state.
        average_tokens: log pi(u|s) per token, or its sum.
        level_weights: weight of each level's losses; 1 for levels left out.
        chunk_tokens: logits are computed in chunks of this many tokens.

    Raises:
        ValueError: For a value out of range.
    """

    def __init__(
        self,
        levels: tuple[str, ...],
        settings: CriticSettings,
        acting: ActingSettings,
        *,
        critic_update: CriticUpdateFunction | None = None,
        value_actions: str = "dataset",
        average_tokens: bool = False,
        level_weights: dict[str, float] | None = None,
        chunk_tokens: int = 256,
    ) -> None:
        self.levels, self.settings = levels, settings
        self.critic_update = critic_update if critic_update is not None else IQLUpdate()
        self.critics, self.features = Critics(settings, levels), FeatureReader(settings, acting)
        self.value_actions, self.average_tokens, self.chunk_tokens = value_actions, average_tokens, chunk_tokens
        self.level_weights = level_weights or {}
        self.q_and_returns: list[tuple[str, Tensor, Tensor]] = []  # level, Q, return: of this epoch, where known
        self._check_settings()

    def _check_settings(self) -> None:
        if self.value_actions not in ("dataset", "policy"):
            raise ValueError(f"value_actions must be dataset or policy, got {self.value_actions!r}")
        if self.value_actions == "policy" and not reads_values(self.critic_update):
            name = type(self.critic_update).__name__
            raise ValueError(f"value_actions=policy has no effect with {name}, which has no V: set it to dataset")

    def update(self, policy: Policy, batch: StepBatch, optimize: Optimize) -> dict[str, Tensor]:
        """Make one step of actor and critics, then of the target critics.

        Args:
            policy: the actor.
            batch: this process's micro-batches.
            optimize: makes an optimiser step.

        Returns:
            Metrics over all processes.
        """
        critic = self.critics.critic
        assert critic is not None
        loss = partial(self._loss, policy=policy, num_decisions=batch.num_utterances)
        sums = optimize(batch.micro_batches, loss)
        polyak_update(critic.target.parameters(), critic.online.parameters(), rate=self.settings.polyak_rate)
        levels = [level for level in self.levels if batch.num_utterances.get(level)]
        losses = ["loss", *(f"{level}/{name}" for level in levels for name in _LOSSES)]
        return {name: sums[name] for name in losses} | summarize(sums, levels)

    def _loss(self, micro: TranscriptBatch, policy: Policy, num_decisions: dict[str, int]) -> tuple[Tensor, Sums]:
        """Compute the share of the losses of a micro-batch, and its diagnostics."""
        assert self.critics.critic is not None
        check_outcomes(micro)
        hidden = hidden_states(policy.model, micro)
        log_probs = utterance_log_probs(
            policy.model, micro, end_of_turn_id=policy.chat.end_of_turn_id, chunk_tokens=self.chunk_tokens,
            hidden=hidden, ends=False,
        )  # fmt: skip
        likelihood = utterance_log_likelihood(
            log_probs.tokens, micro.utterance_mask, average_tokens=self.average_tokens
        )
        features = self.features(policy, micro, hidden)
        proposals = self.features.proposals(policy, micro) if self.value_actions == "policy" else None
        loss, sums = likelihood.new_zeros(()), Sums()
        for code, level in enumerate(self.levels):
            rows = micro.at_level(level)
            if not rows.any():
                continue
            decisions, number = decisions_at(level, code, micro, features, proposals), num_decisions[level]
            terms = self.critic_update(self.critics.critic, decisions, self.settings, number)
            policy_loss = weighted_likelihood_loss(likelihood[rows], terms.weights, normalizer=number)
            parts = (policy_loss, terms.q_loss, terms.value_loss)
            loss = loss + self.level_weights.get(level, 1.0) * sum(parts, torch.zeros_like(loss))
            sums |= {f"{level}/{name}": part for name, part in zip(_LOSSES, parts, strict=True)}
            sums |= decision_sums(level, q=terms.q, value=terms.value, weights=terms.weights, clamped=terms.clamped)
            self.q_and_returns.append((level, *known_returns(decisions, self.settings, terms.q)))
        return loss, sums
