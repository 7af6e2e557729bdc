"""Optimiser steps that do not depend on how their work was split over micro-batches and processes."""

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol, TypeVar, cast

import lightning as L
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from lit_rft.models.sharding import reduce_in_next_backward, sharded_parts, total_norm, unsharded
from lit_rft.objectives import Sums
from lit_rft.stages.data_position import count_epochs, restore_position
from lit_rft.stages.schedule import learning_rate_factor
from lit_rft.stages.settings import OptimizerSettings

Value = TypeVar("Value")


class HasEpisodeIds(Protocol):
    """A micro-batch that can say which episodes it holds, for errors."""

    @property
    def episode_ids(self) -> list[str]: ...


Batch = TypeVar("Batch", bound=HasEpisodeIds)
LossFunction = Callable[[Batch], tuple[Tensor, Mapping[str, Tensor]]]


class NonFiniteLossError(RuntimeError):
    """A loss is NaN or infinite; the weights are still those of the last good step."""


class OptimizedModule(L.LightningModule):
    """AdamW in exact steps.

    Optimisation is manual, so that one optimiser step is exactly what a stage says, however many micro-batches it is
    split into and however many processes share it: see `optimize`.

    Args:
        optimizer: AdamW and its schedule.
    """

    steps_per_batch = 1  # optimiser steps that a batch of data brings

    def __init__(self, optimizer: OptimizerSettings) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.optimizer_settings = optimizer

    def configure_callbacks(self) -> list[L.Callback]:
        """Check the trainer before Lightning does, which would advise automatic optimisation.

        Raises: ValueError naming the settings that take the place of the trainer's.
        """
        if self.trainer.gradient_clip_val is not None:
            raise ValueError(
                f"trainer.gradient_clip_val={self.trainer.gradient_clip_val} has no effect here: set "
                "model.init_args.optimizer.max_grad_norm"
            )
        if self.trainer.accumulate_grad_batches != 1:
            raise ValueError(
                f"trainer.accumulate_grad_batches={self.trainer.accumulate_grad_batches} has no effect here: set "
                "data.init_args.batch_size (examples per optimiser step) and "
                "model.init_args.batching.micro_batch_tokens (memory)"
            )
        return []

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        count_epochs(checkpoint)

    def configure_optimizers(self) -> Any:
        kind: dict[str, Any] = {}
        if sharded_parts(self):
            kind = {"foreach": False}  # sharded and unsharded parameters cannot share a kernel
        elif all(p.is_cuda for p in self.parameters() if p.requires_grad):
            kind = {"fused": True}  # one pass over weights, gradients and moments
        optimizer = torch.optim.AdamW(
            self.parameter_groups(), weight_decay=self.optimizer_settings.weight_decay, **kind
        )
        return {"optimizer": optimizer, "lr_scheduler": torch.optim.lr_scheduler.LambdaLR(optimizer, self._lr_factor)}

    def parameter_groups(self) -> list[dict[str, Any]]:
        """What trains, each part with its learning rate; gradients are clipped part by part."""
        parameters = [p for p in self.parameters() if p.requires_grad]
        return [{"params": parameters, "lr": self.optimizer_settings.learning_rate, "name": "policy"}]

    def on_train_start(self) -> None:
        """Restore the position in the data, and let the present settings count after a resume, which restores learning
        rates and decay with the moments."""
        restore_position(self.trainer)
        rates = {group["name"]: group["lr"] for group in self.parameter_groups()}
        for optimizer, schedule in zip(self.trainer.optimizers, self._schedules(), strict=True):
            factor = self._lr_factor(schedule.last_epoch)
            for group in optimizer.param_groups:
                group["initial_lr"], group["lr"] = rates[group["name"]], rates[group["name"]] * factor
                group["weight_decay"] = self.optimizer_settings.weight_decay
            schedule.base_lrs = [group["initial_lr"] for group in optimizer.param_groups]
            schedule._last_lr = [group["lr"] for group in optimizer.param_groups]

    def _schedules(self) -> list[Any]:
        return [config.scheduler for config in self.trainer.lr_scheduler_configs]

    def _lr_factor(self, step: int) -> float:
        settings = self.optimizer_settings
        # Only a running trainer is asked for its steps: asked earlier, it would set up the training data too soon to
        # restore their position from a checkpoint.
        total = float("inf")
        if settings.schedule != "constant" and step > settings.warmup_steps:
            total = self.trainer.estimated_stepping_batches * self.steps_per_batch
            total = min(total, self.trainer.max_steps) if self.trainer.max_steps > 0 else total
        return learning_rate_factor(step, settings.schedule, settings.warmup_steps, total)

    def optimize(self, batches: Iterable[Batch], loss: LossFunction[Batch]) -> Sums:
        """Make one optimiser step on the sum of the losses of all micro-batches of all processes.

        Gradients are summed, not averaged, over processes: each loss must be divided by counts over all of them. A
        process may have fewer micro-batches than another, or none.

        Args:
            batches: micro-batches of this process.
            loss: returns the loss of a micro-batch and its diagnostics, which must add up over micro-batches (see
                `lit_rft.objectives.Sums`).
        Returns: sums of the diagnostics over all micro-batches of all processes, and of the loss as `loss`.
        Raises: NonFiniteLossError in every process, before the weights change, if a loss or a gradient of any of them
            is not finite.
        """
        optimizer = cast(Any, self.optimizers())
        optimizer.zero_grad()
        sums: Sums = {"loss": torch.zeros((), device=self.device)}
        bad_ids: list[str] = []
        passes = 0
        # Processes reduce their gradients once, below: reducing in each backward pass would wait for a micro-batch that
        # another process does not have.
        with unsharded(self), getattr(self.trainer.strategy, "block_backward_sync", contextlib.nullcontext)():
            for batch in batches:
                value, diagnostics = loss(batch)
                if not torch.isfinite(value):
                    bad_ids = batch.episode_ids
                    break
                self.manual_backward(value)
                add_to(sums, {name: part.detach() for name, part in diagnostics.items()} | {"loss": value.detach()})
                passes += 1
            self._reduce_sharded(passes)
        self._step(optimizer, bad_ids)
        return self.sum_over_processes(self._with_all_names(sums))

    def _step(self, optimizer: Any, bad_ids: list[str]) -> None:
        """Sum the gradients over processes, clip them, and let the optimiser and its schedule make a step."""
        groups = {group["name"]: group["params"] for group in optimizer.param_groups}
        if self.trainer.world_size > 1:
            _sum_gradients([parameter for parameters in groups.values() for parameter in parameters])
        limit = self.optimizer_settings.max_grad_norm or float("inf")
        norms = {name: _clip(parameters, limit) for name, parameters in groups.items()}
        self._check_finite(bad_ids, torch.stack(list(norms.values())))
        optimizer.step()
        optimizer.zero_grad()  # room for the rollout that may follow
        schedule = cast(Any, self.lr_schedulers())
        schedule.step()
        rates = dict(zip(norms, schedule.get_last_lr(), strict=True))
        for name, norm in norms.items():
            prefix = "train" if name == "policy" else f"train/{name}"
            self.log_dict({f"{prefix}/grad_norm": norm, f"{prefix}/learning_rate": rates[name]})

    def _with_all_names(self, sums: Sums) -> Sums:
        """Add zeros for diagnostics that only other processes have, in the same order in all processes."""
        shapes = {name: tuple(value.shape) for name, value in sums.items()}
        everywhere = {name: shape for part in self.all_gather_objects(shapes) for name, shape in part.items()}
        zeros = {name: torch.zeros(shape, device=self.device) for name, shape in everywhere.items()}
        return {name: sums.get(name, zero) for name, zero in zeros.items()}

    def _reduce_sharded(self, passes: int) -> None:
        """Add up the gradients of weights that are split over devices, by a pass that all processes make."""
        if not sharded_parts(self):
            return
        reduce_in_next_backward(self)
        self.manual_backward(self.zero_loss())
        count = self.sum_over_processes({"passes": torch.tensor(float(passes), device=self.device)})
        if count["passes"] == 0:  # zeros would still make the optimiser decay weights
            self.zero_grad()

    def zero_loss(self) -> Tensor:
        """A loss of 0 that reaches all weights."""
        raise NotImplementedError

    def _check_finite(self, bad_ids: list[str], norms: Tensor) -> None:
        failed = (~torch.isfinite(norms)).any() | bool(bad_ids)
        self.stop_together(bool(failed), bad_ids, "a loss or gradient")

    def stop_together(self, failed: bool, episode_ids: list[str], what: str) -> None:
        """Stop all processes if something is not finite in one of them; all must call this.

        Raises: NonFiniteLossError naming the episodes.
        """
        if self.sum_over_processes({"failed": torch.tensor(float(failed), device=self.device)})["failed"] == 0:
            return
        names = [name for part in self.all_gather_objects(episode_ids) for name in part]
        where = f"with the episodes {', '.join(names)}" if names else "in a gradient"
        raise NonFiniteLossError(
            f"{what} is not finite at step {self.global_step}, {where}; the weights and the last checkpoint are "
            "those of the step before: look at these episodes, or lower the learning rate"
        )

    def all_gather_objects(self, value: Value) -> list[Value]:
        """Gather one value of each process, by rank; all must call this. It travels pickled: nothing large."""
        if self.trainer.world_size == 1:
            return [value]
        everywhere: list[Any] = [None] * self.trainer.world_size
        torch.distributed.all_gather_object(everywhere, value)
        return everywhere

    def sum_over_processes(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """Add up each value over all processes, in one message; every process must bring the same names."""
        if self.trainer.world_size == 1 or not values:
            return values
        flat = torch.cat([value.float().flatten() for value in values.values()])
        torch.distributed.all_reduce(flat)
        parts = flat.split([value.numel() for value in values.values()])
        return {name: part.view_as(values[name]) for name, part in zip(values, parts, strict=True)}


def add_to(sums: Sums, values: Mapping[str, Tensor]) -> None:
    """Add a micro-batch's values to those of a step."""
    for name, value in values.items():
        sums[name] = sums[name] + value if name in sums else value


def mean_over_steps(steps: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Average diagnostics over optimiser steps.

    Args:
        steps: what `optimize` returned. A sum that a step lacks is 0 there; a mean (a sum and its count, [2]) is
            averaged over the steps that have it, and left out where none has.
    """
    values: dict[str, list[Tensor]] = {}
    for name in sorted({name for step in steps for name in step}):
        present = [step[name] for step in steps if name in step]
        if present[0].dim() == 0:
            values[name] = present + [torch.zeros_like(present[0])] * (len(steps) - len(present))
        else:
            values[name] = [total / count for total, count in present if count > 0]
    return {name: torch.stack(parts).mean() for name, parts in values.items() if parts}


def _clip(parameters: list[nn.Parameter], limit: float) -> Tensor:
    """Scale gradients down to a norm, whether they are whole or split over devices; returns their norm before."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if not any(isinstance(gradient, DTensor) for gradient in gradients):
        return nn.utils.clip_grad_norm_(parameters, limit)
    norm = total_norm(gradients)
    factor = (limit / (norm + 1e-6)).clamp(max=1.0)
    for gradient in gradients:
        (gradient.to_local() if isinstance(gradient, DTensor) else gradient).mul_(factor)
    return norm


def _sum_gradients(parameters: list[nn.Parameter]) -> None:
    """Sum gradients over all processes, in one message; a process without one for a weight adds zeros. Where no process
    has one there is none, as with a single process: the optimiser leaves such weights alone. Gradients that are split
    over devices are sums already."""
    parameters = [parameter for parameter in parameters if not isinstance(parameter, DTensor)]
    if not parameters:
        return
    present = torch.tensor([float(p.grad is not None) for p in parameters], device=parameters[0].device)
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    flat = torch.cat([present, *(gradient.flatten().float() for gradient in gradients)])
    torch.distributed.all_reduce(flat)
    parts = flat[len(parameters) :].split([p.numel() for p in parameters])
    for parameter, number, part in zip(parameters, flat[: len(parameters)].tolist(), parts, strict=True):
        parameter.grad = part.view_as(parameter).to(parameter.dtype) if number else None
