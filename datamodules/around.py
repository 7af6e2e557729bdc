"""Data modules with training data of their own beside stored episodes, which a `TrajectoryDataModule` reads."""

from typing import Any

from lit_rft.datamodules.loaders import JobLoader
from lit_rft.datamodules.position import ResumableDataModule
from lit_rft.datamodules.trajectories import TrajectoryDataModule
from lit_rft.episodes import Episode


class AroundTrajectories(ResumableDataModule):
    """A data module that has another one collect and read episodes, and plays its evaluation episodes.

    Subclasses write `load_training_data` and `train_dataloader`.

    Args:
        trajectories: arguments of the other one, without those of medium-quality episodes (`medium_files`,
            `medium_per_expert`, `medium_filter`) and `outcomes`.
    """

    evaluation_batch = "EpisodeJobs"

    def __init__(self, **trajectories: Any) -> None:
        super().__init__()
        # an argument given here is none of this class
        self._trajectories = TrajectoryDataModule(
            outcomes=False, medium_files=None, medium_per_expert=1.0, medium_filter=None, **trajectories
        )
        stored = self._trajectories
        self.model, self.agent, self.suite = stored.model, stored.agent, stored.suite

    @property
    def trajectories(self) -> TrajectoryDataModule:
        """The other data module, with this one's trainer."""
        self._trajectories.trainer = self.trainer
        return self._trajectories

    def load_training_data(self) -> None:
        """Make the training data."""
        raise NotImplementedError

    def collect(self) -> list[Episode]:
        """Return the expert episodes, see `TrajectoryDataModule.collect`."""
        return self.trajectories.collect()

    def prepare_data(self) -> None:
        self.trajectories.prepare_data()

    def setup(self, stage: str) -> None:
        if stage == "fit":
            self.load_training_data()
            self.tokenizer = self._trajectories.tokenizer
        self.trajectories.choose_episodes(stage)

    def val_dataloader(self) -> JobLoader | list[Any]:
        return self.trajectories.val_dataloader()

    def test_dataloader(self) -> JobLoader | list[Any]:
        return self.trajectories.test_dataloader()

    def predict_dataloader(self) -> JobLoader | list[Any]:
        return self.trajectories.predict_dataloader()
