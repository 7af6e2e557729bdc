"""Rollout sources around a stage's own, one file each. `source:` of a stage takes any of them by class path."""

from typing import TYPE_CHECKING

from lit_rft._lazy import lazy_exports

if TYPE_CHECKING:
    from lit_rft.sources.dynamic_sampling import DynamicSampling as DynamicSampling
    from lit_rft.sources.exgrpo import ExGRPO as ExGRPO
    from lit_rft.sources.prefix_rft import TracePrefixes as TracePrefixes
    from lit_rft.sources.relift import ReLIFT as ReLIFT
    from lit_rft.sources.wrapped import WrappedSource as WrappedSource

# public name -> the module that defines it; loaded on first use
_EXPORTS: dict[str, str] = {
    "DynamicSampling": "lit_rft.sources.dynamic_sampling",
    "ExGRPO": "lit_rft.sources.exgrpo",
    "ReLIFT": "lit_rft.sources.relift",
    "TracePrefixes": "lit_rft.sources.prefix_rft",
    "WrappedSource": "lit_rft.sources.wrapped",
}

__all__ = sorted(_EXPORTS)
__getattr__, __dir__ = lazy_exports(__name__, _EXPORTS)
