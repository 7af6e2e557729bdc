"""Pools of environments, one for each way to make them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym

from lit_rft.envs.factories import factory_key
from lit_rft.envs.pool import EnvPool
from lit_rft.envs.pool_settings import PoolSettings


class EnvPools:
    """`EnvPool`s by their environment factory, started when first needed: training and evaluation may differ in it.

    Args:
        num_workers: environments of each pool.
        settings: of each pool.
    """

    def __init__(self, num_workers: int, settings: PoolSettings | None = None) -> None:
        self._num_workers, self._settings = num_workers, settings or PoolSettings()
        self._pools: dict[bytes, EnvPool] = {}

    def __len__(self) -> int:
        """Number of pools that are running."""
        return len(self._pools)

    def get(self, make_env: Callable[[], gym.Env[Any, Any]]) -> EnvPool:
        """The pool of an environment factory.

        Raises:
            ValueError: `make_env` cannot be sent to another process.
        """
        key = factory_key(make_env, importable=not self._settings.threads)
        if key not in self._pools:
            self._pools[key] = EnvPool(make_env, self._num_workers, self._settings)
        return self._pools[key]

    def close(self) -> None:
        """End all workers. A second call does nothing."""
        pools, self._pools = self._pools, {}
        for pool in pools.values():
            pool.close()
