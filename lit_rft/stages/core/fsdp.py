"""The strategy that splits weights over devices."""

from datetime import timedelta
from pathlib import Path
from typing import Any

from lightning.pytorch.strategies import ModelParallelStrategy


class FSDP2Strategy(ModelParallelStrategy):
    """Lightning's `ModelParallelStrategy` (FSDP2) over all devices, with checkpoints in one file.

    A checkpoint that does not fit is refused before it is loaded, with a word about why.

    Args:
        process_group_backend: how the processes talk; null for nccl on GPUs, gloo on CPUs.
        timeout_minutes: how long they wait for each other.
    """

    def __init__(self, process_group_backend: str | None = None, timeout_minutes: float = 30.0) -> None:
        super().__init__(
            tensor_parallel_size=1,
            save_distributed_checkpoint=False,
            process_group_backend=process_group_backend,
            timeout=timedelta(minutes=timeout_minutes),
        )

    def setup_environment(self) -> None:
        """Split over as many devices as there are."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Raises: ValueError if the module has a `check_file` that refuses it."""
        check = getattr(self.lightning_module, "check_file", None)
        if check is not None:
            check(Path(checkpoint_path))
        found: dict[str, Any] = super().load_checkpoint(checkpoint_path, weights_only=weights_only)
        return found
