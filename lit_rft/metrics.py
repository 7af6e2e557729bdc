"""Metrics of played episodes, as torchmetrics: they add up over batches and processes."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric

from lit_rft.episodes import Episode

COLUMNS = ("score", "success", "steps", "valid_actions", "malformed", "env_errors")


class EpisodeMetrics(Metric):
    """Means over episodes for each task, and over tasks.

    `score` is in 0..100; `success`, `valid_actions` (of all actions) and `env_errors` (of all episodes) are shares in
    0..1; `steps` and `malformed` are numbers an episode. Episodes whose environment failed count in `env_errors` only.

    Args:
        tasks: names of the tasks that may come.
    """

    full_state_update = False
    sums: Tensor
    counts: Tensor

    def __init__(self, tasks: Sequence[str]) -> None:
        super().__init__()
        self.tasks = list(tasks)
        self._columns = len(COLUMNS)
        shape = (len(self.tasks), self._columns)
        self.add_state("sums", torch.zeros(shape, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("counts", torch.zeros(shape, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, episode: Episode) -> None:
        """Count one episode.

        Raises: ValueError if its task was not announced.
        """
        if episode.task not in self.tasks:
            raise ValueError(f"unknown task {episode.task!r}: expected one of {', '.join(self.tasks)}")
        row = self.tasks.index(episode.task)
        failed = episode.outcome.reason == "env_error"
        steps = len(episode.steps)
        valid = sum(step.valid for step in episode.steps)
        malformed = float(episode.source.get("malformed", 0))
        sums = [100 * episode.outcome.score, float(episode.outcome.success), steps, valid, malformed, float(failed)]
        counts = [not failed, not failed, not failed, 0 if failed else steps, not failed, 1]
        kept = torch.tensor([0.0 if failed and c != "env_errors" else 1.0 for c in COLUMNS], dtype=torch.float64)
        self.sums[row] += (torch.tensor(sums, dtype=torch.float64) * kept).to(self.sums)
        self.counts[row] += torch.tensor(counts, dtype=torch.float64).to(self.counts)

    def compute(self) -> dict[str, dict[str, float]]:
        """task -> column -> mean, and `mean` -> column -> the plain mean over the tasks that were played.

        NaN where there is nothing to take the mean of: the score of a task whose environments have all failed."""
        table: dict[str, dict[str, float]] = {}
        for row, task in enumerate(self.tasks):
            if self.counts[row].sum() > 0:
                table[task] = dict(zip(COLUMNS, (self.sums[row] / self.counts[row]).tolist(), strict=True))
        if table:
            table["mean"] = {c: _mean([row[c] for row in table.values()]) for c in COLUMNS}
        return table


def _mean(values: list[float]) -> float:
    """Over the values that are there; NaN if none is."""
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan
