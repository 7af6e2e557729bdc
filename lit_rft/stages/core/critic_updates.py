"""Critic losses and actor weights of one level: the equations of GLIDER, and those of its public release."""

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from lit_rft.agents import Agent
from lit_rft.agents.optional import keeps_thoughts, keeps_turns
from lit_rft.models.critic import Critic
from lit_rft.objectives import (
    advantage_weights,
    discounted_returns,
    expectile_value_loss,
    generalized_advantages,
    q_loss,
    td_target,
)
from lit_rft.stages.core.level_decisions import LevelDecisions
from lit_rft.stages.core.settings import CriticSettings


def known_returns(decisions: LevelDecisions, settings: CriticSettings, q: Tensor) -> tuple[Tensor, Tensor]:
    """Return Q and the observed discounted return of the decisions whose return is known, for `CriticCalibration`."""
    returns, known = discounted_returns(
        decisions.rewards,
        decisions.terminated,
        _last_of_transcripts(decisions),
        discount=settings.discount,
        steps=_discounted_steps(decisions, settings),
    )
    return q[known].cpu(), returns[known].cpu()


class CriticTerms(NamedTuple):
    """The critics' losses, and the weight of each decision in the actor's loss."""

    q_loss: Tensor
    value_loss: Tensor
    q: Tensor  # [N] detached
    value: Tensor  # [N] detached
    weights: Tensor  # [N] detached
    clamped: Tensor  # [N] bool


class CriticUpdate(Protocol):
    """Critic losses and actor weights of one level.

    A stage accepts any function or object with this signature by `class_path`. One that uses neither V nor
    `value_actions` has an attribute `reads_values = False` (`DeclaresValues`).
    """

    def __call__(
        self, critic: Critic, decisions: LevelDecisions, settings: CriticSettings, normalizer: float
    ) -> CriticTerms:
        """Compute losses that are additive over micro-batches.

        Args:
            critic: online and target networks.
            decisions: of one level, N of them.
            settings: discount and other settings of the critics.
            normalizer: number of decisions of this level over all micro-batches and processes.
        """
        ...


@runtime_checkable
class DeclaresValues(Protocol):
    """A critic update that declares whether it uses V; one that does not declare it is taken to."""

    @property
    def reads_values(self) -> bool:
        """False if it uses neither V nor `value_actions`."""
        ...


def reads_values(update: Any) -> bool:
    """Return whether a critic update uses V."""
    return not isinstance(update, DeclaresValues) or update.reads_values


def check_transcripts(agent: Agent, update: Any) -> None:
    """Check that a critic update finds the decisions that it reads after each one, in the same transcript.

    Raises:
        ValueError: For an update with `reads_next_decision`, and an agent with a transcript for each decision.
    """
    if getattr(update, "reads_next_decision", False) and not (keeps_thoughts(agent) and keeps_turns(agent)):
        raise ValueError(
            f"{type(update).__name__} reads the decisions that follow (TDUpdate: with td_lambda above 0), and "
            f"{type(agent).__name__} has a transcript for each, as it does not keep its thoughts or turns: set "
            "agent.keep_thoughts to true, or critic_update to IQLUpdate or TDUpdate with td_lambda 0"
        )


@dataclass(frozen=True)
class IQLUpdate:
    """L_Q, L_V and the weights of L_pi as in the paper.

    Args:
        advantage_temperature: GLIDER's lambda, > 0; large values approach plain likelihood.
        max_weight: maximum weight of a decision, > 0.
        expectile: target of V, in (0, 1); above 0.5 V is optimistic.

    Raises:
        ValueError: For a value out of range.
    """

    advantage_temperature: float = 0.1
    max_weight: float = 20.0
    expectile: float = 0.7

    def __post_init__(self) -> None:
        for name in ("advantage_temperature", "max_weight"):
            if not getattr(self, name) > 0:
                raise ValueError(f"critic_update.{name} must be > 0, got {getattr(self, name)}")
        if not 0 < self.expectile < 1:
            raise ValueError(f"critic_update.expectile must be in (0, 1), got {self.expectile}")

    def __call__(
        self, critic: Critic, decisions: LevelDecisions, settings: CriticSettings, normalizer: float
    ) -> CriticTerms:
        features, code = decisions.features, decisions.code
        with torch.no_grad():
            next_values = critic.target.v(features.next_state, code)
            seen = features.utterance if decisions.proposals is None else decisions.proposals
            target_q = critic.target.q(seen, code)
        q, value = critic.online.q(features.utterance, code), critic.online.v(features.state, code)
        targets = _targets(decisions, next_values, settings)
        weights = advantage_weights(
            q, value, advantage_temperature=self.advantage_temperature, max_weight=self.max_weight
        )
        return CriticTerms(
            q_loss(q, targets, normalizer=normalizer).loss,
            expectile_value_loss(value, target_q, expectile=self.expectile, normalizer=normalizer).loss,
            q.detach(),
            value.detach(),
            *weights,
        )


@dataclass(frozen=True)
class TDUpdate:
    """L_V and the weights of L_pi without Q: its place takes the lambda-return, by default r + gamma V_target(s').

    In an environment without randomness that target is Q. V reads states alone: the features at their ends, from which
    the policy acts; Q reads those at the ends of utterances, which SFT does not train. Results are mixed
    (docs/results_agents.md). With randomness an expectile above 0.5 is optimistic about luck.

    With `td_lambda` the observed rewards of later decisions count, too, as in advantage-weighted regression (AWR; Peng
    et al. 2019, arXiv 1910.00177: 0.95, expectile 0.5): V need not be right to tell good decisions from bad ones, but a
    decision answers for later mistakes in the same episode.

    Args:
        advantage_temperature: GLIDER's lambda, > 0; large values approach plain likelihood.
        max_weight: maximum weight of a decision, > 0.
        expectile: target of V, in (0, 1); above 0.5 V is optimistic.
        td_lambda: lambda of the return, in [0, 1]: 0 for one step, 1 for the observed return.

    Raises:
        ValueError: For a value out of range; in training, with `value_actions="policy"`, which has no effect without Q.
    """

    advantage_temperature: float = 0.1
    max_weight: float = 20.0
    expectile: float = 0.7
    td_lambda: float = 0.0

    @property
    def reads_next_decision(self) -> bool:
        """True if targets need later decisions of the episode in the same transcript."""
        return self.td_lambda > 0

    def __post_init__(self) -> None:
        IQLUpdate(self.advantage_temperature, self.max_weight, self.expectile)  # checks the ranges
        if not 0 <= self.td_lambda <= 1:
            raise ValueError(f"critic_update.td_lambda must be in [0, 1], got {self.td_lambda}")

    def __call__(
        self, critic: Critic, decisions: LevelDecisions, settings: CriticSettings, normalizer: float
    ) -> CriticTerms:
        if decisions.proposals is not None:
            raise ValueError("value_actions=policy has no effect with TDUpdate, which has no Q: set it to dataset")
        features, code = decisions.features, decisions.code
        with torch.no_grad():
            next_values = critic.target.v(features.next_state, code)
            if self.td_lambda == 0:  # without a loop over the decisions
                targets = _targets(decisions, next_values, settings)
            else:
                values = critic.target.v(features.state, code)
                targets = _lambda_returns(decisions, values, next_values, settings, self.td_lambda)
        value = critic.online.v(features.state, code)
        weights = advantage_weights(
            targets, value, advantage_temperature=self.advantage_temperature, max_weight=self.max_weight
        )
        loss = expectile_value_loss(value, targets, expectile=self.expectile, normalizer=normalizer).loss
        return CriticTerms(torch.zeros_like(loss), loss, targets, value.detach(), *weights)


@dataclass(frozen=True)
class SarsaUpdate:
    """The public release: Q towards r + gamma Q_target(s', u') without V, and Q_target as weights.

    Levels below the agent's first (the low level of a hierarchy) are trained by likelihood alone.
    """

    reads_values = False
    reads_next_decision = True

    def __call__(
        self, critic: Critic, decisions: LevelDecisions, settings: CriticSettings, normalizer: float
    ) -> CriticTerms:
        zeros, none = torch.zeros_like(decisions.rewards), torch.zeros_like(decisions.terminated)
        if decisions.code > 0:
            return CriticTerms(zeros.sum(), zeros.sum(), zeros, zeros, torch.ones_like(zeros), none)
        utterance, code = decisions.features.utterance, decisions.code
        with torch.no_grad():
            target_q = critic.target.q(utterance, code)
        next_q = torch.cat([target_q[1:], zeros[:1]])
        q = critic.online.q(utterance, code)
        # a truncated last decision has no u' in the data
        known = ~_last_of_transcripts(decisions) | decisions.terminated
        loss = q_loss(q, _targets(decisions, next_q, settings), mask=known, normalizer=normalizer).loss
        return CriticTerms(loss, zeros.sum(), q.detach(), zeros, target_q, none)


def _discounted_steps(decisions: LevelDecisions, settings: CriticSettings) -> Tensor | None:
    """Return the environment steps that discounting counts; None for one per decision."""
    return decisions.steps if settings.discount_each == "step" else None


def _last_of_transcripts(decisions: LevelDecisions) -> Tensor:
    """Return whether each decision is the last one of its transcript, bool [N]."""
    last = torch.ones_like(decisions.terminated)
    last[:-1] = decisions.owner[1:] != decisions.owner[:-1]
    return last


def _targets(decisions: LevelDecisions, next_values: Tensor, settings: CriticSettings) -> Tensor:
    steps = _discounted_steps(decisions, settings)
    return td_target(decisions.rewards, next_values, decisions.terminated, discount=settings.discount, steps=steps)


def _lambda_returns(
    decisions: LevelDecisions, values: Tensor, next_values: Tensor, settings: CriticSettings, td_lambda: float
) -> Tensor:
    """Return TD(lambda)'s targets of V [N], up to the end of a transcript or of its level's task."""
    return generalized_advantages(
        decisions.rewards,
        values,
        _last_of_transcripts(decisions) | decisions.terminated,
        discount=settings.discount,
        gae_lambda=td_lambda,
        final_values=next_values.masked_fill(decisions.terminated, 0.0),
        steps=_discounted_steps(decisions, settings),
    ).returns
