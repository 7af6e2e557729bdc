"""Advantages by name, one file each: equation, source and settings. `advantages:` takes any of them by class path."""

from typing import TYPE_CHECKING

from lit_rft._lazy import lazy_exports

if TYPE_CHECKING:
    from lit_rft.advantages.gigpo import GiGPO as GiGPO
    from lit_rft.advantages.hae import HAE as HAE
    from lit_rft.advantages.overlong import OverlongPenalty as OverlongPenalty
    from lit_rft.advantages.reinforce_plus_plus import ReinforcePlusPlus as ReinforcePlusPlus
    from lit_rft.advantages.rloo import RLOO as RLOO

# public name -> the module that defines it; loaded on first use
_EXPORTS: dict[str, str] = {
    "HAE": "lit_rft.advantages.hae",
    "GiGPO": "lit_rft.advantages.gigpo",
    "OverlongPenalty": "lit_rft.advantages.overlong",
    "RLOO": "lit_rft.advantages.rloo",
    "ReinforcePlusPlus": "lit_rft.advantages.reinforce_plus_plus",
}

__all__ = sorted(_EXPORTS)
__getattr__, __dir__ = lazy_exports(__name__, _EXPORTS)
