"""The folder of the environments on the path, and a pool in this process."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # workers of a pool unpickle their environment by its module's name

from local_pool import LocalPool

from lit_rft.envs import collect


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch) -> type[LocalPool]:
    monkeypatch.setattr(collect, "EnvPool", LocalPool)
    monkeypatch.setattr(LocalPool, "failures", {})
    monkeypatch.setattr(LocalPool, "played", [])
    return LocalPool
