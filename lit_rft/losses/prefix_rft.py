"""Prefix-RFT: reinforcement of prefixes of traces where the policy is uncertain (Huang et al., arXiv 2507.01679)."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lit_rft.objectives import Sums, clipped_surrogate, mean_parts
from lit_rft.objectives.checks import check_non_negative
from lit_rft.rollouts import LossNeeds, Normalizer, RolloutBatch


def top_entropy_mask(entropy: Tensor, mask: Tensor, *, share: float) -> Tensor:
    """Select the tokens of highest entropy in each row: ceil(share n) of its n tokens.

    Args:
        entropy: [B, T].
        mask: true on the tokens to choose among, [B, T].
        share: in [0, 1].

    Returns:
        [B, T] bool.
    """
    counts = [math.ceil(share * n - 1e-9) for n in mask.sum(1).tolist()]  # 0.2 * 5 is 1
    number = torch.tensor(counts, device=mask.device)
    order = entropy.masked_fill(~mask, -math.inf).argsort(dim=1, descending=True, stable=True)
    places = torch.arange(order.shape[1], device=order.device).expand_as(order)
    rank = torch.empty_like(order).scatter_(1, order, places)
    return mask & (rank < number[:, None])


@dataclass(frozen=True)
class PrefixRFT:
    r"""PPO's clipped loss of completions and of continued prefixes; in a prefix, of its most uncertain tokens only.

        L = -1/Z ( sum_{t sampled} CLIP(r_t, A, eps)  +  sum_{t in prefix} [H_t in the top share of its prefix] r_t A )

    H_t is the policy's entropy at the token: elsewhere the policy already agrees with the trace, or contradicts it
    firmly, and such gradients would outweigh those of sampled tokens. pi_old of a prefix is the current policy, without
    gradient: r = 1, exact in the first optimiser step on a rollout. Tokens of off-policy rollouts with known behaviour
    probabilities are continuations, others prefixes: `lit_rft.sources.TracePrefixes` makes such rollouts. The paper
    names the share (20%), not whether it is of each prefix or of the batch: here of each prefix.

    Args:
        prefix_share: of a prefix's tokens, in [0, 1]; 1 for all.
        clip_low: of the ratio of sampled tokens, downwards; null for none.
        clip_high: upwards; null for none.

    Raises:
        ValueError: a setting is out of its range.
    """

    prefix_share: float = 0.2
    clip_low: float | None = 0.2
    clip_high: float | None = 0.2

    def __post_init__(self) -> None:
        if not 0 <= self.prefix_share <= 1:
            raise ValueError(f"loss.prefix_share must be in [0, 1], got {self.prefix_share}")
        check_non_negative(**{"loss.clip_low": self.clip_low or 0.0, "loss.clip_high": self.clip_high or 0.0})

    @property
    def needs(self) -> LossNeeds:
        return LossNeeds(entropy=True, group_traces=True)

    def __call__(self, log_probs: Tensor, rollouts: RolloutBatch, *, normalizer: Normalizer) -> tuple[Tensor, Sums]:
        if rollouts.entropy is None:
            raise ValueError("PrefixRFT needs entropies: use it with GRPO's stages")
        mask, off = rollouts.mask, rollouts.off_policy[:, None]
        current = log_probs.masked_fill(~mask, 0.0)
        behaviour = rollouts.behaviour_log_probs
        known = torch.zeros_like(mask) if behaviour is None else ~behaviour.isnan()
        prefix, sampled = mask & off & ~known, mask & (~off | known)
        old = current.detach() if rollouts.old_log_probs is None else rollouts.old_log_probs
        if behaviour is not None:
            old = torch.where(off & known, behaviour.to(old.dtype), old)
        advantages = rollouts.token_advantages.to(current.dtype)
        losses, clipped = clipped_surrogate(
            current, torch.where(sampled, old, current.detach()), advantages, clip_low=self.clip_low,
            clip_high=self.clip_high,
        )  # fmt: skip
        chosen = top_entropy_mask(rollouts.entropy, prefix, share=self.prefix_share)
        loss = losses.masked_fill(~(sampled | chosen), 0.0).sum() / normalizer.tokens
        prefix_probs = current.detach().exp().masked_fill(~prefix, 0.0)
        return loss, {
            "clip_fraction": mean_parts((clipped & sampled).sum(), sampled.sum()),
            "trace_prob_mean": mean_parts(prefix_probs.sum(), prefix.sum()),
            "prefix_trained_fraction": mean_parts(chosen.sum(), prefix.sum()),
        }
