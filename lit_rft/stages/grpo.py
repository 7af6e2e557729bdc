"""GRPO without off-policy traces."""

from lit_rft.stages.mixed_policy_grpo import MixedPolicyGRPO


class GRPO(MixedPolicyGRPO):
    """Group relative policy optimisation (Shao et al. 2024, arXiv 2402.03300) on prompts with verifiable answers.

    `MixedPolicyGRPO` without off-policy traces; arguments and parts are the same.

    Departures, all of them LUFFY's: the loss is a mean over all tokens, where the paper first averages within each
    completion; there is an entropy bonus (`objective.entropy_coef`, 0.01), and no KL term by default
    (`objective.kl_coef`; the paper: 0.04).
    """

    default_traces = 0
