"""Preference pairs of episodes: the better and the worse of two attempts at one problem (ETO, arXiv 2403.02502)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from lit_rft.episodes.record import Episode, Outcome

Problem = tuple[str, str, str, str]


@dataclass(frozen=True)
class EpisodePair:
    """Two episodes of one problem.

    Attributes:
        chosen: the one with the higher score.
        rejected: the other one.
    """

    chosen: Episode
    rejected: Episode

    @property
    def margin(self) -> float:
        """Difference of the final scores, > 0."""
        return self.chosen.outcome.score - self.rejected.outcome.score


@dataclass
class PairReport:
    """Pairs, and the fate of each explored episode.

    Attributes:
        pairs: in the order of the explored episodes.
        won: explored episodes with a higher score than the expert's: they are the chosen ones.
        tied: scores within the margin; no pair.
        lost: explored episodes with a lower score: they are the rejected ones.
        unmatched: without an expert episode of their problem, without steps, or ended by the environment's failure.
        surplus: beyond `pairs_per_problem`.
    """

    pairs: list[EpisodePair] = field(default_factory=list)
    won: int = 0
    tied: int = 0
    lost: int = 0
    unmatched: int = 0
    surplus: int = 0


def problem_of(episode: Episode) -> Problem:
    """Return the key of an episode's problem: environment, task, split and `meta`."""
    return episode.env, episode.task, episode.split, json.dumps(episode.meta, sort_keys=True)


def pair_with_experts(
    experts: Iterable[Episode],
    explored: Sequence[Episode],
    *,
    margin: float = 0.0,
    max_extra_steps: int | None = 5,
    pairs_per_problem: int | None = 1,
) -> PairReport:
    """Compare explored episodes with the expert's episode of the same problem.

    Args:
        experts: one per problem; of several, the one with the highest score, then the shortest, is used.
        explored: of the policy to improve, on training problems.
        margin: maximum difference of tied scores, >= 0.
        max_extra_steps: rejected episodes are cut this many steps after the expert's length (ETO on ScienceWorld: 5):
            otherwise episodes that wander until the step limit would dominate the loss. None for no cut.
        pairs_per_problem: maximum number of pairs per problem, of the first explored episodes; None for all.

    Raises:
        ValueError: a setting is out of its range.
    """
    _check(margin, max_extra_steps, pairs_per_problem)
    best: dict[Problem, Episode] = {}
    for expert in experts:
        held = best.get(problem_of(expert))
        if held is None or (expert.outcome.score, -len(expert.steps)) > (held.outcome.score, -len(held.steps)):
            best[problem_of(expert)] = expert
    report, made = PairReport(), dict.fromkeys(best, 0)
    for episode in explored:
        problem = problem_of(episode)
        match = best.get(problem)
        if match is None or not match.steps or not episode.steps or episode.outcome.reason == "env_error":
            report.unmatched += 1
            continue
        difference = episode.outcome.score - match.outcome.score
        if abs(difference) <= margin:
            report.tied += 1
            continue
        won = difference > 0
        report.won, report.lost = report.won + won, report.lost + (not won)
        if pairs_per_problem is not None and made[problem] >= pairs_per_problem:
            report.surplus += 1
            continue
        made[problem] += 1
        chosen, rejected = (episode, match) if won else (match, episode)
        if max_extra_steps is not None and not won:
            rejected = cut_episode(rejected, len(match.steps) + max_extra_steps)
        report.pairs.append(EpisodePair(chosen, rejected))
    return report


def cut_episode(episode: Episode, num_steps: int) -> Episode:
    """Return the first steps of an episode, truncated there; the episode itself if it has no more steps.

    Args:
        episode: is not changed.
        num_steps: number of steps to keep, >= 1.

    Raises:
        ValueError: `num_steps` is below 1.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps must be >= 1, got {num_steps}")
    if len(episode.steps) <= num_steps:
        return episode
    subgoals = [
        goal if goal.end <= num_steps else replace(goal, end=num_steps, completed=False)
        for goal in episode.subgoals
        if goal.start < num_steps
    ]
    score = episode.steps[num_steps - 1].score
    outcome = Outcome(score, success=False, terminated=False, truncated=True, reason="cut")
    extra = dict(episode.extra)
    if isinstance(thoughts := extra.get("thoughts"), list):  # one before each step
        extra["thoughts"] = thoughts[:num_steps]
    return replace(episode, steps=episode.steps[:num_steps], subgoals=subgoals, outcome=outcome, extra=extra)


def _check(margin: float, max_extra_steps: int | None, pairs_per_problem: int | None) -> None:
    if not margin >= 0:
        raise ValueError(f"margin must be >= 0, got {margin}")
    if max_extra_steps is not None and max_extra_steps < 0:
        raise ValueError(f"max_extra_steps must be >= 0 or null, got {max_extra_steps}")
    if pairs_per_problem is not None and pairs_per_problem < 1:
        raise ValueError(f"pairs_per_problem must be >= 1 or null, got {pairs_per_problem}")
