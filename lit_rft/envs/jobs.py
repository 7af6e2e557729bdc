"""Batches of episode specifications and their environment, from data loaders to stages."""

from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym

from lit_rft.envs.base import EpisodeSpec


class EpisodeJobs:
    """Episodes to play.

    Not a dataclass: Lightning would search it for tensors to move and to cast.

    Args:
        jobs: the episodes.
        make_env: makes an environment (picklable: a class or a functools.partial of one).
        tasks: all tasks of the evaluation, including those of other batches and processes.
    """

    def __init__(
        self, jobs: Sequence[EpisodeSpec], make_env: Callable[[], gym.Env[Any, Any]], tasks: Sequence[str]
    ) -> None:
        self.jobs, self.make_env, self.tasks = jobs, make_env, tasks

    def to(self, *args: Any, **kwargs: Any) -> "EpisodeJobs":
        """Return the batch itself: it has no tensors to move."""
        return self
