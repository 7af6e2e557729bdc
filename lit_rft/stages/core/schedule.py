"""The learning rate over optimiser steps."""

import math


def learning_rate_factor(step: int, schedule: str, warmup_steps: int, total_steps: float) -> float:
    """Return the factor of the peak learning rate at an optimiser step, in [0, 1].

    It rises linearly over `warmup_steps` (not from 0, which would waste a step), then stays ("constant"), or falls to 0
    at `total_steps`, linearly ("linear") or as half a cosine ("cosine").

    Args:
        step: counted from 0.
        schedule: after the warm-up.
        warmup_steps: number of steps of linear warm-up.
        total_steps: of the run, including the warm-up; not read before the warm-up is over.
    """
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    if schedule == "constant" or step == warmup_steps:
        return 1.0
    progress = min(1.0, (step - warmup_steps) / max(1.0, total_steps - warmup_steps))
    return 1.0 - progress if schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))
