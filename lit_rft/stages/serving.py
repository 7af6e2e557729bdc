"""A policy's adapter on a generation server, as new as the policy."""

import logging
from pathlib import Path
from typing import Any

import lightning as L
from torch import nn

from lit_rft.models.sharding import full_state, sharded_parts
from lit_rft.rollout import ServerSettings, VllmServer

logger = logging.getLogger(__name__)


class ServedPolicy:
    """The first process gives the server the policy's adapter, all processes sample by it.

    Args:
        settings: where the server is.
    """

    def __init__(self, settings: ServerSettings) -> None:
        self.server = VllmServer(settings)
        self._adapter: str | None = None
        self._version: int | None = None

    def adapter(self, policy: nn.Module, version: int, trainer: L.Trainer | None) -> str:
        """The name by which the server knows the policy as it is; all processes must ask.

        Args:
            version: another number, or `changed` before, after the weights have changed.
        Raises: ValueError if the policy has no adapter; RuntimeError if the server does not take it.
        """
        if self._adapter is None or version != self._version:
            if not hasattr(policy, "peft_config"):
                raise ValueError("a server gets adapters, not whole models: set policy.lora, or leave out server")
            before, name = self._adapter, ""
            weights = full_state(policy) if sharded_parts(policy) else None  # from all processes
            if trainer is None or trainer.is_global_zero:
                name = self.server.load(lambda folder: _save(policy, folder, weights))
            self._adapter = trainer.strategy.broadcast(name) if trainer is not None else name
            self._version = version
            if before is not None:
                self.server.unload(before)
        return self._adapter

    def changed(self) -> None:
        """The weights are not those that were given last."""
        self._version = None

    def close(self) -> None:
        """Take the adapter from the server, if that is still there: nothing is lost if not."""
        adapter, self._adapter, self._version = self._adapter, None, None
        try:
            if adapter is not None:
                self.server.unload(adapter)
        except RuntimeError as error:
            logger.warning("adapter %s stays with the server: %s", adapter, error)


def _save(policy: Any, folder: Path, weights: dict[str, Any] | None) -> None:
    policy.save_pretrained(folder, **({} if weights is None else {"state_dict": weights}))
