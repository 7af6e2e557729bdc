"""LUFFY's Theorem 1 on a policy small enough for its exact gradient.

    python benchmarks/luffy_theorem1.py

Mixed-policy gradient ascent, with half of each batch from the policy and half from a fixed behaviour policy with
bounded importance ratios, and step size proportional to 1/sqrt(K) for K steps: the smallest expected squared gradient
norm of a run falls as 1/sqrt(K), a slope of -1/2 in logarithms. An entropy bonus keeps the best policy random, so that
sampling noise never ends.

Writes `benchmarks/results/luffy_theorem1.json` and `docs/images/luffy_theorem1.png`.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_rft.objectives import mixed_policy_loss

REWARDS = torch.tensor([1.0, 0.6, 0.2, 0.0], dtype=torch.float64)
BEHAVIOUR = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)  # bounds ratios by (0, 10]
ENTROPY = 0.5
SAMPLES = 2  # of each kind, per step
RESULTS = Path(__file__).parent / "results" / "luffy_theorem1.json"
PICTURE = Path(__file__).parents[1] / "docs" / "images" / "luffy_theorem1.png"


def exact_gradient(logits: Tensor) -> Tensor:
    """Compute the gradient of J = sum pi R + ENTROPY H(pi), for each run: [R, A] -> [R, A]."""
    logits = logits.detach().requires_grad_()
    log_pi = logits.log_softmax(-1)
    objective = (log_pi.exp() * (REWARDS - ENTROPY * log_pi)).sum()
    (gradient,) = torch.autograd.grad(objective, logits)
    return gradient


def sampled_gradient(logits: Tensor, generator: torch.Generator) -> Tensor:
    """Estimate the same gradient from on- and off-policy samples through LUFFY's objective without shaping."""
    runs = len(logits)
    logits = logits.detach().requires_grad_()
    log_pi = logits.log_softmax(-1)
    pi = log_pi.detach().exp()
    on_policy = torch.multinomial(pi, SAMPLES, replacement=True, generator=generator)
    off_policy = torch.multinomial(BEHAVIOUR.expand(runs, -1), SAMPLES, replacement=True, generator=generator)
    actions = torch.cat([on_policy, off_policy], dim=1)
    off = (torch.arange(2 * SAMPLES) >= SAMPLES).expand(runs, -1).flatten()
    # an action's entropy bonus, in addition to its reward; a constant baseline keeps the estimate unbiased
    advantages = (REWARDS - ENTROPY * log_pi.detach()).gather(1, actions) - 0.5
    loss = mixed_policy_loss(
        log_pi.gather(1, actions).flatten()[:, None],
        advantages.flatten(),
        torch.ones(runs * 2 * SAMPLES, 1),
        off,
        behaviour_log_probs=BEHAVIOUR.log()[actions].flatten()[:, None],
        policy_shaping=None,
        clip_low=None,
        clip_high=None,
        normalizer=2.0 * SAMPLES,
    ).loss
    (gradient,) = torch.autograd.grad(-loss, logits)
    return gradient


def best_squared_norm(steps: int, *, runs: int = 256, scale: float = 4.0, seed: int = 0) -> float:
    """Return the smallest squared norm of the exact gradient over the steps of a run, in expectation over runs."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.zeros(runs, len(REWARDS), dtype=torch.float64)
    rate, best = scale / math.sqrt(steps), math.inf
    for _ in range(steps):
        best = min(best, float(exact_gradient(logits).square().sum(-1).mean()))
        logits = logits + rate * sampled_gradient(logits, generator)
    return best


def slope(numbers: list[int], values: list[float]) -> float:
    """Return the slope of the line through the logarithms."""
    x, y = torch.tensor(numbers).double().log(), torch.tensor(values).double().log()
    return float(((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum())


def plot(numbers: list[int], values: list[float], fitted: float) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3.5))
    axes = figure.subplots()
    axes.loglog(numbers, values, "o-", label=f"measured, slope {fitted:.2f}")
    axes.loglog(
        numbers, [values[0] * math.sqrt(numbers[0] / n) for n in numbers], "--", color="grey", label="slope -1/2"
    )
    axes.set(xlabel="steps K", ylabel="smallest expected squared gradient norm")
    axes.legend(frameon=False)
    figure.savefig(PICTURE, dpi=120, bbox_inches="tight")


def main() -> None:
    numbers = [128 * 2**i for i in range(8)]
    values = []
    for number in numbers:
        values.append(best_squared_norm(number))
        print(f"K = {number:6}: {values[-1]:.6f}", flush=True)
    fitted = slope(numbers, values)
    print(f"slope {fitted:.3f} (the theorem: -1/2)")
    result: dict[str, Any] = {"steps": numbers, "best_squared_norm": values, "slope": fitted}
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    plot(numbers, values, fitted)


if __name__ == "__main__":
    main()
