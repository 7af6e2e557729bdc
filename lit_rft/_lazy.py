"""Lazy imports of public names (PEP 562), so that ``import lit_rft`` is fast."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping


def lazy_exports(package: str, exports: Mapping[str, str]) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    """Make the ``__getattr__`` and ``__dir__`` of a package whose names load on first use.

    Args:
        package: the package's full name, for example ``lit_rft.datamodules``.
        exports: public name -> full name of the module that defines it; a name that maps to itself below
            ``package`` (``"envs": "lit_rft.envs"``) is that submodule.

    Returns:
        The two functions, to be assigned at module level.
    """

    def load(name: str) -> object:
        if name not in exports:
            raise AttributeError(f"module {package!r} has no attribute {name!r}; it has: {', '.join(sorted(exports))}")
        module = importlib.import_module(exports[name])
        return module if exports[name] == f"{package}.{name}" else getattr(module, name)

    def names() -> list[str]:
        return sorted(exports)

    return load, names
