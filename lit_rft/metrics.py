"""Metrics of episodes and of answers, as torchmetrics metrics: aggregated over batches and processes."""

import json
import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from lit_rft.episodes import Episode

COLUMNS = ("score", "success", "steps", "valid_actions", "invalid_answers", "env_errors")
ENV_METRICS = "metrics/"  # prefix of the columns of an environment's own metrics
_Z = 1.959963984540054  # 97.5% quantile of the standard normal distribution


class EpisodeMetrics(Metric):
    """Means over episodes for each task, and over tasks.

    `score` is in 0..100; `success`, `valid_actions` (of all actions), `invalid_answers` (of all utterances: those
    outside the agent's answer format) and `env_errors` (of all episodes) are shares in 0..1; `steps` is a mean per
    episode. Episodes whose environment failed count in `env_errors` only. The environment's metrics are further
    columns, `metrics/NAME`: means over the episodes that have them.

    Args:
        tasks: names of all tasks.
    """

    full_state_update = False
    sums: Tensor
    counts: Tensor
    reported: Any

    def __init__(self, tasks: Sequence[str]) -> None:
        super().__init__()
        self.tasks = list(tasks)
        self._columns = len(COLUMNS)
        shape = (len(self.tasks), self._columns)
        self.add_state("sums", torch.zeros(shape, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("counts", torch.zeros(shape, dtype=torch.float64), dist_reduce_fx="sum")
        # Names are known from the episodes only, and may differ between processes; only tensors can be gathered:
        # a line of JSON per episode, as bytes, with its task and metrics.
        self.add_state("reported", [], dist_reduce_fx="cat")
        self.reported.append(torch.zeros(0, dtype=torch.uint8))  # a process may have no episode

    def update(self, episode: Episode) -> None:
        """Count one episode.

        Raises:
            ValueError: For an unknown task (not in `tasks`).
        """
        if episode.task not in self.tasks:
            raise ValueError(f"unknown task {episode.task!r}: expected one of {', '.join(self.tasks)}")
        row = self.tasks.index(episode.task)
        failed = episode.outcome.reason == "env_error"
        steps = len(episode.steps)
        valid = sum(step.valid for step in episode.steps)
        invalid = float(episode.source.get("malformed", 0))
        sums = [100 * episode.outcome.score, float(episode.outcome.success), steps, valid, invalid, float(failed)]
        actions, utterances = (0, 0) if failed else (steps, episode.num_utterances)
        counts = [not failed, not failed, not failed, actions, utterances, 1]
        kept = torch.tensor([0.0 if failed and c != "env_errors" else 1.0 for c in COLUMNS], dtype=torch.float64)
        self.sums[row] += (torch.tensor(sums, dtype=torch.float64) * kept).to(self.sums)
        self.counts[row] += torch.tensor(counts, dtype=torch.float64).to(self.counts)
        if (reported := env_metrics(episode)) and not failed:
            line = json.dumps([row, reported]).encode() + b"\n"
            self.reported.append(torch.frombuffer(bytearray(line), dtype=torch.uint8).to(self.device))

    def compute(self) -> dict[str, dict[str, float]]:
        """Compute task -> column -> mean, and `mean` -> column -> mean over the tasks with episodes.

        NaN without values: for example the score of a task whose environments have all failed.
        """
        table: dict[str, dict[str, float]] = {}
        reported = self._reported()
        for row, task in enumerate(self.tasks):
            if self.counts[row].sum() > 0:
                more = mean_env_metrics(metrics for index, metrics in reported if index == row)
                table[task] = dict(zip(COLUMNS, (self.sums[row] / self.counts[row]).tolist(), strict=True)) | more
        if table:
            columns = dict.fromkeys(column for row in table.values() for column in row)
            table["mean"] = {c: _mean([row[c] for row in table.values() if c in row]) for c in columns}
        return table

    def _reported(self) -> list[tuple[int, dict[str, float]]]:
        """Return task and metrics of each episode whose environment has metrics."""
        parts = self.reported if isinstance(self.reported, list) else [self.reported]
        text = b"".join(bytes(part.cpu().tolist()) for part in parts).decode()
        return [json.loads(line) for line in text.splitlines()]


def env_metrics(episode: Episode) -> dict[str, float]:
    """Return an episode's metrics from the environment, by name."""
    metrics: dict[str, float] = episode.extra.get("metrics", {})
    return metrics


def mean_env_metrics(metrics: Iterable[dict[str, float]]) -> dict[str, float]:
    """Return `metrics/NAME` -> mean over the episodes that have it.

    Args:
        metrics: of each episode, see `env_metrics`.
    """
    values: dict[str, list[float]] = {}
    for numbers in metrics:
        for name, value in numbers.items():
            values.setdefault(name, []).append(value)
    return {f"{ENV_METRICS}{name}": sum(values[name]) / len(values[name]) for name in sorted(values)}


def _mean(values: list[float]) -> float:
    """Return the mean of the values that are not NaN; NaN if there are none."""
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


def pass_at_k(right: Tensor, answers: Tensor, k: int) -> Tensor:
    r"""Estimate the probability that at least one of k answers is right (Chen et al. 2021, arXiv 2107.03374).

        pass@k = 1 - C(n - c, k) / C(n, k)

    The estimate is unbiased.

    Args:
        right: c, right answers of each problem, [P].
        answers: n, answers of each problem, [P]; each >= k.
        k: >= 1.

    Returns:
        [P], in [0, 1].

    Raises:
        ValueError: If a problem has fewer than k answers.
    """
    if k < 1 or (answers < k).any():
        raise ValueError(f"pass@{k} needs at least {max(k, 1)} answers per problem, got {int(answers.min())}")
    n, c = answers.double(), right.double()
    factors = torch.arange(k, dtype=torch.float64, device=right.device)
    # C(n - c, k) / C(n, k) as a product; a factor <= 0 means fewer than k wrong answers
    terms = ((n - c)[:, None] - factors) / (n[:, None] - factors)
    return 1.0 - terms.clamp_min(0).prod(-1)


def wilson_interval(successes: float, number: int) -> tuple[float, float]:
    """Return Wilson's 95% interval of a share (Wilson 1927), which is sensible at 0 and 1 too.

    Args:
        successes: in [0, number]; a sum of shares if each trial has one.
        number: of trials, >= 1.

    Returns:
        Lower and upper end, in [0, 1].

    Raises:
        ValueError: For a count out of range.
    """
    if not 0 <= successes <= number or number < 1:
        raise ValueError(f"expected 0 <= successes <= number and number >= 1, got {successes} of {number}")
    share, weight = successes / number, _Z**2 / number
    middle = (share + weight / 2) / (1 + weight)
    half = _Z / (1 + weight) * math.sqrt(share * (1 - share) / number + weight / (4 * number))
    return max(0.0, middle - half), min(1.0, middle + half)


class AnswerMetrics(Metric):
    """avg@k and pass@k of each benchmark, and their mean over benchmarks, as shares in 0..1.

    avg@k: the mean share of right answers among the k of each problem, with an interval from resampling problems
    (bootstrap, 95%), or Wilson's over problems if all have one answer each or equal shares, where a bootstrap is too
    narrow. k is the smallest number of answers per problem in the benchmark.

    Args:
        sources: names of all benchmarks.
        resamples: number of bootstrap resamples.
        seed: seed of the bootstrap.
    """

    full_state_update = False
    rows: Any

    def __init__(self, sources: Sequence[str], *, resamples: int = 1000, seed: int = 0) -> None:
        super().__init__()
        self.sources, self.resamples, self.seed = list(sources), resamples, seed
        self.add_state("rows", [], dist_reduce_fx="cat")
        self.rows.append(torch.zeros(0, 3, dtype=torch.long))  # a process may have no problem

    def update(self, source: str, right: int, answers: int) -> None:
        """Count one problem.

        Raises:
            ValueError: For an unknown benchmark (not in `sources`).
        """
        if source not in self.sources:
            raise ValueError(f"unknown benchmark {source!r}: expected one of {', '.join(self.sources)}")
        row = torch.tensor([[self.sources.index(source), right, answers]], device=self.device)
        self.rows.append(row)

    def compute(self) -> dict[str, dict[str, float]]:
        """Compute benchmark -> column -> value.

        Columns: `average`, `low`, `high` (its interval), `pass`, `k`, `problems`; the row `mean` is over the benchmarks
        with problems.
        """
        rows = self.rows
        table = torch.cat(rows) if isinstance(rows, list) and rows else torch.as_tensor(rows)
        report: dict[str, dict[str, float]] = {}
        for index, source in enumerate(self.sources):
            selected = table[table[:, 0] == index] if table.numel() else table
            if len(selected):
                report[source] = self._of(selected[:, 1], selected[:, 2])
        if report:
            columns = {"average", "pass"}
            mean = {name: sum(row[name] for row in report.values()) / len(report) for name in sorted(columns)}
            problems = sum(row["problems"] for row in report.values())
            report["mean"] = {**mean, "low": math.nan, "high": math.nan, "k": math.nan, "problems": problems}
        return report

    def _of(self, right: Tensor, answers: Tensor) -> dict[str, float]:
        shares = right.double() / answers
        low, high = self._interval(shares.cpu(), int(answers.max()))
        return {
            "average": float(shares.mean()),
            "low": low,
            "high": high,
            "pass": float(pass_at_k(right, answers, int(answers.min())).mean()),
            "k": float(answers.min()),
            "problems": float(len(shares)),
        }

    def _interval(self, shares: Tensor, most_answers: int) -> tuple[float, float]:
        if most_answers == 1 or bool((shares == shares[0]).all()):  # of equal shares a bootstrap has no width
            return wilson_interval(float(shares.sum()), len(shares))
        generator = torch.Generator().manual_seed(self.seed)
        chosen = torch.randint(len(shares), (self.resamples, len(shares)), generator=generator)
        ends = torch.quantile(shares[chosen].mean(-1), torch.tensor([0.025, 0.975], dtype=torch.float64))
        return float(ends[0]), float(ends[1])


def episode_cells(row: dict[str, float]) -> dict[str, str]:
    """Format a row of `EpisodeMetrics.compute()`: heading -> text; shares in percent, other numbers unchanged."""
    names = {column: column.removeprefix(ENV_METRICS).replace("_", " ") for column in row}
    return {names[column]: _cell(value, _form(column)) for column, value in row.items()}


def _form(column: str) -> str:
    return ".4g" if column.startswith(ENV_METRICS) else ".1f" if column.endswith(("score", "steps")) else ".0%"


def answer_cells(row: dict[str, float]) -> dict[str, str]:
    """Format a row of `AnswerMetrics.compute()`: heading -> text."""
    interval = "-" if math.isnan(row["low"]) else f"{row['low']:.1%} .. {row['high']:.1%}"
    return {
        "problems": _cell(row["problems"], ".0f"),
        "k": _cell(row["k"], ".0f"),
        "avg@k": _cell(row["average"], ".1%"),
        "95% interval": interval,
        "pass@k": _cell(row["pass"], ".1%"),
    }


def _cell(value: float, form: str) -> str:
    return "-" if math.isnan(value) else format(value, form)
