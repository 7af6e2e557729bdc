"""Tests in forked processes: how long each takes, which lines it reaches, and which of them reach a line."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import coverage
import pytest
from forked import Child


class Recorder:
    """A plug-in of pytest: the seconds that each test takes, its lines, and the tests that fail."""

    def __init__(self, measured: coverage.Coverage | None = None) -> None:
        self.measured = measured
        self.seconds: dict[str, float] = defaultdict(float)
        self.failed: list[str] = []

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        if self.measured is not None:
            self.measured.switch_context(f"{item.nodeid}|setup")

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_call(self, item: pytest.Item) -> None:
        if self.measured is not None:
            self.measured.switch_context(f"{item.nodeid}|call")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.seconds[report.nodeid] += report.duration
        if report.failed:
            self.failed.append(report.nodeid)


def in_child(tree: Path, log: Path, limit: float, arguments: list[str], data: Path | None = None) -> dict[str, Any]:
    """Run pytest in a fork of this process, which has the large packages imported, but not the library.

    Returns:
        The exit code (None: stopped at the time limit), the seconds by test, and the tests that failed.
    """
    answer = log.with_suffix(".json")
    answer.unlink(missing_ok=True)
    log.unlink(missing_ok=True)

    def run() -> None:
        os.chdir(tree)
        sys.path[:0] = [str(tree)]
        os.environ["PYTHONPATH"] = str(tree)
        run_pytest(arguments, answer, data)

    if Child(run, log).wait_and_end(limit) is None:
        return {"code": None, "seconds": {}, "failed": []}
    return json.loads(answer.read_text()) if answer.exists() else {"code": 3, "seconds": {}, "failed": []}


def run_pytest(arguments: list[str], answer: Path, data: Path | None) -> None:
    """Run pytest here, and write down how it went."""
    measured = None
    if data is not None:
        measured = coverage.Coverage(data_file=str(data), source=["lit_rft"], config_file=False)
        measured.set_option("run:relative_files", True)
        measured.start()
    recorder = Recorder(measured)
    options = ["-q", "-p", "no:cacheprovider", "--tb=short"]
    code = int(pytest.main([*options, *arguments], plugins=[recorder]))
    if measured is not None:
        measured.stop()
        measured.save()
    answer.write_text(json.dumps({"code": code, "seconds": recorder.seconds, "failed": recorder.failed}))


class Reaching:
    """The tests that reach a line, and how long they take."""

    def __init__(self, data: Path, seconds: dict[str, float], failed: list[str], budget: float) -> None:
        self.data = coverage.CoverageData(str(data))
        self.data.read()
        self.seconds = {test: seconds[test] for test in seconds if test not in failed}
        self.budget = budget

    def tests_for(self, path: str, ranges: Sequence[tuple[int, int]]) -> list[str]:
        """Choose tests of a file's lines, the quickest files of tests first, up to the budget.

        Args:
            path: the file, relative to the repository.
            ranges: of lines (first, last); those of the first one that any test reaches count.
        """
        package = f"tests/{Path(path).parts[1]}/"
        contexts = self.data.contexts_by_lineno(path)
        reached: set[str] = set()
        for first, last in ranges:
            reached = reached or {each for line in range(first, last + 1) for each in contexts.get(line, []) if each}
        # a file that is only imported has no lines of a test
        reached = reached or {f"{test}|call" for test in self.seconds if test.startswith(package)}
        return self._within_budget(reached, package)

    def _within_budget(self, reached: set[str], package: str) -> list[str]:
        # what a fixture of a module reaches belongs to all tests of the module
        shared = {context.partition("::")[0] for context in reached if context.endswith("|setup")}
        calls = {context.removesuffix("|call") for context in reached}
        files: dict[str, list[str]] = defaultdict(list)
        for test in self.seconds:
            file = test.partition("::")[0]
            if test in calls or file in shared:
                files[file].append(test)
        cost = {file: sum(self.seconds[test] for test in tests) for file, tests in files.items()}
        chosen: list[str] = []
        left = self.budget
        for file in sorted(files, key=lambda file: (not file.startswith(package), cost[file])):
            for test in sorted(files[file], key=self.seconds.__getitem__) if cost[file] > left else files[file]:
                if self.seconds[test] <= left or not chosen:
                    chosen.append(test)
                    left -= self.seconds[test]
        return chosen


def measure(tree: Path, output: Path, budget: float, tests: Sequence[str]) -> Reaching:
    """Run all tests as they are, unless the library is the one that was measured last."""
    files = sorted((tree / "lit_rft").rglob("*.py"))
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()
    data, record = output / "reached.coverage", output / "measured.json"
    known = json.loads(record.read_text()) if record.exists() else {}
    if known.get("digest") != digest:
        print("Running the tests as they are ...", flush=True)
        data.unlink(missing_ok=True)
        known = in_child(tree, output / "measuring.log", 3600, list(tests), data)
        if known["code"] not in (0, 1) or not known["seconds"]:
            sys.exit(f"the tests did not run: exit code {known['code']}, see {output / 'measuring.log'}")
        record.write_text(json.dumps(known | {"digest": digest}))
    print(f"{len(known['seconds'])} tests; left out, since they fail without a change: {known['failed'] or 'none'}")
    return Reaching(data, known["seconds"], known["failed"], budget)
