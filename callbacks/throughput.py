"""Speed, memory and utilisation of training, as metrics `perf/...`."""

import time
from typing import Any

import lightning as L
import torch
from lightning.fabric.utilities.throughput import get_available_flops
from torch import nn

from lit_rft.callbacks.memory import peak_memory_gb


class Throughput(L.Callback):
    """Logs the time of each training step and of its phases, tokens per second, peak memory and, if possible, MFU.

    | metric | contents |
    |---|---|
    | `perf/step_seconds` | a batch: rollouts, rewards and all of its optimiser steps |
    | `perf/rollout_seconds`, `perf/reward_seconds`, `perf/update_seconds` | its phases, as far as the stage has them |
    | `perf/evaluation_seconds` | a validation |
    | `perf/tokens_per_second` | tokens of the batch, or of its rollouts with their prompts, per second of the step |
    | `perf/sampled_tokens_per_second` | tokens that the policy has sampled, per second of the rollout phase |
    | `perf/trained_tokens_per_second` | tokens of all optimiser steps, per second of the update phase |
    | `perf/mfu` | model FLOPs utilisation of the update phase, a share of the device's peak |
    | `perf/peak_memory_gb` | so far, of the GPU, or of this process |

    Figures are those of the first process; tokens do not include padding. For MFU a token costs 4 FLOPs per weight of a
    matrix in the forward pass and for the gradients of its inputs, and 2 more per weight that trains; attention, the
    recomputation of activations and tied output layers do not count.

    Args:
        peak_tflops: peak of the device at the trainer's precision, in 10^12 FLOPs per second; null for that of known
            GPUs (without one, MFU is not logged).

    Raises:
        ValueError: If the peak is not positive.
    """

    def __init__(self, peak_tflops: float | None = None) -> None:
        if peak_tflops is not None and not peak_tflops > 0:
            raise ValueError(f"peak_tflops must be > 0 or null, got {peak_tflops}")
        self.peak_tflops = peak_tflops
        self._peak: float | None = None  # FLOPs per second
        self._flops_per_token = 0.0
        self._started = self._evaluation_started = 0.0
        self._trained = 0  # tokens before this step

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._peak = 1e12 * self.peak_tflops if self.peak_tflops else _known_peak(trainer)
        policy = getattr(pl_module, "policy", None)
        self._flops_per_token = flops_per_token(policy) if isinstance(policy, nn.Module) else 0.0

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._take_phases(pl_module)  # those of an evaluation
        self._trained = getattr(pl_module, "tokens_trained", 0)
        self._started = time.perf_counter()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        seconds, phases = time.perf_counter() - self._started, self._take_phases(pl_module)
        seconds -= phases.pop("checkpoint", 0.0)  # that of the step before is written first
        metrics = {"step_seconds": seconds, **{f"{name}_seconds": value for name, value in phases.items()}}
        tokens = getattr(batch, "num_tokens", getattr(pl_module, "num_tokens", None))  # of the batch, or of its rollout
        if tokens is not None:
            metrics["tokens_per_second"] = tokens / seconds
        samples = [rollout for rollout in getattr(pl_module, "samples", ()) if not rollout.off_policy]
        if samples and phases.get("rollout"):
            metrics["sampled_tokens_per_second"] = sum(rollout.length for rollout in samples) / phases["rollout"]
        trained = getattr(pl_module, "tokens_trained", 0) - self._trained
        if trained and phases.get("update"):
            metrics["trained_tokens_per_second"] = speed = trained / phases["update"]
            if self._peak:
                metrics["mfu"] = speed * self._flops_per_token / self._peak
        metrics["peak_memory_gb"] = peak_memory_gb(trainer.strategy.root_device)
        pl_module.log_dict({f"perf/{name}": float(value) for name, value in metrics.items()})

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._evaluation_started = time.perf_counter()

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            seconds = time.perf_counter() - self._evaluation_started
            pl_module.log("perf/evaluation_seconds", seconds, rank_zero_only=True)

    @staticmethod
    def _take_phases(module: Any) -> dict[str, float]:
        phases: dict[str, float] = module.phases.take() if hasattr(module, "phases") else {}
        return phases


def flops_per_token(model: nn.Module) -> float:
    """Return the FLOPs of a training step per token, for the matrices of a model; see `Throughput`."""
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    matrices = [p for p in model.parameters() if p.dim() > 1 and id(p) not in embeddings]
    return float(sum((6 if parameter.requires_grad else 4) * parameter.numel() for parameter in matrices))


def _known_peak(trainer: L.Trainer) -> float | None:
    """Return the FLOPs per second of a known GPU at the trainer's precision, else None."""
    device = trainer.strategy.root_device
    if device.type != "cuda":
        return None
    half = {"bf16": torch.bfloat16, "16": torch.float16}
    dtype = next((dtype for name, dtype in half.items() if str(trainer.precision).startswith(name)), torch.float32)
    return get_available_flops(device, dtype)
