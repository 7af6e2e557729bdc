"""Keeps a policy's adapter on a generation server in sync with the policy."""

from pathlib import Path
from typing import Any

from torch import distributed, nn

from lit_rft.generation.vllm import ServerSettings, VllmServer
from lit_rft.models.sharding import adapter_state

_UNSUPPORTED = ("use_dora", "modules_to_save", "rank_pattern", "alpha_pattern")  # by vLLM


class AdapterSync:
    """Uploads an adapter from the first process; all processes sample with it.

    Args:
        settings: address of the server.
        adapter: name of the policy's adapter.
    """

    def __init__(self, settings: ServerSettings, adapter: str = "default") -> None:
        self.server = VllmServer(settings)
        self._adapter = adapter
        self._name: str | None = None
        self._version: int | None = None

    def name(self, policy: nn.Module, version: int) -> str:
        """Return the server's name for the current adapter, after uploading it if it has changed.

        All processes must call this.

        Args:
            policy: the language model.
            version: of its weights; unless it changes, or `changed` is called, nothing is uploaded.

        Raises:
            ValueError: If the policy has no adapter, or one that the server does not support.
            RuntimeError: In all processes, if the server refuses it.
        """
        if self._name is None or version != self._version:
            if not hasattr(policy, "peft_config"):
                raise ValueError("a server gets adapters, not whole models: set policy.lora, or leave out server")
            _check_adapter(policy, self._adapter)
            before, self._name, self._version = self._name, self._upload(policy), version
            if before is not None:
                self.server.unload(before)
        return self._name

    def _upload(self, policy: Any) -> str:
        weights = adapter_state(policy)  # from all processes
        together = distributed.is_available() and distributed.is_initialized()
        name_and_error = ["", ""]
        if not together or distributed.get_rank() == 0:
            try:
                name_and_error[0] = self.server.load(lambda folder: self._save(policy, folder, weights))
            except (RuntimeError, OSError) as error:
                name_and_error[1] = f"{type(error).__name__}: {error}"
        if together:
            distributed.broadcast_object_list(name_and_error)
        name, message = name_and_error
        if message:
            raise RuntimeError(message)
        return name

    def _save(self, policy: Any, folder: Path, weights: dict[str, Any]) -> Path:
        policy.save_pretrained(
            folder, selected_adapters=[self._adapter], state_dict=weights, save_embedding_layers=False
        )
        return folder if self._adapter == "default" else folder / self._adapter  # where PEFT writes it

    def changed(self) -> None:
        """Upload the weights again at the next call of `name`."""
        self._version = None

    def close(self) -> None:
        """Remove the adapter from the server."""
        self._name = self._version = None
        self.server.close()


def _check_adapter(policy: Any, adapter: str) -> None:
    """Check that vLLM supports all settings of an adapter; it ignores some silently.

    Raises:
        ValueError: For settings that it does not support.
    """
    config = policy.peft_config[adapter]
    if unsupported := [name for name in _UNSUPPORTED if getattr(config, name, None)]:
        raise ValueError(
            f"a vLLM server cannot sample with an adapter that has {', '.join(unsupported)}: leave out server, or "
            "these keys of policy.lora"
        )
