"""Rollouts and their parts: the record, advantages, policy losses, replay. Names load on first use."""

from typing import TYPE_CHECKING

from lit_rft._lazy import lazy_exports

if TYPE_CHECKING:
    from lit_rft.rollouts.advantages import Advantages as Advantages
    from lit_rft.rollouts.advantages import GroupAdvantages as GroupAdvantages
    from lit_rft.rollouts.losses import MixedPolicyLoss as MixedPolicyLoss
    from lit_rft.rollouts.losses import Normalizer as Normalizer
    from lit_rft.rollouts.losses import PolicyLoss as PolicyLoss
    from lit_rft.rollouts.replay import EpisodeReplay as EpisodeReplay
    from lit_rft.rollouts.rollout import Rollout as Rollout
    from lit_rft.rollouts.rollout import RolloutBatch as RolloutBatch

# public name -> the module that defines it; loaded on first use
_EXPORTS: dict[str, str] = {
    "Advantages": "lit_rft.rollouts.advantages",
    "EpisodeReplay": "lit_rft.rollouts.replay",
    "GroupAdvantages": "lit_rft.rollouts.advantages",
    "MixedPolicyLoss": "lit_rft.rollouts.losses",
    "Normalizer": "lit_rft.rollouts.losses",
    "PolicyLoss": "lit_rft.rollouts.losses",
    "Rollout": "lit_rft.rollouts.rollout",
    "RolloutBatch": "lit_rft.rollouts.rollout",
}

__all__ = sorted(_EXPORTS)
__getattr__, __dir__ = lazy_exports(__name__, _EXPORTS)
