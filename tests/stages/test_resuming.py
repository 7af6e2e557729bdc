"""Resumed runs end as if they had not stopped."""

from pathlib import Path
from typing import Any

import pytest
import torch
from saved_run import fit_and_save

from lit_rft.models import LoraSettings
from lit_rft.testing.tiny_stage import make_stage, trained

DROPOUT = LoraSettings(rank=4, alpha=8, dropout=0.2, target_modules="all-linear")


@pytest.fixture(scope="module")
def two_epochs(tiny_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    stage = make_stage(tiny_model_folder, lora=DROPOUT)
    fit_and_save(stage, tiny_model_folder, tmp_path_factory.mktemp("whole"), 8)  # 4 steps an epoch
    return stage


@pytest.fixture(scope="module")
def three_epochs(tiny_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    stage = make_stage(tiny_model_folder, lora=DROPOUT)
    fit_and_save(stage, tiny_model_folder, tmp_path_factory.mktemp("whole"), -1, epochs=3)
    return stage


@pytest.mark.parametrize("stop", [3, 4, 5], ids=["mid-epoch", "end of epoch", "second epoch"])
def test_resuming_equals_never_having_stopped(
    tiny_model_folder: Path, two_epochs: Any, tmp_path: Path, stop: int
) -> None:
    first = make_stage(tiny_model_folder, lora=DROPOUT)
    fit_and_save(first, tiny_model_folder, tmp_path / "parts", stop)
    second = make_stage(tiny_model_folder, lora=DROPOUT, seed=99)  # other weights, were they not restored
    fit_and_save(second, tiny_model_folder, tmp_path / "parts", 8, ckpt_path="last")
    for name, weight in trained(two_epochs).items():
        assert torch.equal(weight, trained(second)[name]), name


@pytest.mark.parametrize(
    ("every", "parts"),
    [
        (100, [(-1, 1), (-1, 3)]),
        (1, [(-1, 1), (-1, 2), (-1, 3)]),
        (100, [(99, 1), (99, 2), (99, 3)]),
        (1, [(99, 1), (99, 2), (99, 3)]),
        (100, [(4, -1), (8, 9), (-1, 3)]),
        (100, [(2, 1), (3, 1), (-1, 3)]),
        (1, [(2, 3), (5, 3), (99, 3)]),
        (100, [(6, 9), (7, 2), (12, -1)]),
    ],
    ids=str,
)
def test_several_resumptions_equal_one_run(
    parts: list[tuple[int, int]], every: int, three_epochs: Any, tiny_model_folder: Path, tmp_path: Path
) -> None:
    """Stopped by numbers of steps and epochs, within an epoch or at its end; checkpoints are written after a step or
    when training ends."""
    for number, (steps, epochs) in enumerate(parts):
        stage = make_stage(tiny_model_folder, lora=DROPOUT, seed=number)
        last = "last" if number else None
        fit_and_save(stage, tiny_model_folder, tmp_path / "parts", steps, last, epochs, every)
    assert (stage.global_step, stage.trainer.current_epoch) == (12, 3)
    for name, weight in trained(three_epochs).items():
        assert torch.equal(weight, trained(stage)[name]), name
    states = [one.trainer.optimizers[0].state_dict()["state"] for one in (three_epochs, stage)]
    for index, moments in states[0].items():
        assert all(torch.equal(value, states[1][index][name]) for name, value in moments.items())


def test_layers_trained_in_full_are_saved_and_restored(tiny_model_folder: Path, tmp_path: Path) -> None:
    lora = LoraSettings(4, 8, 0.2, use_dora=True, use_rslora=True, modules_to_save=["lm_head"])
    whole = make_stage(tiny_model_folder, lora=lora)
    before = {name: weight.clone() for name, weight in configured(whole).items()}
    fit_and_save(whole, tiny_model_folder, tmp_path / "whole", 4)
    for steps, seed in ((2, 0), (4, 9)):
        stage = make_stage(tiny_model_folder, lora=lora, seed=seed)
        fit_and_save(stage, tiny_model_folder, tmp_path / "parts", steps, "last" if seed else None)
    head = next(name for name in before if "lm_head" in name)
    assert any("magnitude" in name for name in before)
    for name, weight in trained(whole).items():
        assert torch.equal(weight, trained(stage)[name]), name
    assert not torch.equal(trained(whole)[head], before[head])
    for source in ("checkpoints/last.ckpt", "adapter"):  # another stage starts from it
        start = str(tmp_path / "parts" / source)
        started = make_stage(tiny_model_folder, lora=lora, policy={"start_from": start})
        assert all(torch.equal(weight, trained(stage)[name]) for name, weight in configured(started).items())


def configured(stage: Any) -> dict[str, torch.Tensor]:
    stage.configure_model()
    return trained(stage)


def test_a_stage_starts_from_a_checkpoint_or_an_adapter(tiny_model_folder: Path, tmp_path: Path) -> None:
    first = make_stage(tiny_model_folder)
    fit_and_save(first, tiny_model_folder, tmp_path, 2)
    for start in (tmp_path / "checkpoints" / "last.ckpt", tmp_path / "adapter"):
        second = make_stage(tiny_model_folder, policy={"start_from": str(start)}, seed=5)
        second.configure_model()
        weights = trained(second)
        assert all(torch.equal(weight, weights[name]) for name, weight in trained(first).items()), start


def test_another_model_refuses_the_checkpoint(tiny_model_folder: Path, tmp_path: Path) -> None:
    fit_and_save(make_stage(tiny_model_folder), tiny_model_folder, tmp_path, 1)
    other = make_stage(tiny_model_folder, lora=LoraSettings(4, 8, 0.0, ("q_proj",)))
    with pytest.raises(ValueError, match="does not fit the model"):
        fit_and_save(other, tiny_model_folder, tmp_path, 2, ckpt_path="last")


def test_a_bad_start_is_refused(tiny_model_folder: Path, tmp_path: Path) -> None:
    for start in (tmp_path / "nothing.ckpt", tmp_path):
        with pytest.raises(ValueError, match="must be a"):
            make_stage(tiny_model_folder, policy={"start_from": str(start)}).configure_model()
