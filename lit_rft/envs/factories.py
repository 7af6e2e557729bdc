"""Environment factories as bytes, for other processes and threads."""

from __future__ import annotations

import io
import pickle
import types
from collections.abc import Callable
from typing import Any

import gymnasium as gym


def pickle_factory(make_env: Callable[[], gym.Env[Any, Any]], *, importable: bool = True) -> bytes:
    """Pickle an environment factory.

    The bytes identify the factory: those with the same bytes make the same environment, and share a pool.

    Args:
        make_env: the factory.
        importable: require classes and functions that other processes can import.

    Raises:
        ValueError: it cannot be pickled, or other processes cannot import it.
    """
    buffer = io.BytesIO()
    pickler = _ImportablePickler(buffer) if importable else pickle.Pickler(buffer)
    try:
        pickler.dump(make_env)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ValueError(f"make_env must be picklable, a class or a functools.partial of one: {error}") from error
    return buffer.getvalue()


class _ImportablePickler(pickle.Pickler):
    """A pickler that refuses classes and functions of the running script."""

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, (type, types.FunctionType)) and value.__module__ == "__main__":
            raise ValueError(
                f"make_env needs {value.__qualname__}, which is defined in the running script, and workers do not "
                "import it: move it to a module"
            )
        return NotImplemented
