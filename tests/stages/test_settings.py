"""Ranges of settings: no number that would pass every comparison, or fail every one, trains in silence."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from lit_rft import SamplingSettings
from lit_rft.losses import HPT
from lit_rft.sources import ExGRPO, ReLIFT
from lit_rft.stages import OptimizerSettings


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (partial(OptimizerSettings, learning_rate=math.nan), "learning_rate must be > 0 and finite, got nan"),
        (partial(OptimizerSettings, learning_rate=math.inf), "learning_rate must be > 0 and finite, got inf"),
        (partial(OptimizerSettings, learning_rate=0.0), "learning_rate must be > 0 and finite, got 0.0"),
        (partial(OptimizerSettings, weight_decay=math.nan), "weight_decay must be >= 0 and finite, got nan"),
        (partial(OptimizerSettings, weight_decay=math.inf), "weight_decay must be >= 0 and finite, got inf"),
        (partial(OptimizerSettings, max_grad_norm=math.nan), "max_grad_norm must be >= 0, got nan"),
        (partial(OptimizerSettings, max_grad_norm=-1.0), "max_grad_norm must be >= 0, got -1.0"),
        (partial(OptimizerSettings, warmup_steps=-1), "warmup_steps must be >= 0, got -1"),
        (partial(SamplingSettings, temperature=math.nan), "temperature must be >= 0 and finite, got nan"),
        (partial(SamplingSettings, temperature=math.inf), "temperature must be >= 0 and finite, got inf"),
        (partial(SamplingSettings, temperature=-0.1), "temperature must be >= 0 and finite, got -0.1"),
        (partial(SamplingSettings, top_p=math.nan), r"top_p must be in \(0, 1\], got nan"),
        (partial(HPT, math.nan), "gate must be a number, got nan"),
        (partial(ReLIFT, max_reward=math.nan), "source.max_reward must be a number, got nan"),
        (partial(ExGRPO, right_reward=math.nan), "source.right_reward must be a number, got nan"),
        (partial(ExGRPO, start_rate=math.nan), "source.start_rate must be a number, got nan"),
    ],
)  # fmt: skip
def test_what_is_out_of_range_or_no_number_is_refused(make: Callable[[], Any], expected: str) -> None:
    with pytest.raises(ValueError, match=f"^{expected}$"):
        make()


def test_limits_without_effect_stay_allowed() -> None:
    """Infinity is a gate that every prompt passes, and no clipping of gradients."""
    assert HPT(math.inf).gate == math.inf and OptimizerSettings(max_grad_norm=math.inf).max_grad_norm == math.inf
