"""The script that runs the GPU benchmarks in a given time, and what its steps keep when time is up."""

import contextlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def steps_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The steps' modules can be imported."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.syspath_prepend(str(BENCHMARKS / "gpu"))


STUB = """#!/usr/bin/env bash
# Python's place in run.sh: tells what it is called with, and exits as the test says.
case $1 in
    -c) exit "$(cat "$CODES/import" 2>/dev/null || echo 0)" ;;
    -m) exit 3 ;;
esac
step=$(basename "$1" .py)
echo "$step ${*:2} cudnn: ${TORCH_CUDNN_SDPA_DEPRIORITIZED:-first}"
exit "$(cat "$CODES/$step" 2>/dev/null || echo 0)"
"""


def run_steps(
    folder: Path, steps: str, codes: dict[str, int] | None = None, **environment: str
) -> tuple[int, str, dict[str, list[str]]]:
    """Run run.sh with a stub in Python's place, in a folder of its own.

    Returns: exit code, all output, and the words that each step was called with.
    """
    script = folder / "benchmarks" / "gpu" / "run.sh"
    script.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(BENCHMARKS / "gpu" / "run.sh", script)
    stub = folder / "python"
    stub.write_text(STUB)
    stub.chmod(0o755)
    for name, code in (codes or {}).items():
        (folder / name).write_text(str(code))
    settings = {"PYTHON": str(stub), "CODES": str(folder), "SITE": str(folder / "site"), **environment}
    command = [str(script), str(folder / "output"), *steps.split()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=os.environ | settings)
    calls = [line.split() for line in done.stdout.splitlines() if "--seconds" in line]
    return done.returncode, done.stdout + done.stderr, {words[0]: words[1:] for words in calls}


def seconds_given(call: list[str]) -> int:
    return int(call[call.index("--seconds") + 1])


def test_steps_of_the_gpu_benchmark_share_the_time_that_there_is(tmp_path: Path) -> None:
    code, _, calls = run_steps(tmp_path / "all", "check train")
    assert code == 0 and [seconds_given(calls[step]) for step in ("check", "train")] == [50, 170]
    code, output, calls = run_steps(tmp_path / "some", "check train", WITHIN="120")
    assert code == 0 and seconds_given(calls["check"]) == 50
    assert 90 < seconds_given(calls["train"]) <= 110  # all but what has passed
    code, output, calls = run_steps(tmp_path / "none", "check", WITHIN="39")
    assert code == 0 and not calls and "check: skipped" in output


def test_what_the_gpu_benchmark_calls_a_failure(tmp_path: Path) -> None:
    code, output, calls = run_steps(tmp_path / "cut", "check train", {"check": 124})
    assert code == 0 and "check: cut at its limit of 60 s" in output and "train" in calls
    code, output, calls = run_steps(tmp_path / "failed", "check train", {"check": 3})
    assert code == 1 and "failed: check" in output and "train" in calls
    assert "check --size" in (tmp_path / "failed" / "output" / "log.txt").read_text()
    code, output, _ = run_steps(tmp_path / "killed", "check", {"check": 137})  # by whom, long before its limit?
    assert code == 1 and "failed: check" in output
    code, output, calls = run_steps(tmp_path / "imports", "check", {"import": 1})
    assert code == 1 and "a library is missing" in output and not calls
    (tmp_path / "wheels" / "benchmarks" / "gpu" / "carry" / "wheels").mkdir(parents=True)
    code, output, calls = run_steps(tmp_path / "wheels", "check", {"import": 1})
    assert code == 1 and "wheels could not be installed" in output and not calls


def test_attention_of_all_sides_is_the_same(tmp_path: Path) -> None:
    """Steps whose shapes change all the time leave cuDNN's attention out."""
    _, _, calls = run_steps(tmp_path, "check tests rollout train grpo learn", TORCH_CUDNN_SDPA_DEPRIORITIZED="0")
    assert {step: call[-1] for step, call in calls.items()} == {
        "check": "first", "tests": "first", "train": "first", "rollout": "1", "grpo": "1", "learn": "1"
    }  # fmt: skip


def test_a_run_of_the_learning_benchmark_that_is_stopped_is_no_error(steps_found: None, tmp_path: Path) -> None:
    import learn
    from kit import Kit

    (tmp_path / "log").write_text("the log's end")
    started = [subprocess.Popen(["sh", "-c", command]) for command in ("exec sleep 60", "exit 3")]
    running, wrong = (learn.Run("SFT", n, tmp_path, process, 0.0) for n, process in enumerate(started))
    started[1].wait()
    kit = Kit("learn", "tiny", 100.0, tmp_path)
    learn.write_running(kit, [running])
    on_disk = json.loads((tmp_path / "learn.json").read_text())["running"]["SFT, seed 0"]
    assert not on_disk["finished"] and "failed" not in on_disk
    learn.stop([running, wrong])
    found = [learn.figures(run) for run in (running, wrong)]
    assert [run["failed"] for run in found] == ["the log's end"] * 2
    assert [run["error"] for run in found] == [False, True]


def test_time_that_is_up_loses_no_output(steps_found: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import grpo
    from kit import Kit

    def takes_too_long(*_: Any, **__: Any) -> None:
        raise subprocess.TimeoutExpired("python", 5.0, output=b"test_a PASSED\ntest_b")

    monkeypatch.setattr(subprocess, "run", takes_too_long)
    kit = Kit("some", "tiny", 0.0, tmp_path)
    assert kit.measure("trl", lambda: grpo.in_process(kit, "trl", tmp_path), at_least=-1e9) is None
    assert kit.figures["items"]["trl"]["failed"] == "stopped when time was up"
    kit.finish()  # no error


TESTS = """
import json, pathlib

def test_that_passes():
    pass

def test_that_fails():
    assert 1 == 2, "the reason"

def test_after_them():
    figures = json.loads(pathlib.Path(__file__).with_name("tests.json").read_text())
    assert figures["tests"] == {"selected": 3, "passed": 1, "failed": 1, "skipped": 0}
    assert "the reason" in figures["items"]["test_some.py::test_that_fails"]["failed"]
    assert list(figures["running"]) == ["test_some.py::test_after_them"] and not figures["complete"]
"""


@pytest.mark.parametrize(
    "seconds, chosen, counts, ends_with",
    [
        (1e9, "that_passes", (1, 1, 0), None),
        (1e9, "test", (3, 2, 1), "tests: failed items: test_some.py::test_that_fails"),
        (0.0, "that", (2, 1, 0), None),  # time is up after the first
        (0.0, "that_fails or after", (2, 0, 1), "tests: some had failed when time was up"),
        (1e9, "nothing", (0, 0, 0), "tests: pytest ended with <ExitCode.NO_TESTS_COLLECTED: 5>"),
    ],
)
def test_results_of_gpu_tests_are_on_disk_as_each_ends(
    seconds: float, chosen: str, counts: tuple[int, int, int], ends_with: str | None, steps_found: None, tmp_path: Path
) -> None:
    from kit import Kit

    # pytest has made a module `tests` of this folder
    spec = importlib.util.spec_from_file_location("tests_of_the_gpu", BENCHMARKS / "gpu" / "tests.py")
    assert spec is not None and spec.loader is not None
    step = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(step)
    sys.modules.pop("test_some", None)  # that of the case before
    (tmp_path / "test_some.py").write_text(TESTS)
    (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = --import-mode=importlib")
    kit = Kit("tests", "tiny", seconds, tmp_path, {"complete": False})
    arguments = ["-c", str(tmp_path / "pytest.ini"), str(tmp_path / "test_some.py"), "-k", chosen]
    ending = pytest.raises(SystemExit) if ends_with else contextlib.nullcontext()
    with ending as error:
        step.run_tests(kit, arguments)
    assert error is None or str(error.value) == ends_with
    figures = json.loads((tmp_path / "tests.json").read_text()) if counts[0] else kit.figures
    assert figures["tests"] == dict(zip(("selected", "passed", "failed", "skipped"), (*counts, 0), strict=True))
    assert figures["complete"] == (0 < counts[0] == counts[1] + counts[2]) and "running" not in figures


def test_items_of_the_training_benchmark_are_in_order(steps_found: None) -> None:
    import train

    found = train.cases(train.FULL)
    assert len({case.name for case in found}) == len(found) == 22
    assert [(case.side, case.shape, case.lora, case.row) for case in found[:4]] == [
        (side, shape, True, 16384) for shape in ("qwen2.5-0.5b", "qwen2.5-1.5b") for side in ("sft", "sdpa")
    ]
    assert [case.row == 16384 and case.side == "grpo" for case in found] == [False] * 18 + [True] * 4
    large = {case.name for case in found if case.is_too_large}
    assert large == {
        "SFT by transformers, sdpa, qwen2.5-1.5b, LoRA, 16384 tokens a row",
        "SFT, qwen2.5-1.5b, all weights, 16384 tokens a row",
        "GRPO update, qwen2.5-1.5b, all weights, 16384 tokens a row",
    }
