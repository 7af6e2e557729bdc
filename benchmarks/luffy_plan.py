"""The runs of `luffy_demonstrations.py`: methods, numbers of demonstrations and seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

STEPS = 120  # optimiser steps of each method
DEMONSTRATIONS, WRONG = [16, 64, 256], (64, 0.5)  # number and share of the wrong ones
LEADING = ["SFT", "SFT, stopped early", "SFT, then GRPO", "LUFFY"]
RELATED = ["LUFFY without shaping", "RL with SFT loss"]  # LUFFY's own ablation, and the plain sum of both losses
OTHERS = ["Prefix-RFT", "LUFFY without shaping", "RL with SFT loss", "HPT", "CHORD", "SRFT", "ReLIFT", "RL-PLUS"]
OBJECTIVE, DATA = "model.init_args.objective", "data.init_args"
SFT_ONLY = ((f"{OBJECTIVE}.sft_steps", 10**6), (f"{DATA}.trace_share", 1.0))


@dataclass(frozen=True)
class Method:
    """A method: an overlay of the recipe, further settings, and an earlier run to start from."""

    overlay: str | None = None
    keys: tuple[tuple[str, Any], ...] = ()
    steps: int = STEPS
    after: str | None = None  # another method, on the same demonstrations


METHODS = {
    "SFT": Method(keys=SFT_ONLY),
    "SFT, stopped early": Method(keys=SFT_ONLY, steps=STEPS // 3),
    "SFT, then GRPO": Method("on_policy", steps=STEPS - STEPS // 3, after="SFT, stopped early"),
    "GRPO": Method("on_policy"),
    "LUFFY": Method(),
    "LUFFY without shaping": Method("without_shaping"),
    "RL with SFT loss": Method("rl_with_sft_loss"),
    "HPT": Method("hpt"),
    "CHORD": Method("chord", (("model.init_args.loss.init_args.decay_steps", STEPS),)),
    "SRFT": Method("srft"),
    "ReLIFT": Method("relift"),
    "ExGRPO": Method("exgrpo"),
    "Prefix-RFT": Method("prefix_rft", (("model.init_args.source.init_args.decay_steps", STEPS),)),
    "RL-PLUS": Method("rl_plus"),
}


@dataclass(frozen=True)
class Run:
    """One training run.

    Args:
        method: a key of `METHODS`.
        demonstrations: their number.
        seed: of the model, the base policy, the prompts and the samples.
        wrong: share of wrong demonstrations.
    """

    method: str
    demonstrations: int
    seed: int
    wrong: float = 0.0

    @property
    def name(self) -> str:
        """Name of the folder, the same for all seeds."""
        return f"{self.method}-{self.demonstrations}-{self.wrong}".replace(" ", "_").replace(",", "")


def all_runs(seeds: Sequence[int], numbers: Sequence[int]) -> list[Run]:
    """Return all runs, those that decide the question first, each with all seeds."""
    few, many = min(numbers), max(numbers)
    plan = [("GRPO", few, 0.0), *((method, number, 0.0) for number in (few, many) for method in LEADING)]
    plan += [(method, *WRONG) for method in LEADING]
    plan += [(method, number, 0.0) for number in numbers for method in LEADING if few < number < many]
    runs = [Run(method, number, seed, wrong) for seed in seeds for method, number, wrong in plan[:9]]
    runs += [Run(method, number, seed, wrong) for seed in seeds for method, number, wrong in plan[9:]]
    others = [(method, number, 0.0) for number in (few, many) for method in OTHERS] + [("ExGRPO", few, 0.0)]
    others += [(method, number, 0.0) for number in numbers for method in RELATED if few < number < many]
    others += [(method, *WRONG) for method in RELATED]
    return runs + [Run(method, number, seed, wrong) for seed in seeds for method, number, wrong in others]


def family_runs(seeds: Sequence[int], numbers: Sequence[int]) -> list[Run]:
    """Return the runs with a second family of problems: the leading methods, with few and with many demonstrations."""
    few, many = min(numbers), max(numbers)
    plan = [("GRPO", few), *((method, number) for number in (few, many) for method in (*LEADING, *RELATED))]
    return [Run(method, number, seed) for seed in seeds for method, number in plan]
