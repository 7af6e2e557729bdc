"""Pools of worker processes, one for each way to make an environment."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym

from lit_rft.envs.pool import EnvPool


class EnvPools:
    """`EnvPool`s by their environment factory, started when first needed: training and evaluation may differ in it.

    Args:
        num_workers: processes of each pool.
        call_timeout, reset_timeout: see `EnvPool`.
    """

    def __init__(self, num_workers: int, *, call_timeout: float = 30.0, reset_timeout: float = 60.0) -> None:
        self._num_workers, self._call_timeout, self._reset_timeout = num_workers, call_timeout, reset_timeout
        self._pools: dict[bytes, EnvPool] = {}

    def __len__(self) -> int:
        """Number of pools that are running."""
        return len(self._pools)

    def get(self, make_env: Callable[[], gym.Env[Any, Any]]) -> EnvPool:
        """The pool of an environment factory.

        Raises:
            ValueError: `make_env` cannot be sent to another process.
        """
        # starts nothing before its first episode
        pool = EnvPool(make_env, self._num_workers, call_timeout=self._call_timeout, reset_timeout=self._reset_timeout)
        # a factory is what it pickles to: bound methods and partials of equal objects make the same environment
        return self._pools.setdefault(pool.factory, pool)

    def close(self) -> None:
        """End all workers. A second call does nothing."""
        pools, self._pools = self._pools, {}
        for pool in pools.values():
            pool.close()
