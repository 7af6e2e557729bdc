"""A common stop of all processes if a loss or reward is not finite."""

from collections.abc import Sequence

import torch

from lit_rft.models.processes import all_gather_objects, sum_numbers
from lit_rft.rollouts.policy import Policy
from lit_rft.rollouts.rollout import Rollout


class NonFiniteLossError(RuntimeError):
    """A loss or reward is NaN or infinite; the weights are those of the last step."""


def stop_together(failed: bool, episode_ids: Sequence[str], what: str, *, step: int, device: torch.device) -> None:
    """Stop all processes if something is not finite in one of them.

    All processes must call this.

    Args:
        failed: whether it is not finite in this process.
        episode_ids: of the episodes or problems concerned.
        what: for the message.
        step: optimiser steps so far.
        device: of this process.

    Raises:
        NonFiniteLossError: It names the episodes.
    """
    if sum_numbers({"failed": float(failed)}, device)["failed"] == 0:
        return
    names = dict.fromkeys(name for part in all_gather_objects(list(episode_ids)) for name in part)
    where = f"with the episodes or problems {', '.join(names)}" if names else "in a gradient"
    raise NonFiniteLossError(
        f"{what} is not finite at step {step}, {where}; the weights and the last checkpoint are those of the step "
        "before: look at these, or lower the learning rate"
    )


def check_rewards(policy: Policy, rollouts: Sequence[Rollout]) -> None:
    """Stop all processes if a reward is not finite in one of them.

    Raises:
        NonFiniteLossError: It names the episodes or problems.
    """
    bad = [rollout.id for rollout in rollouts if not rollout.has_finite_rewards]
    stop_together(bool(bad), bad, "a reward", step=policy.step, device=policy.device)
