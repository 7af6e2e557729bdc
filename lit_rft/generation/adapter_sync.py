"""Keeps a policy's adapter, or all its weights, on a completion backend in sync with the policy."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

from torch import distributed, nn

from lit_rft.generation.backends import CompletionBackend, ServedAdapter
from lit_rft.generation.model_check import PROBE, check_model, probe_prompt
from lit_rft.models.merged_export import save_merged
from lit_rft.models.processes import global_rank, world_size
from lit_rft.models.sharding import adapter_state

Value = TypeVar("Value")

_UNSUPPORTED = ("use_dora", "modules_to_save", "rank_pattern", "alpha_pattern")  # by vLLM
_MERGED = "vLLM in process with all weights (lit_rft.VllmInProcess, weights: merged)"


class AdapterSync:
    """Uploads an adapter from the first process to a backend; all processes sample with it.

    A backend with a `merged_dtype` gets all weights, with the adapter merged, if the policy has one.

    Args:
        backend: samples; several adapters may share it, unless it gets all weights.
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
            ValueError: If the backend needs an adapter that the policy lacks, or has another base model.
            RuntimeError: In all processes, if the backend refuses the weights.
        """
        if self._served is None or version != self._version:
            before = self._served
            if self.backend.merged_dtype is None:
                _check_adapter(policy, self._adapter)
            elif before is not None:  # there is room for one policy
                self.backend.unload(before)
                self._served = before = None
            self._served, self._version = self._upload(policy), version
            if before is not None:
                self.backend.unload(before)
            if not self._checked:
                self._check_model(policy, self._served)
        return self._served

    def _upload(self, policy: Any) -> ServedAdapter:
        if (dtype := self.backend.merged_dtype) is not None:
            save = partial(save_merged, policy, adapter=self._adapter, dtype=dtype)
            return self._everywhere(lambda: self.backend.load(save))
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
    """Check that the policy has an adapter, all of whose settings vLLM supports; it ignores some silently.

    Raises:
        ValueError: For a policy without adapters, or settings that are not supported.
    """
    if not hasattr(policy, "peft_config"):
        raise ValueError(
            f"a server gets adapters, not whole models: set policy.lora, leave out server, or use {_MERGED}"
        )
    config = policy.peft_config[adapter]
    if unsupported := [name for name in _UNSUPPORTED if getattr(config, name, None)]:
        raise ValueError(
            f"vLLM cannot sample with an adapter that has {', '.join(unsupported)}: leave out server, or these keys of "
            f"policy.lora, or use {_MERGED}"
        )
