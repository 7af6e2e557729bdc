"""Episodes to play in online training."""

from pathlib import Path
from typing import Any

from lit_rft.datamodules import OnlineDataModule
from lit_rft.testing import CorridorSuite


def test_the_halves_are_the_tasks_episodes_apart(tiny_model_folder: Path, tmp_path: Path) -> None:
    def played(half: Any) -> set[str]:
        data = OnlineDataModule(
            model=str(tiny_model_folder), suite=CorridorSuite(), data_dir=str(tmp_path), collect_half=half
        )
        data.setup("fit")
        return {spec.id for spec in data.train_dataloader().jobs}

    first, second = played("first"), played("second")
    assert first and second and not first & second and first | second == played(None)
