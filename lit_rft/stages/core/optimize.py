"""Optimiser steps whose result does not depend on how their work is split over micro-batches and processes."""

import contextlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from lit_rft.models.processes import all_gather_objects, sum_numbers, sum_over_processes, world_size
from lit_rft.models.sharding import reduce_in_next_backward, sharded_parts, unsharded
from lit_rft.objectives import Sums
from lit_rft.stages.core.finite import stop_together
from lit_rft.stages.core.gradients import clip, sum_gradients
from lit_rft.stages.core.load_policy import zero_loss
from lit_rft.transcripts import TranscriptBatch

LossFunction = Callable[[TranscriptBatch], tuple[Tensor, Mapping[str, Tensor]]]
# `PolicyModule.optimize`: makes an optimiser step, and returns the sums of its diagnostics
Optimize = Callable[[Iterable[TranscriptBatch], LossFunction], Sums]


def optimize(module: Any, batches: Iterable[TranscriptBatch], loss: LossFunction) -> Sums:
    """Make one optimiser step on the sum of the losses of all micro-batches of all processes.

    Gradients are summed, not averaged, over processes: each loss must be divided by counts over all of them. A process
    may have fewer micro-batches than another, or none.

    Args:
        module: a `PolicyModule`.
        batches: micro-batches of this process.
        loss: returns the loss of a micro-batch and its diagnostics, which must add up over micro-batches (see
            `lit_rft.objectives.Sums`).

    Returns:
        Sums of the diagnostics over all micro-batches of all processes, and of the loss as `loss`.

    Raises:
        NonFiniteLossError: In every process, before the weights change, if a loss or gradient of any of them is not
            finite.
    """
    optimizer = module.optimizers()
    optimizer.zero_grad()
    sums: Sums = {"loss": torch.zeros((), device=module.device)}
    bad_ids: list[str] = []
    passes = 0
    # Gradients are reduced once, below: a reduction in each backward pass would wait for a micro-batch that another
    # process does not have.
    with unsharded(module), getattr(module.trainer.strategy, "block_backward_sync", contextlib.nullcontext)():
        for batch in batches:
            module.tokens_trained += batch.num_tokens
            value, diagnostics = loss(batch)
            if not torch.isfinite(value):
                bad_ids = batch.episode_ids
                break
            module.manual_backward(value)
            _add_to(sums, {name: part.detach() for name, part in diagnostics.items()} | {"loss": value.detach()})
            passes += 1
        _reduce_sharded(module, passes)
    _step(module, optimizer, bad_ids)
    return sum_over_processes(_with_all_names(sums, module.device))


def _step(module: Any, optimizer: Any, bad_ids: list[str]) -> None:
    """Sum the gradients over processes, clip them, and step the optimiser and its schedule."""
    groups = {group["name"]: group["params"] for group in optimizer.param_groups}
    if world_size() > 1:
        sum_gradients([parameter for parameters in groups.values() for parameter in parameters])
    limit = module.optimizer_settings.max_grad_norm or float("inf")
    norms = {name: clip(parameters, limit) for name, parameters in groups.items()}
    failed = bool((~torch.isfinite(torch.stack(list(norms.values())))).any()) or bool(bad_ids)
    stop_together(failed, bad_ids, "a loss or gradient", step=module.global_step, device=module.device)
    optimizer.step()
    optimizer.zero_grad()  # frees memory for the rollout that may follow
    schedule = module.lr_schedulers()
    schedule.step()
    rates = dict(zip(norms, schedule.get_last_lr(), strict=True))
    for name, norm in norms.items():
        prefix = "train" if name == "policy" else f"train/{name}"
        module.log_dict({f"{prefix}/grad_norm": norm, f"{prefix}/learning_rate": rates[name]})


def _reduce_sharded(module: Any, passes: int) -> None:
    """Sum the gradients of sharded weights, in a pass that all processes make."""
    if not sharded_parts(module):
        return
    reduce_in_next_backward(module)
    module.manual_backward(zero_loss(module.policy))
    if sum_numbers({"passes": float(passes)}, module.device)["passes"] == 0:
        module.zero_grad()  # with gradients of zero the optimiser would still decay weights


def _add_to(sums: Sums, values: Mapping[str, Tensor]) -> None:
    for name, value in values.items():
        sums[name] = sums[name] + value if name in sums else value


def _with_all_names(sums: Sums, device: torch.device) -> Sums:
    """Add zeros for diagnostics that only other processes have, in the same order in all processes."""
    shapes = {name: tuple(value.shape) for name, value in sums.items()}
    all_shapes = {name: shape for part in all_gather_objects(shapes) for name, shape in part.items()}
    zeros = {name: torch.zeros(shape, device=device) for name, shape in all_shapes.items()}
    return {name: sums.get(name, zero) for name, zero in zeros.items()}
