"""The tests marked `gpu`, each on disk and in the log as soon as it has ended.

    TESTS='graphs or packed' python benchmarks/gpu/tests.py --output runs/gpu      # those that match; without it all

Without a GPU, the same tests on the CPU: for a trial of the step.
"""

from __future__ import annotations

import os
from typing import Any

# first: it adds the shared modules to the path
from kit import BENCHMARKS, DEVICE, Kit, begin, environment

import pytest  # isort: skip

TESTS = ("test_gpu.py", "generation/test_graphs.py")


class Reporter:
    """A pytest plugin: writes each test's result when it has ended, and starts none when time is up."""

    def __init__(self, kit: Kit) -> None:
        self.kit = kit
        self.counts = {"selected": 0, "passed": 0, "failed": 0, "skipped": 0}
        self.session: Any = None
        kit.figures |= {"tests": self.counts, "items": {}}

    @property
    def complete(self) -> bool:
        return self.counts["selected"] == self.counts["passed"] + self.counts["failed"] + self.counts["skipped"]

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self.session = session
        self.counts["selected"] = len(session.items)

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.kit.figures["running"] = {nodeid: {}}  # what hangs, where the step has to be killed
        self.kit.write()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        item = self.kit.figures["items"].setdefault(report.nodeid, {"result": "passed", "took": 0.0})
        item["took"] = round(item["took"] + report.duration, 2)
        if report.skipped:
            item["result"] = "skipped"
        elif report.failed:
            item |= {"result": "failed", "failed": report.longreprtext[-2000:], "error": True}
            print(f"\n{report.longreprtext}", flush=True)  # pytest's own summary comes at the end, if at all

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        self.counts[self.kit.figures["items"][nodeid]["result"]] += 1
        del self.kit.figures["running"]
        self.kit.write()
        if self.kit.seconds_left() <= 0:
            self.session.shouldstop = "time is up"


def run_tests(kit: Kit, arguments: list[str]) -> None:
    """Run the selected tests and end the step; one that is cut fails only if a test has failed by then."""
    reporter = Reporter(kit)
    code = pytest.main([*arguments, "-v", "--tb=short", "-p", "no:cacheprovider"], plugins=[reporter])
    if reporter.complete and code in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        kit.finish()
    elif kit.seconds_left() > 0:
        raise SystemExit(f"tests: pytest ended with {code!r}")
    elif reporter.counts["failed"]:
        raise SystemExit("tests: some had failed when time was up")


def main() -> None:
    kit, _ = begin("tests", __doc__)
    kit.output = kit.output.resolve()
    kit.figures |= environment()
    kit.write()
    on_device = DEVICE.type == "cuda"
    arguments = ["-c", "../setup.cfg", "-m", "gpu" if on_device else "not gpu", *TESTS]
    if chosen := os.environ.get("TESTS"):
        arguments += ["-k", chosen]
    # not from the repository's root: `import lit_rft` would find the folder instead of the installed package
    os.chdir(BENCHMARKS.parent / "tests")
    run_tests(kit, arguments)


if __name__ == "__main__":
    main()
