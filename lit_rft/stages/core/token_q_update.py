"""ILQL's update: likelihood of the data, double Q, V by expectile and the conservative term, token by token."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lit_rft.models.backbone import output_logits
from lit_rft.models.forward import hidden_states
from lit_rft.models.log_probs import utterance_log_probs
from lit_rft.models.token_critic import LowRankQ, TokenCritic, output_embedding
from lit_rft.objectives import (
    Sums,
    conservative_q_loss,
    expectile_value_loss,
    next_token_values,
    perturbed_logits,
    q_loss,
    td_target,
)
from lit_rft.rollouts.policy import Policy
from lit_rft.stages.core.level_decisions import check_outcomes
from lit_rft.stages.core.token_critics import TokenCritics
from lit_rft.transcripts import TranscriptBatch


class TokenChains(NamedTuple):
    """The tokens that an agent wrote in a micro-batch, one trajectory after another, [N] each."""

    rewards: Tensor  # of an utterance, at its last token
    terminated: Tensor  # bool, likewise
    last: Tensor  # bool, at the last token of each trajectory
    steps: Tensor  # environment steps after each token
    decision: Tensor  # index of the token's utterance


def token_chains(micro: TranscriptBatch) -> TokenChains:
    """Spread the outcomes of decisions over their tokens: observations between them take no part."""
    lengths = micro.utterance_mask.sum(1)
    ends = lengths.cumsum(0) - 1
    last = torch.ones_like(micro.terminated)
    last[:-1] = micro.transcript_index[1:] != micro.transcript_index[:-1]
    number = int(lengths.sum())
    at_ends = {
        "rewards": micro.rewards, "terminated": micro.terminated, "last": last | micro.terminated,
        "steps": micro.steps.to(micro.rewards.dtype),
    }  # fmt: skip
    spread = {name: values.new_zeros(number).index_copy(0, ends, values) for name, values in at_ends.items()}
    decision = torch.arange(len(lengths), device=lengths.device).repeat_interleave(lengths)
    return TokenChains(**spread, decision=decision)


class TokenQUpdate:
    r"""The loss of an optimiser step; every mean is over the N tokens that the agent wrote, at all levels.

        L = likelihood_coef L_BC + L_Q + L_V + conservative_coef L_C
        L_Q = 1/N sum_k sum_{i = 1, 2} ( Q_i(h_k, a_k) - r_k - discount (1 - d_k) V(h_{k+1}) )^2
        L_V = 1/N sum_k |expectile - 1(x_k < 0)| x_k^2,     x_k = min_i Q_target_i(h_k, a_k) - V(h_k)
        L_C = 1/2N sum_k sum_i [ log sum_w exp Q_i(h_k, w) - Q_i(h_k, a_k) ]
        L_BC = -1/N sum_k log pi(a_k | h_k)

    h_{k+1} is the state before the agent's next token. After a trajectory that a limit cut, V is that of its last
    state.

    Args:
        critics: the stage's.
        likelihood_coef: of L_BC, >= 0.
        chunk_tokens: logits, and Q of the vocabulary, are computed in chunks of this many tokens.
    """

    def __init__(self, critics: TokenCritics, likelihood_coef: float, chunk_tokens: int) -> None:
        if not likelihood_coef >= 0 or chunk_tokens < 1:
            raise ValueError(
                f"likelihood_coef must be >= 0 and chunk_tokens >= 1, got {likelihood_coef} and {chunk_tokens}"
            )
        self.critics, self.likelihood_coef, self.chunk_tokens = critics, likelihood_coef, chunk_tokens

    def loss(self, micro: TranscriptBatch, policy: Policy, num_tokens: Tensor) -> tuple[Tensor, Sums]:
        """Compute the share of the loss of a micro-batch, and its diagnostics.

        Args:
            micro: with outcomes.
            policy: whose weights train.
            num_tokens: N, over all micro-batches and processes.
        """
        check_outcomes(micro)
        settings = self.critics.settings
        hidden = hidden_states(policy.model, micro)
        log_probs = utterance_log_probs(
            policy.model, micro, end_of_turn_id=policy.chat.end_of_turn_id, chunk_tokens=self.chunk_tokens,
            hidden=hidden, ends=False,
        ).tokens  # fmt: skip
        likelihood_loss = -log_probs.sum() / num_tokens
        sums = self._critic_losses(micro, policy, hidden, num_tokens)
        conservative = settings.conservative_coef * sums["conservative_loss"]
        loss = self.likelihood_coef * likelihood_loss + sums["q_loss"] + sums["value_loss"] + conservative
        return loss, {**sums, "policy_loss": likelihood_loss}

    def _critic_losses(self, micro: TranscriptBatch, policy: Policy, hidden: Tensor, num_tokens: Tensor) -> Sums:
        critic, settings, mask = self.critics.critic, self.critics.settings, micro.utterance_mask
        assert critic is not None
        flat = (hidden if settings.gradients else hidden.detach()).flatten(0, 1)
        states, embedding = flat[micro.preceding[mask]], output_embedding(policy.model)
        actions = micro.input_ids.flatten()[micro.utterance_tokens[mask]]
        chains, values = token_chains(micro), critic.v(states)
        with torch.no_grad():
            after = critic.v(flat[micro.next_state_ends])[chains.decision]
            following = next_token_values(values, chains.last, final_values=after)
        steps = None if settings.discount_each == "token" else chains.steps
        target = td_target(chains.rewards, following, chains.terminated, discount=settings.discount, steps=steps)
        q_values = [head.of_tokens(states, embedding, actions) for head in critic.online_heads]
        q_losses = [q_loss(q, target, normalizer=num_tokens).loss for q in q_values]
        target_q = critic.target_q(states, embedding, actions)
        value = expectile_value_loss(values, target_q, expectile=settings.expectile, normalizer=num_tokens)
        conservative = values.new_zeros(())
        if settings.conservative_coef > 0:
            parts = [self._conservative(head, states, embedding, actions) for head in critic.online_heads]
            conservative = sum(parts, conservative) / (2 * num_tokens)
        return {
            "q_loss": sum(q_losses, conservative.new_zeros(())), "value_loss": value.loss,
            "conservative_loss": conservative, "q_mean": target_q.sum() / num_tokens,
            "value_mean": values.sum() / num_tokens,
        }  # fmt: skip

    def _conservative(self, head: LowRankQ, states: Tensor, embedding: Tensor, actions: Tensor) -> Tensor:
        """Sum L_C of one head, in chunks whose Q of the vocabulary are not kept for the backward pass."""

        def chunk(hidden: Tensor, tokens: Tensor) -> Tensor:
            return conservative_q_loss(head.of_vocabulary(hidden, embedding), tokens, normalizer=1.0)

        size = self.chunk_tokens
        parts = [
            checkpoint(chunk, states[start : start + size], actions[start : start + size], use_reentrant=False)
            for start in range(0, len(states), size)
        ]
        return torch.stack(parts).sum()


class PerturbedReadOut:
    """Logits of the policy shifted by the advantages of tokens (see `perturbed_logits`).

    Args:
        critic: token-level critics; V and the smaller target Q are used.
        weight: of the advantage, >= 0.
        max_advantage: upper bound of the advantage; None for none.
    """

    def __init__(self, critic: TokenCritic, weight: float, max_advantage: float | None) -> None:
        self.critic, self.weight, self.max_advantage = critic, weight, max_advantage

    def __call__(self, model: nn.Module, hidden: Tensor) -> Tensor:
        """Compute the logits of hidden states, [B, D] -> [B, V]."""
        log_probs = output_logits(model, hidden).log_softmax(-1)
        q_values = self.critic.target_q_of_vocabulary(hidden, output_embedding(model))
        values = self.critic.v(hidden)
        return perturbed_logits(log_probs, q_values, values, weight=self.weight, max_advantage=self.max_advantage)
