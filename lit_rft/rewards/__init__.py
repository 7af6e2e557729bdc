"""Verifiable rewards: model output is parsed in killable worker processes."""

from typing import TYPE_CHECKING

from lit_rft._lazy import lazy_exports

if TYPE_CHECKING:
    from lit_rft.rewards.base import RewardSum as RewardSum
    from lit_rft.rewards.calling import RewardError as RewardError
    from lit_rft.rewards.calling import RewardFunction as RewardFunction
    from lit_rft.rewards.calling import compute_rewards as compute_rewards
    from lit_rft.rewards.ground_truths import Unearnable as Unearnable
    from lit_rft.rewards.ground_truths import unearnable as unearnable
    from lit_rft.rewards.ground_truths import warn_of_unearnable as warn_of_unearnable
    from lit_rft.rewards.math import MathReward as MathReward
    from lit_rft.rewards.math import text_after_thinking as text_after_thinking
    from lit_rft.rewards.pool import Verdict as Verdict
    from lit_rft.rewards.pool import VerifierPool as VerifierPool

# public name -> the module that defines it; loaded on first use
_EXPORTS: dict[str, str] = {
    "MathReward": "lit_rft.rewards.math",
    "RewardSum": "lit_rft.rewards.base",
    "RewardError": "lit_rft.rewards.calling",
    "RewardFunction": "lit_rft.rewards.calling",
    "Unearnable": "lit_rft.rewards.ground_truths",
    "Verdict": "lit_rft.rewards.pool",
    "VerifierPool": "lit_rft.rewards.pool",
    "compute_rewards": "lit_rft.rewards.calling",
    "text_after_thinking": "lit_rft.rewards.math",
    "unearnable": "lit_rft.rewards.ground_truths",
    "warn_of_unearnable": "lit_rft.rewards.ground_truths",
}

__all__ = sorted(_EXPORTS)
__getattr__, __dir__ = lazy_exports(__name__, _EXPORTS)
