"""Reinforcement fine-tuning of language models as PyTorch Lightning modules.

The most common names are importable from here: `from lit_rft import HierarchicalSFT, PolicySettings`; the others are in
the packages below. `import lit_rft` loads neither torch, Lightning nor transformers: names load on first use.
"""

from typing import TYPE_CHECKING

from lit_rft._lazy import lazy_exports

if TYPE_CHECKING:
    from lit_rft import advantages as advantages
    from lit_rft import agents as agents
    from lit_rft import batches as batches
    from lit_rft import callbacks as callbacks
    from lit_rft import configs as configs
    from lit_rft import datamodules as datamodules
    from lit_rft import envs as envs
    from lit_rft import episodes as episodes
    from lit_rft import generation as generation
    from lit_rft import losses as losses
    from lit_rft import metrics as metrics
    from lit_rft import models as models
    from lit_rft import objectives as objectives
    from lit_rft import problems as problems
    from lit_rft import records as records
    from lit_rft import rewards as rewards
    from lit_rft import rollouts as rollouts
    from lit_rft import sources as sources
    from lit_rft import stages as stages
    from lit_rft import testing as testing
    from lit_rft import transcripts as transcripts
    from lit_rft.agents import FlatAgent as FlatAgent
    from lit_rft.agents import HierarchicalAgent as HierarchicalAgent
    from lit_rft.agents import HierarchyPrompts as HierarchyPrompts
    from lit_rft.agents import MarkedAgent as MarkedAgent
    from lit_rft.callbacks import AdapterExport as AdapterExport
    from lit_rft.callbacks import AtomicCheckpointIO as AtomicCheckpointIO
    from lit_rft.callbacks import CompletionFiles as CompletionFiles
    from lit_rft.callbacks import CompletionText as CompletionText
    from lit_rft.callbacks import CriticCalibration as CriticCalibration
    from lit_rft.callbacks import EpisodeFiles as EpisodeFiles
    from lit_rft.callbacks import EpisodeText as EpisodeText
    from lit_rft.callbacks import FitSummary as FitSummary
    from lit_rft.callbacks import RandomState as RandomState
    from lit_rft.callbacks import RolloutFiles as RolloutFiles
    from lit_rft.callbacks import RunCheckpoint as RunCheckpoint
    from lit_rft.callbacks import ScoreTable as ScoreTable
    from lit_rft.callbacks import Throughput as Throughput
    from lit_rft.datamodules import AgentTuningDataModule as AgentTuningDataModule
    from lit_rft.datamodules import EpisodeGroupDataModule as EpisodeGroupDataModule
    from lit_rft.datamodules import EpisodePairDataModule as EpisodePairDataModule
    from lit_rft.datamodules import MathPromptDataModule as MathPromptDataModule
    from lit_rft.datamodules import OnlineDataModule as OnlineDataModule
    from lit_rft.datamodules import PreferenceDataModule as PreferenceDataModule
    from lit_rft.datamodules import TrajectoryDataModule as TrajectoryDataModule
    from lit_rft.envs import EpisodeSpec as EpisodeSpec
    from lit_rft.envs import GymSuite as GymSuite
    from lit_rft.envs import TaskSuite as TaskSuite
    from lit_rft.episodes import Episode as Episode
    from lit_rft.episodes import read_episodes as read_episodes
    from lit_rft.episodes import write_episodes as write_episodes
    from lit_rft.generation import Completion as Completion
    from lit_rft.generation import SamplingSettings as SamplingSettings
    from lit_rft.generation import ServerSettings as ServerSettings
    from lit_rft.generation import VllmInProcess as VllmInProcess
    from lit_rft.models import LoraSettings as LoraSettings
    from lit_rft.models import load_backbone as load_backbone
    from lit_rft.models import load_tokenizer as load_tokenizer
    from lit_rft.problems import Problem as Problem
    from lit_rft.problems import read_problems as read_problems
    from lit_rft.problems import write_problems as write_problems
    from lit_rft.records import read_rollouts as read_rollouts
    from lit_rft.rewards import MathReward as MathReward
    from lit_rft.rewards import RewardFunction as RewardFunction
    from lit_rft.rewards import RewardSum as RewardSum
    from lit_rft.rollouts import GroupAdvantages as GroupAdvantages
    from lit_rft.rollouts import MixedPolicyLoss as MixedPolicyLoss
    from lit_rft.rollouts import Rollout as Rollout
    from lit_rft.stages import DPO as DPO
    from lit_rft.stages import GRPO as GRPO
    from lit_rft.stages import ILQL as ILQL
    from lit_rft.stages import PPO as PPO
    from lit_rft.stages import ActingSettings as ActingSettings
    from lit_rft.stages import AnsweringSettings as AnsweringSettings
    from lit_rft.stages import BatchingSettings as BatchingSettings
    from lit_rft.stages import CriticSettings as CriticSettings
    from lit_rft.stages import EpisodeStage as EpisodeStage
    from lit_rft.stages import FSDP2Strategy as FSDP2Strategy
    from lit_rft.stages import HierarchicalSFT as HierarchicalSFT
    from lit_rft.stages import IQLUpdate as IQLUpdate
    from lit_rft.stages import MixedPolicyEpisodes as MixedPolicyEpisodes
    from lit_rft.stages import MixedPolicyGRPO as MixedPolicyGRPO
    from lit_rft.stages import ObjectiveSettings as ObjectiveSettings
    from lit_rft.stages import OfflineHierarchicalRL as OfflineHierarchicalRL
    from lit_rft.stages import OnlineHighLevelFinetune as OnlineHighLevelFinetune
    from lit_rft.stages import OnlineSettings as OnlineSettings
    from lit_rft.stages import OptimizerSettings as OptimizerSettings
    from lit_rft.stages import PolicyModule as PolicyModule
    from lit_rft.stages import PolicySettings as PolicySettings
    from lit_rft.stages import PPOEpisodes as PPOEpisodes
    from lit_rft.stages import PPOSettings as PPOSettings
    from lit_rft.stages import SarsaUpdate as SarsaUpdate
    from lit_rft.stages import TDUpdate as TDUpdate
    from lit_rft.stages import TokenCriticSettings as TokenCriticSettings
    from lit_rft.stages import TrajectoryDPO as TrajectoryDPO
    from lit_rft.transcripts import ChatFormat as ChatFormat
    from lit_rft.transcripts import PromptFormat as PromptFormat
    from lit_rft.transcripts import Transcript as Transcript

__version__ = "0.1.0"

_SUBPACKAGES = (
    "advantages",
    "agents",
    "batches",
    "callbacks",
    "configs",
    "datamodules",
    "envs",
    "episodes",
    "generation",
    "losses",
    "metrics",
    "models",
    "objectives",
    "problems",
    "records",
    "rewards",
    "rollouts",
    "sources",
    "stages",
    "testing",
    "transcripts",
)

# public name -> the package that has it; loaded on first use
_NAMES: dict[str, str] = {
    "ActingSettings": "lit_rft.stages",
    "AdapterExport": "lit_rft.callbacks",
    "AnsweringSettings": "lit_rft.stages",
    "AtomicCheckpointIO": "lit_rft.callbacks",
    "BatchingSettings": "lit_rft.stages",
    "ChatFormat": "lit_rft.transcripts",
    "Completion": "lit_rft.generation",
    "CompletionFiles": "lit_rft.callbacks",
    "CompletionText": "lit_rft.callbacks",
    "CriticCalibration": "lit_rft.callbacks",
    "CriticSettings": "lit_rft.stages",
    "Episode": "lit_rft.episodes",
    "EpisodeFiles": "lit_rft.callbacks",
    "EpisodeGroupDataModule": "lit_rft.datamodules",
    "EpisodeSpec": "lit_rft.envs",
    "EpisodeStage": "lit_rft.stages",
    "EpisodeText": "lit_rft.callbacks",
    "FSDP2Strategy": "lit_rft.stages",
    "FitSummary": "lit_rft.callbacks",
    "FlatAgent": "lit_rft.agents",
    "GRPO": "lit_rft.stages",
    "GroupAdvantages": "lit_rft.rollouts",
    "GymSuite": "lit_rft.envs",
    "HierarchicalAgent": "lit_rft.agents",
    "HierarchicalSFT": "lit_rft.stages",
    "HierarchyPrompts": "lit_rft.agents",
    "ILQL": "lit_rft.stages",
    "IQLUpdate": "lit_rft.stages",
    "LoraSettings": "lit_rft.models",
    "MathPromptDataModule": "lit_rft.datamodules",
    "MathReward": "lit_rft.rewards",
    "MixedPolicyEpisodes": "lit_rft.stages",
    "PPO": "lit_rft.stages",
    "PPOEpisodes": "lit_rft.stages",
    "PPOSettings": "lit_rft.stages",
    "DPO": "lit_rft.stages",
    "TokenCriticSettings": "lit_rft.stages",
    "TrajectoryDPO": "lit_rft.stages",
    "AgentTuningDataModule": "lit_rft.datamodules",
    "EpisodePairDataModule": "lit_rft.datamodules",
    "PreferenceDataModule": "lit_rft.datamodules",
    "MarkedAgent": "lit_rft.agents",
    "MixedPolicyGRPO": "lit_rft.stages",
    "MixedPolicyLoss": "lit_rft.rollouts",
    "ObjectiveSettings": "lit_rft.stages",
    "OfflineHierarchicalRL": "lit_rft.stages",
    "OnlineDataModule": "lit_rft.datamodules",
    "OnlineHighLevelFinetune": "lit_rft.stages",
    "OnlineSettings": "lit_rft.stages",
    "OptimizerSettings": "lit_rft.stages",
    "PolicyModule": "lit_rft.stages",
    "PolicySettings": "lit_rft.stages",
    "Problem": "lit_rft.problems",
    "PromptFormat": "lit_rft.transcripts",
    "RandomState": "lit_rft.callbacks",
    "RewardFunction": "lit_rft.rewards",
    "RewardSum": "lit_rft.rewards",
    "Rollout": "lit_rft.rollouts",
    "RolloutFiles": "lit_rft.callbacks",
    "RunCheckpoint": "lit_rft.callbacks",
    "SamplingSettings": "lit_rft.generation",
    "SarsaUpdate": "lit_rft.stages",
    "ScoreTable": "lit_rft.callbacks",
    "ServerSettings": "lit_rft.generation",
    "VllmInProcess": "lit_rft.generation",
    "TDUpdate": "lit_rft.stages",
    "TaskSuite": "lit_rft.envs",
    "Throughput": "lit_rft.callbacks",
    "TrajectoryDataModule": "lit_rft.datamodules",
    "Transcript": "lit_rft.transcripts",
    "load_backbone": "lit_rft.models",
    "load_tokenizer": "lit_rft.models",
    "read_episodes": "lit_rft.episodes",
    "read_problems": "lit_rft.problems",
    "read_rollouts": "lit_rft.records",
    "write_episodes": "lit_rft.episodes",
    "write_problems": "lit_rft.problems",
}

_EXPORTS: dict[str, str] = {**{name: f"{__name__}.{name}" for name in _SUBPACKAGES}, **_NAMES}
__all__ = sorted(_EXPORTS)
__getattr__, __dir__ = lazy_exports(__name__, _EXPORTS)
