"""Small real parts for tests: a model, a tokenizer, an environment, episodes and stages that train in a second.

For tests of user-defined callbacks, stages, rewards and agents (docs/testing.md). Nothing is downloaded. Names load on
first use, so processes with the environment do not load torch.
"""

from typing import TYPE_CHECKING

from lit_rft._lazy import lazy_exports

if TYPE_CHECKING:
    from lit_rft.testing.corridor import CorridorEnv as CorridorEnv
    from lit_rft.testing.corridor import CorridorSuite as CorridorSuite
    from lit_rft.testing.tiny import make_episode as make_episode
    from lit_rft.testing.tiny import make_model as make_model
    from lit_rft.testing.tiny import make_tokenizer as make_tokenizer
    from lit_rft.testing.tiny import save_tiny_model as save_tiny_model
    from lit_rft.testing.tiny_stage import fit as fit
    from lit_rft.testing.tiny_stage import make_loader as make_loader
    from lit_rft.testing.tiny_stage import make_offline as make_offline
    from lit_rft.testing.tiny_stage import make_stage as make_stage

# public name -> the module that defines it; loaded on first use
_EXPORTS: dict[str, str] = {
    "CorridorEnv": "lit_rft.testing.corridor",
    "CorridorSuite": "lit_rft.testing.corridor",
    "fit": "lit_rft.testing.tiny_stage",
    "make_episode": "lit_rft.testing.tiny",
    "make_loader": "lit_rft.testing.tiny_stage",
    "make_model": "lit_rft.testing.tiny",
    "make_offline": "lit_rft.testing.tiny_stage",
    "make_stage": "lit_rft.testing.tiny_stage",
    "make_tokenizer": "lit_rft.testing.tiny",
    "save_tiny_model": "lit_rft.testing.tiny",
}

__all__ = sorted(_EXPORTS)
__getattr__, __dir__ = lazy_exports(__name__, _EXPORTS)
