"""GRPO without off-policy traces."""

from lit_rft.stages.mixed_policy_grpo import MixedPolicyGRPO


class GRPO(MixedPolicyGRPO):
    """Group relative policy optimisation (Shao et al. 2024, arXiv 2402.03300) on prompts with verifiable answers.

    `MixedPolicyGRPO` without off-policy traces; arguments and parts are the same.
    """

    default_traces = 0
