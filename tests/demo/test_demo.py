"""A short demo from beginning to end, stopped and continued: a tiny model on two games."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lit_rft import demo
from lit_rft.demo import run


@pytest.fixture
def arguments(tiny_model_folder: Path, tmp_path: Path) -> list[str]:
    keys = {
        "trainer.accelerator": "cpu",
        "trainer.precision": "32-true",
        "model.init_args.policy.model": tiny_model_folder,
        "model.init_args.acting.parallel_episodes": 2,
        "model.init_args.acting.sampling.max_new_tokens": 4,
        "data.init_args.data_dir": tmp_path / "data",
        "data.init_args.suite.init_args.step_limit": 2,
        "data.init_args.tasks": "[synthetic-pick_and_place_simple]",
        "data.init_args.train_episodes_per_task": 2,
        "data.init_args.predict_episodes_per_task": 2,
        "data.init_args.collect_workers": 1,
    }
    settings = [part for key, value in keys.items() for part in (f"--{key}", str(value))]
    return ["--folder", str(tmp_path / "demo"), "--seed", "3", *settings]


def test_a_demo_continues_where_it_was_stopped(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, play = tmp_path / "demo", run._play

    def stop_after_training(trainer: object, stage: object, data: object, path: Path) -> None:
        if path.name == "after.jsonl":
            raise KeyboardInterrupt
        play(trainer, stage, data, path)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(run, "_play", stop_after_training)
        demo.main(arguments)
    kept = {name: (folder / name).read_bytes() for name in ("episodes/before.jsonl", "checkpoints/last.ckpt")}
    assert not (folder / "summary.json").exists()
    with pytest.raises(ValueError, match=r"expected the seed of the demo in .*, 3, got 4"):
        demo.main([*arguments, "--seed", "4"])
    summary = demo.main(arguments)
    assert {name: (folder / name).read_bytes() for name in kept} == kept  # neither played nor trained again
    assert summary == json.loads((folder / "summary.json").read_text())
    assert summary["results"]["all"]["games"] == 2 and summary["expert_episodes"] == 2 and summary["seed"] == 3
    assert set(summary["seconds"]) == set(summary["cpu_seconds"]) == {"collect", "before", "train", "after"}
    assert {"demo.png", "report.md"} <= {path.name for path in folder.iterdir()}
    capsys.readouterr()
    files = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert demo.main(arguments) == summary  # only shown
    assert "shown again here" in " ".join(capsys.readouterr().out.split())
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == files
    again = demo.main([*arguments, "--overwrite"])
    assert again["results"] == summary["results"]  # the same seed


def test_another_run_is_not_removed(arguments: list[str], tmp_path: Path) -> None:
    checkpoint = tmp_path / "demo" / "checkpoints" / "last.ckpt"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_text("weights")
    with pytest.raises(FileExistsError, match="holds the checkpoints of a run"):
        demo.main(arguments)
    assert checkpoint.read_text() == "weights"


@pytest.mark.parametrize(("set_by_the_user", "spins"), [(None, "1000"), ("7", "7")])
def test_threads_of_a_demo_wait_without_keeping_the_cores_busy(set_by_the_user: str | None, spins: str) -> None:
    """libgomp reads the number when torch is loaded, so it is set before."""
    script = (
        "import os, runpy, sys\nsys.argv = ['demo', '--help']\n"
        "try:\n    runpy.run_module('lit_rft.demo', run_name='__main__')\n"
        "except SystemExit:\n    print(os.environ['GOMP_SPINCOUNT'], 'torch' in sys.modules)"
    )
    variables = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"}
    variables |= {"GOMP_SPINCOUNT": set_by_the_user} if set_by_the_user else {}
    done = subprocess.run([sys.executable, "-c", script], env=variables, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == f"{spins} False"
