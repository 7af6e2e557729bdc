"""An export replaces an earlier export, and nothing else."""

from pathlib import Path
from typing import Any

import lightning as L
import pytest

from lit_rft.callbacks import AdapterExport, RunCheckpoint
from lit_rft.callbacks.adapter_export import _replace_folder
from lit_rft.testing.tiny_stage import make_loader, make_stage


def train(model: Path, run: Path, folder: str | None, dirpath: str | None = None, **more: Any) -> None:
    callbacks = [AdapterExport(folder), RunCheckpoint(dirpath=dirpath)]
    trainer = L.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=run, callbacks=callbacks, **more,
    )  # fmt: skip
    trainer.fit(make_stage(model), make_loader(model, batch_size=2, episodes=2))


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_other_files_are_refused_before_training(tiny_model_folder: Path, tmp_path: Path) -> None:
    for name in ("run_a/weights", "notes.txt"):
        (tmp_path / "exports" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "exports" / name).write_text("mine")
    with pytest.raises(FileExistsError, match=r"exports holds notes\.txt, run_a: set another folder"):
        train(tiny_model_folder, tmp_path / "run", str(tmp_path / "exports"))
    assert files(tmp_path) == {"exports/run_a/weights", "exports/notes.txt"}  # nor was anything trained
    train(tiny_model_folder, tmp_path / "run", str(tmp_path / "exports"), fast_dev_run=True)  # exports nothing
    assert {"exports/run_a/weights", "exports/notes.txt"} <= files(tmp_path)


@pytest.mark.parametrize(
    ("folder", "message"),
    [
        (".", "holds .*/run, which this run uses"),
        ("run", "holds .*/run, which this run uses"),
        ("run/checkpoints", "holds .*/run/checkpoints, which this run uses"),
        ("file", "file holds a file"),
        ("a_model", "holds config.json"),
    ],
)
def test_the_folders_of_the_run_are_refused(folder: str, message: str, tiny_model_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "a_model").mkdir()
    (tmp_path / "a_model" / "config.json").touch()
    with pytest.raises(FileExistsError, match=message):
        train(tiny_model_folder, tmp_path / "run", str(tmp_path / folder))
    assert not list(tmp_path.rglob("*.ckpt"))


def test_an_earlier_export_or_an_empty_folder_is_replaced(tiny_model_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "export").mkdir()
    train(tiny_model_folder, tmp_path / "a", str(tmp_path / "export"))
    assert "adapter_config.json" in files(tmp_path / "export")
    (tmp_path / "export" / "of_the_earlier_run").touch()
    train(tiny_model_folder, tmp_path / "b", str(tmp_path / "export"))
    assert "adapter_config.json" in files(tmp_path / "export")
    assert "of_the_earlier_run" not in files(tmp_path / "export")


def test_the_model_that_the_run_starts_from_is_refused(tiny_model_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(FileExistsError, match=r"which this run uses: set another folder"):
        train(tiny_model_folder, tmp_path / "run", str(tiny_model_folder))
    assert (tiny_model_folder / "config.json").is_file()


def test_what_came_during_training_is_kept_with_the_export_beside_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "notes.txt").write_text("mine")
    _replace_folder(tmp_path / "export", lambda folder: (folder / "adapter_config.json").write_text("{}") and None)
    assert "holds notes.txt" in caplog.text and f"this run is in {tmp_path / '.export.partial'}" in caplog.text
    assert files(tmp_path) == {"export/notes.txt", ".export.partial/adapter_config.json"}
