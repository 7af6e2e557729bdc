"""Data modules take model, agent, outcomes and lengths from the stage, where they are not given them."""

from pathlib import Path
from typing import Any

import lightning as L
import pytest

from lit_rft.datamodules import MathPromptDataModule, TrajectoryDataModule
from lit_rft.datamodules.connection import StageSettings
from lit_rft.generation import SamplingSettings
from lit_rft.models.backbone import SMOLLM2
from lit_rft.stages import MixedPolicyGRPO, ObjectiveSettings, PolicySettings
from lit_rft.testing.corridor import CorridorSuite
from lit_rft.testing.tiny_stage import FLAT_PLAYER, PLAYER, make_offline, make_stage


def connect(data: Any, stage: Any) -> Any:
    """The data module with a trainer that trains the stage, set up for `fit`."""
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, limit_val_batches=0)
    trainer.strategy.connect(stage)
    data.trainer = trainer
    data.prepare_data()
    data.setup("fit")
    return data


def trajectories(folder: Path, **options: Any) -> TrajectoryDataModule:
    return TrajectoryDataModule(suite=CorridorSuite(), data_dir=str(folder), train_episodes_per_task=2, **options)


def transcripts(data: TrajectoryDataModule) -> list[Any]:
    return [transcript for batch in data.train_dataloader() for transcript in batch.transcripts]


def test_model_agent_and_outcomes_of_the_stage(tiny_model_folder: Path, tmp_path: Path) -> None:
    sft = connect(trajectories(tmp_path), make_stage(tiny_model_folder, agent=FLAT_PLAYER))
    assert {t.level for t in transcripts(sft)} == {"flat"} and not any(t.outcomes for t in transcripts(sft))
    assert sft.model_name == str(tiny_model_folder) == sft.tokenizer.name_or_path
    offline = connect(trajectories(tmp_path), make_offline(tiny_model_folder, agent=PLAYER))
    assert {t.level for t in transcripts(offline)} == {"high", "low"} and all(t.outcomes for t in transcripts(offline))


def test_given_arguments_come_first_and_need_no_trainer(tiny_model_folder: Path, tmp_path: Path) -> None:
    given = {"model": str(tiny_model_folder), "agent": PLAYER, "outcomes": True}
    alone = trajectories(tmp_path, **given)
    alone.setup("fit")
    connected = connect(trajectories(tmp_path, **given), make_stage(tiny_model_folder, agent=FLAT_PLAYER))
    for data in (alone, connected):
        assert {t.level for t in transcripts(data)} == {"high", "low"} and all(t.outcomes for t in transcripts(data))
    assert trajectories(tmp_path).model_name == SMOLLM2


@pytest.mark.parametrize(("given", "limit"), [(None, 5), (7, 7)])
def test_traces_are_as_long_as_the_stages_completions(given: int | None, limit: int, tiny_model_folder: Path) -> None:
    stage = MixedPolicyGRPO(
        PolicySettings(str(tiny_model_folder)), sampling=SamplingSettings(5, 1.0), objective=ObjectiveSettings(2)
    )
    data = MathPromptDataModule(train_tasks={"chain_sum": 2}, long_traces="cut", max_trace_length=given)
    connect(data, stage)
    lengths = {len(trace) for batch in data.train_dataloader() for prompt in batch.prompts for trace in prompt.traces}
    assert lengths == {limit}


def test_stages_have_what_data_modules_look_for(tiny_model_folder: Path) -> None:
    """An attribute that is renamed in the stages only would be None here, and nobody would notice."""
    stages = [make_offline(tiny_model_folder), MixedPolicyGRPO(PolicySettings(str(tiny_model_folder)))]
    for name in StageSettings.__annotations__:
        assert any(hasattr(stage, name) for stage in stages), name
