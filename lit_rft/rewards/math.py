"""Rewards for verifiable mathematics: 1 for the right final answer, else 0."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lit_rft.rewards.pool import Verdict, VerifierPool


class MathReward:
    """Reward 1 if a completion's final answer is its row's `ground_truth`, else 0; docs/grading.md has the rules.

    Model output cannot hang, crash or slow the run: see `VerifierPool`. `verdicts` holds the verdicts of the last call,
    and `counts` their numbers since the start.

    Args:
        after_thinking: grade only the text after the first `</think>`, with reward 0 without one (LUFFY's release);
            else the full completion.
        num_workers: number of processes.
        time_limit: maximum seconds of CPU time per answer.
        lenient: also accept unmarked answers, such as the last number; see `answers.find_answer`.
        wall_limit: maximum wall-clock seconds per answer; generous, because busy machines are slow.
    """

    def __init__(
        self,
        after_thinking: bool = False,
        num_workers: int = 2,
        time_limit: float = 1.0,
        lenient: bool = False,
        wall_limit: float = 120.0,
    ) -> None:
        self.after_thinking, self.num_workers, self.time_limit = after_thinking, num_workers, time_limit
        self.lenient, self.wall_limit = lenient, wall_limit
        self.verdicts: list[Verdict] = []
        self.counts: dict[str, int] = {verdict.value: 0 for verdict in Verdict}
        self._pool: VerifierPool | None = None

    def __call__(self, completions: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> list[float]:
        """Compute a reward in {0, 1} for each completion.

        Raises:
            ValueError: If a row has no `ground_truth`.
        """
        golds = [_ground_truth(row) for row in rows]
        texts = [text_after_thinking(text) if self.after_thinking else text for text in completions]
        given = [index for index, text in enumerate(texts) if text is not None and text.strip()]
        results = self.pool().verify([golds[i] for i in given], [texts[i] or "" for i in given])
        self.verdicts = [Verdict.UNREADABLE] * len(texts)
        for index, verdict in zip(given, results, strict=True):
            self.verdicts[index] = verdict
        for verdict in self.verdicts:
            self.counts[verdict.value] += 1
        return [float(verdict is Verdict.RIGHT) for verdict in self.verdicts]

    def pool(self) -> VerifierPool:
        """Return the processes that grade; they start on first use."""
        if self._pool is None:
            self._pool = VerifierPool(
                self.num_workers, self.time_limit, wall_limit=self.wall_limit, lenient=self.lenient
            )
        return self._pool

    def metrics(self) -> dict[str, float]:
        """Count the last call's answers that were unreadable, and those whose process was killed (hung or crashed)."""
        wanted = (Verdict.UNREADABLE, Verdict.KILLED)
        return {verdict.value: float(self.verdicts.count(verdict)) for verdict in wanted}

    def reward_settings(self) -> dict[str, Any]:
        """Return the settings that decide whether an answer is right; time limits are left out."""
        return {"after_thinking": self.after_thinking, "lenient": self.lenient}

    def close(self) -> None:
        """End the processes."""
        if self._pool is not None:
            self._pool.close()
            self._pool = None


def text_after_thinking(text: str, mark: str = "</think>") -> str | None:
    """Return the text after the first mark; None without one."""
    _, separator, rest = text.partition(mark)
    return rest if separator else None


def _ground_truth(row: Mapping[str, Any]) -> str:
    if row.get("ground_truth") is None:
        raise ValueError(
            f"expected a row with a ground_truth, got the columns {sorted(row)}: name the column in data.columns"
        )
    return str(row["ground_truth"])
