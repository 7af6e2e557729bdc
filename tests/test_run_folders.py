"""A run's folder: one config file a verb, nothing overwritten by accident."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from command import main

from lit_rft._files import FolderLock
from lit_rft.episodes import write_episodes
from lit_rft.testing.tiny import make_episode


@pytest.fixture(scope="module")
def finished(tiny_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A folder with the data of all runs and a copy of a finished one; the arguments of that one."""
    folder = tmp_path_factory.mktemp("runs")
    arguments = _arguments(tiny_model_folder, folder)
    main(["fit", *arguments])
    (folder / "run").rename(folder / "finished")
    return folder, arguments


@pytest.fixture
def arguments(finished: tuple[Path, list[str]]) -> list[str]:
    """Of the finished run, which is in its folder as it was left."""
    folder, arguments = finished
    shutil.rmtree(folder / "run", ignore_errors=True)
    shutil.copytree(folder / "finished", folder / "run")
    return arguments


@pytest.fixture
def run(finished: tuple[Path, list[str]], arguments: list[str]) -> Path:
    """The folder of the finished run."""
    return finished[0] / "run"


def _arguments(tiny_model_folder: Path, tmp_path: Path) -> list[str]:
    write_episodes(tmp_path / "train.jsonl", [make_episode(seed, 2) for seed in range(4)])
    settings: dict[str, Any] = {
        "trainer.default_root_dir": tmp_path / "run",
        "trainer.accelerator": "cpu",
        "trainer.precision": "32-true",
        "trainer.limit_val_batches": 0,
        "trainer.limit_test_batches": 0,
        "model.init_args.policy.model": tiny_model_folder,
        "model.init_args.optimizer.learning_rate": 3e-4,
        "data.init_args.train_files": f"[{tmp_path / 'train.jsonl'}]",
        "data.init_args.batch_size": 2,
    }
    return [
        "-c", "glider/alfworld/sft.yaml", *(part for k, v in settings.items() for part in (f"--{k}", str(v)))
    ]  # fmt: skip


def _rate(path: Path) -> float:
    return float(yaml.safe_load(path.read_text())["model"]["init_args"]["optimizer"]["learning_rate"])


def _step(folder: Path) -> int:
    return int(torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["global_step"])


def test_other_verbs_leave_the_training_config_alone(arguments: list[str], run: Path, tmp_path: Path) -> None:
    fitted = (run / "config.yaml").read_text()
    other = ["--model.init_args.optimizer.learning_rate", "2e-4", "--ckpt_path", "last"]
    main(["test", "-c", str(run / "config.yaml"), *other])
    assert (run / "config.yaml").read_text() == fitted and _rate(run / "config.yaml") == 3e-4
    assert _rate(run / "config_test.yaml") == 2e-4
    assert {path.name for path in run.glob("**/*.yaml")} == {"config.yaml", "config_test.yaml", "hparams.yaml"}
    for name in ("config.yaml", "config_test.yaml"):  # any verb takes any of them
        written = yaml.safe_load((run / name).read_text())
        assert {"ckpt_path", "verbose", "overwrite", "weights_only"}.isdisjoint(written)
        main(["validate", "-c", str(run / name), "--ckpt_path", "last"])
    again = ["--trainer.default_root_dir", str(tmp_path / "again")]
    main(["fit", "-c", str(run / "config.yaml"), *again])
    first, second = ((folder / "config.yaml").read_text() for folder in (run, tmp_path / "again"))
    assert second == first.replace(str(run), str(tmp_path / "again"))
    files = [folder / "checkpoints" / "last.ckpt" for folder in (run, tmp_path / "again")]
    weights = [torch.load(file, weights_only=True)["state_dict"] for file in files]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_a_folder_with_a_run_in_it_is_not_overwritten(arguments: list[str], run: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match=r"--ckpt_path last.*default_root_dir.*--overwrite true"):
        main(["fit", *arguments, "--model.init_args.optimizer.learning_rate", "1e-4"])
    elsewhere = tmp_path / "copy.ckpt"
    elsewhere.write_bytes((run / "checkpoints" / "last.ckpt").read_bytes())
    with pytest.raises(ValueError, match="would be overwritten"):
        main(["fit", *arguments, "--ckpt_path", str(elsewhere)])
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    file = ["--ckpt_path", str(run / "checkpoints" / "last.ckpt"), "--model.init_args.optimizer.learning_rate", "5e-4"]
    main(["fit", *arguments, *file, "--trainer.max_epochs", "2"])
    (optimizer,) = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["optimizer_states"]
    assert optimizer["param_groups"][0]["initial_lr"] == 5e-4  # the command line's, not the checkpoint's
    assert _step(run) == 4 and (run / "config.1.yaml").is_file()  # the earlier settings are kept
    main(["fit", *arguments, "--overwrite", "true"])
    assert _step(run) == 2 and len(list((run / "tensorboard").glob("events.*"))) == 1


def test_training_goes_on_from_a_named_file_not_from_the_best(arguments: list[str]) -> None:
    with pytest.raises(ValueError, match=r"expected last or a file, got best: name the run's checkpoints/best\.ckpt"):
        main(["fit", *arguments, "--ckpt_path", "best"])


@pytest.mark.parametrize("more", [["--ckpt_path", "last"], ["--overwrite", "true"]])
def test_a_folder_in_which_another_process_trains_is_refused(more: list[str], arguments: list[str], run: Path) -> None:
    """Without checkpoints so far, too: it may be in its first steps."""
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and "events" not in path.name}
    lock = FolderLock(run / "checkpoints")
    with pytest.raises(ValueError, match=r"another process trains in this folder .*: wait for it, or set another"):
        main(["fit", *arguments, "--trainer.max_epochs", "2", *more])
    lock.release()
    assert {path: path.read_bytes() for path in before} == before
    main(["fit", *arguments, "--trainer.max_epochs", "2", *more])
    assert _step(run) == 4


def test_a_folder_in_place_of_a_checkpoint_is_an_error_that_names_its_checkpoints(
    arguments: list[str], run: Path, tmp_path: Path
) -> None:
    last = re.escape(str(run / "checkpoints" / "last.ckpt"))
    with pytest.raises(ValueError, match=rf"ckpt_path: .* not a checkpoint; name one of .*: {last}"):
        main(["test", *arguments, "--ckpt_path", str(run)])
    other = ["--trainer.default_root_dir", str(tmp_path / "other"), "--model.init_args.policy.start_from", str(run)]
    with pytest.raises(ValueError, match=rf"adapter_config\.json .*; name one of the checkpoints in it: {last}"):
        main(["fit", *arguments, *other])


def test_a_finished_run_that_is_resumed_is_reported(
    arguments: list[str], run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    main(["fit", *arguments, "--ckpt_path", "last"])
    assert f"this run is finished, at step 2, with its results in {run}; to go on, set a larger" in caplog.text
    caplog.clear()
    main(["fit", *arguments, "--ckpt_path", "last", "--trainer.max_epochs", "2"])
    assert "finished" not in caplog.text


def test_a_refused_resume_leaves_the_config(arguments: list[str], run: Path, tmp_path: Path) -> None:
    before = (run / "config.yaml").read_text()
    with pytest.raises(ValueError, match=r"lora\.alpha: 32 -> 8"):
        main(["fit", *arguments, "--ckpt_path", "last", "--model.init_args.policy.lora.alpha", "8"])
    with pytest.raises(ValueError, match=r"seed=0, now it is 9 \(data.init_args.seed, or else seed_everything\)"):
        main(["fit", *arguments, "--ckpt_path", "last", "--seed_everything", "9"])
    assert (run / "config.yaml").read_text() == before


@pytest.mark.parametrize("more", [["enable_checkpointing", "false"], ["barebones", "true"], ["callbacks", "[]"]])
def test_a_run_without_checkpoints_does_not_get_into_another(more: list[str], arguments: list[str], run: Path) -> None:
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match="would be overwritten"):
        main(["fit", *arguments, f"--trainer.{more[0]}", more[1]])
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("verb", ["fit", "test", "predict"])
def test_a_dry_run_changes_nothing(verb: str, arguments: list[str], run: Path) -> None:
    for name in ("scores.json", "costs.json", "environment.json"):
        (run / name).write_text("{}")  # of a run
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    limits = ["--data.init_args.eval_episodes_per_task", "1"]
    limits += ["--data.init_args.tasks", "[synthetic-pick_and_place_simple]"]
    overwrite = ["--overwrite", "true"] if verb == "fit" else []
    main([verb, *arguments, *limits, "--trainer.fast_dev_run", "true", *overwrite])
    after = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert after == before


def test_overwriting_removes_texts(arguments: list[str], run: Path, tmp_path: Path) -> None:
    text = run / "texts" / "val" / "episode.md"
    text.parent.mkdir(parents=True)
    text.write_text("of the earlier run")
    main(["fit", *arguments, "--overwrite", "true"])
    assert not text.exists()


def test_overwriting_removes_the_earlier_run_only_once_the_new_one_starts(arguments: list[str], run: Path) -> None:
    results = ("scores.json", "costs.json", "costs_fit.json", "summary_fit.json")
    names = (*results, "config_test.yaml", "run.html", "texts/val/episode.md", "lightning_logs/version_0/metrics.csv")
    for name in names:
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text("of the earlier run")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    (events,) = (run / "tensorboard").glob("events.*")
    with pytest.raises(ValueError, match=r"missing\.jsonl"):
        main(["fit", *arguments, "--overwrite", "true", "--data.init_args.train_files", "[missing.jsonl]"])
    assert {path: path.read_bytes() for path in before} == before
    main(["fit", *arguments, "--overwrite", "true"])
    left = [name for name in names if (run / name).exists() and (run / name).read_text() == "of the earlier run"]
    assert not events.exists() and not left


def test_the_curves_of_a_csv_logger_with_a_fixed_version_are_not_deleted(
    tiny_model_folder: Path, tmp_path: Path
) -> None:
    csv = ["--trainer.logger", "CSVLogger", "--trainer.logger.init_args.name", "lightning_logs"]
    csv += ["--trainer.logger.init_args.version", "0"]
    arguments = [*_arguments(tiny_model_folder, tmp_path), *csv]
    file = tmp_path / "run" / "lightning_logs" / "version_0" / "metrics.csv"
    main(["fit", *arguments])
    before = file.read_text()
    assert "train/" in before
    for verb, more in (("fit", ["--trainer.max_epochs", "2"]), ("test", [])):
        with pytest.raises(ValueError, match=rf"CSVLogger would delete {file}, .*: remove its version"):
            main([verb, *arguments, "--ckpt_path", "last", *more])
    assert file.read_text() == before
    main(["fit", *arguments, "--ckpt_path", "last", "--trainer.max_epochs", "2", *csv[:-1], "1"])
    assert file.read_text() == before and (file.parents[1] / "version_1" / "metrics.csv").is_file()
    main(["fit", *arguments, "--overwrite", "true"])
    assert len(file.read_text().splitlines()) == len(before.splitlines())
