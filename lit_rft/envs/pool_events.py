"""Events of an `EnvPool`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from lit_rft.envs.base import EpisodeSpec


@dataclass(frozen=True, slots=True)
class PoolEvent:
    """An event of a job.

    Attributes:
        kind: ``reset`` and ``step``: the environment responded. ``lost``: the worker failed during the episode and the
            job has been queued again; discard its steps. ``error``: it failed for the last time and the job is over.
        worker: index of the worker, for `EnvPool.step` and `EnvPool.finish`.
        job: the job.
        payload: result of `reset` or `step`; for ``lost`` and ``error`` a message.
    """

    kind: Literal["reset", "step", "lost", "error"]
    worker: int
    job: EpisodeSpec
    payload: Any
