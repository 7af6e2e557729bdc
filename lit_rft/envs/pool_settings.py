"""Settings of environment pools: limits of time and memory, processes or threads."""

from __future__ import annotations

from dataclasses import dataclass

from lit_rft.envs.memory import can_measure


@dataclass(frozen=True)
class PoolSettings:
    """Settings of environment pools.

    Args:
        call_timeout: maximum seconds per step.
        reset_timeout: maximum seconds per reset; a new worker has the same limit for making its environment.
        max_attempts: number of attempts before an episode counts as an environment error.
        episodes_per_worker: episodes after which a worker is replaced; 0 for never.
        memory_limit: MiB of resident memory of a worker and of all processes that its environment has started; 0 for no
            limit. A worker above it is replaced after its episode. One above twice the limit is killed at once, and its
            episode is played again, up to `max_attempts` times.
        threads: run the environments in threads of this process instead of worker processes: faster to start,
            for environments in pure Python that neither hang nor end the process. A thread cannot be killed: a
            call that exceeds its time limit is a `TimeoutError` that ends the run.

    Raises:
        ValueError: a value is out of range, or a memory limit is set where memory cannot be measured.
    """

    call_timeout: float = 30.0
    reset_timeout: float = 120.0
    max_attempts: int = 2
    episodes_per_worker: int = 0
    memory_limit: int = 0
    threads: bool = False

    def __post_init__(self) -> None:
        for name in ("call_timeout", "reset_timeout"):
            if not getattr(self, name) > 0:
                raise ValueError(f"pool.{name} must be > 0 seconds, got {getattr(self, name)}")
        if self.max_attempts < 1:
            raise ValueError(f"pool.max_attempts must be >= 1, got {self.max_attempts}")
        for name in ("episodes_per_worker", "memory_limit"):
            if getattr(self, name) < 0:
                raise ValueError(f"pool.{name} must be >= 0 (0: no limit), got {getattr(self, name)}")
        if self.memory_limit and self.threads:
            raise ValueError(
                f"pool.memory_limit={self.memory_limit} needs worker processes, whose memory can be measured: "
                "set it to 0, or pool.threads to false"
            )
        if self.memory_limit and not can_measure():
            raise ValueError(f"pool.memory_limit={self.memory_limit} needs /proc, which only Linux has: set it to 0")
