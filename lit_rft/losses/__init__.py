"""Policy losses by name, one file each: equation, source and settings. `loss:` takes any of them by class path."""

from typing import TYPE_CHECKING

from lit_rft._lazy import lazy_exports

if TYPE_CHECKING:
    from lit_rft.losses.chord import CHORD as CHORD
    from lit_rft.losses.cispo import CISPO as CISPO
    from lit_rft.losses.gspo import GSPO as GSPO
    from lit_rft.losses.hpt import HPT as HPT
    from lit_rft.losses.prefix_rft import PrefixRFT as PrefixRFT
    from lit_rft.losses.rl_plus import RLPlus as RLPlus
    from lit_rft.losses.sampler_correction import ImportanceWeights as ImportanceWeights
    from lit_rft.losses.sampler_correction import MaskedWeights as MaskedWeights
    from lit_rft.losses.sampler_correction import SamplerCorrected as SamplerCorrected
    from lit_rft.losses.sampler_correction import SequenceWeights as SequenceWeights
    from lit_rft.losses.sampler_correction import TruncatedWeights as TruncatedWeights
    from lit_rft.losses.srft import SRFT as SRFT
    from lit_rft.losses.two_sided import TwoSidedClip as TwoSidedClip

# public name -> the module that defines it; loaded on first use
_EXPORTS: dict[str, str] = {
    "CHORD": "lit_rft.losses.chord",
    "CISPO": "lit_rft.losses.cispo",
    "GSPO": "lit_rft.losses.gspo",
    "HPT": "lit_rft.losses.hpt",
    "PrefixRFT": "lit_rft.losses.prefix_rft",
    "RLPlus": "lit_rft.losses.rl_plus",
    "SRFT": "lit_rft.losses.srft",
    "ImportanceWeights": "lit_rft.losses.sampler_correction",
    "MaskedWeights": "lit_rft.losses.sampler_correction",
    "SamplerCorrected": "lit_rft.losses.sampler_correction",
    "SequenceWeights": "lit_rft.losses.sampler_correction",
    "TruncatedWeights": "lit_rft.losses.sampler_correction",
    "TwoSidedClip": "lit_rft.losses.two_sided",
}

__all__ = sorted(_EXPORTS)
__getattr__, __dir__ = lazy_exports(__name__, _EXPORTS)
