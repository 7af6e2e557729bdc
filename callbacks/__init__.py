"""Lightning callbacks, each of one concern."""

if __name__ != "lit_rft.callbacks":
    raise ImportError(
        f"expected to be imported as lit_rft.callbacks, got {__name__}: its parent folder is on sys.path; "
        "write `from lit_rft.callbacks import ...`"
    )

from typing import TYPE_CHECKING

from lit_rft._lazy import lazy_exports

if TYPE_CHECKING:
    from lit_rft.callbacks.adapter_export import AdapterExport as AdapterExport
    from lit_rft.callbacks.answers import CompletionFiles as CompletionFiles
    from lit_rft.callbacks.answers import CompletionText as CompletionText
    from lit_rft.callbacks.calibration import CriticCalibration as CriticCalibration
    from lit_rft.callbacks.checkpoints import AtomicCheckpointIO as AtomicCheckpointIO
    from lit_rft.callbacks.episodes import EpisodeFiles as EpisodeFiles
    from lit_rft.callbacks.episodes import EpisodeText as EpisodeText
    from lit_rft.callbacks.fit_summary import FitSummary as FitSummary
    from lit_rft.callbacks.loggers import log_figure as log_figure
    from lit_rft.callbacks.loggers import log_scalars as log_scalars
    from lit_rft.callbacks.loggers import log_table as log_table
    from lit_rft.callbacks.loggers import log_text as log_text
    from lit_rft.callbacks.progress_bar import RunProgressBar as RunProgressBar
    from lit_rft.callbacks.random_state import RandomState as RandomState
    from lit_rft.callbacks.rollout_files import RolloutFiles as RolloutFiles
    from lit_rft.callbacks.run_checkpoint import RunCheckpoint as RunCheckpoint
    from lit_rft.callbacks.score_table import ScoreTable as ScoreTable
    from lit_rft.callbacks.throughput import Throughput as Throughput
    from lit_rft.callbacks.training_costs import TrainingCosts as TrainingCosts

# public name -> the module that defines it; loaded on first use
_EXPORTS: dict[str, str] = {
    "AdapterExport": "lit_rft.callbacks.adapter_export",
    "AtomicCheckpointIO": "lit_rft.callbacks.checkpoints",
    "CompletionFiles": "lit_rft.callbacks.answers",
    "CompletionText": "lit_rft.callbacks.answers",
    "CriticCalibration": "lit_rft.callbacks.calibration",
    "EpisodeFiles": "lit_rft.callbacks.episodes",
    "EpisodeText": "lit_rft.callbacks.episodes",
    "FitSummary": "lit_rft.callbacks.fit_summary",
    "RandomState": "lit_rft.callbacks.random_state",
    "RolloutFiles": "lit_rft.callbacks.rollout_files",
    "RunCheckpoint": "lit_rft.callbacks.run_checkpoint",
    "RunProgressBar": "lit_rft.callbacks.progress_bar",
    "ScoreTable": "lit_rft.callbacks.score_table",
    "Throughput": "lit_rft.callbacks.throughput",
    "TrainingCosts": "lit_rft.callbacks.training_costs",
    "log_figure": "lit_rft.callbacks.loggers",
    "log_scalars": "lit_rft.callbacks.loggers",
    "log_table": "lit_rft.callbacks.loggers",
    "log_text": "lit_rft.callbacks.loggers",
}

__all__ = sorted(_EXPORTS)
__getattr__, __dir__ = lazy_exports(__name__, _EXPORTS)
