"""Reinforcement fine-tuning of language models as PyTorch Lightning modules.

``import lit_rft`` loads none of torch, Lightning or transformers: a name is imported when it is first used.
"""

from typing import TYPE_CHECKING

from lit_rft._lazy import lazy_exports

if TYPE_CHECKING:
    from lit_rft import agents as agents
    from lit_rft import callbacks as callbacks
    from lit_rft import configs as configs
    from lit_rft import datamodules as datamodules
    from lit_rft import envs as envs
    from lit_rft import episodes as episodes
    from lit_rft import generation as generation
    from lit_rft import models as models
    from lit_rft import objectives as objectives
    from lit_rft import rollouts as rollouts
    from lit_rft import stages as stages
    from lit_rft import transcripts as transcripts

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
    "generation",
    "rollouts",
    "stages",
    "transcripts",
)

__getattr__, __dir__ = lazy_exports(__name__, {name: f"{__name__}.{name}" for name in _SUBPACKAGES})
