"""LightningDataModules: data on disk in, batches of token ids out."""

if __name__ != "lit_rft.datamodules":
    raise ImportError(
        f"expected to be imported as lit_rft.datamodules, got {__name__}: its parent folder is on sys.path; "
        "write `from lit_rft.datamodules import ...`"
    )

from typing import TYPE_CHECKING

from lit_rft._lazy import lazy_exports

if TYPE_CHECKING:
    from lit_rft.datamodules.agent_tuning import AgentTuningDataModule as AgentTuningDataModule
    from lit_rft.datamodules.episode_groups import EpisodeGroupDataModule as EpisodeGroupDataModule
    from lit_rft.datamodules.episode_groups import EpisodeGroupLoader as EpisodeGroupLoader
    from lit_rft.datamodules.loaders import JobLoader as JobLoader
    from lit_rft.datamodules.loaders import StepLoader as StepLoader
    from lit_rft.datamodules.math_prompts import MathPromptDataModule as MathPromptDataModule
    from lit_rft.datamodules.online import OnlineDataModule as OnlineDataModule
    from lit_rft.datamodules.online import OnlineLoader as OnlineLoader
    from lit_rft.datamodules.pairs import EpisodePairDataModule as EpisodePairDataModule
    from lit_rft.datamodules.preferences import PreferenceDataModule as PreferenceDataModule
    from lit_rft.datamodules.prompts import PromptLoader as PromptLoader
    from lit_rft.datamodules.trajectories import TrajectoryDataModule as TrajectoryDataModule

# public name -> the module that defines it; loaded on first use
_EXPORTS: dict[str, str] = {
    "AgentTuningDataModule": "lit_rft.datamodules.agent_tuning",
    "EpisodeGroupDataModule": "lit_rft.datamodules.episode_groups",
    "EpisodeGroupLoader": "lit_rft.datamodules.episode_groups",
    "EpisodePairDataModule": "lit_rft.datamodules.pairs",
    "JobLoader": "lit_rft.datamodules.loaders",
    "MathPromptDataModule": "lit_rft.datamodules.math_prompts",
    "OnlineDataModule": "lit_rft.datamodules.online",
    "OnlineLoader": "lit_rft.datamodules.online",
    "PreferenceDataModule": "lit_rft.datamodules.preferences",
    "PromptLoader": "lit_rft.datamodules.prompts",
    "StepLoader": "lit_rft.datamodules.loaders",
    "TrajectoryDataModule": "lit_rft.datamodules.trajectories",
}

__all__ = sorted(_EXPORTS)
__getattr__, __dir__ = lazy_exports(__name__, _EXPORTS)
