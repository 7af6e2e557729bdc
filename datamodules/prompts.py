"""Prompts of problems in batches, for rollouts and for evaluation."""

import functools
import hashlib
from collections.abc import Sequence

from lit_rft.batches import Prompt, PromptBatch
from lit_rft.datamodules.loaders import EpochLoader, digest_of, round_robin


class PromptLoader(EpochLoader[Prompt, PromptBatch]):
    """Prompts in batches, split over processes.

    Each training epoch has its own order. For evaluation (`shuffle=False`) every pass starts with the first prompt, and
    the order alternates between benchmarks: the first batches (`limit_val_batches`) are always the same problems, of
    all benchmarks.

    Args:
        prompts: all of them.
        batch_size: prompts per batch, over all processes.
        shuffle: true for training, false for evaluation.
        seed: of the order.
        rank, world_size: index of this process, and number of processes.
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
    ) -> None:
        super().__init__(len(prompts), batch_size, seed, rank, world_size, shuffle=shuffle)
        self.prompts = list(prompts) if shuffle else round_robin(prompts, lambda prompt: prompt.problem.source)
        self.sources = sorted({prompt.problem.source for prompt in self.prompts})

    def order(self) -> list[Prompt]:
        return self.shuffled(self.prompts)

    def make_batch(self, items: list[Prompt]) -> PromptBatch:
        if self.shuffle:
            return PromptBatch(items[self.rank :: self.world_size], self.sources)
        start, end = (len(items) * rank // self.world_size for rank in (self.rank, self.rank + 1))
        return PromptBatch(items[start:end], self.sources)  # splits the problems of each benchmark evenly

    def shape(self) -> dict[str, int | str]:
        sizes = {"prompts": len(self.prompts), "batch_size": self.batch_size, "seed": self.seed}
        return {**sizes, "digest": self._digest}

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
