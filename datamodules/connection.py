"""Defaults that data modules take from the stage they are trained with.

Data modules do not import stages: they read the attributes of `StageSettings`, which a user's LightningModule may also
have.
"""

from typing import Any, Protocol

import lightning as L

from lit_rft.agents import Agent


class StageSettings(Protocol):
    """Attributes of a stage that its data depend on; each is optional.

    Attributes:
        model_name: model of the tokenizer.
        agent: renders stored episodes.
        max_tokens: maximum tokens of a rollout, and thus of a trace.
        needs_outcomes: true if critics learn from the outcomes of decisions.
        needs_traces: true if training without off-policy traces would be another method.
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
    """The stage that a data module is trained with; missing attributes are None, as without a trainer.

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
