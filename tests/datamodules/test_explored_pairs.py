"""Which problems the exploration of ETO plays."""

from pathlib import Path
from typing import Any

import pytest

from lit_rft.datamodules import EpisodePairDataModule
from lit_rft.testing import CorridorSuite


def explored(folder: Path, **settings: Any) -> tuple[set[str], set[str]]:
    """Problems of the experts, and those that `predict` plays."""
    module = EpisodePairDataModule([], suite=CorridorSuite(), data_dir=str(folder), **settings)
    experts = {episode.id.rsplit("/", 1)[0] for episode in module.collect()}
    module.setup("predict")
    return experts, {spec.id.rsplit("/", 1)[0] for spec in module.predict_dataloader().jobs}


def test_exploration_plays_the_problems_of_the_experts(tmp_path: Path) -> None:
    experts, played = explored(tmp_path, train_episodes_per_task=3, train_half="first")
    assert len(experts) > 1 and played == experts


@pytest.mark.parametrize("settings", [{"predict_half": "second"}, {"predict_episodes_per_task": 1}])
def test_exploration_plays_others_if_they_are_set(settings: dict[str, Any], tmp_path: Path) -> None:
    experts, played = explored(tmp_path, train_episodes_per_task=3, train_half="first", **settings)
    assert played != experts
