"""Pools of environments, one per environment factory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym

from lit_rft.envs.factories import pickle_factory
from lit_rft.envs.pool import EnvPool
from lit_rft.envs.pool_settings import PoolSettings


class EnvPools:
    """`EnvPool`s by their environment factory, started on first use: training and evaluation may have different ones.

    Factories that pickle to the same bytes share a pool.

    Args:
        num_workers: number of environments per pool.
        settings: of each pool.
    """

    def __init__(self, num_workers: int, settings: PoolSettings | None = None) -> None:
        self._num_workers, self._settings = num_workers, settings or PoolSettings()
        self._pools: dict[bytes, EnvPool] = {}

    def __len__(self) -> int:
        """Return the number of running pools."""
        return len(self._pools)

    def get(self, make_env: Callable[[], gym.Env[Any, Any]]) -> EnvPool:
        """Return the pool of an environment factory.

        Raises:
            ValueError: `make_env` cannot be sent to another process.
        """
        key = pickle_factory(make_env, importable=not self._settings.threads)
        if key not in self._pools:
            self._pools[key] = EnvPool(make_env, self._num_workers, self._settings)
        return self._pools[key]

    def close(self) -> None:
        """Stop all workers. A second call does nothing."""
        pools, self._pools = self._pools, {}
        for pool in pools.values():
            pool.close()
