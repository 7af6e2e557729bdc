"""The learning rate over steps, against closed forms."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest

from lit_rft.stages import OptimizerSettings
from lit_rft.stages.core.adamw import total_steps
from lit_rft.stages.core.schedule import learning_rate_factor
from lit_rft.testing.tiny_stage import fit, make_loader, make_stage


def test_warm_up_then_constant() -> None:
    factors = [learning_rate_factor(step, "constant", 3, 10) for step in range(6)]
    assert factors == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0, 1.0])


def test_linear_and_cosine_fall_to_zero_at_the_end() -> None:
    for step in range(21):
        assert learning_rate_factor(step, "linear", 0, 20) == pytest.approx(1 - step / 20)
        assert learning_rate_factor(step, "cosine", 0, 20) == pytest.approx(0.5 + 0.5 * math.cos(math.pi * step / 20))
    assert learning_rate_factor(25, "cosine", 0, 20) == pytest.approx(0)


def test_the_fall_begins_after_the_warm_up() -> None:
    assert learning_rate_factor(4, "linear", 4, 12) == 1
    assert learning_rate_factor(8, "linear", 4, 12) == pytest.approx(0.5)
    assert learning_rate_factor(12, "linear", 4, 12) == pytest.approx(0)


def test_a_run_without_an_end_does_not_fall() -> None:
    assert learning_rate_factor(1000, "cosine", 0, float("inf")) == 1


@pytest.mark.parametrize(
    ("batches", "max_steps", "per_batch", "single", "steps"),
    [(5, -1, 4, 0, 20), (10, 10, 4, 0, 12), (5, -1, 4, 2, 14), (10, 10, 4, 3, 11), (2, -1, 4, 3, 2),
     (-1, -1, 4, 0, math.inf)],
)  # fmt: skip
def test_the_last_step_is_that_of_the_last_batch(
    batches: int, max_steps: int, per_batch: int, single: int, steps: float
) -> None:
    trainer = SimpleNamespace(estimated_stepping_batches=batches, max_steps=max_steps)
    assert total_steps(trainer, per_batch, single) == steps


class Rates(L.Callback):
    def __init__(self) -> None:
        self.values: list[tuple[int, float]] = []  # epoch and learning rate of each batch

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        self.values.append((trainer.current_epoch, trainer.optimizers[0].param_groups[0]["lr"]))


def test_a_limit_of_batches_that_divides_no_epoch_ends_the_schedule_all_the_same(
    tiny_model_folder: Path, tmp_path: Path
) -> None:
    def run(**options: Any) -> tuple[Rates, L.Trainer]:
        rates = Rates()
        stage = make_stage(tiny_model_folder, optimizer=OptimizerSettings(1.0, schedule="linear"))
        loader = make_loader(tiny_model_folder, episodes=5, batch_size=1)
        settings = {"max_epochs": 3, "limit_train_batches": 4, "callbacks": [rates, *options.pop("callbacks", ())]}
        return rates, fit(stage, loader, -1, **settings, **options)

    rates, trainer = run()
    assert [epoch for epoch, _ in rates.values] == [0] * 4 + [1] * 4 + [2] * 4
    assert [rate for _, rate in rates.values] == pytest.approx([1 - step / 12 for step in range(12)])
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0)
