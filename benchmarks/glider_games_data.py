"""Data of `glider_games.py`: problems of each length, a medium-quality player, and its best episodes."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiment import write_json_lines

from lit_rft.envs import GymSuite, PolicyExpert
from lit_rft.envs.collect import collect_perturbed_episodes
from lit_rft.envs.games import errands
from lit_rft.envs.perturbation import Perturbation
from lit_rft.episodes import Episode, read_episodes
from lit_rft.episodes.subgoals import CONTINUE, DONE

ENV, STEP_LIMIT = "lit_rft.envs.games.Errands", 40


class MediumPlayer:
    """A player with two faults: it buys out of turn, at the nearest shop, and some of its actions are random.

    It must play one episode after another: it remembers where it is going.

    Args:
        impatience: probability of going to the nearest shop of the list instead of the next one.
        seed: of these choices.
    """

    def __init__(self, impatience: float, seed: int) -> None:
        self._impatience, self._rng = impatience, random.Random(seed)
        self._item = ""

    def __call__(self, observation: str, info: Mapping[str, Any]) -> str:
        """Choose an action from an observation and an info of `Errands`."""
        starts = "task_description" in info
        if starts or observation.startswith(("Bought", "Not ")):
            self._item = self._choose(observation, info["left"])
        return errands.way_to(self._item, observation)

    def _choose(self, observation: str, left: Sequence[str]) -> str:
        """Choose the item to go to: the next one, or the nearest of another shop than this one."""
        others = [item for item in left if errands.way_to(item, observation) != "buy"]
        if not others or self._rng.random() >= self._impatience:
            return left[0]
        return min(others, key=lambda item: errands.distance(item, observation))


def write_problems(path: Path, first_seed: int, number: int, customers: Sequence[str]) -> Path:
    """Write problems, equally many of each customer; the length of a list is the task's name in reports."""
    rows = [
        {"task": f"{len(errands.LISTS[customer])} items", "customer": customer, "seed": first_seed + i}
        for i, customer in zip(range(number), itertools.cycle(customers), strict=False)
    ]
    return write_json_lines(path, rows)


def play_medium(path: Path, problems: Path, impatience: float, noise: float, seed: int) -> list[Episode]:
    """Play problems with a medium-quality player, or return the episodes of an earlier call."""
    if path.exists():
        return read_episodes(path)
    suite = GymSuite(ENV, step_limit=STEP_LIMIT, rows={"train": str(problems)})
    expert = PolicyExpert(MediumPlayer(impatience, seed), kind="medium", annotator=errands.annotate)
    return collect_perturbed_episodes(
        suite, suite.episodes("train"), path, Perturbation(noise, seed=seed), expert=expert, num_workers=1,
        annotator="purchases", progress=False,
    )  # fmt: skip


def best_episodes(episodes: Sequence[Episode], share: float) -> list[Episode]:
    """Return the episodes with the highest scores, the same share of each task's."""
    by_task: dict[str, list[Episode]] = {}
    for episode in episodes:
        by_task.setdefault(episode.task, []).append(episode)
    return [
        episode
        for task in by_task.values()
        for episode in sorted(task, key=lambda e: -e.outcome.score)[: max(1, round(share * len(task)))]
    ]


def agent_texts(episodes: Sequence[Episode], names: Sequence[str] = ()) -> Iterator[str]:
    """Yield the texts of a tokenizer: all that hierarchical agents read and write, and further names."""
    for episode in episodes:
        yield f"Task: {' '.join([episode.task_description, *names])}\n\nSubgoal: {episode.initial_observation}"
        yield from (text for step in episode.steps for text in (step.action, step.observation))
        yield from (f"{subgoal.goal}\n{DONE}\n{CONTINUE}" for subgoal in episode.subgoals)
