"""A policy's adapter on a generation server, as new as the policy."""

from pathlib import Path
from typing import Any

from torch import distributed, nn

from lit_rft.generation import SamplingSettings, ServerSettings, VllmServer
from lit_rft.models.sharding import adapter_state


class AdapterSync:
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
        Raises: ValueError if the policy has no adapter; RuntimeError, in all processes, if the server does not take it.
        """
        if self._name is None or version != self._version:
            if not hasattr(policy, "peft_config"):
                raise ValueError("a server gets adapters, not whole models: set policy.lora, or leave out server")
            _check_adapter(policy, self._adapter)
            before, self._name, self._version = self._name, self._give(policy), version
            if before is not None:
                self.server.unload(before)
        return self._name

    def _give(self, policy: Any) -> str:
        weights = adapter_state(policy)  # from all processes
        together = distributed.is_available() and distributed.is_initialized()
        told = ["", ""]  # name, or what went wrong
        if not together or distributed.get_rank() == 0:
            try:
                told[0] = self.server.load(lambda folder: self._save(policy, folder, weights))
            except (RuntimeError, OSError) as error:
                told[1] = f"{type(error).__name__}: {error}"
        if together:
            distributed.broadcast_object_list(told)
        if told[1]:
            raise RuntimeError(told[1])
        return told[0]

    def _save(self, policy: Any, folder: Path, weights: dict[str, Any]) -> Path:
        policy.save_pretrained(
            folder, selected_adapters=[self._adapter], state_dict=weights, save_embedding_layers=False
        )
        return folder if self._adapter == "default" else folder / self._adapter  # where PEFT writes it

    def changed(self) -> None:
        """The weights are not those that were given last."""
        self._version = None

    def close(self) -> None:
        """Take the adapter from the server."""
        self._name = self._version = None
        self.server.close()


def _check_adapter(policy: Any, adapter: str) -> None:
    """Raises: ValueError for what vLLM refuses in an adapter, or would leave out without a word."""
    config = policy.peft_config[adapter]
    unserved = ("use_dora", "modules_to_save", "rank_pattern", "alpha_pattern")
    if found := [name for name in unserved if getattr(config, name, None)]:
        raise ValueError(
            f"a vLLM server cannot sample with an adapter that has {', '.join(found)}: leave out server, or these keys "
            "of policy.lora"
        )


def check_served(server: ServerSettings | None, sampling: SamplingSettings, loss: Any) -> None:
    """Check that a loss can correct for the server's rounding.

    Raises: ValueError for importance weights that would be wrong.
    """
    if (
        server is not None
        and getattr(loss, "importance_cap", None) is not None
        and (sampling.top_k or sampling.top_p < 1)
    ):
        raise ValueError(
            "loss.importance_cap needs the probabilities before top-k and top-p, which a server does not tell: "
            f"leave out one of them, got top_k={sampling.top_k} and top_p={sampling.top_p}"
        )
