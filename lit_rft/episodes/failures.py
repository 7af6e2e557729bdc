"""Failures to learn from, among played episodes (NAT, arXiv 2402.11651)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from lit_rft.episodes.pairs import Problem, problem_of
from lit_rft.episodes.record import Episode


@dataclass(frozen=True)
class DistinctFailures:
    """Selects the failures among episodes: each sequence of actions once, and a limited number per problem.

    Episodes that never ended (at the step limit) are failures, too; those whose environment failed are left out.

    Args:
        per_problem: maximum number per problem, of the first ones, > 0; null for all.
        success_score: final score from which an episode is no failure.

    Raises:
        ValueError: For a number below 1.
    """

    per_problem: int | None = 3
    success_score: float = 1.0

    def __post_init__(self) -> None:
        if self.per_problem is not None and self.per_problem < 1:
            raise ValueError(f"per_problem must be >= 1 or null, got {self.per_problem}")

    def __call__(self, episodes: Sequence[Episode]) -> list[Episode]:
        """Return the selected episodes, in their order."""
        seen: set[tuple[Problem, tuple[str, ...]]] = set()
        counts: Counter[Problem] = Counter()
        selected = []
        for episode in episodes:
            problem, actions = problem_of(episode), tuple(step.action for step in episode.steps)
            failed = episode.outcome.score < self.success_score and episode.outcome.reason != "env_error"
            repeated = (problem, actions) in seen
            if failed and not repeated and (self.per_problem is None or counts[problem] < self.per_problem):
                seen.add((problem, actions))
                counts[problem] += 1
                selected.append(episode)
        return selected
