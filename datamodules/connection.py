"""What data modules take from the stage they are trained with, where it is not given to them.

Stages are known here by the attributes of `StageSettings` only: data modules do not import them, and a LightningModule
of the user's own may have any of them.
"""

from typing import Any, Protocol

import lightning as L

from lit_rft.agents import Agent


class StageSettings(Protocol):
    """Attributes of a stage that its data depend on; each is optional.

    Attributes:
        model_name: whose tokenizer makes token ids.
        agent: renders stored episodes.
        max_tokens: maximum tokens of a rollout, and so of a trace beside it.
        needs_outcomes: whether critics learn from the outcomes of decisions.
        needs_traces: whether training without off-policy traces would be another method.
        reward: of completions in training.
        verifier: of completions in evaluation.
    """

    model_name: str
    agent: Agent
    max_tokens: int
    needs_outcomes: bool
    needs_traces: bool
    reward: Any
    verifier: Any


class Connection:
    """The stage that a data module is trained with; what it lacks is None, as without a trainer.

    Args:
        data: the data module.
    """

    def __init__(self, data: L.LightningDataModule) -> None:
        self._data = data

    def __bool__(self) -> bool:
        return self._data.trainer is not None

    def get(self, name: str) -> Any:
        """Return an attribute of `StageSettings`."""
        assert name in StageSettings.__annotations__, name
        trainer = self._data.trainer
        return getattr(trainer.lightning_module, name, None) if trainer is not None else None
