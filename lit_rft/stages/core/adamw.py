"""AdamW and its learning-rate schedule, from the settings of a stage."""

import math
from typing import Any

import torch

from lit_rft.models.sharding import sharded_parts
from lit_rft.stages.core.schedule import learning_rate_factor


def check_trainer(trainer: Any) -> None:
    """Check settings of the trainer that have no effect on manual optimisation.

    Raises:
        ValueError: It names the settings to use instead.
    """
    if trainer.gradient_clip_val is not None:
        raise ValueError(
            f"trainer.gradient_clip_val={trainer.gradient_clip_val} has no effect here: set "
            "model.init_args.optimizer.max_grad_norm"
        )
    if trainer.accumulate_grad_batches != 1:
        raise ValueError(
            f"trainer.accumulate_grad_batches={trainer.accumulate_grad_batches} has no effect here: set "
            "data.init_args.batch_size (examples per optimiser step) and "
            "model.init_args.batching.micro_batch_tokens (memory)"
        )


def make_optimizer(module: Any) -> dict[str, Any]:
    """Return AdamW and its schedule, as `configure_optimizers` does."""
    options: dict[str, Any] = {}
    if sharded_parts(module):
        options = {"foreach": False}  # sharded and unsharded parameters cannot share a kernel
    elif all(p.is_cuda for p in module.parameters() if p.requires_grad):
        options = {"fused": True}  # one pass over weights, gradients and moments
    weight_decay = module.optimizer_settings.weight_decay
    optimizer = torch.optim.AdamW(module.parameter_groups(), weight_decay=weight_decay, **options)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _factor(module, step))
    return {"optimizer": optimizer, "lr_scheduler": schedule}


def apply_settings(module: Any) -> None:
    """Apply the current settings after a resume, which restores learning rates and decay with the moments."""
    rates = {group["name"]: group["lr"] for group in module.parameter_groups()}
    schedules = [config.scheduler for config in module.trainer.lr_scheduler_configs]
    for optimizer, schedule in zip(module.trainer.optimizers, schedules, strict=True):
        factor = _factor(module, schedule.last_epoch)
        for group in optimizer.param_groups:
            group["initial_lr"], group["lr"] = rates[group["name"]], rates[group["name"]] * factor
            group["weight_decay"] = module.optimizer_settings.weight_decay
        schedule.base_lrs = [group["initial_lr"] for group in optimizer.param_groups]
        schedule._last_lr = [group["lr"] for group in optimizer.param_groups]


def _factor(module: Any, step: int) -> float:
    """Return the factor of the learning rate at an optimiser step."""
    settings = module.optimizer_settings
    # Asked for its number of steps before it runs, the trainer would set up the training data, too early to restore
    # their position from a checkpoint.
    total = float("inf")
    if settings.schedule != "constant" and step > settings.warmup_steps:
        total = total_steps(module.trainer, module.steps_per_batch, module.single_steps)
    return learning_rate_factor(step, settings.schedule, settings.warmup_steps, total)


def total_steps(trainer: Any, steps_per_batch: int, single_steps: int = 0) -> float:
    """Return the number of optimiser steps of a run: a batch makes all of its steps, also beyond `max_steps`.

    Args:
        trainer: with its limits of batches, epochs and steps.
        steps_per_batch: optimiser steps per batch.
        single_steps: number of first batches that make one step each.
    """
    batches = trainer.estimated_stepping_batches
    batches = batches if batches > 0 else math.inf  # loaders without a length, and no max_steps
    if (steps := trainer.max_steps) > 0:
        batches = min(batches, min(steps, single_steps) + math.ceil(max(0, steps - single_steps) / steps_per_batch))
    return min(batches, single_steps) + max(0, batches - single_steps) * steps_per_batch
