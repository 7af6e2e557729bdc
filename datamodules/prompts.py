"""Prompts of problems in batches, for rollouts and for evaluation."""

import functools
import hashlib
from collections.abc import Sequence

from lit_rft.batches import Prompt, PromptBatch
from lit_rft.datamodules.digests import digest_of
from lit_rft.datamodules.loaders import EpochLoader, round_robin, shuffled_indices


class PromptLoader(EpochLoader[Prompt, PromptBatch]):
    """Prompts in batches, split over processes.

    Each training epoch has its own order. With `traced_per_batch`, each batch begins with this many prompts that have
    traces, cycling through them, and an epoch has every other prompt once. For evaluation (`shuffle=False`) every pass
    starts with the first prompt, and the order alternates between benchmarks: the first batches (`limit_val_batches`)
    are always the same problems, of all benchmarks.

    Args:
        prompts: all of them.
        batch_size: prompts per batch, over all processes.
        shuffle: true for training, false for evaluation.
        seed: of the order.
        rank, world_size: index of this process, and number of processes.
        traced_per_batch: prompts with traces per training batch, over all processes, below `batch_size`; 0 for any
            number of them, in random order.

    Raises:
        ValueError: If a batch cannot have this many different prompts with traces, and others.
    """

    def __init__(
        self,
        prompts: Sequence[Prompt],
        *,
        batch_size: int,
        shuffle: bool = True,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        traced_per_batch: int = 0,
    ) -> None:
        super().__init__(len(prompts), batch_size, seed, rank, world_size, shuffle=shuffle)
        self.prompts = list(prompts) if shuffle else round_robin(prompts, lambda prompt: prompt.problem.source)
        self.sources = sorted({prompt.problem.source for prompt in self.prompts})
        self.traced_per_batch = traced_per_batch
        if traced_per_batch:
            self._separate_traced()

    def _separate_traced(self) -> None:
        self._traced = [prompt for prompt in self.prompts if prompt.traces]
        self._others = [prompt for prompt in self.prompts if not prompt.traces]
        wanted, others_per_batch = self.traced_per_batch, self.batch_size - self.traced_per_batch
        if not 0 < others_per_batch < self.batch_size or len(self._traced) < wanted or not self._others:
            raise ValueError(
                f"expected {wanted} different prompts with traces in each batch of {self.batch_size}, and others, got "
                f"{len(self._traced)} with traces and {len(self._others)} without: change trace_share or batch_size"
            )
        self.number = len(self._others) + wanted * -(-len(self._others) // others_per_batch)

    def order(self) -> list[Prompt]:
        if not self.traced_per_batch:
            return self.shuffled(self.prompts)
        wanted, others = self.traced_per_batch, self.shuffled(self._others)
        # one fixed order, so that no batch has a prompt twice
        turns = shuffled_indices(len(self._traced), self.seed, -1)
        size, first, items = self.batch_size - wanted, self.epoch * len(self) * wanted, []
        for batch, start in enumerate(range(0, len(others), size)):
            places = range(first + batch * wanted, first + (batch + 1) * wanted)
            items += [self._traced[turns[place % len(turns)]] for place in places]
            items += others[start : start + size]
        return items

    def make_batch(self, items: list[Prompt]) -> PromptBatch:
        if self.shuffle:
            return PromptBatch(items[self.rank :: self.world_size], self.sources)
        start, end = (len(items) * rank // self.world_size for rank in (self.rank, self.rank + 1))
        return PromptBatch(items[start:end], self.sources)  # splits the problems of each benchmark evenly

    def shape(self) -> dict[str, int | str]:
        sizes = {"prompts": len(self.prompts), "batch_size": self.batch_size, "seed": self.seed}
        return {**sizes, "traced_per_batch": self.traced_per_batch, "digest": self._digest}

    @functools.cached_property
    def _digest(self) -> str:
        parts: list[Sequence[int] | str] = []
        for prompt in self.prompts:
            parts += [prompt.problem.id, str(prompt.problem.ground_truth), prompt.ids, *prompt.traces]
        return digest_of(parts)

    def fingerprint(self) -> str:
        """Return a digest of all prompts, independent of their order: ids, content, tokens and repeats."""
        parts = sorted(
            f"{prompt.problem.id} {prompt.problem.fingerprint()} {prompt.problem.repeats} {prompt.ids}"
            for prompt in self.prompts
        )
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
