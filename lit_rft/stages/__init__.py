"""One LightningModule a stage. Names load on first use."""

from typing import TYPE_CHECKING

from lit_rft._lazy import lazy_exports

if TYPE_CHECKING:
    from lit_rft.stages.actor_critic import ActorCriticStage as ActorCriticStage
    from lit_rft.stages.answering import AnsweringStage as AnsweringStage
    from lit_rft.stages.base import EpisodeStage as EpisodeStage
    from lit_rft.stages.critic_updates import CriticUpdate as CriticUpdate
    from lit_rft.stages.critic_updates import IQLUpdate as IQLUpdate
    from lit_rft.stages.critic_updates import SarsaUpdate as SarsaUpdate
    from lit_rft.stages.exploration import ExploringStage as ExploringStage
    from lit_rft.stages.fsdp import FSDP2Strategy as FSDP2Strategy
    from lit_rft.stages.hierarchical_sft import HierarchicalSFT as HierarchicalSFT
    from lit_rft.stages.mixed_policy_episodes import MixedPolicyEpisodes as MixedPolicyEpisodes
    from lit_rft.stages.mixed_policy_grpo import GRPO as GRPO
    from lit_rft.stages.mixed_policy_grpo import MixedPolicyGRPO as MixedPolicyGRPO
    from lit_rft.stages.offline_rl import OfflineHierarchicalRL as OfflineHierarchicalRL
    from lit_rft.stages.online_finetune import OnlineHighLevelFinetune as OnlineHighLevelFinetune
    from lit_rft.stages.optimization import NonFiniteLossError as NonFiniteLossError
    from lit_rft.stages.policy import PolicyModule as PolicyModule
    from lit_rft.stages.settings import ActingSettings as ActingSettings
    from lit_rft.stages.settings import AnsweringSettings as AnsweringSettings
    from lit_rft.stages.settings import BatchingSettings as BatchingSettings
    from lit_rft.stages.settings import CriticSettings as CriticSettings
    from lit_rft.stages.settings import ObjectiveSettings as ObjectiveSettings
    from lit_rft.stages.settings import OnlineSettings as OnlineSettings
    from lit_rft.stages.settings import OptimizerSettings as OptimizerSettings
    from lit_rft.stages.settings import PolicySettings as PolicySettings

# public name -> the module that defines it; loaded on first use
_EXPORTS: dict[str, str] = {
    "ActingSettings": "lit_rft.stages.settings",
    "ActorCriticStage": "lit_rft.stages.actor_critic",
    "AnsweringSettings": "lit_rft.stages.settings",
    "AnsweringStage": "lit_rft.stages.answering",
    "CriticUpdate": "lit_rft.stages.critic_updates",
    "IQLUpdate": "lit_rft.stages.critic_updates",
    "SarsaUpdate": "lit_rft.stages.critic_updates",
    "BatchingSettings": "lit_rft.stages.settings",
    "CriticSettings": "lit_rft.stages.settings",
    "GRPO": "lit_rft.stages.mixed_policy_grpo",
    "HierarchicalSFT": "lit_rft.stages.hierarchical_sft",
    "ExploringStage": "lit_rft.stages.exploration",
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
    "EpisodeStage": "lit_rft.stages.base",
    "FSDP2Strategy": "lit_rft.stages.fsdp",
}

__all__ = sorted(_EXPORTS)
__getattr__, __dir__ = lazy_exports(__name__, _EXPORTS)
