"""What an `EnvPool` tells its consumer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from lit_rft.envs.base import EpisodeSpec


@dataclass(frozen=True, slots=True)
class PoolEvent:
    """Something that happened to a job.

    Attributes:
        kind: ``reset`` and ``step``: the environment answered. ``lost``: the worker failed in mid-episode and the job
            has been queued again; drop what was played. ``error``: it failed for the last time and the job is over.
        worker: index of the worker, for `EnvPool.step` and `EnvPool.finish`.
        job: the job.
        payload: what `reset` or `step` returned; for ``lost`` and ``error`` a message.
    """

    kind: Literal["reset", "step", "lost", "error"]
    worker: int
    job: EpisodeSpec
    payload: Any
