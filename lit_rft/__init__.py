"""Reinforced fine-tuning of language-model agents, as parts for Lightning.

``import lit_rft`` loads none of torch, Lightning or transformers: a name is imported when it is first used.
"""

from lit_rft._lazy import lazy_exports

__version__ = "0.1.0"

_SUBPACKAGES = (
    "agents",
    "callbacks",
    "configs",
    "datamodules",
    "envs",
    "episodes",
    "models",
    "objectives",
    "rollout",
    "stages",
    "transcripts",
)

__getattr__, __dir__ = lazy_exports(__name__, {name: f"{__name__}.{name}" for name in _SUBPACKAGES})
