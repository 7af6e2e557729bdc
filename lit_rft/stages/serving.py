"""A policy's adapter on a generation server, as new as the policy."""

import logging
from pathlib import Path
from typing import Any

from torch import distributed, nn

from lit_rft.models.sharding import full_state, sharded_parts
from lit_rft.rollout import ServerSettings, VllmServer

logger = logging.getLogger(__name__)


class ServedPolicy:
    """The first process gives the server an adapter of the policy, all processes sample by it.

    Args:
        settings: where the server is.
        adapter: which of the policy's adapters.
    """

    def __init__(self, settings: ServerSettings, adapter: str = "default") -> None:
        self.server = VllmServer(settings)
        self._adapter = adapter
        self._name: str | None = None
        self._version: int | None = None

    def name(self, policy: nn.Module, version: int) -> str:
        """By which the server knows the policy as it is; all processes must ask.

        Args:
            version: another number, or `changed` before, after the weights have changed.
        Raises: ValueError if the policy has no adapter; RuntimeError if the server does not take it.
        """
        if self._name is None or version != self._version:
            if not hasattr(policy, "peft_config"):
                raise ValueError("a server gets adapters, not whole models: set policy.lora, or leave out server")
            before, self._name, self._version = self._name, self._give(policy), version
            if before is not None:
                self.server.unload(before)
        return self._name

    def _give(self, policy: Any) -> str:
        weights = full_state(policy) if sharded_parts(policy) else None  # from all processes
        together = distributed.is_available() and distributed.is_initialized()
        name = ""
        if not together or distributed.get_rank() == 0:
            name = self.server.load(lambda folder: self._save(policy, folder, weights))
        names = [name]
        if together:
            distributed.broadcast_object_list(names)
        return names[0]

    def _save(self, policy: Any, folder: Path, weights: dict[str, Any] | None) -> Path:
        more = {} if weights is None else {"state_dict": weights}
        policy.save_pretrained(folder, selected_adapters=[self._adapter], **more)
        return folder if self._adapter == "default" else folder / self._adapter  # where PEFT writes it

    def changed(self) -> None:
        """The weights are not those that were given last."""
        self._version = None

    def close(self) -> None:
        """Take the adapter from the server, if that is still there: nothing is lost if not."""
        name, self._name, self._version = self._name, None, None
        try:
            if name is not None:
                self.server.unload(name)
        except RuntimeError as error:
            logger.warning("adapter %s stays with the server: %s", name, error)
