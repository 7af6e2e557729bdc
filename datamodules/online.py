"""Data of online training: episodes to play, and stored ones to mix in."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from lit_rft.batches import OnlineBatch
from lit_rft.datamodules.digests import digest_of, job_parts, transcript_parts
from lit_rft.datamodules.loaders import TrainingLoader, shuffled_indices
from lit_rft.datamodules.rendering import log_sizes
from lit_rft.datamodules.trajectories import TrajectoryDataModule
from lit_rft.envs.base import EpisodeSpec, Half
from lit_rft.envs.jobs import EpisodeJobs
from lit_rft.transcripts import Transcript


class OnlineLoader(TrainingLoader[OnlineBatch]):
    """One `OnlineBatch` per round: the next episodes of an endless shuffled list, split over processes.

    The order depends on the seed only; a checkpoint keeps the position.

    Args:
        jobs: episodes that may be played.
        rounds: rounds per epoch.
        episodes_per_round: episodes to play per round, over all processes.
        make_batch: makes a batch of the episodes of a round.
        offline: transcripts of the stored episodes in these batches.
        seed: of the order.
        rank, world_size: index of this process, and number of processes.

    Raises:
        ValueError: If there are no episodes, or fewer per round than processes.
    """

    def __init__(
        self,
        jobs: Sequence[EpisodeSpec],
        *,
        rounds: int,
        episodes_per_round: int,
        make_batch: Callable[[list[EpisodeSpec]], OnlineBatch],
        offline: Sequence[Sequence[Transcript]] = (),
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if episodes_per_round < world_size:
            raise ValueError(
                f"episodes_per_round must be >= the number of processes, got {episodes_per_round} and {world_size}"
            )
        if not jobs:
            raise ValueError(
                "expected episodes to play in training, got none: change data.init_args.collect_tasks, collect_half or "
                "collect_split"
            )
        super().__init__()
        self.offline = offline
        self.jobs, self.rounds, self.episodes_per_round, self.seed = list(jobs), rounds, episodes_per_round, seed
        self.rank, self.world_size, self._make_batch = rank, world_size, make_batch

    def __len__(self) -> int:
        return self.rounds

    def batches_of_epoch(self, epoch: int) -> Callable[[int], OnlineBatch]:
        return lambda position: self._make_batch(self._episodes(epoch * self.rounds + position))

    def _episodes(self, number: int) -> list[EpisodeSpec]:
        """Return this process's episodes of a round, with unique names."""
        turns = range(number * self.episodes_per_round, (number + 1) * self.episodes_per_round)
        mine = list(turns)[self.rank :: self.world_size]
        chosen = [self._job(turn) for turn in mine]
        return [replace(job, id=f"{job.id}/online{turn}") for turn, job in zip(mine, chosen, strict=True)]

    def _job(self, turn: int) -> EpisodeSpec:
        cycle, place = divmod(turn, len(self.jobs))
        return self.jobs[shuffled_indices(len(self.jobs), self.seed, cycle)[place]]

    def shape(self) -> dict[str, int | str]:
        sizes = {"jobs": len(self.jobs), "rounds": self.rounds, "episodes_per_round": self.episodes_per_round}
        return {**sizes, "seed": self.seed, "digest": self._digest}

    @functools.cached_property
    def _digest(self) -> str:
        jobs = (part for job in self.jobs for part in job_parts(job))
        stored = (part for episode in self.offline for t in episode for part in transcript_parts(t))
        return digest_of([*jobs, *stored])


class OnlineDataModule(TrajectoryDataModule):
    """Episodes to play in online fine-tuning, and stored ones to mix in.

    Evaluation and stored episodes as in `TrajectoryDataModule`, whose arguments it takes. Stored episodes are those of
    `train_files` and (by `medium_filter`) `medium_files`, pooled; without either nothing is mixed in: no expert
    episodes are collected. `train_episodes_per_task` and `data_dir` therefore have no effect; they are accepted since
    configs that all stages of a chain share set them. The stage sets the share of stored episodes and the batch size
    (`OnlineSettings`).

    Args:
        collect_split: split of the episodes to play in training.
        collect_tasks: their tasks; null for `tasks`.
        collect_half: one half of each task's episodes only; null for both.
        collect_episodes_per_task: maximum number of them per task; null for all.
        rounds: rounds per epoch; each plays episodes and then trains.
        episodes_per_round: episodes to play per round, over all processes.
        trajectories: arguments of `TrajectoryDataModule` other than `batch_size`, `medium_per_expert` and `outcomes`.

    Raises:
        ValueError: For a value out of range, or `train_half` or `collect_workers`, as nothing is collected.
    """

    training_batch = "OnlineBatch"

    def __init__(
        self,
        collect_split: str = "train",
        collect_tasks: list[str] | None = None,
        collect_half: Half | None = None,
        collect_episodes_per_task: int | None = None,
        rounds: int = 10,
        episodes_per_round: int = 8,
        **trajectories: Any,
    ) -> None:
        # reject arguments that do not belong to this class
        super().__init__(outcomes=True, batch_size=1, medium_per_expert=1.0, **trajectories)
        if rounds < 1 or episodes_per_round < 1:
            raise ValueError(f"rounds and episodes_per_round must be >= 1, got {rounds} and {episodes_per_round}")
        if self.train_half is not None:
            raise ValueError(
                f"data.init_args.train_half={self.train_half} has no effect in online training: set "
                "data.init_args.collect_half, one half of the episodes to play, and leave this out"
            )
        if self.collect_workers != 2:
            raise ValueError(
                f"data.init_args.collect_workers={self.collect_workers} has no effect in online training, where no "
                "expert episodes are collected: set model.init_args.acting.parallel_episodes, and leave this out"
            )
        self.collect_split, self.collect_tasks = collect_split, collect_tasks
        self.collect_half, self.collect_episodes_per_task = collect_half, collect_episodes_per_task
        self.rounds, self.episodes_per_round = rounds, episodes_per_round

    def prepare_data(self) -> None:
        """Do nothing: stored episodes are read from files, others are played in training."""

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if stage == "fit":
            self._jobs["collect"] = self._make_jobs(
                self.collect_split, self.collect_episodes_per_task, self.collect_half, self.collect_tasks
            )

    def load_training_data(self) -> None:
        chat, files = self.read_tokenizer(), [*(self.train_files or []), *(self.medium_files or [])]
        if files:
            self.episodes = [*self.read(self.train_files or []), *self.read_medium()]
            self.transcripts = self._make_transcripts(self.episodes, chat, "train_files", files)
            log_sizes(self.transcripts, self.acting_agent.max_length, self._without_decisions)

    def train_dataloader(self) -> OnlineLoader:  # type: ignore[override]
        rank, world_size = self._place()
        loader = OnlineLoader(
            self._jobs["collect"],
            rounds=self.rounds,
            episodes_per_round=self.episodes_per_round,
            make_batch=self._make_batch,
            offline=self.transcripts,
            seed=self.seed,
            rank=rank,
            world_size=world_size,
        )
        return self.in_position(loader)

    def _make_batch(self, jobs: list[EpisodeSpec]) -> OnlineBatch:
        tasks = sorted({job.task for job in self._jobs["collect"]})
        return OnlineBatch(EpisodeJobs(jobs, self.task_suite.make_env, tasks), self.transcripts)
