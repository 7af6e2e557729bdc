"""Random actions among an expert's, for medium-quality episodes."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Perturbation:
    """Random actions among an expert's.

    Attributes:
        probability: of a random action at each step, in [0, 1].
        insert: False: replace the expert's action. True: insert an additional action, never one that could end the
            episode at once (`Expert.irreversible`).
        seed: of the steps and the actions. (The simulator has some randomness of its own.)
    """

    probability: float
    insert: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0.0 <= self.probability <= 1.0:
            raise ValueError(f"probability must be in 0..1, got {self.probability}")

    def rng(self, job_id: str) -> random.Random:
        """Return the random generator of an episode; its choices do not depend on other episodes."""
        return random.Random(f"{self.seed}/{job_id}")

    def random_steps(self, rng: random.Random, num_steps: int) -> frozenset[int]:
        """Choose the steps with a random action, before the episode starts."""
        return frozenset(i for i in range(num_steps) if rng.random() < self.probability)

    def choose(self, rng: random.Random, admissible: Sequence[str], irreversible: tuple[str, ...]) -> str | None:
        """Choose an admissible action, at random; None if none is allowed."""
        allowed = [a for a in sorted(admissible) if not (self.insert and a.startswith(irreversible))]
        return rng.choice(allowed) if allowed else None
