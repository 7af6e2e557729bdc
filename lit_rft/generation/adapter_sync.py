"""Keeps a policy's adapter on a completion backend in sync with the policy."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

from torch import distributed, nn

from lit_rft.generation.backends import CompletionBackend, ServedAdapter
from lit_rft.generation.model_check import PROBE, check_model, probe_prompt
from lit_rft.models.processes import global_rank, world_size
from lit_rft.models.sharding import adapter_state

Value = TypeVar("Value")

_UNSUPPORTED = ("use_dora", "modules_to_save", "rank_pattern", "alpha_pattern")  # by vLLM


class AdapterSync:
    """Uploads an adapter from the first process to a backend; all processes sample with it.

    Args:
        backend: samples; several adapters may share it.
        adapter: name of the policy's adapter.
    """

    def __init__(self, backend: CompletionBackend, adapter: str = "default") -> None:
        self.backend = backend
        self._adapter = adapter
        self._served: ServedAdapter | None = None
        self._version: int | None = None
        self._checked = False

    def current(self, policy: nn.Module, version: int) -> ServedAdapter:
        """Return the current adapter on the backend, after uploading it if it has changed.

        All processes must call this.

        Args:
            policy: the language model.
            version: of its weights; unless it changes, or `changed` is called, nothing is uploaded.

        Raises:
            ValueError: If the policy has no adapter, one that the backend does not support, or another base model.
            RuntimeError: In all processes, if the backend refuses it.
        """
        if self._served is None or version != self._version:
            if not hasattr(policy, "peft_config"):
                raise ValueError("a server gets adapters, not whole models: set policy.lora, or leave out server")
            _check_adapter(policy, self._adapter)
            before, self._served, self._version = self._served, self._upload(policy), version
            if before is not None:
                self.backend.unload(before)
            if not self._checked:
                self._check_model(policy, self._served)
        return self._served

    def _upload(self, policy: Any) -> ServedAdapter:
        weights = adapter_state(policy)  # from all processes
        return self._everywhere(lambda: self.backend.load(lambda folder: self._save(policy, folder, weights)))

    def _check_model(self, policy: Any, served: ServedAdapter) -> None:
        """Check that the backend's base model is the policy's; all processes compute."""

        def sample() -> tuple[str, Any]:
            ((completion,),) = self.backend.sample_groups(served, [("", probe_prompt(policy))], [1], PROBE, 0)
            return self.backend.model, completion

        model, completion = self._everywhere(sample)
        check_model(policy, self._adapter, completion, model)
        self._checked = True

    def _everywhere(self, call: Callable[[], Value]) -> Value:
        """Call a function in the first process, and return its value in all.

        Raises:
            RuntimeError: In all processes, if it fails.
        """
        value_and_error: list[Any] = [None, ""]
        if global_rank() == 0:
            try:
                value_and_error[0] = call()
            except (RuntimeError, OSError, ValueError) as error:
                value_and_error[1] = f"{type(error).__name__}: {error}"
        if world_size() > 1:
            distributed.broadcast_object_list(value_and_error)
        value, message = value_and_error
        if message:
            raise RuntimeError(message)
        return cast(Value, value)

    def _save(self, policy: Any, folder: Path, weights: dict[str, Any]) -> Path:
        policy.save_pretrained(
            folder, selected_adapters=[self._adapter], state_dict=weights, save_embedding_layers=False
        )
        return folder if self._adapter == "default" else folder / self._adapter  # where PEFT writes it

    def changed(self) -> None:
        """Upload the weights again at the next call of `current`."""
        self._version = None

    def close(self) -> None:
        """Remove all adapters from the backend."""
        self._served = self._version = None
        self.backend.close()


def _check_adapter(policy: Any, adapter: str) -> None:
    """Check that vLLM supports all settings of an adapter; it ignores some silently.

    Raises:
        ValueError: For settings that it does not support.
    """
    config = policy.peft_config[adapter]
    if unsupported := [name for name in _UNSUPPORTED if getattr(config, name, None)]:
        raise ValueError(
            f"vLLM cannot sample with an adapter that has {', '.join(unsupported)}: leave out server, or these keys of "
            "policy.lora"
        )
