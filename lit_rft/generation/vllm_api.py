"""The endpoints of a vLLM server that sampling needs."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lit_rft.generation.backends import ServedAdapter
from lit_rft.generation.server_connection import ServerConnection, ServerRefusal, ServerUnavailable

logger = logging.getLogger(__name__)

_PROBE_TIMEOUT = 60.0  # seconds; a busy server may answer late
_UNLOAD_TIMEOUT = 10.0
_FLAGS = "--enable-lora --max-lora-rank 64 --max-loras 2, and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True in its environment"


class VllmApi:
    """One request to a vLLM server per call; all raise `ServerUnavailable` if it is gone.

    Args:
        connection: to the server.
    """

    def __init__(self, connection: ServerConnection) -> None:
        self.connection = connection

    def complete(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Send a request for completions; raises `ServerRefusal` if it is rejected."""
        return dict(json.loads(self.connection.request("/v1/completions", request)))

    def models(self) -> dict[str, dict[str, Any]]:
        """Return the server's models and adapters by name."""
        text = self.connection.request("/v1/models", timeout=_PROBE_TIMEOUT)
        try:
            models = {model["id"]: model for model in json.loads(text)["data"]}
        except (ValueError, LookupError, TypeError) as error:
            raise RuntimeError(f"expected a list of models from {self.connection.url}, got {text[:200]!r}") from error
        if all(model.get("parent") for model in models.values()):
            raise RuntimeError(f"expected a base model at {self.connection.url}, got {sorted(models)}")
        return models

    def answers(self) -> bool:
        """Return whether the server, and its engine, answer requests."""
        try:
            self.connection.request("/health", timeout=_PROBE_TIMEOUT)
            base = next(name for name, model in self.models().items() if not model.get("parent"))
            probe = {"model": base, "prompt": [0], "max_tokens": 1}
            self.connection.request("/v1/completions", probe, timeout=_PROBE_TIMEOUT)
        except ServerUnavailable:
            return False
        except ServerRefusal:  # by a server without this endpoint
            return True
        return True

    def load(self, adapter: ServedAdapter) -> None:
        """Load an adapter from its folder, unless it is loaded.

        Raises:
            RuntimeError: The server rejects it.
            ServerUnavailable: It is gone.
        """
        try:
            content = {"lora_name": adapter.name, "lora_path": adapter.folder}
            self.connection.request("/v1/load_lora_adapter", content)
        except (ServerRefusal, ServerUnavailable) as error:
            # vLLM reports unsupported adapters as internal errors
            if isinstance(error, ServerUnavailable) and (error.status != 500 or not self.answers()):
                raise
            if adapter.name not in self.models():
                raise RuntimeError(_load_failure(error, adapter)) from error

    def restore(self, adapter: ServedAdapter) -> None:
        """Load an adapter again if a restarted server has lost it."""
        if adapter.name not in self.models():
            logger.warning("%s has lost the adapter %s: loading it again", self.connection.url, adapter.name)
            self.load(adapter)

    def unload(self, adapter: ServedAdapter) -> None:
        """Remove an adapter; problems are logged."""
        try:
            self.connection.request("/v1/unload_lora_adapter", {"lora_name": adapter.name}, _UNLOAD_TIMEOUT)
        except (ServerRefusal, ServerUnavailable) as error:
            if error.status != 404:  # it is gone already
                logger.warning("cannot remove the adapter %s from the server: %s", adapter.name, error)


def _load_failure(error: Exception, adapter: ServedAdapter) -> str:
    """Return a message with what to change at the server."""
    if isinstance(error, ServerRefusal) and error.status in (404, 405) and "No adapter found" not in str(error):
        return f"{error}; it does not load adapters at run time: start it with {_FLAGS}"
    if "max_lora_rank" in str(error):
        rank = json.loads((Path(adapter.folder) / "adapter_config.json").read_text())["r"]
        return f"{error}; start the server with --max-lora-rank {rank} or more, or lower policy.lora.rank"
    if "No adapter found" in str(error):
        return (
            f"{error}; the server cannot read {adapter.folder}: set server.adapter_dir to a folder that it and this "
            "process share"
        )
    return f"{error}; start it with {_FLAGS}"
