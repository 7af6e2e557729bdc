"""Data loaders with a position, for exact resumption, that split each step's work over processes."""

import functools
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any, Generic, TypeVar

import torch

from lit_rft.batches import StepTranscripts
from lit_rft.datamodules.digests import check_position, digest_of, transcript_parts
from lit_rft.envs.base import EpisodeSpec
from lit_rft.envs.jobs import EpisodeJobs
from lit_rft.transcripts import Transcript, count_utterances

Item = TypeVar("Item")
Batch = TypeVar("Batch")


class TrainingLoader(Generic[Batch]):
    """A data loader whose position is saved in checkpoints and restored from them.

    Subclasses define the number of batches per epoch (`__len__`), the batches of an epoch (`batches_of_epoch`), and the
    properties of the data that a position depends on (`shape`).
    """

    def __init__(self) -> None:
        self.epoch = 0
        self._position = 0  # number of batches of this epoch so far
        self._overfit: int | None = None
        self._limit: int | None = None

    def __len__(self) -> int:
        """Return the number of batches per epoch."""
        raise NotImplementedError

    def __iter__(self) -> Iterator[Batch]:
        """Yield the rest of the current epoch, or the next one if it is complete.

        With a limit (`limit_train_batches`) yield that many batches, into the next epoch if need be; the next iteration
        continues with the following ones.
        """
        end = len(self) if self._overfit is None else self._overfit
        if self._position >= end:
            self._begin_epoch()
        make_batch = self.batches_of_epoch(self.epoch)
        for _ in range(self._limit or end - self._position):
            if self._position >= end:
                self._begin_epoch()
                make_batch = self.batches_of_epoch(self.epoch)
            position, self._position = self._position, self._position + 1
            yield make_batch(position)

    def _begin_epoch(self) -> None:
        self._position = 0
        self.epoch += self._overfit is None

    def batches_of_epoch(self, epoch: int) -> Callable[[int], Batch]:
        """Return a function that makes the batches of an epoch, by their position in it."""
        raise NotImplementedError

    def shape(self) -> dict[str, int | str]:
        """Return the properties that must not change before a resumption: sizes, seed, and a `digest` of the data."""
        raise NotImplementedError

    def apply_limits(self, trainer: Any) -> None:
        """Apply a trainer's `overfit_batches` and `limit_train_batches`."""
        if overfits := getattr(trainer, "overfit_batches", 0):
            self.overfit(overfits)
        self.limit(getattr(trainer, "limit_train_batches", 1.0))

    def overfit(self, batches: int | float) -> None:
        """Repeat the first batches of the first epoch (`Trainer(overfit_batches=...)`).

        Args:
            batches: their number, or (float) their share of an epoch.
        """
        number = int(batches * len(self)) if isinstance(batches, float) else min(batches, len(self))
        self._overfit = max(1, number)

    def limit(self, batches: int | float) -> None:
        """Give all epochs of a trainer this many batches (`Trainer(limit_train_batches=...)`), also across the data's.

        Args:
            batches: their number, or (float) their share of an epoch of the data.
        """
        number = int(batches * len(self)) if isinstance(batches, float) else batches
        self._limit = number if 0 < number < len(self) else None

    def state_dict(self) -> dict[str, int | str]:
        return {"epoch": self.epoch, "position": self._position, **self.shape()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue at a saved position.

        Raises:
            ValueError: If the position belongs to other data.
        """
        check_position(state, self.shape())
        self.epoch, self._position = state["epoch"], state["position"]

    def follow(self, previous: "TrainingLoader[Batch]") -> None:
        """Continue at the position of the loader that this one replaces (`reload_dataloaders_every_n_epochs`).

        If the data have changed, continue with the next epoch.
        """
        if previous.shape() == self.shape():
            self.epoch, self._position = previous.epoch, previous._position
        else:
            self.epoch = previous.epoch + 1


class EpochLoader(TrainingLoader[Batch], Generic[Item, Batch]):
    """Batches of items, in another order in each epoch, or always in their own from the first one on.

    The order depends on seed and epoch only, not on the number of processes nor on global random numbers. Subclasses
    define the items of an epoch (`order`), and the batch of `batch_size` items (`make_batch`).

    Args:
        number: number of items per epoch.
        batch_size: items per batch, over all processes.
        seed: of the order.
        rank, world_size: index of this process, and number of processes.
        shuffle: true for training, false for evaluation.
    """

    def __init__(
        self, number: int, batch_size: int, seed: int, rank: int, world_size: int, *, shuffle: bool = True
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be >= 1, got {batch_size}")
        super().__init__()
        self.number, self.batch_size, self.seed = number, batch_size, seed
        self.rank, self.world_size, self.shuffle = rank, world_size, shuffle

    def __len__(self) -> int:
        return -(-self.number // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        return super().__iter__() if self.shuffle else map(self.batches_of_epoch(0), range(len(self)))

    def batches_of_epoch(self, epoch: int) -> Callable[[int], Batch]:
        order = self.order()
        size = self.batch_size
        return lambda position: self.make_batch(order[position * size : (position + 1) * size])

    def order(self) -> list[Item]:
        """Return this epoch's items."""
        raise NotImplementedError

    def make_batch(self, items: list[Item]) -> Batch:
        """Make this process's part of a batch."""
        raise NotImplementedError

    def shuffled(self, items: Sequence[Item]) -> list[Item]:
        """Return the items in this epoch's order."""
        if not self.shuffle:
            return list(items)
        return [items[index] for index in shuffled_indices(len(items), self.seed, self.epoch)]


def shuffled_indices(number: int, seed: int, epoch: int) -> list[int]:
    """Return 0 .. number - 1 in an order that depends on seed and epoch only."""
    generator = torch.Generator().manual_seed(hash((seed, epoch)) % 2**63)
    return torch.randperm(number, generator=generator).tolist()


class StepLoader(EpochLoader[Sequence[Transcript], StepTranscripts]):
    """One `StepTranscripts` per optimiser step: the transcripts of `batch_size` episodes, split over processes.

    The stage splits them into micro-batches (`BatchingSettings`).

    Args:
        episodes: the transcripts of each episode; all are used in each epoch.
        mixed_episodes: additional episodes; each epoch uses a part of them, cycling through all.
        mixed_per_epoch: number of additional episodes per epoch; repeated if there are fewer.
        batch_size: episodes per optimiser step, over all processes.
        seed: of the order.
        rank, world_size: index of this process, and number of processes.
    """

    def __init__(
        self,
        episodes: Sequence[Sequence[Transcript]],
        *,
        batch_size: int,
        mixed_episodes: Sequence[Sequence[Transcript]] = (),
        mixed_per_epoch: int = 0,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if mixed_per_epoch and not mixed_episodes:
            raise ValueError(f"mixed_per_epoch={mixed_per_epoch} needs mixed_episodes, got none")
        super().__init__(len(episodes) + mixed_per_epoch, batch_size, seed, rank, world_size)
        self.episodes, self.mixed_episodes, self.mixed_per_epoch = episodes, mixed_episodes, mixed_per_epoch

    def order(self) -> list[Sequence[Transcript]]:
        """Return this epoch's episodes. Additional ones cycle through one shuffled list."""
        chosen = list(self.episodes)
        if self.mixed_per_epoch:
            turns = range(self.epoch * self.mixed_per_epoch, (self.epoch + 1) * self.mixed_per_epoch)
            indices = shuffled_indices(len(self.mixed_episodes), self.seed, -1)
            chosen += [self.mixed_episodes[indices[turn % len(indices)]] for turn in turns]
        return self.shuffled(chosen)

    def shape(self) -> dict[str, int | str]:
        mixed = {"mixed_episodes": len(self.mixed_episodes), "mixed_per_epoch": self.mixed_per_epoch}
        sizes = {"episodes": len(self.episodes), **mixed, "batch_size": self.batch_size, "seed": self.seed}
        return {**sizes, "digest": self._digest}

    @functools.cached_property
    def _digest(self) -> str:
        transcripts = (t for part in (self.episodes, self.mixed_episodes) for episode in part for t in episode)
        return digest_of(part for transcript in transcripts for part in transcript_parts(transcript))

    def make_batch(self, items: list[Sequence[Transcript]]) -> StepTranscripts:
        transcripts = [transcript for transcripts in items for transcript in transcripts]
        return StepTranscripts(_share(transcripts, self.rank, self.world_size), count_utterances(transcripts))


class JobLoader:
    """Episodes to play; each process gets its share, and none is played twice.

    The first batch holds all of them, so that as many as possible are played at once; the others are empty. A stage
    returns one finished episode per batch, so that progress bars and prediction writers receive them as they end.

    The order alternates between tasks, so that any first part of the episodes covers all tasks.

    Raises:
        ValueError: If there are fewer episodes than processes.
    """

    def __init__(
        self, jobs: Sequence[EpisodeSpec], make_env: Callable[[], Any], *, rank: int = 0, world_size: int = 1
    ) -> None:
        if len(jobs) < world_size:
            raise ValueError(
                f"expected at least one episode per process, got {len(jobs)} episodes for {world_size} processes"
            )
        self.all_jobs = list(jobs)  # of all processes
        self.jobs = round_robin(jobs, lambda job: job.task)[rank::world_size]
        self.make_env = make_env
        self.tasks = sorted({job.task for job in jobs})

    def __len__(self) -> int:
        return len(self.jobs)

    def __iter__(self) -> Iterator[EpisodeJobs]:
        for index in range(len(self.jobs)):
            yield EpisodeJobs(self.jobs if index == 0 else [], self.make_env, self.tasks)


def round_robin(items: Sequence[Item], kind: Callable[[Item], Hashable]) -> list[Item]:
    """Alternate between kinds: the first item of each kind, then the second of each, and so on."""
    seen: Counter[Hashable] = Counter()
    turns = []
    for item in items:
        turns.append(seen[kind(item)])
        seen[kind(item)] += 1
    return [item for _, item in sorted(zip(turns, items, strict=True), key=lambda pair: pair[0])]


def _share(transcripts: list[Transcript], rank: int, world_size: int) -> list[Transcript]:
    """Return one process's part: longest first, each to the process with the fewest tokens so far."""
    load = [0] * world_size
    result = []
    for transcript in sorted(transcripts, key=len, reverse=True):
        target = load.index(min(load))
        load[target] += len(transcript)
        if target == rank:
            result.append(transcript)
    return result
