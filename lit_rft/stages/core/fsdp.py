"""The strategy for sharded weights."""

from datetime import timedelta
from pathlib import Path
from typing import Any

from lightning.pytorch.strategies import ModelParallelStrategy


class FSDP2Strategy(ModelParallelStrategy):
    """Lightning's `ModelParallelStrategy` (FSDP2) over all devices, with checkpoints in one file.

    A checkpoint that does not fit is rejected before it is loaded, with an explanatory message.

    Args:
        process_group_backend: communication backend; null for nccl on GPUs, gloo on CPUs.
        timeout_minutes: maximum minutes to wait for other processes.
    """

    def __init__(self, process_group_backend: str | None = None, timeout_minutes: float = 30.0) -> None:
        super().__init__(
            tensor_parallel_size=1,
            save_distributed_checkpoint=False,
            process_group_backend=process_group_backend,
            timeout=timedelta(minutes=timeout_minutes),
        )

    def setup_environment(self) -> None:
        """Shard over all devices."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Load a checkpoint, always with `weights_only`, after the module's `check_file`, if it has one.

        Raises:
            ValueError: If `check_file` rejects the checkpoint.
        """
        check = getattr(self.lightning_module, "check_file", None)
        if check is not None:
            check(Path(checkpoint_path))
        checkpoint: dict[str, Any] = super().load_checkpoint(checkpoint_path, weights_only=True)
        return checkpoint
