"""Training continues after a finished epoch as an uninterrupted run would; evaluation sets are fixed subsets."""

import json
import random
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from torch import nn

from lit_rft.agents import FlatAgent
from lit_rft.callbacks import RandomState
from lit_rft.datamodules import (
    EpisodeGroupDataModule,
    MathPromptDataModule,
    OnlineDataModule,
    TrajectoryDataModule,
)
from lit_rft.episodes import write_episodes
from lit_rft.testing.corridor import CorridorSuite
from lit_rft.testing.tiny import make_episode

KINDS = ("transcripts", "prompts", "online", "groups")


class Recorder(L.LightningModule):
    """Keeps the contents of each batch, in order; its weights depend on them and on all random states."""

    def __init__(self, validates: bool = False) -> None:
        super().__init__()
        self.validates = validates
        self.layer = nn.Linear(3, 1)
        self.seen: list[list[str]] = []
        self.evaluated: list[list[str]] = []

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=0.1)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        self.seen.append(contents(batch))
        order = sum(map(ord, "".join(self.seen[-1]))) % 97
        draws = torch.rand(3) + random.random() + float(np.random.rand())
        return (self.layer(draws) * order).sum()

    def on_validation_epoch_start(self) -> None:
        self.evaluated.append([])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.evaluated[-1] += contents(batch)


def contents(batch: Any) -> list[str]:
    """Names of what a batch holds, whatever its kind."""
    if hasattr(batch, "transcripts"):
        return sorted({transcript.episode_id for transcript in batch.transcripts})
    if hasattr(batch, "prompts"):
        return [prompt.problem.id for prompt in batch.prompts]
    if hasattr(batch, "groups"):
        return [group.job.id for group in batch.groups]
    return [job.id for job in getattr(batch.jobs, "jobs", batch.jobs)]


def problems_file(folder: Path, sizes: dict[str, int], answer: int = 1) -> str:
    """Problems of several benchmarks, one benchmark after the other."""
    path = folder / f"problems-{answer}.jsonl"
    rows = [
        {"id": f"{source}{i}", "prompt": f"{i}+{answer}?", "ground_truth": str(i + answer), "data_source": source}
        for source, number in sizes.items()
        for i in range(number)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def make_data(kind: str, model: Path, folder: Path, other: bool = False, **options: Any) -> Any:
    """Data of a few batches per epoch; `other` is as much of other data."""
    common = {"model": str(model), "batch_size": 2, "seed": 3, **options}
    if kind == "prompts":
        return MathPromptDataModule(train_files=[problems_file(folder, {"a": 7}, 2 if other else 1)], **common)
    stored = folder / f"stored-{other}.jsonl"
    write_episodes(stored, [make_episode(seed + 50 * other, 1 + seed % 4) for seed in range(7)])
    common |= {"suite": CorridorSuite(), "data_dir": str(folder), "agent": FlatAgent()}
    if kind == "transcripts":
        return TrajectoryDataModule(
            train_files=[str(stored)], medium_files=[str(stored)], medium_per_expert=0.5, **common
        )
    tasks = ["run"] if other else ["walk"]
    if kind == "online":
        settings = {"rounds": 3, "episodes_per_round": common.pop("batch_size"), "collect_tasks": tasks}
        return OnlineDataModule(**settings, **common)
    return EpisodeGroupDataModule(
        train_episodes_per_task=3, **({"tasks": ["run"]} if other else {"tasks": ["walk"]}), **common
    )


def train(data: Any, folder: Path, **options: Any) -> tuple[Recorder, L.Trainer]:
    """Fit, and leave a checkpoint in the folder."""
    L.seed_everything(options.pop("draws", 0), verbose=False)
    module, ckpt_path = Recorder(), options.pop("ckpt_path", None)
    settings: dict[str, Any] = {
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "limit_val_batches": 0,
        "default_root_dir": folder,
        "callbacks": [RandomState()],
    }
    trainer = L.Trainer(**{**settings, **options})
    trainer.fit(module, datamodule=data, ckpt_path=ckpt_path)
    trainer.save_checkpoint(folder / "last.ckpt")
    return module, trainer


def state(module: Recorder, trainer: L.Trainer) -> list[torch.Tensor]:
    """Weights and what the optimiser knows of them."""
    moments = [value for entry in trainer.optimizers[0].state.values() for value in entry.values()]
    return [*module.state_dict().values(), *moments]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("unit", ["max_epochs", "max_steps"])
def test_runs_continue_after_finished_epochs(kind: str, unit: str, tiny_model_folder: Path, tmp_path: Path) -> None:
    def run(epochs: int, **options: Any) -> tuple[Recorder, L.Trainer]:
        data = make_data(kind, tiny_model_folder, tmp_path)
        size = {"transcripts": 6, "prompts": 4, "online": 3, "groups": 2}[kind]
        limit = {"max_epochs": epochs} if unit == "max_epochs" else {"max_epochs": -1, "max_steps": epochs * size}
        module, trainer = train(data, tmp_path, **limit, **options)
        assert trainer.global_step == epochs * size
        return module, trainer

    expected, whole = run(4)
    last = tmp_path / "last.ckpt"
    parts = [run(1), run(2, ckpt_path=last, draws=7), run(4, ckpt_path=last, draws=8)]
    assert [batch for module, _ in parts for batch in module.seen] == expected.seen
    assert expected.seen[: len(expected.seen) // 2] != expected.seen[len(expected.seen) // 2 :]
    for value, same in zip(state(*parts[-1]), state(expected, whole), strict=True):
        assert torch.equal(value, same)


@pytest.mark.parametrize("kind", KINDS)
def test_after_a_finished_epoch_other_data_are_refused(kind: str, tiny_model_folder: Path, tmp_path: Path) -> None:
    train(make_data(kind, tiny_model_folder, tmp_path), tmp_path, max_epochs=1)

    def resume(data: Any) -> None:
        train(data, tmp_path / "again", max_epochs=2, ckpt_path=tmp_path / "last.ckpt")

    name = "episodes_per_round" if kind == "online" else "batch_size"
    with pytest.raises(ValueError, match=f"cannot resume: the checkpoint was made with {name}=2, now it is 3"):
        resume(make_data(kind, tiny_model_folder, tmp_path, batch_size=3))
    with pytest.raises(ValueError, match="cannot resume: the checkpoint was made with seed=3, now it is 4"):
        resume(make_data(kind, tiny_model_folder, tmp_path, seed=4))
    with pytest.raises(ValueError, match="cannot resume: the checkpoint was made with other training data"):
        resume(make_data(kind, tiny_model_folder, tmp_path, other=True))


def test_a_position_in_another_kind_of_data_is_refused(tiny_model_folder: Path, tmp_path: Path) -> None:
    data = [make_data(kind, tiny_model_folder, tmp_path) for kind in KINDS]
    for module in data:
        module.setup("fit")
    states = [module.train_dataloader().state_dict() for module in data]
    with pytest.raises(ValueError, match=r"another kind of training data, which has .*prompts.*use the data module"):
        data[0].train_dataloader().load_state_dict(states[1])


def test_validation_does_not_use_up_a_checkpoints_position(tiny_model_folder: Path, tmp_path: Path) -> None:
    """A data module that has validated with a checkpoint begins a new training at its beginning."""
    data = make_prompts(tiny_model_folder, tmp_path)
    first, _ = train(data, tmp_path, max_epochs=1)
    fresh = make_prompts(tiny_model_folder, tmp_path)
    other = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    other.validate(Recorder(), datamodule=fresh, ckpt_path=tmp_path / "last.ckpt", verbose=False)
    again, _ = train(fresh, tmp_path / "again", max_epochs=1)
    assert again.seen == first.seen


# --- evaluation sets, overfitting, reloading --------------------------------------------------------------------------


def make_prompts(model: Path, folder: Path, **options: Any) -> MathPromptDataModule:
    """Twelve problems to train on; for evaluation eight of one benchmark, then four of another."""
    train_files = [problems_file(folder, {"t": 12}, 3)]
    eval_files = [problems_file(folder, {"a": 8, "b": 4})]
    return MathPromptDataModule(
        str(model), train_files, eval_files, **{"batch_size": 2, "eval_batch_size": 2, "seed": 3, **options}
    )


@pytest.mark.parametrize("limit", [2, 1 / 3])
@pytest.mark.parametrize("sanity_steps", [0, 1, -1])
def test_validation_on_a_subset_sees_the_same_problems(
    limit: float, sanity_steps: int, tiny_model_folder: Path, tmp_path: Path
) -> None:
    data = make_prompts(tiny_model_folder, tmp_path)
    module, trainer = train(
        data, tmp_path, max_epochs=3, limit_val_batches=limit, num_sanity_val_steps=sanity_steps, val_check_interval=3
    )
    sets = module.evaluated[1:] if sanity_steps else module.evaluated
    assert sets == [["a0", "b0", "a1", "b1"]] * 6  # of both benchmarks, twice per epoch
    trainer.validate(module, datamodule=data, verbose=False)
    assert module.evaluated[-1] == sets[0]


def test_all_problems_are_evaluated_once(tiny_model_folder: Path, tmp_path: Path) -> None:
    data = make_prompts(tiny_model_folder, tmp_path, eval_batch_size=5)
    data.setup("validate")
    loader: Any = data.val_dataloader()
    passes = [[prompt.problem.id for batch in loader for prompt in batch.prompts] for _ in range(2)]
    assert passes[0] == passes[1] and sorted(passes[0]) == sorted(p.problem.id for p in data.prompts["eval"])
    next(iter(loader))  # a pass that was broken off
    assert [prompt.problem.id for batch in loader for prompt in batch.prompts] == passes[0]
    shares = [[], []]
    for rank, share in enumerate(shares):
        loader.rank, loader.world_size = rank, 2
        share += [[prompt.problem.id for prompt in batch.prompts] for batch in loader]
    together = [name for parts in zip(*shares, strict=True) for part in parts for name in part]
    assert together == passes[0]


@pytest.mark.parametrize("batches", [2, 1 / 3])
@pytest.mark.parametrize("kind", KINDS)
def test_overfitting_repeats_its_batches(kind: str, batches: float, tiny_model_folder: Path, tmp_path: Path) -> None:
    def data() -> Any:
        return make_data(kind, tiny_model_folder, tmp_path)

    module, _ = train(data(), tmp_path, max_epochs=1)
    number = int(len(module.seen) * batches) if batches < 1 else 2
    if not number:
        pytest.skip("a third of two batches is none")
    repeated, _ = train(data(), tmp_path, max_epochs=3, overfit_batches=batches)
    assert repeated.seen == module.seen[:number] * 3
    resumed, _ = train(data(), tmp_path, max_epochs=5, overfit_batches=batches, ckpt_path=tmp_path / "last.ckpt")
    assert resumed.seen == module.seen[:number] * 2


def test_overfitting_validates_on_the_same_problems(tiny_model_folder: Path, tmp_path: Path) -> None:
    module, _ = train(
        make_prompts(tiny_model_folder, tmp_path), tmp_path, max_epochs=3, overfit_batches=1, limit_val_batches=1.0
    )
    assert module.seen == module.seen[:1] * 3
    assert module.evaluated[1:] == [["a0", "b0"]] * 3


@pytest.mark.parametrize("kind", KINDS)
def test_reloading_changes_no_order(kind: str, tiny_model_folder: Path, tmp_path: Path) -> None:
    expected, _ = train(make_data(kind, tiny_model_folder, tmp_path), tmp_path, max_epochs=3)
    reloaded, _ = train(
        make_data(kind, tiny_model_folder, tmp_path), tmp_path, max_epochs=2, reload_dataloaders_every_n_epochs=1
    )
    resumed, _ = train(
        make_data(kind, tiny_model_folder, tmp_path), tmp_path, max_epochs=3, reload_dataloaders_every_n_epochs=1,
        ckpt_path=tmp_path / "last.ckpt",
    )  # fmt: skip
    assert reloaded.seen + resumed.seen == expected.seen
    assert sorted(map(sorted, expected.seen[: len(expected.seen) // 3])) != expected.seen


def test_a_trainer_with_fewer_batches_per_epoch_sees_all_data_in_turn(tiny_model_folder: Path, tmp_path: Path) -> None:
    module, _ = train(
        make_prompts(tiny_model_folder, tmp_path), tmp_path, max_epochs=3, limit_train_batches=2
    )  # of six
    assert sorted(name for batch in module.seen for name in batch) == sorted(f"t{i}" for i in range(12))


@pytest.mark.parametrize("limit", [3, 0.75], ids=str)
def test_a_limit_makes_all_epochs_equally_long(limit: float, tiny_model_folder: Path, tmp_path: Path) -> None:
    """Three of four batches: the trainer's second epoch has one of the data's first epoch and two of its second."""

    def data() -> Any:
        return make_data("prompts", tiny_model_folder, tmp_path)

    whole, _ = train(data(), tmp_path, max_epochs=3)
    limited, trainer = train(data(), tmp_path, max_epochs=4, limit_train_batches=limit)
    assert limited.seen == whole.seen[:12] and trainer.global_step == trainer.estimated_stepping_batches == 12
    reloaded, _ = train(data(), tmp_path, max_epochs=4, limit_train_batches=limit, reload_dataloaders_every_n_epochs=1)
    assert reloaded.seen == whole.seen[:12]
    train(data(), tmp_path, max_steps=5, max_epochs=-1, limit_train_batches=limit)  # stops within its second epoch
    resumed, _ = train(
        data(), tmp_path, max_steps=12, max_epochs=-1, limit_train_batches=limit, ckpt_path=tmp_path / "last.ckpt"
    )
    assert resumed.seen == whole.seen[5:12]
