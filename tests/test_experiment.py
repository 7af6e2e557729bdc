"""Commands of the experiments: run once, also if the experiment was killed; times over all attempts."""

import fcntl
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from benchmark_modules import BENCHMARKS, load
from rich.console import Console

COMMAND = """
import pathlib, sys, time
folder = pathlib.Path(sys.argv[1])
(folder / "started").touch()
while not (folder / "go").exists():
    time.sleep(0.02)
with (folder / "calls").open("a") as stream:
    stream.write("call\\n")
(folder / "result").touch()
"""
DRIVER = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from rich.console import Console
from experiment import Step, run
folder = Path(sys.argv[2])
run(Step("sft: fit", [sys.executable, "-c", sys.argv[3], str(folder)], folder / "result"), folder, Console())
"""


@pytest.fixture(scope="module")
def experiment() -> Any:
    return load("experiment")


def test_a_command_that_outlives_a_killed_experiment_is_waited_for(
    experiment: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, str(BENCHMARKS), str(tmp_path), COMMAND])
    while not (tmp_path / "started").exists():
        assert driver.poll() is None
        time.sleep(0.02)
    driver.kill()
    driver.wait()
    with (tmp_path / "lock").open("w") as lock, pytest.raises(BlockingIOError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    (tmp_path / "go").touch()
    step = experiment.Step("sft: fit", [sys.executable, "-c", COMMAND, str(tmp_path)], tmp_path / "result")
    experiment.run(step, tmp_path, Console())
    assert (tmp_path / "calls").read_text() == "call\n"
    (recorded,) = experiment.times(tmp_path, {})
    assert recorded["step"] == "sft: fit" and recorded["seconds"] >= 0


def test_a_complete_step_with_other_arguments_is_refused(experiment: Any, tmp_path: Path) -> None:
    """Its result would be reported as that of the new arguments."""
    result = tmp_path / "result"

    def step(*arguments: str) -> Any:
        command = "import pathlib, sys; pathlib.Path(sys.argv[1]).write_text(sys.argv[2])"
        return experiment.Step("sft: fit", [sys.executable, "-c", command, str(result), *arguments], result)

    experiment.run(step("2", "--epochs", "2"), tmp_path, Console())
    experiment.run(step("2", "--epochs", "2"), tmp_path, Console())
    experiment.run(step("2", "--ckpt_path", "last", "--epochs", "2"), tmp_path, Console())  # only resumes it
    for other in (step("3", "--epochs", "2"), step("2", "--epochs"), step("2", "--epochs", "2", "--seed", "1")):
        with pytest.raises(RuntimeError, match="sft: fit is complete, but by another command"):
            experiment.run(other, tmp_path, Console())
    assert result.read_text() == "2"
    result.unlink()
    experiment.run(step("3", "--epochs", "2"), tmp_path, Console())
    assert result.read_text() == "3"


def test_the_time_of_a_step_includes_its_killed_attempts(experiment: Any, tmp_path: Path) -> None:
    log = tmp_path / "logs" / "sft-fit.log"
    log.parent.mkdir()
    log.touch()
    os.utime(log, (1000.0, 1030.0))  # its last output
    log.with_suffix(".json").write_text(json.dumps({"step": "sft: fit", "seconds": 500.0, "started": 1000.0}))
    assert experiment.times(tmp_path, {}) == [{"step": "sft: fit", "seconds": 530.0}]
    step = experiment.Step("sft: fit", [sys.executable, "-c", "raise SystemExit(3)"], tmp_path / "result")
    with pytest.raises(RuntimeError, match="failed with code 3"):
        experiment.run(step, tmp_path, Console())
    step.command[-1] = "print()"
    experiment.run(step, tmp_path, Console())
    earlier = {"seconds": [{"step": "sft: fit", "seconds": 1.0}, {"step": "sft: seen", "seconds": 2.0}]}
    seconds = {time["step"]: time["seconds"] for time in experiment.times(tmp_path, earlier)}
    assert seconds["sft: seen"] == 2.0 and 530.0 <= seconds["sft: fit"] < 900.0
