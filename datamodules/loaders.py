"""Data loaders that know where they are: they resume in mid-epoch and share each step's work among processes."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Generic, TypeVar

import torch

from lit_rft.envs.jobs import EpisodeJobs
from lit_rft.envs.protocols import EpisodeJob
from lit_rft.transcripts import StepBatch, Transcript, count_utterances, step_batch

Item = TypeVar("Item")
Batch = TypeVar("Batch")


class EpochLoader(Generic[Item, Batch]):
    """Batches of items in an order of each epoch's own; resumes in mid-epoch.

    The order depends on seed and epoch only, not on the number of processes nor on global random numbers. Subclasses
    say which items an epoch has (`order`), what becomes of `batch_size` of them (`make_batch`), and what a saved place
    is a place in (`shape`).

    Args:
        number: items of an epoch.
        batch_size: items a batch, over all processes.
        seed: of the order.
        rank, world_size: this process, and how many there are.
    """

    def __init__(self, number: int, batch_size: int, seed: int, rank: int, world_size: int) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be >= 1, got {batch_size}")
        self.number, self.batch_size, self.seed = number, batch_size, seed
        self.rank, self.world_size = rank, world_size
        self.epoch = 0
        self._position = 0  # batches handed out in this epoch

    def __len__(self) -> int:
        return -(-self.number // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        if self._position >= len(self):  # the last epoch was used up
            self.epoch, self._position = self.epoch + 1, 0
        order = self.order()
        while self._position < len(self):
            start = self._position * self.batch_size
            self._position += 1
            yield self.make_batch(order[start : start + self.batch_size])

    def order(self) -> list[Item]:
        """This epoch's items."""
        raise NotImplementedError

    def make_batch(self, items: list[Item]) -> Batch:
        """This process's part of a batch."""
        raise NotImplementedError

    def shape(self) -> dict[str, int]:
        """Numbers that must not change between a checkpoint and its resumption."""
        raise NotImplementedError

    def shuffled(self, items: Sequence[Item]) -> list[Item]:
        """In this epoch's order."""
        return [items[index] for index in shuffled_indices(len(items), self.seed, self.epoch)]

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch, "position": self._position, **self.shape()}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on at a saved place.

        Raises: ValueError if the data is not what the place is in.
        """
        check_place(state, self.shape())
        self.epoch, self._position = state["epoch"], state["position"]


def shuffled_indices(number: int, seed: int, epoch: int) -> list[int]:
    """0 .. number - 1 in an order that depends on seed and epoch only."""
    generator = torch.Generator().manual_seed(hash((seed, epoch)) % 2**63)
    return torch.randperm(number, generator=generator).tolist()


def check_place(state: Mapping[str, int], shape: Mapping[str, int]) -> None:
    """Raises: ValueError naming the first number in which a checkpoint's data differ from these."""
    for name, value in shape.items():
        if state[name] != value:
            raise ValueError(f"cannot resume: the checkpoint was made with {name}={state[name]}, now it is {value}")


class StepLoader(EpochLoader[Sequence[Transcript], StepBatch]):
    """One `StepBatch` for each optimiser step: the transcripts of `batch_size` episodes, split over processes and
    micro-batches.

    Args:
        episodes: the transcripts of each episode; an epoch sees all of them.
        mixed_episodes: more of them, of which each epoch sees some, others each time until all have had their turn.
        mixed_per_epoch: how many; more than there are repeats them.
        batch_size: episodes an optimiser step, over all processes.
        micro_batch_tokens: at most so many tokens, padding included, go through the model at once.
        pad_id: what fills the rest.
        packing: several transcripts in a row; else one a row, padded to the longest.
        seed: of the order.
        rank, world_size: this process, and how many there are.
    """

    def __init__(
        self,
        episodes: Sequence[Sequence[Transcript]],
        *,
        batch_size: int,
        micro_batch_tokens: int,
        pad_id: int,
        mixed_episodes: Sequence[Sequence[Transcript]] = (),
        mixed_per_epoch: int = 0,
        packing: bool = False,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if batch_size < 1 or micro_batch_tokens < 1:
            raise ValueError(
                f"batch_size and micro_batch_tokens must be >= 1, got {batch_size} and {micro_batch_tokens}"
            )
        if mixed_per_epoch and not mixed_episodes:
            raise ValueError(f"mixed_per_epoch={mixed_per_epoch} needs mixed_episodes, got none")
        super().__init__(len(episodes) + mixed_per_epoch, batch_size, seed, rank, world_size)
        self.episodes, self.mixed_episodes, self.mixed_per_epoch = episodes, mixed_episodes, mixed_per_epoch
        self.micro_batch_tokens, self.pad_id, self.packing = micro_batch_tokens, pad_id, packing

    def order(self) -> list[Sequence[Transcript]]:
        """This epoch's episodes. Those mixed in go round and round through the same shuffled list."""
        chosen = list(self.episodes)
        if self.mixed_per_epoch:
            turns = range(self.epoch * self.mixed_per_epoch, (self.epoch + 1) * self.mixed_per_epoch)
            indices = shuffled_indices(len(self.mixed_episodes), self.seed, -1)
            chosen += [self.mixed_episodes[indices[turn % len(indices)]] for turn in turns]
        return self.shuffled(chosen)

    def shape(self) -> dict[str, int]:
        mixed = {"mixed_episodes": len(self.mixed_episodes), "mixed_per_epoch": self.mixed_per_epoch}
        return {"episodes": len(self.episodes), **mixed, "batch_size": self.batch_size, "seed": self.seed}

    def make_batch(self, items: list[Sequence[Transcript]]) -> StepBatch:
        transcripts = [transcript for transcripts in items for transcript in transcripts]
        mine = _share(transcripts, self.rank, self.world_size)
        return step_batch(
            mine,
            count_utterances(transcripts),
            micro_batch_tokens=self.micro_batch_tokens,
            pad_id=self.pad_id,
            packing=self.packing,
        )


class JobLoader:
    """Episodes to play; each process gets its share, and none is played twice.

    The first batch holds all of them, so that as many as possible are played at once; the others are empty. A stage
    hands back one ended episode a batch: progress bars and prediction writers see them as they end.

    The order goes round the tasks, so that a part of the episodes is a part of every task.

    Raises: ValueError if there are fewer episodes than processes.
    """

    def __init__(
        self, jobs: Sequence[EpisodeJob], make_env: Callable[[], Any], *, rank: int = 0, world_size: int = 1
    ) -> None:
        if len(jobs) < world_size:
            raise ValueError(f"{len(jobs)} episodes are too few for {world_size} processes: each needs at least one")
        self.jobs = _round_robin(jobs)[rank::world_size]
        self.make_env = make_env
        self.tasks = sorted({job.options["task"] for job in jobs})

    def __len__(self) -> int:
        return len(self.jobs)

    def __iter__(self) -> Iterator[EpisodeJobs]:
        for index in range(len(self.jobs)):
            yield EpisodeJobs(self.jobs if index == 0 else [], self.make_env, self.tasks)


def _round_robin(jobs: Sequence[EpisodeJob]) -> list[EpisodeJob]:
    seen: Counter[str] = Counter()
    turns = []
    for job in jobs:
        turns.append(seen[job.options["task"]])
        seen[job.options["task"]] += 1
    return [job for _, job in sorted(zip(turns, jobs, strict=True), key=lambda pair: pair[0])]


def _share(transcripts: list[Transcript], rank: int, world_size: int) -> list[Transcript]:
    """One process's part: longest first, each to the process with the fewest tokens so far."""
    load = [0] * world_size
    mine = []
    for transcript in sorted(transcripts, key=len, reverse=True):
        target = load.index(min(load))
        load[target] += len(transcript)
        if target == rank:
            mine.append(transcript)
    return mine
