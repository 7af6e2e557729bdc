"""Environment factories as bytes, for other processes and threads."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import gymnasium as gym


def factory_key(make_env: Callable[[], gym.Env[Any, Any]], *, importable: bool = True) -> bytes:
    """Pickle an environment factory.

    Bound methods and partials of equal objects make the same environment, and have the same key.

    Args:
        make_env: the factory.
        importable: require a module that other processes can import.

    Raises:
        ValueError: it cannot be pickled, or other processes cannot import it.
    """
    try:
        pickled = pickle.dumps(make_env)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ValueError(f"make_env must be picklable, a class or a functools.partial of one: {error}") from error
    if importable and b"__main__" in pickled:
        raise ValueError("make_env is defined in the running script, which workers do not import: move it to a module")
    return pickled
