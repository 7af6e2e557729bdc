"""Rollouts and their parts: the record, advantages, policy losses, replay. Names load on first use."""

from typing import TYPE_CHECKING

from lit_rft._lazy import lazy_exports

if TYPE_CHECKING:
    from lit_rft.rollouts.advantages import Advantages as Advantages
    from lit_rft.rollouts.advantages import GroupAdvantages as GroupAdvantages
    from lit_rft.rollouts.advantages import assign_advantages as assign_advantages
    from lit_rft.rollouts.advantages import group_metrics as group_metrics
    from lit_rft.rollouts.chains import AdvantageEstimator as AdvantageEstimator
    from lit_rft.rollouts.chains import Chain as Chain
    from lit_rft.rollouts.chains import ChainGAE as ChainGAE
    from lit_rft.rollouts.completions import CompletionSource as CompletionSource
    from lit_rft.rollouts.episode_groups import EpisodeGroupSource as EpisodeGroupSource
    from lit_rft.rollouts.episode_runner import EpisodeRunner as EpisodeRunner
    from lit_rft.rollouts.episodes import EpisodeSource as EpisodeSource
    from lit_rft.rollouts.losses import DeclaresNeeds as DeclaresNeeds
    from lit_rft.rollouts.losses import LossNeeds as LossNeeds
    from lit_rft.rollouts.losses import MixedPolicyLoss as MixedPolicyLoss
    from lit_rft.rollouts.losses import Normalizer as Normalizer
    from lit_rft.rollouts.losses import PolicyLoss as PolicyLoss
    from lit_rft.rollouts.losses import needs_of as needs_of
    from lit_rft.rollouts.policy import Policy as Policy
    from lit_rft.rollouts.replay import EpisodeReplay as EpisodeReplay
    from lit_rft.rollouts.rollout import Rollout as Rollout
    from lit_rft.rollouts.rollout import RolloutBatch as RolloutBatch
    from lit_rft.rollouts.sources import CompletionSampler as CompletionSampler
    from lit_rft.rollouts.sources import GroupSource as GroupSource
    from lit_rft.rollouts.sources import RolloutSource as RolloutSource

# public name -> the module that defines it; loaded on first use
_EXPORTS: dict[str, str] = {
    "AdvantageEstimator": "lit_rft.rollouts.chains",
    "Advantages": "lit_rft.rollouts.advantages",
    "Chain": "lit_rft.rollouts.chains",
    "ChainGAE": "lit_rft.rollouts.chains",
    "CompletionSampler": "lit_rft.rollouts.sources",
    "CompletionSource": "lit_rft.rollouts.completions",
    "DeclaresNeeds": "lit_rft.rollouts.losses",
    "EpisodeGroupSource": "lit_rft.rollouts.episode_groups",
    "EpisodeReplay": "lit_rft.rollouts.replay",
    "EpisodeRunner": "lit_rft.rollouts.episode_runner",
    "EpisodeSource": "lit_rft.rollouts.episodes",
    "GroupAdvantages": "lit_rft.rollouts.advantages",
    "GroupSource": "lit_rft.rollouts.sources",
    "LossNeeds": "lit_rft.rollouts.losses",
    "MixedPolicyLoss": "lit_rft.rollouts.losses",
    "Normalizer": "lit_rft.rollouts.losses",
    "Policy": "lit_rft.rollouts.policy",
    "PolicyLoss": "lit_rft.rollouts.losses",
    "Rollout": "lit_rft.rollouts.rollout",
    "RolloutBatch": "lit_rft.rollouts.rollout",
    "RolloutSource": "lit_rft.rollouts.sources",
    "assign_advantages": "lit_rft.rollouts.advantages",
    "group_metrics": "lit_rft.rollouts.advantages",
    "needs_of": "lit_rft.rollouts.losses",
}

__all__ = sorted(_EXPORTS)
__getattr__, __dir__ = lazy_exports(__name__, _EXPORTS)
