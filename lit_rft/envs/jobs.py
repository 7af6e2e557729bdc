"""What is to be played, and in what."""

from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym

from lit_rft.envs.protocols import EpisodeJob


class EpisodeJobs:
    """Some episodes to play, as data loaders hand them to stages.

    No dataclass: Lightning would look into it for tensors to move and to cast.

    Args:
        jobs: the episodes.
        make_env: makes an environment (picklable: a class or a functools.partial of one).
        tasks: all tasks of the evaluation, those of other batches and processes included.
    """

    def __init__(
        self, jobs: Sequence[EpisodeJob], make_env: Callable[[], gym.Env[Any, Any]], tasks: Sequence[str]
    ) -> None:
        self.jobs, self.make_env, self.tasks = jobs, make_env, tasks

    def to(self, *args: Any, **kwargs: Any) -> "EpisodeJobs":
        """Nothing here lives on a device; Lightning asks every batch."""
        return self
