"""Training on the fork, whose best return is 1, and the return of the trained policy: sampled, not greedy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L

from lit_rft.agents import AdmissibleActions, FlatAgent, add_outcomes
from lit_rft.datamodules import StepLoader, TrajectoryDataModule
from lit_rft.envs.pool_settings import PoolSettings
from lit_rft.episodes import Episode
from lit_rft.generation import SamplingSettings
from lit_rft.models import LoraSettings, load_tokenizer
from lit_rft.stages import ActingSettings, OptimizerSettings, PolicySettings
from lit_rft.testing.fork import fork_suite
from lit_rft.transcripts import ChatFormat

AGENT = FlatAgent("Act.", 600, admissible=AdmissibleActions(show=False, choose=True))
ACTING = ActingSettings(SamplingSettings(12, 1.0), parallel_episodes=32, pool=PoolSettings(threads=True))
ADAPTERS = LoraSettings(rank=8, alpha=16, dropout=0.0, target_modules="all-linear")
NUMBER = 64  # evaluation episodes


def make(stage: Any, model: Path, *, agent: Any = AGENT, learning_rate: float = 1e-2, **options: Any) -> Any:
    """A stage on the tiny model."""
    L.seed_everything(0, verbose=False)
    settings: dict[str, Any] = {"acting": ACTING, "agent": agent, **options}
    return stage(PolicySettings(str(model), ADAPTERS), OptimizerSettings(learning_rate), **settings)


def loader(model: Path, episodes: Sequence[Episode], agent: Any = AGENT, outcomes: bool = False) -> StepLoader:
    """All episodes in each step."""
    chat, transcripts = ChatFormat(load_tokenizer(str(model))), []
    for episode in episodes:
        made = agent.transcripts(episode, chat)
        transcripts.append(add_outcomes(made, episode, chat, agent) if outcomes else made)
    return StepLoader(transcripts, batch_size=len(transcripts))


def average_return(stage: Any, model: Path, folder: Path, temperature: float = 1.0) -> float:
    """The mean return over episodes of the evaluation split."""
    stage.evaluator.acting.sampling = SamplingSettings(12, temperature)
    data = TrajectoryDataModule(str(model), suite=fork_suite(NUMBER), data_dir=str(folder))
    options: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = L.Trainer(accelerator="cpu", enable_model_summary=False, **options)
    (metrics,) = trainer.validate(stage, datamodule=data, verbose=False)
    return metrics["val/score"] / 100
