"""Rollouts with values, and their advantages by an actor-critic's estimator."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from lit_rft.agents import Decision
from lit_rft.objectives import GAE, generalized_advantages

EstimatorFunction = Callable[..., Any]  # an `AdvantageEstimator`; the command line takes callables by class_path


class Chain(NamedTuple):
    """The decisions of one transcript of a rollout, before the update: K decisions of N tokens together."""

    level: str
    lengths: Tensor  # [K] tokens of each utterance
    rewards: Tensor  # [K] of the level
    steps: Tensor  # [K] environment steps
    terminated: Tensor  # [K] bool, whether it ended the level's task
    values: Tensor  # [N] V before each token
    after: Tensor  # [K] V of the state after each decision, read where the chain was cut
    penalty: Tensor  # [N] subtracted from each token's reward
    decisions: Sequence[Decision] = ()  # of an episode, [K]

    @property
    def starts(self) -> Tensor:
        """Index of the first token of each utterance, [K]."""
        return self.lengths.cumsum(0) - self.lengths

    @property
    def owner(self) -> Tensor:
        """Index of each token's decision, [N]."""
        return torch.arange(len(self.lengths), device=self.lengths.device).repeat_interleave(self.lengths)

    @property
    def penalties(self) -> Tensor:
        """Sum of the penalties of each utterance's tokens, [K]."""
        return self.penalty.new_zeros(len(self.lengths)).index_add(0, self.owner, self.penalty)


class AdvantageEstimator(Protocol):
    """Advantages and returns of the tokens of one rollout."""

    def __call__(self, chains: Sequence[Chain], *, discount: float, gae_lambda: float) -> list[GAE]:
        """Estimate the advantages of a rollout.

        Args:
            chains: its transcripts.
            discount: per environment step.
            gae_lambda: of generalised advantage estimation.

        Returns:
            For each chain those of its tokens, [N] each.
        """
        ...


@dataclass(frozen=True)
class ChainGAE:
    """GAE over each level by itself, also where each of its decisions has a transcript of its own.

    Args:
        utterance_level: one advantage per utterance, from V at its first token, in place of one per token.
    """

    utterance_level: bool = False

    def __call__(self, chains: Sequence[Chain], *, discount: float, gae_lambda: float) -> list[GAE]:
        estimate = _utterances if self.utterance_level else _tokens
        results: dict[int, GAE] = {}
        for places in _consecutive(chains):
            parts = [chains[k] for k in places]
            joined = estimate(_join(parts), discount, gae_lambda)
            rows = zip(*(values.split([len(part.values) for part in parts]) for values in joined), strict=True)
            results |= {k: GAE(*row) for k, row in zip(places, rows, strict=True)}
        return [results[k] for k in range(len(chains))]


def _consecutive(chains: Sequence[Chain]) -> list[list[int]]:
    """Return the indices of chains that continue one another, in order: decisions of a level without a gap."""
    groups: list[list[int]] = []
    for k, chain in enumerate(chains):
        before = chains[groups[-1][-1]] if groups else None
        if before is not None and before.level == chain.level and before.decisions and chain.decisions:
            last, first = before.decisions[-1], chain.decisions[0]
            if last.step + len(last.rewards) == first.step:
                groups[-1].append(k)
                continue
        groups.append([k])
    return groups


def _join(chains: Sequence[Chain]) -> Chain:
    """Join chains that continue one another."""
    if len(chains) == 1:
        return chains[0]
    names = ("lengths", "rewards", "steps", "terminated", "values", "after", "penalty")
    joined: dict[str, Any] = {name: torch.cat([getattr(chain, name) for chain in chains]) for name in names}
    return chains[0]._replace(**joined)


def _ends(chain: Chain) -> tuple[Tensor, Tensor]:
    """Return which decisions end a trajectory, and the values after them, [K] each."""
    cut = torch.zeros_like(chain.terminated)
    cut[-1] = True
    return chain.terminated | cut, torch.where(chain.terminated, 0.0, chain.after)


def _utterances(chain: Chain, discount: float, gae_lambda: float) -> GAE:
    last, final = _ends(chain)
    estimate = generalized_advantages(
        chain.rewards - chain.penalties, chain.values[chain.starts], last, discount=discount, gae_lambda=gae_lambda,
        final_values=final, steps=chain.steps,
    )  # fmt: skip
    return GAE(estimate.advantages[chain.owner], estimate.returns[chain.owner])


def _tokens(chain: Chain, discount: float, gae_lambda: float) -> GAE:
    last, final = _ends(chain)
    ends = chain.lengths.cumsum(0) - 1  # the last token of each utterance
    rewards, time = -chain.penalty, torch.zeros_like(chain.values)
    rewards[ends] += chain.rewards
    time[ends] = chain.steps.to(time.dtype)
    everywhere = torch.zeros_like(chain.values)
    everywhere[ends] = final
    token_last = torch.zeros(len(chain.values), dtype=torch.bool, device=chain.values.device)
    token_last[ends] = last
    return generalized_advantages(
        rewards, chain.values, token_last, discount=discount, gae_lambda=gae_lambda, final_values=everywhere, steps=time
    )
