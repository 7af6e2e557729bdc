"""Verifiable rewards. What a model wrote is parsed in processes that can be killed."""

from lit_rft._lazy import lazy_exports

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
