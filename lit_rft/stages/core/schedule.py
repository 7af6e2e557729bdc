"""The learning rate over optimiser steps."""

import math


def learning_rate_factor(step: int, schedule: str, warmup_steps: int, total_steps: float) -> float:
    """What the peak learning rate is multiplied by at an optimiser step, in [0, 1].

    It rises linearly over `warmup_steps` (never from 0: that step would be lost), then stays ("constant"), or falls to
    0 at `total_steps`, in a straight line ("linear") or half a cosine ("cosine").

    Args:
        step: counted from 0.
        total_steps: of the whole run, the warm-up included; not looked at before the warm-up is over.
    """
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    if schedule == "constant" or step == warmup_steps:
        return 1.0
    progress = min(1.0, (step - warmup_steps) / max(1.0, total_steps - warmup_steps))
    return 1.0 - progress if schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))
