"""A training step of GRPO's stages, on completions and on episodes."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from lit_rft.rollouts.advantages import AdvantagesFunction, assign_advantages, group_metrics
from lit_rft.rollouts.policy import Policy
from lit_rft.rollouts.rollout import Rollout
from lit_rft.rollouts.sources import GroupSource
from lit_rft.stages.core.diagnostics import mean_over_steps
from lit_rft.stages.core.group_update import GroupUpdate
from lit_rft.stages.core.imitation import imitation_step
from lit_rft.stages.core.optimize import Optimize


def group_step(
    policy: Policy,
    batch: Any,
    optimize: Optimize,
    *,
    source: GroupSource,
    check: Callable[[Sequence[Rollout]], None],
    advantages: AdvantagesFunction,
    update: GroupUpdate,
) -> tuple[list[Rollout], dict[str, Tensor]]:
    """Sample rollouts, compare them within their groups, and update the policy; at first, imitate traces alone.

    Args:
        policy: to train.
        batch: prompts, or tasks with expert episodes.
        optimize: makes an optimiser step.
        source: of the rollouts.
        check: refuses rewards that are not finite.
        advantages: any `lit_rft.rollouts.Advantages`.
        update: of the policy; in the first `objective.sft_steps` optimiser steps it imitates.

    Returns:
        The members of the groups, none in a step of imitation; and metrics over all processes.
    """
    if policy.step < update.objective.sft_steps:
        return [], dict(optimize(*imitation_step(update, policy, source.traces(policy, batch))))
    rollouts = source(policy, batch)
    check(rollouts)
    samples = assign_advantages(rollouts, advantages)
    parts = update.mini_batches(policy, rollouts)
    metrics = [optimize(*update.step(policy, part)) for part in parts]
    return samples, mean_over_steps(metrics) | group_metrics(samples, policy.device)
