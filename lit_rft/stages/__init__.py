"""One LightningModule per stage. Names load on first use."""

from typing import TYPE_CHECKING

from lit_rft._lazy import lazy_exports

if TYPE_CHECKING:
    from lit_rft.stages.core.actor_critic import ActorCritic as ActorCritic
    from lit_rft.stages.core.critic_updates import CriticUpdate as CriticUpdate
    from lit_rft.stages.core.critic_updates import IQLUpdate as IQLUpdate
    from lit_rft.stages.core.critic_updates import SarsaUpdate as SarsaUpdate
    from lit_rft.stages.core.critic_updates import TDUpdate as TDUpdate
    from lit_rft.stages.core.data_check import EPISODES as EPISODES
    from lit_rft.stages.core.data_check import GROUPS as GROUPS
    from lit_rft.stages.core.data_check import PROMPTS as PROMPTS
    from lit_rft.stages.core.data_check import ROUNDS as ROUNDS
    from lit_rft.stages.core.data_check import STEPS as STEPS
    from lit_rft.stages.core.data_check import BatchKind as BatchKind
    from lit_rft.stages.core.episode_stage import EpisodeStage as EpisodeStage
    from lit_rft.stages.core.evaluate import Evaluator as Evaluator
    from lit_rft.stages.core.evaluate_episodes import EpisodeEvaluator as EpisodeEvaluator
    from lit_rft.stages.core.evaluate_problems import ProblemEvaluator as ProblemEvaluator
    from lit_rft.stages.core.finite import NonFiniteLossError as NonFiniteLossError
    from lit_rft.stages.core.fsdp import FSDP2Strategy as FSDP2Strategy
    from lit_rft.stages.core.group_update import GroupUpdate as GroupUpdate
    from lit_rft.stages.core.parts import WeightPart as WeightPart
    from lit_rft.stages.core.policy import PolicyModule as PolicyModule
    from lit_rft.stages.core.settings import ActingSettings as ActingSettings
    from lit_rft.stages.core.settings import AnsweringSettings as AnsweringSettings
    from lit_rft.stages.core.settings import BatchingSettings as BatchingSettings
    from lit_rft.stages.core.settings import CriticSettings as CriticSettings
    from lit_rft.stages.core.settings import ObjectiveSettings as ObjectiveSettings
    from lit_rft.stages.core.settings import OnlineSettings as OnlineSettings
    from lit_rft.stages.core.settings import OptimizerSettings as OptimizerSettings
    from lit_rft.stages.core.settings import PolicySettings as PolicySettings
    from lit_rft.stages.core.token_critics import TokenCriticSettings as TokenCriticSettings
    from lit_rft.stages.core.values import PPOSettings as PPOSettings
    from lit_rft.stages.grpo import GRPO as GRPO
    from lit_rft.stages.hierarchical_sft import HierarchicalSFT as HierarchicalSFT
    from lit_rft.stages.ilql import ILQL as ILQL
    from lit_rft.stages.mixed_policy_episodes import MixedPolicyEpisodes as MixedPolicyEpisodes
    from lit_rft.stages.mixed_policy_grpo import MixedPolicyGRPO as MixedPolicyGRPO
    from lit_rft.stages.offline_rl import OfflineHierarchicalRL as OfflineHierarchicalRL
    from lit_rft.stages.online_finetune import OnlineHighLevelFinetune as OnlineHighLevelFinetune
    from lit_rft.stages.ppo import PPO as PPO
    from lit_rft.stages.ppo import PPOEpisodes as PPOEpisodes
    from lit_rft.stages.preference import DPO as DPO
    from lit_rft.stages.preference import TrajectoryDPO as TrajectoryDPO

# public name -> the module that defines it; loaded on first use
_EXPORTS: dict[str, str] = {
    "ActingSettings": "lit_rft.stages.core.settings",
    "ActorCritic": "lit_rft.stages.core.actor_critic",
    "AnsweringSettings": "lit_rft.stages.core.settings",
    "BatchingSettings": "lit_rft.stages.core.settings",
    "BatchKind": "lit_rft.stages.core.data_check",
    "EPISODES": "lit_rft.stages.core.data_check",
    "GROUPS": "lit_rft.stages.core.data_check",
    "PROMPTS": "lit_rft.stages.core.data_check",
    "ROUNDS": "lit_rft.stages.core.data_check",
    "STEPS": "lit_rft.stages.core.data_check",
    "CriticSettings": "lit_rft.stages.core.settings",
    "CriticUpdate": "lit_rft.stages.core.critic_updates",
    "EpisodeEvaluator": "lit_rft.stages.core.evaluate_episodes",
    "EpisodeStage": "lit_rft.stages.core.episode_stage",
    "Evaluator": "lit_rft.stages.core.evaluate",
    "FSDP2Strategy": "lit_rft.stages.core.fsdp",
    "DPO": "lit_rft.stages.preference",
    "PPO": "lit_rft.stages.ppo",
    "PPOEpisodes": "lit_rft.stages.ppo",
    "PPOSettings": "lit_rft.stages.core.values",
    "TrajectoryDPO": "lit_rft.stages.preference",
    "GRPO": "lit_rft.stages.grpo",
    "ILQL": "lit_rft.stages.ilql",
    "TokenCriticSettings": "lit_rft.stages.core.token_critics",
    "GroupUpdate": "lit_rft.stages.core.group_update",
    "HierarchicalSFT": "lit_rft.stages.hierarchical_sft",
    "IQLUpdate": "lit_rft.stages.core.critic_updates",
    "MixedPolicyEpisodes": "lit_rft.stages.mixed_policy_episodes",
    "MixedPolicyGRPO": "lit_rft.stages.mixed_policy_grpo",
    "NonFiniteLossError": "lit_rft.stages.core.finite",
    "ObjectiveSettings": "lit_rft.stages.core.settings",
    "OfflineHierarchicalRL": "lit_rft.stages.offline_rl",
    "OnlineHighLevelFinetune": "lit_rft.stages.online_finetune",
    "OnlineSettings": "lit_rft.stages.core.settings",
    "OptimizerSettings": "lit_rft.stages.core.settings",
    "PolicyModule": "lit_rft.stages.core.policy",
    "PolicySettings": "lit_rft.stages.core.settings",
    "ProblemEvaluator": "lit_rft.stages.core.evaluate_problems",
    "SarsaUpdate": "lit_rft.stages.core.critic_updates",
    "TDUpdate": "lit_rft.stages.core.critic_updates",
    "WeightPart": "lit_rft.stages.core.parts",
}

__all__ = sorted(_EXPORTS)
__getattr__, __dir__ = lazy_exports(__name__, _EXPORTS)
