"""HiPER's hierarchical advantage estimation (Peng et al. 2026, arXiv 2602.16165)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lit_rft.objectives import GAE, generalized_advantages
from lit_rft.objectives.checks import check_fraction
from lit_rft.rollouts import Chain


class HAE:
    r"""GAE within each subgoal, and GAE over the subgoals above, both of the environment's rewards.

        low level:   delta_t = r_t + discount V' - V_low(s_t, g_k)
                     A_t     = delta_t + discount gae_lambda A_{t+1},    0 after the last step of subgoal k
                     V'      = V_low(s_{t+1}, g_k) within subgoal k,     V_high(s_{k+1}) after its last step
        high level:  delta_k = sum_{j < c_k} discount^j r_{t_k + j} + discount^{c_k} V_high(s_{k+1}) - V_high(s_k)
                     A_k     = delta_k + discount^{c_k} high_lambda A_{k+1}

    The value after the end of an episode is 0; a time limit bootstraps with the value of the last state, at the level
    that would decide next. The tokens of an utterance share its advantage. Intrinsic rewards are not used. Departures:
    whether a subgoal is kept is the low level's flag, so that there is no third head; the levels are whitened together.

    For `PPOEpisodes`, whose `ppo` has the discount and gae_lambda.

    Args:
        high_lambda: of the high level, in [0, 1].

    Raises:
        ValueError: high_lambda is out of its range; on a call, the episodes have no subgoals.
    """

    def __init__(self, high_lambda: float = 0.95) -> None:
        check_fraction(high_lambda=high_lambda)
        self.high_lambda = high_lambda

    def __call__(self, chains: Sequence[Chain], *, discount: float, gae_lambda: float) -> list[GAE]:
        for chain in chains:
            if not chain.decisions or chain.decisions[0].segment < 0:
                raise ValueError(
                    f"HAE needs episodes with subgoals, and the level {chain.level!r} has none: set agent to one with "
                    "a hierarchy, such as HierarchicalAgent"
                )
        high, low = (_Level(chains, below=below) for below in (False, True))
        estimates = {
            **high.estimate(high.after, high.last, discount, self.high_lambda),
            **low.estimate(_values_after(low, high), low.last, discount, gae_lambda),
        }
        return [estimates[k] for k in range(len(chains))]


class _Level:
    """The decisions of one level, in order, over all its transcripts.

    Args:
        chains: of the rollout.
        below: those whose decisions have a goal, else those that choose the goals.
    """

    def __init__(self, chains: Sequence[Chain], *, below: bool) -> None:
        places = [k for k, chain in enumerate(chains) if bool(chain.decisions[0].goal) == below]
        self.places = sorted(places, key=lambda k: chains[k].decisions[0].step)
        self.chains = [chains[k] for k in self.places]
        self.decisions = [decision for chain in self.chains for decision in chain.decisions]
        self.segments = [decision.segment for decision in self.decisions]
        # within a subgoal the low level's recursion continues; the high level's continues to the end
        self.last = [
            k == len(self.segments) - 1 or (below and self.segments[k + 1] != segment)
            for k, segment in enumerate(self.segments)
        ]
        self.values = [value for chain in self.chains for value in chain.values[chain.starts].tolist()]
        self.after = [
            0.0 if decision.terminated else value
            for chain in self.chains
            for decision, value in zip(chain.decisions, chain.after.tolist(), strict=True)
        ]

    def estimate(
        self, after: Sequence[float], last: Sequence[bool], discount: float, gae_lambda: float
    ) -> dict[int, GAE]:
        """Return advantages and returns of the tokens of each transcript, by its index in the rollout."""
        if not self.chains:
            return {}
        rewards = [sum(discount**j * r for j, r in enumerate(d.rewards)) for d in self.decisions]
        penalties = [penalty for chain in self.chains for penalty in chain.penalties.tolist()]
        estimate = generalized_advantages(
            _double(rewards) - _double(penalties), _double(self.values), torch.tensor(last), discount=discount,
            gae_lambda=gae_lambda, final_values=_double(after), steps=_double([len(d.rewards) for d in self.decisions]),
        )  # fmt: skip
        sizes = [len(chain.decisions) for chain in self.chains]
        parts = zip(*(values.split(sizes) for values in estimate), strict=True)
        return {
            place: GAE(*(values[chain.owner.cpu()].to(chain.values) for values in part))
            for place, chain, part in zip(self.places, self.chains, parts, strict=True)
        }


def _double(values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def _values_after(low: _Level, high: _Level) -> list[float]:
    """Return the value after each decision of the low level, as used at the end of a subgoal."""
    starts = dict(zip(high.segments, high.values, strict=True))
    ends = dict(zip(high.segments, high.after, strict=True))
    values = []
    for decision, after in zip(low.decisions, low.after, strict=True):
        if decision.terminated:
            values.append(0.0)
        elif decision.segment + 1 in starts:
            values.append(starts[decision.segment + 1])
        else:  # a time limit, in the middle of the last subgoal or at its end
            values.append(ends.get(decision.segment, after) if decision.completed else after)
    return values
