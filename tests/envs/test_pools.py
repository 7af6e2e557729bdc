"""Pools by their environment factory."""

import functools

import pytest
from fake_envs import FakeEnv

from lit_rft.envs import EnvPools, EpisodeSpec, PoolSettings, ScienceWorldSuite


def test_each_factory_has_its_own_pool() -> None:
    pools = EnvPools(2, PoolSettings(call_timeout=7.0))
    pool = pools.get(FakeEnv)
    assert pools.get(FakeEnv) is pool
    other = pools.get(functools.partial(FakeEnv, child=True))
    assert other is not pool and pools.get(functools.partial(FakeEnv, child=True)) is other
    assert len(pools) == 2
    suite = ScienceWorldSuite()
    assert pools.get(suite.make_env) is pools.get(suite.make_env)
    pools.close()
    assert len(pools) == 0
    with pytest.raises(RuntimeError, match="the pool is closed"):
        pool.submit(EpisodeSpec("a"))
    assert pools.get(FakeEnv) is not pool  # and works again
    pools.close()


def test_workers_of_different_factories_play_at_the_same_time() -> None:
    pools = EnvPools(1)
    try:
        children = []
        for make in (FakeEnv, functools.partial(FakeEnv, child=True)):
            pool = pools.get(make)
            pool.submit(EpisodeSpec("a"))
            (event,) = pool.wait()
            children.append(event.payload[1]["child"])
        assert children[0] is None and children[1] is not None
    finally:
        pools.close()


def test_a_factory_that_cannot_be_sent_is_refused() -> None:
    with pytest.raises(ValueError, match="make_env must be picklable"):
        EnvPools(1).get(lambda: FakeEnv())


def test_the_name_of_the_running_script_as_a_setting_is_not_refused() -> None:
    EnvPools(1).get(functools.partial(FakeEnv, log="__main__")).close()
