"""Fast paths: optimised implementations, each behind the switch `policy.accelerate` and with an equality test."""

from typing import TYPE_CHECKING

from lit_rft._lazy import lazy_exports

if TYPE_CHECKING:
    from lit_rft.models.accel.layouts import can_attend_blockwise as can_attend_blockwise
    from lit_rft.models.accel.layouts import can_pack as can_pack
    from lit_rft.models.accel.layouts import can_share_prompts as can_share_prompts
    from lit_rft.models.accel.layouts import longest_shared_row as longest_shared_row
    from lit_rft.models.accel.paths import accelerate as accelerate
    from lit_rft.models.accel.switch import FAST_PATHS as FAST_PATHS
    from lit_rft.models.accel.switch import chosen_paths as chosen_paths
    from lit_rft.models.accel.switch import is_on as is_on

# public name -> the module that defines it; loaded on first use
_EXPORTS: dict[str, str] = {
    "FAST_PATHS": "lit_rft.models.accel.switch",
    "accelerate": "lit_rft.models.accel.paths",
    "can_attend_blockwise": "lit_rft.models.accel.layouts",
    "can_pack": "lit_rft.models.accel.layouts",
    "can_share_prompts": "lit_rft.models.accel.layouts",
    "chosen_paths": "lit_rft.models.accel.switch",
    "is_on": "lit_rft.models.accel.switch",
    "longest_shared_row": "lit_rft.models.accel.layouts",
}

__all__ = sorted(_EXPORTS)
__getattr__, __dir__ = lazy_exports(__name__, _EXPORTS)
