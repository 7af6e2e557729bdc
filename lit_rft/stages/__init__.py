"""One LightningModule a stage. Names load on first use."""

from lit_rft._lazy import lazy_exports

# public name -> the module that defines it; loaded on first use
_EXPORTS: dict[str, str] = {
    "ActingSettings": "lit_rft.stages.settings",
    "ActorCriticStage": "lit_rft.stages.actor_critic",
    "AnsweringSettings": "lit_rft.stages.settings",
    "AnsweringStage": "lit_rft.stages.answering",
    "CriticSettings": "lit_rft.stages.settings",
    "HierarchicalSFT": "lit_rft.stages.hierarchical_sft",
    "ExploringStage": "lit_rft.stages.exploration",
    "GroupMember": "lit_rft.stages.group_members",
    "MixedPolicyEpisodes": "lit_rft.stages.mixed_policy_episodes",
    "MixedPolicyGRPO": "lit_rft.stages.mixed_policy_grpo",
    "NonFiniteLossError": "lit_rft.stages.optimization",
    "OfflineHierarchicalRL": "lit_rft.stages.offline_rl",
    "ObjectiveSettings": "lit_rft.stages.settings",
    "OnlineHighLevelFinetune": "lit_rft.stages.online_finetune",
    "OnlineSettings": "lit_rft.stages.settings",
    "OptimizerSettings": "lit_rft.stages.settings",
    "PolicyModule": "lit_rft.stages.policy",
    "PolicySettings": "lit_rft.stages.settings",
    "PolicyStage": "lit_rft.stages.base",
    "SplitWeightsStrategy": "lit_rft.stages.split_weights",
}

__all__ = sorted(_EXPORTS)
__getattr__, __dir__ = lazy_exports(__name__, _EXPORTS)
