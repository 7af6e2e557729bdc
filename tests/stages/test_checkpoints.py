"""Checkpoints are small, complete, safe to load, and never half written."""

import contextlib
import resource
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from saved_run import fit_and_save

from lit_rft.callbacks import AtomicCheckpointIO, RunCheckpoint
from lit_rft.testing.tiny_stage import ADAPTERS, make_loader, make_stage, trained


def test_a_checkpoint_holds_what_trains_and_nothing_else(tiny_model_folder: Path, tmp_path: Path) -> None:
    stage = make_stage(tiny_model_folder)
    fit_and_save(stage, tiny_model_folder, tmp_path, 2)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["last.ckpt"]
    checkpoint = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert set(checkpoint["state_dict"]) == set(trained(stage))
    assert checkpoint["global_step"] == 2
    assert checkpoint["optimizer_states"][0]["state"] and checkpoint["lr_schedulers"]


@contextlib.contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Writes beyond a size in bytes fail within, as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_leaves_the_previous_checkpoint(tmp_path: Path) -> None:
    """A file-size limit makes the write fail in the middle, as a full device does."""
    target = tmp_path / "last.ckpt"
    io = AtomicCheckpointIO()
    io.save_checkpoint({"step": 1, "weights": torch.ones(10), "pytorch-lightning_version": "2"}, target)
    larger = {"step": 2, "weights": torch.ones(1_000_000), "pytorch-lightning_version": "2"}
    with largest_file(100_000), pytest.raises(OSError, match="previous one is intact"):
        io.save_checkpoint(larger, target)
    assert io.load_checkpoint(target)["step"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]


def test_a_checkpoint_of_another_library_is_refused(tmp_path: Path) -> None:
    torch.save({"model": {}}, tmp_path / "foreign.ckpt")
    with pytest.raises(ValueError, match="is not a checkpoint of a training run"):
        AtomicCheckpointIO().load_checkpoint(tmp_path / "foreign.ckpt")


def test_an_empty_checkpoint_is_refused_with_a_reason_and_advice(tmp_path: Path) -> None:
    (tmp_path / "last.ckpt").touch()
    with pytest.raises(ValueError, match="plain values: the file is empty; name another checkpoint, or remove this"):
        AtomicCheckpointIO().load_checkpoint(tmp_path / "last.ckpt")


def test_a_torn_or_missing_checkpoint_is_refused(tmp_path: Path) -> None:
    io, target = AtomicCheckpointIO(), tmp_path / "last.ckpt"
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        io.load_checkpoint(target)
    io.save_checkpoint({"weights": torch.ones(1000)}, target)
    target.write_bytes(target.read_bytes()[:2000])
    with pytest.raises(ValueError, match="incomplete or corrupt checkpoint"):
        io.load_checkpoint(target)


def test_checkpoints_load_no_pickled_objects(tmp_path: Path) -> None:
    torch.save({"weights": Path("/")}, tmp_path / "evil.ckpt")
    with pytest.raises(ValueError, match="plain values"):
        AtomicCheckpointIO().load_checkpoint(tmp_path / "evil.ckpt")


def test_the_best_by_a_metric_is_kept(tiny_model_folder: Path, tmp_path: Path) -> None:
    scores = iter([10.0, 30.0, 20.0])

    class Scores(L.Callback):
        def on_validation_epoch_end(self, trainer: Any, module: Any) -> None:
            module.log("val/score", next(scores))

    stage: Any = make_stage(tiny_model_folder, lora=ADAPTERS)
    stage.validation_step = lambda *_: None
    trainer = L.Trainer(
        max_epochs=3,
        accelerator="cpu",
        logger=False,
        default_root_dir=tmp_path,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        plugins=[AtomicCheckpointIO()],
        callbacks=[Scores(), RunCheckpoint(every_n_steps=100, monitor="val/score")],
    )
    loader = make_loader(tiny_model_folder, batch_size=2, episodes=2)  # one step an epoch
    trainer.fit(stage, loader, torch.utils.data.DataLoader([0]))
    steps = {p.name: torch.load(p, weights_only=True)["global_step"] for p in (tmp_path / "checkpoints").iterdir()}
    assert steps == {"best.ckpt": 2, "last.ckpt": 3}


def test_a_run_on_a_full_disk_stops_and_resumes_from_the_checkpoint_before(
    tiny_model_folder: Path, tmp_path: Path
) -> None:
    limit = contextlib.ExitStack()

    class DiskFillsUp(L.Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            if trainer.global_step == 3:
                limit.enter_context(largest_file(20_000))

    trainer = L.Trainer(
        max_steps=4, max_epochs=-1, accelerator="cpu", logger=False, default_root_dir=tmp_path,
        enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0, plugins=[AtomicCheckpointIO()],
        callbacks=[DiskFillsUp(), RunCheckpoint(every_n_steps=1)],
    )  # fmt: skip
    with limit, pytest.raises(OSError, match="the previous one is intact"):
        trainer.fit(make_stage(tiny_model_folder), make_loader(tiny_model_folder, batch_size=2, episodes=7))
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["last.ckpt"]
    assert torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 2
    fit_and_save(make_stage(tiny_model_folder), tiny_model_folder, tmp_path, 4, ckpt_path="last")


def test_what_a_killed_process_left_half_written_is_swept(tmp_path: Path) -> None:
    (tmp_path / ".last.ckpt.12345.partial").write_bytes(b"half")
    AtomicCheckpointIO().save_checkpoint({"step": 1}, tmp_path / "last.ckpt")
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]
